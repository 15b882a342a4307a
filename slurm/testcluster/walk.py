"""Run the commands of a page of docs/sites on the test cluster dressed as that site, and compare what they
print.

    python -m slurm.testcluster.walk lumi             exit code 1 if a command fails or prints something else
    python -m slurm.testcluster.walk lumi --write     puts what they print now into the page

A page is read from top to bottom. Its commands are in blocks of `console`: a line that begins with `$ ` is a
command, one with `> ` continues it, the others are expected output. They share one shell on the login node. A
block of another kind whose first line is a comment with a path, as `# my/cluster/mine.yaml`, is a file that
the user writes. In expected output, a number, a time or an id stands for any, and … for anything; a line of …
alone, for any number of lines.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from slurm.testcluster.site_profiles import SITES
from slurm.testcluster.sites import DressedCluster

PAGES = Path(__file__).parents[2] / "docs" / "sites"
SECONDS = 600.0  # for one command: a run has to be waited for
MOST_LINES = 14  # of output that --write puts into a page
END = "\x1e"


@dataclass
class Command:
    """A command of a page, and what it prints there, in the page's lines from `first` to `last`."""

    text: str
    first: int
    expected: list[str] = field(default_factory=list)

    @property
    def last(self) -> int:
        return self.first + len(self.expected)


@dataclass
class File:
    """A file that the page tells the user to write."""

    path: str
    text: str


class Shell:
    """One shell on the login node of a dressed cluster."""

    def __init__(self, cluster: DressedCluster, **variables: str) -> None:
        command = cluster.login("bash", "--noprofile", "--norc")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for name, value in variables.items():
            self.run(f"export {name}={shlex.quote(value)}")

    def run(self, command: str, seconds: float = SECONDS) -> tuple[int, str]:
        """Run one command; return its exit code and what it printed.

        Raises:
            TimeoutError: it takes longer.
            RuntimeError: the shell has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = f"eval {shlex.quote(command)} </dev/null; printf '{END}%s{END}' $?\n"
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()
        printed = b""
        end = time.monotonic() + seconds
        while not (found := re.search(rf"{END}(\d+){END}$".encode(), printed)):
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{command}: no end within {seconds:.0f} s; it printed {printed.decode()[-1000:]}"
                )
            if not select.select([self._process.stdout], [], [], 1)[0]:
                continue
            part = os.read(self._process.stdout.fileno(), 65536)
            if not part:
                raise RuntimeError(f"{command}: the shell has ended; it printed {printed.decode()[-1000:]}")
            printed += part
        return int(found[1]), printed[: found.start()].decode()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def read_page(text: str) -> list[Command | File]:
    """Return the commands and files of a page, in order."""
    found: list[Command | File] = []
    block: list[str] = []
    kind: str | None = None
    for number, line in enumerate(text.splitlines()):
        if kind is None and line.startswith("```"):
            kind, block = line[3:].strip(), []
        elif line.startswith("```"):
            if path := re.match(r"# ((?:\w[\w.-]*/)+[\w.-]+)", block[0] if block else ""):
                found.append(File(path[1], "\n".join(block) + "\n"))
            kind = None
        elif kind == "console":
            _read_line(line, number, found)
        elif kind is not None:
            block.append(line)
    return found


def _read_line(line: str, number: int, found: list[Command | File]) -> None:
    """Add a line of a console block: a command, more of one, or what it prints."""
    last = found[-1] if found else None
    if line.startswith("$ "):
        found.append(Command(line[2:], number + 1))
    elif isinstance(last, Command) and line.startswith("> ") and not last.expected:
        last.text += f"\n{line[2:]}"
        last.first = number + 1
    elif isinstance(last, Command):
        last.expected.append(line)


def missing_line(expected: list[str], printed: str) -> str | None:
    """Return the first expected line that was not printed in its place, or None."""
    lines = [_normalised(line) for line in printed.splitlines()]
    position = 0
    for line in expected:
        if line.strip() in ("", "…"):
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in _normalised(line).split("…")))
        while position < len(lines) and not pattern.fullmatch(lines[position]):
            position += 1
        if position == len(lines):
            return line
        position += 1
    return None


def _normalised(line: str) -> str:
    """Return a line with all that differs from one time to the next made equal."""
    line = re.sub(r"-\d{8}-\d{6}-\w+", "-ID", line)
    line = re.sub(r"\d[\d.,:]*", "0", line)
    return " ".join(line.split())


def walk(cluster: DressedCluster, text: str, *, write: bool = False) -> tuple[list[str], str]:
    """Run a page, to its end or to the first command that fails.

    Returns:
        faults, and the page with what the commands printed.
    """
    faults: list[str] = []
    lines = text.splitlines()
    shell = Shell(cluster)
    try:
        moved = 0
        for step in read_page(text):
            if isinstance(step, File):
                shell.run(
                    f"mkdir -p {Path(step.path).parent} && printf %s {shlex.quote(step.text)} >{step.path}"
                )
                continue
            began = time.monotonic()
            code, printed = shell.run(step.text)
            print(f"$ {step.text}\n{printed}# exit code {code}, {time.monotonic() - began:.1f} s", flush=True)
            if code:
                faults.append(f"{step.text}: exit code {code}: {printed[-500:]}")
                break  # what follows builds upon it
            if (line := missing_line(step.expected, printed)) is not None and not write:
                faults.append(f"{step.text}: did not print: {line}\n{printed[-1000:]}")
            shown = _shortened(printed)
            lines[step.first + moved : step.last + moved] = shown
            moved += len(shown) - len(step.expected)
    finally:
        shell.close()
    return faults, "\n".join(lines) + "\n"


def _shortened(printed: str) -> list[str]:
    """Return output as a page shows it: its end where it is long, and lines that fit."""
    lines = [line.rstrip() for line in printed.splitlines() if line.strip()]
    if len(lines) > MOST_LINES:
        lines = ["…", *lines[-MOST_LINES:]]
    return [line if len(line) <= 120 else f"{line[:119].rpartition(' ')[0]} …" for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog="It needs root, on Linux."
    )
    parser.add_argument(
        "site", choices=sorted(path.stem for path in PAGES.glob("*.md") if path.stem in SITES)
    )
    parser.add_argument("--write", action="store_true", help="put what they print into the page")
    options = parser.parse_args()
    page = PAGES / f"{options.site}.md"
    cluster = DressedCluster.of(SITES[options.site], f"walk-{options.site}")
    cluster.up(owner=os.getpid())
    try:
        faults, text = walk(cluster, page.read_text(encoding="utf-8"), write=options.write)
    finally:
        cluster.down()
    if options.write and not faults:
        page.write_text(text, encoding="utf-8")
    sys.exit("\n\n".join(["error: the page is not what happens:", *faults]) if faults else 0)


if __name__ == "__main__":
    main()
