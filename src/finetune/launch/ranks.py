"""Start the ranks of a local run with submitit, and record how each rank ended.

    python -m finetune.launch.ranks JOBS_FOLDER

This command runs the controller, the parent process of the ranks. A rank that is killed cannot
record its own end, but its parent receives its exit status. The controller therefore writes the
exit statuses into a file, which causes.py reads.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.local import local

from finetune.runs import layout
from finetune.runs.records import Exits

POLL_SECONDS = 0.1


class Executor(submitit.LocalExecutor):  # type: ignore[misc]
    """submitit's local executor, except that it starts this module as the controller."""

    def _submit_command(self, command: str) -> Any:
        num_tasks = self.parameters["tasks_per_node"]
        controller_environment = {
            "SUBMITIT_LOCAL_NTASKS": str(num_tasks),
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * self.parameters["timeout_min"]),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "30",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune.launch.ranks", str(self.folder)],
            env={**os.environ, **controller_environment},
        )
        return local.LocalJob(
            folder=self.folder, job_id=str(process.pid), process=process, tasks=list(range(num_tasks))
        )


class Controller(local.Controller):  # type: ignore[misc]
    """submitit's controller of local ranks. It also records the exit status of each rank."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._exits: dict[int, int] = {}
        self._oom_kills_before = count_oom_kills()
        self._lock = threading.Lock()

    def wait(self, freq: int = 24) -> Sequence[int | None]:
        threading.Thread(target=self._keep_recording, args=(list(self.tasks),), daemon=True).start()
        codes: Sequence[int | None] = super().wait(freq)
        self._record(list(self.tasks))
        return codes

    def _keep_recording(self, tasks: list[subprocess.Popen[bytes]]) -> None:
        """Record each rank's exit status until all ranks have ended.

        This runs in a thread beside `wait`, because the process may be killed before `wait` returns.
        """
        while len(self._exits) < len(tasks):
            self._record(tasks)
            time.sleep(POLL_SECONDS)

    def _record(self, tasks: list[subprocess.Popen[bytes]]) -> None:
        with self._lock:
            codes = {rank: task.poll() for rank, task in enumerate(tasks)}
            ended = {rank: code for rank, code in codes.items() if code is not None}
            fresh = ended.keys() - self._exits.keys()
            if not fresh:
                return
            self._exits.update({rank: ended[rank] for rank in sorted(fresh)})
            oom_kills = count_oom_kills() - self._oom_kills_before
            Exits(self._exits, oom_kills).write(self.folder / layout.EXITS)


def count_oom_kills() -> int:
    """Return how many processes of this memory cgroup the kernel has killed for lack of memory.

    Return 0 if the cgroup does not report it.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            events = Path("/sys/fs/cgroup") / path.lstrip("/") / "memory.events"
        elif controllers == "memory":
            events = Path("/sys/fs/cgroup/memory") / path.lstrip("/") / "memory.oom_control"
        else:
            continue
        try:
            counts = dict(entry.split() for entry in events.read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError):
            continue
        return int(counts.get("oom_kill", 0))
    return 0


if __name__ == "__main__":
    Controller(Path(sys.argv[1])).run()
