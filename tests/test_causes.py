"""The cause of a rank's death is named with a remedy; an unknown cause is not guessed.

Evidence for the cause is in the ranks' logs, their exit statuses and Slurm's job state.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from finetune.launch.ranks import count_oom_kills
from finetune.runs import causes, layout
from finetune.runs.causes import LOCAL, ON_SLURM, Evidence
from finetune.runs.records import Failure
from finetune.runs.state import FailureKind

START = "submitit INFO (2026-11-28 08:07:31,384) - Starting with JobEnvironment(job_id=7, hostname=node1)\n"
LOST = Failure(time=1.0, rank=0, error="RuntimeError: Connection closed by peer [10.0.0.1]:3")
FAULT_HANDLER = (
    "Fatal Python error: Segmentation fault\n\nThread 0x1 (most recent call first):\n"
    '  File "/threading.py", line 1 in wait\n\n'
    "Current thread 0x00007f (most recent call first):\n"
    '  File "/opt/lib/flash.py", line 12 in attend\n  File "/opt/lib/model.py", line 3 in forward\n'
)


@dataclass
class Case:
    """Evidence that a failed attempt leaves, and the parts that the error message must contain."""

    id: str
    expected: list[str]
    logs: dict[int, str] = field(default_factory=dict)
    failures: tuple[Failure, ...] = (LOST,)
    exits: dict[int, int] = field(default_factory=dict)
    code: int | None = None
    state: str = ""
    place: str = ON_SLURM
    oom_kills: int = 0


def crash(error: str) -> tuple[Failure, ...]:
    return (LOST, Failure(time=2.0, rank=1, error=error))


def log_of_rank_1(line: str) -> dict[int, str]:
    """Return the logs of two ranks. Both have a start message; that of rank 1 also has the line."""
    return {0: START, 1: f"{START}{line}\n"}


def exit_of(code: str) -> str:
    return f"srun: error: n1: task 0: Exited with exit code {code}\n"


CASES = [
    Case(
        "a step of Slurm that ran out of memory",
        ["rank 1 on node2: killed because host memory ran out (1 oom_kill event)", "cluster.memory_per_node"],
        {
            0: START + "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step "
            "tasks have been OOM Killed.\nsrun: error: node2: task 1: Out Of Memory\n"
        },
        code=137,
    ),
    Case(
        "a newer Slurm's message of the same",
        ["killed because host memory ran out (1 oom-kill event)"],
        {
            0: f"{START}slurmstepd: error: Detected 1 oom-kill event(s) in step 7.0 cgroup.\n"
            "srun: error: n: task 1: Killed\n"
        },
    ),
    Case(
        "Slurm's state",
        ["killed because host memory ran out (Slurm: OUT_OF_MEMORY)"],
        log_of_rank_1("step"),
        state="OUT_OF_MEMORY",
    ),
    Case(
        "the kernel's count on this machine",
        ["rank 1: killed because host memory ran out", "1 oom_kill", "close other programs"],
        log_of_rank_1("step"),
        exits={1: -9, 0: 1},
        place=LOCAL,
        oom_kills=1,
    ),
    Case(
        "SIGKILL of unknown origin",
        [
            "rank 1 on node2: killed by SIGKILL, and its log shows no reason",
            "MaxRSS",
            "last line of its log: the 7th step",
        ],
        {0: START + "srun: error: node2: task 1: Killed\n", 1: START + "the 7th step\n"},
    ),
    Case(
        "SIGKILL on this machine",
        ["rank 1: killed by SIGKILL", "journalctl -k", "its log is empty"],
        {0: START, 1: ""},
        exits={1: -9},
        place=LOCAL,
    ),
    Case(
        "a crash in native code",
        ["rank 1: crashed in native code (SIGSEGV", "in attend of /opt/lib/flash.py"],
        log_of_rank_1(FAULT_HANDLER),
        exits={1: -11, 0: -9},
    ),
    Case(
        "a crash that srun reports, before the kills that follow",
        ["rank 3 on node4: crashed in native code (SIGSEGV"],
        {
            0: f"{START}srun: error: node1: task 0: Killed\n"
            "srun: error: node4: task 3: Segmentation fault (core dumped)\n"
        },
        failures=(),
    ),
    Case(
        "a bus error of shared memory",
        ["/dev/shm is full"],
        log_of_rank_1(
            "ERROR: Unexpected bus error encountered in worker. Bus error. insufficient shared memory (shm)"
        ),
        exits={1: -7},
    ),
    Case(
        "another bus error",
        ["SIGBUS", "truncated while it was read"],
        log_of_rank_1("Fatal Python error: Bus error"),
        exits={1: -7},
    ),
    Case(
        "an instruction that the CPU lacks",
        ["SIGILL", "built for the node's CPU"],
        log_of_rank_1("x"),
        exits={1: -4},
    ),
    Case("an abort", ["SIGABRT"], log_of_rank_1("free(): invalid pointer"), exits={1: -6}),
    Case(
        "an exit code of 128 + 6",
        ["SIGABRT"],
        {0: START + "srun: error: n2: task 1: Exited with exit code 134\n"},
    ),
    Case(
        "GPU memory",
        [
            "rank 1: GPU memory ran out (CUDA out of memory. Tried to allocate 2.00 GiB",
            "lower micro_batch_size",
        ],
        failures=crash(
            "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has … "
            "(traceback in jobs/)"
        ),
    ),
    Case(
        "a full disk",
        ["rank 1: the disk is full at /runs/x", "free space"],
        failures=crash("OSError: [Errno 28] No space left on device: '/runs/x' (traceback in jobs/)"),
    ),
    Case(
        "a full disk on which no failure could be recorded",
        ["a file was written only in part", "full disk"],
        log_of_rank_1("OSError: 175 requested and 97 written"),
    ),
    Case(
        "a quota", ["the disk quota is used up"], failures=crash("OSError: [Errno 122] Disk quota exceeded")
    ),
    Case(
        "an older C library",
        ["lack GLIBC_2.34, which is needed by /opt/a.so", "cluster.python"],
        log_of_rank_1(
            "ImportError: /lib64/libc.so.6: version `GLIBC_2.34' not found (required by /opt/a.so)"
        ),
    ),
    Case(
        "a missing shared library",
        ["libcudart.so.12 is not found", "cluster.modules"],
        log_of_rank_1(
            "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory"
        ),
    ),
    Case(
        "an image that is not there",
        ["the container did not start (could not open image /x.sif", "binds"],
        {0: "FATAL:   could not open image /x.sif: no such file or directory\n" + exit_of("255")},
        failures=(),
        code=255,
    ),
    Case(
        "a Python that is not there",
        ["the node has no command /opt/python3.12", "cluster.python"],
        {0: "/spool/slurm_script: line 30: /opt/python3.12: No such file or directory\n"},
        failures=(),
        state="FAILED",
    ),
    Case(
        "a Python that srun does not find",
        ["the node has no command python9"],
        {0: "slurmstepd: error: execve(): python9: No such file or directory\n" + exit_of("2")},
        failures=(),
        code=2,
    ),
    Case(
        "no module command",
        ["no module command (module: command not found)", "cluster.modules"],
        {0: "/spool/job: line 20: module: command not found\n"},
        failures=(),
        state="FAILED",
    ),
    Case(
        "a missing command that follows from a missing module",
        ["a module cannot be loaded (no Python)", "after that, the node has no command python3"],
        {0: "Lmod has detected the following error: no Python\nx: line 3: python3: command not found\n"},
        failures=(),
        state="FAILED",
    ),
    Case(
        "Lmod",
        ['a module cannot be loaded (The following module(s) are unknown: "CUDA/99")', "module spider"],
        {0: 'Lmod has detected the following error:  The following module(s) are unknown: "CUDA/99"\n'},
        failures=(),
        state="FAILED",
    ),
    Case(
        "an error of the batch script itself",
        ["cluster.modules: 'module load a' failed on n1; choose modules that n1 has"],
        {0: "error: cluster.modules: 'module load a' failed on n1; choose modules that n1 has\n"},
        failures=(),
        state="FAILED",
    ),
    Case(
        "a host's Python that is too old for the helper",
        ["older than 3.8", "cluster.host_python"],
        {0: "  File x.py, line 3\nSyntaxError: future feature annotations is not defined\n"},
        failures=(),
        state="FAILED",
    ),
    Case(
        "a time limit",
        ["the time limit ended the job", "signal_lead_s"],
        {
            0: START
            + "slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT 2026-11-28T08:00:00 DUE TO TIME LIMIT ***\n"
        },
        failures=(),
        code=143,
    ),
    Case(
        "a preemption",
        ["higher priority"],
        {
            0: START
            + "slurmstepd: error: *** STEP 7.0 ON n CANCELLED AT 2026-11-28T08:00:00 DUE TO PREEMPTION ***\n"
        },
        failures=(),
        code=143,
    ),
    Case("a failed node", ["a node failed"], {0: START}, failures=(), state="NODE_FAIL"),
    Case(
        "a timeout of NCCL",
        ["a collective timed out", "logs of all ranks"],
        log_of_rank_1("[rank1]: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)"),
        exits={1: -6},
    ),
    Case(
        "a GPU of another architecture",
        ["the installed torch cannot run on this GPU"],
        failures=crash("RuntimeError: CUDA error: no kernel image is available for execution on the device"),
    ),
    Case(
        "an error for users, unchanged",
        ["cluster.ranks_per_node is 4, but 2 GPUs are visible"],
        failures=(
            Failure(1.0, 0, "cluster.ranks_per_node is 4, but 2 GPUs are visible", kind=FailureKind.MISTAKE),
        ),
    ),
    Case(
        "an exit code alone",
        ["rank 1: its log shows no known cause (exit code 3); last line of its log: epoch 3"],
        log_of_rank_1("epoch 3"),
        exits={1: 3},
    ),
    Case("lost peers alone", ["Connection closed by peer"], failures=(LOST, replace(LOST, rank=1))),
    Case(
        "a job without ranks",
        ["its log shows no known cause (exit code 9); last line of its log: setting up"],
        {0: "setting up\n"},
        failures=(),
        code=9,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_cause_is_named_with_a_remedy(case: Case) -> None:
    evidence = Evidence(
        2, case.place, case.logs, case.failures, case.exits, case.code, case.state, case.oom_kills
    )
    sentence = causes.explain(evidence)
    assert sentence is not None
    for part in case.expected:
        assert part in sentence
    assert "?" not in sentence
    assert "\n" not in sentence


def test_without_evidence_no_cause_is_named() -> None:
    assert causes.explain(Evidence(2, LOCAL)) is None


def test_a_log_is_read_from_the_start_of_the_newest_attempt(tmp_path: Path) -> None:
    """A job's log contains all attempts. An earlier attempt's error must not explain the last."""
    (tmp_path / "jobs").mkdir()
    earlier = (
        f"{START}slurmstepd: error: Detected 1 oom_kill event in StepId=7.0\n"
        "2026-11-28 08:00:00 finetune: died: requeue\n"
    )
    first = f"{earlier}{START}srun: error: node2: task 1: Killed\n"
    (tmp_path / "jobs" / "7_0_log.out").write_text(first)
    (tmp_path / "jobs" / "7_1_log.out").write_text(f"{START}MemoryError\n{START}the second start\n")
    sentence = causes.explain(causes.collect_evidence(tmp_path, [LOST], 2, code=137, job="7"))
    assert sentence is not None
    assert sentence.startswith("rank 1 on node2: killed by SIGKILL")
    assert sentence.endswith("last line of its log: the second start")


@pytest.mark.parametrize("message", [causes.TIME_LIMIT_MESSAGE, "the time limit strikes"])
def test_the_message_of_the_time_limit_does_not_begin_an_attempt(tmp_path: Path, message: str) -> None:
    """Lines before the message are read, too: the message is logged during an attempt.

    The first tested message is the current one; an earlier version logged the second.
    """
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "7_0_log.out").write_text(
        f"{START}srun: error: node2: task 1: Segmentation fault\n"
        f"2026-11-28 08:00:00 finetune: {message} while the run was running: requeue\n"
    )
    sentence = causes.explain(causes.collect_evidence(tmp_path, [LOST], 2, job="7"))
    assert sentence is not None
    assert sentence.startswith("rank 1 on node2: crashed in native code (SIGSEGV")


def test_within_an_allocation_sruns_own_log_is_read(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    (jobs / layout.ATTACHED).touch()
    (jobs / "7_0_log.out").write_text(START)
    line = "2026-11-28 08:00:00 finetune: srun starts\n"
    earlier = "srun: error: node1: task 0: Killed\n"
    newest = "srun: error: node2: task 1: Segmentation fault\n"
    (jobs / "controller.log").write_text(f"{line}{earlier}{line}{newest}")
    sentence = causes.explain(causes.collect_evidence(tmp_path, [LOST], 2))
    assert sentence is not None
    assert sentence.startswith("rank 1 on node2: crashed in native code (SIGSEGV")


def test_the_controller_records_the_exit_statuses_of_ranks_in_order(tmp_path: Path) -> None:
    """The ranks are real processes. The test sets the environment variables of submitit."""
    program = (
        "import os, signal, sys, time; rank = os.environ['SUBMITIT_LOCAL_GLOBALID'];"
        "os.kill(os.getpid(), signal.SIGKILL) if rank == '1' else time.sleep(0.5); sys.exit(3)"
    )
    environment = {
        "SUBMITIT_LOCAL_NTASKS": "2",
        "SUBMITIT_LOCAL_COMMAND": shlex.join([sys.executable, "-c", program]),
        "SUBMITIT_LOCAL_TIMEOUT_S": "60",
        "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "30",
        "SUBMITIT_STDERR_TO_STDOUT": "1",
        "SUBMITIT_LOCAL_WITH_SHELL": "",
    }
    command = [sys.executable, "-m", "finetune.launch.ranks", str(tmp_path / "jobs")]
    subprocess.run(command, env={**os.environ, **environment}, check=True, timeout=60)
    body = json.loads((tmp_path / "jobs" / layout.EXITS).read_text())
    assert body == {"ranks": {"1": -9, "0": 3}, "oom_kills": 0}
    assert list(body["ranks"]) == ["1", "0"], "not in the order in which they ended"
    sentence = causes.explain(causes.collect_evidence(tmp_path, [], 2))
    assert sentence is not None
    assert sentence.startswith("rank 1: killed by SIGKILL")


def test_oom_kills_can_be_counted() -> None:
    assert count_oom_kills() >= 0
