"""Run the commands of a page and compare their output with the page.

    python -m docs.walk PAGE …             exit code 1 if a command fails or its output differs
    python -m docs.walk PAGE … --write     write the output of each command into the page

Pages are run in the given order, by one shell in one folder. A page is read from top to bottom. Its
commands are in code blocks of the language `console`. In such a block, a line that begins with `$ `
is a command, a line that begins with `> ` continues the command, and all other lines are expected
output. A block of another language is a file that the reader of the page has to write, if its first
line is a comment with a path, such as `# my/corpus/letters.yaml`.

In expected output, any number, time or id matches any other, "…" matches any text, and a line "…"
matches any number of lines.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TIMEOUT_S = 600.0  # for one command; some commands wait for a run
MAX_SHOWN_LINES = 14  # maximum number of lines of a command's output that --write writes
MAX_SHOWN_COLUMNS = 120
END = "\x1e"


@dataclass
class Command:
    """A command of a page.

    Attributes:
        first: index in the page of the line after the command, where its expected output begins.
        expected: the lines of expected output.
    """

    text: str
    first: int
    expected: list[str] = field(default_factory=list)

    @property
    def last(self) -> int:
        return self.first + len(self.expected)


@dataclass
class File:
    """A file that the reader of a page has to write."""

    path: str
    text: str


class Shell:
    """A bash process that runs commands one by one.

    Args:
        command: the command line that starts the shell.
        folder: working folder of the shell; None for the caller's.
        environment: environment variables of the shell; None for the caller's.
    """

    def __init__(
        self,
        command: Sequence[str] = ("bash", "--noprofile", "--norc"),
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            list(command),
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.run("set -o pipefail")

    def run(self, command: str, timeout_s: float = TIMEOUT_S) -> tuple[int, str]:
        """Run one command; return its exit code and its output, standard error included.

        Raises:
            TimeoutError: the command has not ended after `timeout_s` seconds.
            RuntimeError: the shell has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = f"eval {shlex.quote(command)} </dev/null; printf '{END}%s{END}' $?\n"
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()
        end_mark = re.compile(rf"{END}(\d+){END}$".encode())
        printed = b""
        end = time.monotonic() + timeout_s
        while (mark := end_mark.search(printed)) is None:
            output = printed.decode(errors="replace")[-1000:]
            if time.monotonic() > end:
                raise TimeoutError(f"{command}: still running after {timeout_s:.0f} s; its output: {output}")
            if not select.select([self._process.stdout], [], [], 1)[0]:
                continue
            part = os.read(self._process.stdout.fileno(), 65536)
            if not part:
                raise RuntimeError(f"{command}: the shell has ended; its output: {output}")
            printed += part
        return int(mark[1]), printed[: mark.start()].decode()

    def write(self, file: File) -> None:
        folder = shlex.quote(str(Path(file.path).parent))
        self.run(f"mkdir -p {folder} && printf %s {shlex.quote(file.text)} >{shlex.quote(file.path)}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def read_page(text: str) -> list[Command | File]:
    """Return the commands and files of a page, in order."""
    found: list[Command | File] = []
    block: list[str] = []
    language: str | None = None
    for number, line in enumerate(text.splitlines()):
        if language is None and line.startswith("```"):
            language = line[3:].strip()
            block = []
        elif line.startswith("```"):
            if block and (path := re.match(r"# ((?:\w[\w.-]*/)+[\w.-]+)", block[0])):
                found.append(File(path[1], "\n".join(block) + "\n"))
            language = None
        elif language == "console":
            _read_line(line, number, found)
        elif language is not None:
            block.append(line)
    return found


def _read_line(line: str, number: int, found: list[Command | File]) -> None:
    """Add a line of a console block to `found`: a command, its continuation, or expected output.

    Args:
        number: index of the line in the page.
        found: the commands and files read so far.
    """
    last = found[-1] if found else None
    if line.startswith("$ "):
        found.append(Command(line[2:], number + 1))
    elif isinstance(last, Command) and line.startswith("> ") and not last.expected:
        last.text += f"\n{line[2:]}"
        last.first = number + 1
    elif isinstance(last, Command):
        last.expected.append(line)


def missing_line(expected: list[str], printed: str) -> str | None:
    """Return the first expected line that was not printed, or not in the expected order.

    Return None if all were printed.
    """
    lines = [_normalize(line) for line in printed.splitlines()]
    position = 0
    for line in expected:
        if line.strip() in ("", "…"):
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in _normalize(line).split("…")))
        while position < len(lines) and not pattern.fullmatch(lines[position]):
            position += 1
        if position == len(lines):
            return line
        position += 1
    return None


