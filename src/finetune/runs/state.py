"""States of runs, stop reasons, endings of attempts, kinds of failure, Slurm's job states and
MLflow's statuses. No other module spells their names.

folder.py derives the state of a run from files; launch/observe.py also queries Slurm. Standard
library only, Python 3.8 or newer: the batch script's helper uses this module outside of a
container.
"""

from __future__ import annotations

from enum import Enum, IntEnum


class StrEnum(str, Enum):  # noqa: UP042 (the standard library has StrEnum from Python 3.11 on)
    """A closed set of strings; each member is a str and formats as its value."""

    def __str__(self) -> str:
        return str(self.value)


class RunState(StrEnum):
    """The state of a run, as shown by `finetune status` and stored in outcome.json."""

    QUEUED = "queued"  # submitted, or waiting for its turn; its ranks have not started
    RUNNING = "running"
    COMPLETED = "completed"  # all steps are done and the result is saved
    STOPPED = "stopped"  # by a user's request, with a checkpoint
    INTERRUPTED = "interrupted"  # by a scheduler's signal or a time limit, with a checkpoint
    FAILED = "failed"  # a rank failed, or Slurm ended the job
    DEAD = "dead"  # its processes are gone without a recorded reason
    CANCELLED = "cancelled"  # removed from the queue, or ended without a checkpoint


ALIVE_STATES = (RunState.QUEUED, RunState.RUNNING)
# A run leaves these states only if a user starts it again. A completed run then needs more steps.
ENDED_STATES = (
    RunState.COMPLETED,
    RunState.FAILED,
    RunState.DEAD,
    RunState.CANCELLED,
    RunState.STOPPED,
    RunState.INTERRUPTED,
)
# States in which `finetune retry` starts a run again. A queued run is one whose job is gone; it
# would never start otherwise.
RETRIED_STATES = (
    RunState.FAILED,
    RunState.DEAD,
    RunState.CANCELLED,
    RunState.STOPPED,
    RunState.INTERRUPTED,
    RunState.QUEUED,
)
# states whose reason is reported
FAILED_STATES = (RunState.FAILED, RunState.DEAD)
# states in which `prune --failed` removes the run folder
PRUNED_STATES = (RunState.FAILED, RunState.DEAD, RunState.CANCELLED)


class StopReason(IntEnum):
    """The reason why ranks stop training early.

    If the ranks' reasons differ, all use the highest value (an all-reduce with max).
    """

    NONE = 0
    INTERRUPTED = 1  # by a signal or a deadline
    STOPPED = 2  # by a user's request

    @property
    def state(self) -> RunState:
        """The state of a run whose training loop ended for this reason."""
        return {
            StopReason.NONE: RunState.COMPLETED,
            StopReason.INTERRUPTED: RunState.INTERRUPTED,
            StopReason.STOPPED: RunState.STOPPED,
        }[self]


class EndingCause(StrEnum):
    """The cause of the end of an attempt, which is one start of a run's job.

    After COMPLETED, STOPPED and MISTAKE, the run is never restarted automatically.
    """

    COMPLETED = "completed"
    STOPPED = "stopped"
    MISTAKE = "mistake"  # the user's: every restart would fail in the same way
    INTERRUPTED = "interrupted"  # time limit, preemption or requeue: all ranks saved and exited
    KILLED = "killed from outside"  # without time to save
    DIED = "died"  # a rank crashed, hung or was killed
    PREFLIGHT = "failed preflight"
    DEAD_NODE = "dead node"


class FailureKind(StrEnum):
    """The kind of a rank's failure; job/batch_script.py uses it to decide about a restart."""

    MISTAKE = "mistake"  # the user's
    PREFLIGHT = "preflight"  # a node failed its checks before training
    HANG = "hang"  # no progress for hang_timeout_min
    CRASH = "crash"


class JobState(StrEnum):
    """Slurm's job states.

    Slurm may report states that are not members. Compare its output with the members; do not
    convert it.
    """

    PENDING = "PENDING"
    REQUEUED = "REQUEUED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    REQUEUE_FED = "REQUEUE_FED"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    RUNNING = "RUNNING"
    CONFIGURING = "CONFIGURING"
    COMPLETING = "COMPLETING"  # Slurm is ending it; its batch script may still be running
    SIGNALING = "SIGNALING"
    STAGE_OUT = "STAGE_OUT"
    STOPPED = "STOPPED"
    SUSPENDED = "SUSPENDED"
    RESIZING = "RESIZING"
    COMPLETED = "COMPLETED"
    BOOT_FAIL = "BOOT_FAIL"
    CANCELLED = "CANCELLED"
    DEADLINE = "DEADLINE"
    FAILED = "FAILED"
    NODE_FAIL = "NODE_FAIL"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    PREEMPTED = "PREEMPTED"
    REVOKED = "REVOKED"
    TIMEOUT = "TIMEOUT"


PENDING_JOB_STATES = (
    JobState.PENDING,
    JobState.REQUEUED,
    JobState.REQUEUE_HOLD,
    JobState.REQUEUE_FED,
    JobState.RESV_DEL_HOLD,
    JobState.SPECIAL_EXIT,
)
RUNNING_JOB_STATES = (
    JobState.RUNNING,
    JobState.CONFIGURING,
    JobState.COMPLETING,
    JobState.SIGNALING,
    JobState.STAGE_OUT,
    JobState.STOPPED,
    JobState.SUSPENDED,
    JobState.RESIZING,
)
FAILED_JOB_STATES = frozenset(
    [
        JobState.BOOT_FAIL,
        JobState.CANCELLED,
        JobState.DEADLINE,
        JobState.FAILED,
        JobState.NODE_FAIL,
        JobState.OUT_OF_MEMORY,
        JobState.PREEMPTED,
        JobState.REVOKED,
        JobState.TIMEOUT,
    ]
)


class MlflowStatus(StrEnum):
    """MLflow's statuses of a run."""

    SCHEDULED = "SCHEDULED"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


MLFLOW_STATUS = {
    RunState.QUEUED: MlflowStatus.SCHEDULED,
    RunState.RUNNING: MlflowStatus.RUNNING,
    RunState.COMPLETED: MlflowStatus.FINISHED,
    RunState.STOPPED: MlflowStatus.KILLED,
    RunState.INTERRUPTED: MlflowStatus.SCHEDULED,
    RunState.FAILED: MlflowStatus.FAILED,
    RunState.DEAD: MlflowStatus.FAILED,
    RunState.CANCELLED: MlflowStatus.KILLED,
}
