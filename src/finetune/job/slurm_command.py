"""Run one of Slurm's programs: each gets a limited time, and fails with Slurm's own message.

Only the standard library, from Python 3.8 on: the batch script runs this outside of a container
(batch_script.py).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping


class Refused(RuntimeError):
    """A command of Slurm failed.

    Attributes:
        output: what it printed, as it is; "" if it did not run.
        is_silent: whether it did not answer in time.
    """

    def __init__(self, message: str, output: str = "", is_silent: bool = False) -> None:
        super().__init__(message)
        self.output = output
        self.is_silent = is_silent


def run_command(
    *command: str, seconds: float, environment: Mapping[str, str] | None = None, stdin: str | None = None
) -> str:
    """Run one of Slurm's commands; return its output.

    Raises:
        Refused: it is not on PATH, failed, or did not answer in time.
    """
    name, *arguments = command
    program = shutil.which(name)
    if program is None:
        raise Refused(f"{name} is not on PATH")
    try:
        done = subprocess.run(
            [program, *arguments],
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Refused(f"{name} did not answer within {seconds:.0f} s", is_silent=True) from None
    if done.returncode:
        output = done.stderr if done.stderr.strip() else done.stdout
        reason = " ".join(output.split()) or f"exit code {done.returncode}"
        raise Refused(f"{name}: {reason}", output or reason)
    return done.stdout.strip()
