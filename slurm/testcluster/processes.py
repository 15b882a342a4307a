"""Functions to run commands and daemons of the test cluster on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path


def run(
    command: list[str], *, check: bool = True, env: Mapping[str, str] | None = None, timeout: float = 30
) -> None:
    """Run a command.

    Raises:
        RuntimeError: the command failed, and `check` is set. The message contains the end of the output.
    """
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-500:]}")


def start_daemon(command: list[str], log: Path, **environment: str) -> int:
    """Start a daemon and return its process id.

    It has a session of its own, so that it does not receive the signals of this terminal or test.
    It inherits only a few environment variables, because Slurm's daemons pass theirs on to jobs.

    Args:
        log: file for its output.
        environment: further environment variables.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    inherited = {key: os.environ[key] for key in ("HOME", "LANG", "TZ") if key in os.environ}
    with log.open("ab") as output:
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**inherited, "PATH": path, **environment},
        )
    return started.pid


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process; do nothing if the process has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def is_listening(host: str, port: int) -> bool:
    """Return whether a TCP connection to the port succeeds."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False