def _normalize(line: str) -> str:
    """Return a line with ids, numbers and repeated spaces replaced.

    Two lines that differ only in these become equal.
    """
    line = re.sub(r"-\d{8}-\d{6}-\w+", "-ID", line)
    line = re.sub(r"\d[\d.,:]*", "0", line)
    return " ".join(line.split())


def walk(
    shell: Shell, text: str, *, replace: Mapping[str, str] | None = None, write: bool = False
) -> tuple[list[str], str]:
    """Write the files of a page, run its commands, and compare their output with the page.

    End at the first command that fails.

    Args:
        replace: texts of the page, and their replacements in the commands that are run. An example
            is a path in the page that stands for a path of the reader's own.
        write: True to accept any output.

    Returns:
        The failed commands and differences, and the page with the output of its commands.
    """
    faults: list[str] = []
    lines = text.splitlines()
    moved = 0
    for step in read_page(text):
        if isinstance(step, File):
            shell.write(File(step.path, _substitute(step.text, replace)))
            continue
        began = time.monotonic()
        code, printed = shell.run(_substitute(step.text, replace))
        print(f"$ {step.text}\n{printed}# exit code {code}, {time.monotonic() - began:.1f} s", flush=True)
        if code:
            faults.append(f"{step.text}: exit code {code}: {printed[-500:]}")
            break  # later commands depend on it
        missing = missing_line(step.expected, printed)
        if missing is not None and not write:
            faults.append(f"{step.text}: did not print: {missing}\n{printed[-1000:]}")
        shown = _shorten(printed)
        lines[step.first + moved : step.last + moved] = shown
        moved += len(shown) - len(step.expected)
    return faults, "\n".join(lines) + "\n"


def _substitute(text: str, replace: Mapping[str, str] | None) -> str:
    for old, new in (replace or {}).items():
        text = text.replace(old, new)
    return text


def _shorten(printed: str) -> list[str]:
    """Return output as a page shows it: only the last lines, and long lines shortened."""
    lines = [line.rstrip() for line in printed.splitlines() if line.strip()]
    if len(lines) > MAX_SHOWN_LINES:
        lines = ["…", *lines[-MAX_SHOWN_LINES:]]
    return [_shorten_line(line) for line in lines]


def _shorten_line(line: str) -> str:
    if len(line) <= MAX_SHOWN_COLUMNS:
        return line
    return f"{line[: MAX_SHOWN_COLUMNS - 1].rpartition(' ')[0]} …"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.walk", description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="write the output of each command into the page")
    parser.add_argument(
        "--folder",
        type=Path,
        help="run the pages in this folder and keep it (default: a temporary folder)",
    )
    parser.add_argument(
        "--replace",
        nargs=2,
        action="append",
        default=[],
        metavar=("OLD", "NEW"),
        help="replace the text OLD of the pages by NEW",
    )
    options = parser.parse_args()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        shell = Shell(folder=folder, environment=environment())
        for page in options.pages:
            found, text = walk(
                shell, page.read_text("utf-8"), replace=dict(options.replace), write=options.write
            )
            faults += [f"{page}: {fault}" for fault in found]
            if options.write and not found:
                page.write_text(text, "utf-8")
        shell.close()
    if faults:
        sys.exit("\n\n".join(["error: a page does not match the output of its commands", *faults]))


def environment() -> dict[str, str]:
    """Return the environment variables of the shell in which the commands of a page run.

    The commands of this Python come first in PATH, GPUs are hidden, and output is 100 columns wide.
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100"}


if __name__ == "__main__":
    main()
