"""Run the commands of a page in docs/sites on an imitation of its site, and compare outputs.

    python -m slurm.testcluster.walk lumi             exit with 1 on a failure or a difference
    python -m slurm.testcluster.walk lumi --write     write the present outputs into the page

A page is read from top to bottom. Its commands are in `console` blocks: a line that starts with `$
` is a command, one with `> ` continues it, and the others are expected output. All share one shell
on the login node. A block of another kind whose first line is a comment with a path, such as `#
my/cluster/mine.yaml`, is a file that the user writes. In expected output, numbers, times and ids
match any others, `…` matches anything, and a line that is only `…` matches any number of lines.
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
from slurm.testcluster.sites import SiteCluster

PAGES = Path(__file__).parents[2] / "docs" / "sites"
SECONDS = 600.0  # time limit of a command, which may wait for a run
MOST_LINES = 14  # of an output that --write puts into a page
END = "\x1e"


@dataclass
class Command:
    """A command of a page and its expected output, in the page's lines from `first` to `last`."""

    text: str
    first: int
    expected: list[str] = field(default_factory=list)

    @property
    def last(self) -> int:
        return self.first + len(self.expected)


@dataclass
class File:
    """A file that the user writes, according to the page."""

    path: str
    text: str


class Shell:
    """A shell on the login node of a test cluster."""

    def __init__(self, cluster: SiteCluster, **variables: str) -> None:
        command = cluster.login("bash", "--noprofile", "--norc")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for name, value in variables.items():
            self.run(f"export {name}={shlex.quote(value)}")

    def run(self, command: str, seconds: float = SECONDS) -> tuple[int, str]:
        """Run a command; return its exit code and its output.

        Raises:
            TimeoutError: it takes longer than `seconds`.
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
            kind = line[3:].strip()
            block = []
        elif line.startswith("```"):
            path = re.match(r"# ((?:\w[\w.-]*/)+[\w.-]+)", block[0] if block else "")
            if path:
                found.append(File(path[1], "\n".join(block) + "\n"))
            kind = None
        elif kind == "console":
            _read_line(line, number, found)
        elif kind is not None:
            block.append(line)
    return found


def _read_line(line: str, number: int, found: list[Command | File]) -> None:
    """Add a line of a console block: a command, a continuation, or expected output."""
    last = found[-1] if found else None
    if line.startswith("$ "):
        found.append(Command(line[2:], number + 1))
    elif isinstance(last, Command) and line.startswith("> ") and not last.expected:
        last.text += f"\n{line[2:]}"
        last.first = number + 1
    elif isinstance(last, Command):
        last.expected.append(line)


def missing_line(expected: list[str], printed: str) -> str | None:
    """Return the first expected line that is missing from the output; None if none is."""
    lines = [_normalise(line) for line in printed.splitlines()]
    position = 0
    for line in expected:
        if line.strip() in ("", "…"):
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in _normalise(line).split("…")))
        while position < len(lines) and not pattern.fullmatch(lines[position]):
            position += 1
        if position == len(lines):
            return line
        position += 1
    return None


def _normalise(line: str) -> str:
    """Return a line with numbers, ids and spaces replaced that differ between runs."""
    line = re.sub(r"-\d{8}-\d{6}-\w+", "-ID", line)
    line = re.sub(r"\d[\d.,:]*", "0", line)
    return " ".join(line.split())


def walk(cluster: SiteCluster, text: str, *, write: bool = False) -> tuple[list[str], str]:
    """Run a page to its end, or to the first command that fails.

    Returns:
        the faults, and the page with the present outputs.
    """
    faults: list[str] = []
    lines = text.splitlines()
    shell = Shell(cluster)
    try:
        moved = 0
        for step in read_page(text):
            if isinstance(step, File):
                folder = Path(step.path).parent
                shell.run(f"mkdir -p {folder} && printf %s {shlex.quote(step.text)} >{step.path}")
                continue
            began = time.monotonic()
            code, printed = shell.run(step.text)
            print(f"$ {step.text}\n{printed}# exit code {code}, {time.monotonic() - began:.1f} s", flush=True)
            if code:
                faults.append(f"{step.text}: exit code {code}: {printed[-500:]}")
                break  # later commands depend on it
            line = missing_line(step.expected, printed)
            if line is not None and not write:
                faults.append(f"{step.text}: missing from its output: {line}\n{printed[-1000:]}")
            shown = _shorten(printed)
            lines[step.first + moved : step.last + moved] = shown
            moved += len(shown) - len(step.expected)
    finally:
        shell.close()
    return faults, "\n".join(lines) + "\n"


def _shorten(printed: str) -> list[str]:
    """Return an output as a page shows it: the end of a long one, in lines that fit."""
    lines = [line.rstrip() for line in printed.splitlines() if line.strip()]
    if len(lines) > MOST_LINES:
        lines = ["…", *lines[-MOST_LINES:]]
    return [line if len(line) <= 120 else f"{line[:119].rpartition(' ')[0]} …" for line in lines]


def main() -> None:
    summary = __doc__.partition("\n")[0]
    sites = sorted(path.stem for path in PAGES.glob("*.md") if path.stem in SITES)
    parser = argparse.ArgumentParser(description=summary, epilog="It needs root, on Linux.")
    parser.add_argument("site", choices=sites)
    parser.add_argument("--write", action="store_true", help="write the present outputs into the page")
    options = parser.parse_args()
    page = PAGES / f"{options.site}.md"
    cluster = SiteCluster.of(SITES[options.site], f"walk-{options.site}")
    cluster.up(owner=os.getpid())
    try:
        faults, text = walk(cluster, page.read_text(encoding="utf-8"), write=options.write)
    finally:
        cluster.down()
    if options.write and not faults:
        page.write_text(text, encoding="utf-8")
    if faults:
        sys.exit("\n\n".join([f"error: {page}: outputs differ from the page:", *faults]))


if __name__ == "__main__":
    main()
