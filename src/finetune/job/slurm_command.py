"""Run Slurm's command-line programs, with a time limit and Slurm's own error messages.

This module also runs on the batch host, outside any container (batch_script.py). It uses only the
standard library and Python 3.8.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping


class CommandError(RuntimeError):
    """A Slurm command failed, is missing, or timed out.

    Attributes:
        output: the command's output, unchanged; "" if it did not run or was stopped.
        is_timeout: True if it was stopped at the time limit.
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
        CommandError: the command is not on PATH, failed, or did not end within `seconds`.
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
