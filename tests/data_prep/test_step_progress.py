"""Progress: one live line on a terminal, a few plain lines elsewhere, and no lost warning."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

PROGRAM = """
import logging, sys
from data_prep import step_progress
from data_prep.workers import Workers

def work(number):
    logging.getLogger("data_prep.containers").warning("file %d breaks off", number)
    return True

if __name__ == "__main__":
    step_progress.LOG_SECONDS = float(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    names = [f"step_number_{number}.collect" for number in range(24)]
    with Workers(int(sys.argv[2]), names) as workers:
        for name in names:
            workers.run(name, work, (), [1000] * (2 if name == names[3] else 1))
"""


def write_program(folder: Path) -> Path:
    path = folder / "program.py"
    path.write_text(PROGRAM)
    return path


def run_on_terminal(command: list[str], columns: int) -> str:
    """Return all output of a command on a terminal that is `columns` wide."""
    process, descriptor = pty.fork()
    if process == 0:
        os.execvp(command[0], command)
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    written = b""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # the command has closed the terminal
            break
        if not piece:
            break
        written += piece
    os.waitpid(process, 0)
    return written.decode()


def test_a_terminal_shows_one_line_that_fits_with_warnings_above_it(tmp_path: Path) -> None:
    shown = run_on_terminal([sys.executable, str(write_program(tmp_path)), "30", "2"], columns=80)
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in re.split(r"[\r\n]+", shown)]
    assert max(len(line) for line in lines if "done in" not in line) <= 80
    assert any(line.startswith("step 24/24 step_number_23.collect ") for line in lines)
    kept = [line for line in shown.split("\n") if "\x1b[2K" not in line]
    assert not [line for line in lines if "breaks off" in line and "step_number" in line], (
        "a warning overlaps the live line"
    )
    assert sum("file 1 breaks off" in line for line in lines) == 1, "a worker's warning is shown once"
    assert len([line for line in kept if "step " in line and "done in" not in line]) <= 1, (
        "the live line is redrawn in place"
    )
    assert any(line.startswith("24 of 24 steps done in") for line in lines)


def test_a_pipe_gets_a_few_plain_lines(tmp_path: Path) -> None:
    command = [sys.executable, str(write_program(tmp_path))]
    quick = subprocess.run(
        [*command, "30", "1"], capture_output=True, text=True, check=True
    ).stderr.splitlines()
    assert [line for line in quick if "breaks off" not in line] == [quick[-1]]
    assert re.fullmatch(
        r"24 of 24 steps done in \d+\.\d s: .*step_number_\d+\.collect \d+\.\d s.*", quick[-1]
    )
    long = subprocess.run([*command, "0", "1"], capture_output=True, text=True, check=True).stderr
    assert re.search(r"^step 1/24 step_number_0.collect: 1/1 tasks, \d+ s$", long, re.MULTILINE)
