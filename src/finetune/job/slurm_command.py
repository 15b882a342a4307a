"""Run Slurm's command-line programs, with a time limit and Slurm's own error messages.

Standard library only, Python 3.8 or newer: the batch script runs this outside any container
(batch_script.py).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping


class CommandError(RuntimeError):
    """A Slurm command failed, is missing, or timed out.

    Attributes:
        output: its output, unchanged; "" if it did not run.
        is_timeout: it did not answer in time.
    """

    def __init__(self, message: str, output: str = "", is_timeout: bool = False) -> None:
        super().__init__(message)
        self.output = output
        self.is_timeout = is_timeout


def run_command(
    *command: str, seconds: float, environment: Mapping[str, str] | None = None, stdin: str | None = None
) -> str:
    """Run a Slurm command and return its output.

    Raises:
        CommandError: it is not on PATH, failed, or did not answer in time.
    """
    name, *arguments = command
    program = shutil.which(name)
    if program is None:
        raise CommandError(f"{name} is not on PATH")
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
        raise CommandError(f"{name} did not answer within {seconds:.0f} s", is_timeout=True) from None
    if done.returncode:
        output = done.stderr if done.stderr.strip() else done.stdout
        reason = " ".join(output.split()) or f"exit code {done.returncode}"
        raise CommandError(f"{name}: {reason}", output or reason)
    return done.stdout.strip()
