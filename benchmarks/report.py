"""Parts of benchmark reports: descriptions of machine and command, and sections of RESULTS.md."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
# How a table shows Measurement.isolated.
ISOLATED = {True: "yes", False: "**no**", None: "one per row"}


def machine() -> dict[str, Any]:
    """Return a description of this machine for a report."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    names = [value.strip() for key, _, value in lines if key.strip() == "model name"]
    flags = {flag for key, _, value in lines if key.strip() == "flags" for flag in value.split()}
    vectors = ""
    if "avx512f" in flags:
        vectors = " with AVX-512"
    elif "avx2" in flags:
        vectors = " with AVX2"
    cores = len(os.sched_getaffinity(0))
    return {
        "cpu": f"{next(iter(names), platform.processor())}{vectors}",
        "cores": cores,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(),
        "python": platform.python_version(),
        "gpu": _gpu_name(),
    }


def command(module: str) -> str:
    """Return the command line of this benchmark for a report.

    FOLDER stands in place of each argument that contains a slash.
    """
    given = ["FOLDER" if "/" in argument else argument for argument in sys.argv[1:]]
    return shlex.join(["python", "-m", module, *given])


def revision() -> str:
    """Return the git revision of the checkout, with "+" if it has uncommitted changes."""
    command = ["git", "-C", str(HERE.parent), "describe", "--always", "--abbrev=10", "--dirty=+"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def origin(module: str) -> str:
    """Return a line for a report: the table's command, the revision, the date and the machine."""
    here = machine()
    return (
        f"`{command(module)}`, revision {revision()}, {time.strftime('%Y-%m-%d')}; "
        f"{here['cpu']}, {here['cores']} cores, {here['memory_gib']} GiB, Python {here['python']}."
    )


def write_section(name: str, body: str) -> None:
    """Write a section of RESULTS.md: replace the section with this name, or append a new one.

    A section lies between the HTML comments "begin NAME" and "end NAME".

    Args:
        body: the text of the section, in Markdown.
    """
    path = HERE / "RESULTS.md"
    begin = f"<!-- begin {name} -->"
    end = f"<!-- end {name} -->"
    section = f"{begin}\n{body.strip()}\n{end}"
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    if begin in text:
        before, rest = text.split(begin, 1)
        text = before + section + rest.split(end, 1)[1]
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    path.write_text(text, encoding="utf-8")


def raw_file(name: str) -> Path:
    return HERE / "results" / f"{time.strftime('%Y-%m-%d')}-{name}.json"


def write_raw(name: str, body: dict[str, Any]) -> None:
    path = raw_file(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _gpu_name() -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--id=0", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
