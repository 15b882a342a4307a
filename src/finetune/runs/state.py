"""The words for states of runs, reasons to stop, endings of attempts, kinds of failures, Slurm's job states
and MLflow's statuses. Which of them holds is found by folder.py (from files) and launch/observe.py (with
Slurm).

The only module that spells them. Every process uses it, also the batch script's helper outside of a
container: the standard library alone, from Python 3.8 on.
"""

from __future__ import annotations

from enum import Enum, IntEnum


class Word(str, Enum):  # noqa: UP042 (StrEnum is of Python 3.11)
    """A member of a closed set of words, which is its word wherever text is wanted."""

    def __str__(self) -> str:
        return str(self.value)


class RunState(Word):
    """The state of a run, as `finetune status` shows it and outcome.json holds it."""

    QUEUED = "queued"  # submitted, or waits for its turn; its ranks have not begun
    RUNNING = "running"
    COMPLETED = "completed"  # all steps are done and the result is saved
    STOPPED = "stopped"  # a person asked for it: a checkpoint is saved
    INTERRUPTED = "interrupted"  # by a scheduler's signal or its time's end: a checkpoint is saved
    FAILED = "failed"  # a rank failed, or Slurm ended the job
    DEAD = "dead"  # its processes are gone, and nothing tells why
    CANCELLED = "cancelled"  # taken out of the queue, or ended at once


ALIVE_STATES = (RunState.QUEUED, RunState.RUNNING)
# a run leaves them only when somebody starts it again; from COMPLETED it can only be given more steps
ENDED_STATES = (
    RunState.COMPLETED,
    RunState.FAILED,
    RunState.DEAD,
    RunState.CANCELLED,
    RunState.STOPPED,
    RunState.INTERRUPTED,
)
# what `finetune retry` starts again; QUEUED without a live job is never started otherwise
RETRIED_STATES = (
    RunState.FAILED,
    RunState.DEAD,
    RunState.CANCELLED,
    RunState.STOPPED,
    RunState.INTERRUPTED,
    RunState.QUEUED,
)
FAILED_STATES = (RunState.FAILED, RunState.DEAD)  # whose reason is reported
PRUNED_STATES = (RunState.FAILED, RunState.DEAD, RunState.CANCELLED)  # whose folders `prune --failed` removes


class StopReason(IntEnum):
    """Why ranks stop training early, in order of weight: where ranks disagree, the highest holds (an
    all-reduce)."""

    NONE = 0
    INTERRUPTED = 1  # by a signal, or its time's end
    STOPPED = 2  # a person asked for it

    @property
    def state(self) -> RunState:
        """The state of a run that left its loop for this reason."""
        return {
            StopReason.NONE: RunState.COMPLETED,
            StopReason.INTERRUPTED: RunState.INTERRUPTED,
            StopReason.STOPPED: RunState.STOPPED,
        }[self]


class EndingCause(Word):
    """How an attempt, one start of a run's job, ended. After the first three the run is never restarted."""

    COMPLETED = "completed"
    STOPPED = "stopped"
    MISTAKE = "mistake"  # the user's: it would come again however often the job does
    INTERRUPTED = "interrupted"  # time limit, preemption, requeue: all ranks saved and left
    KILLED = "killed from outside"  # it was given no time to save
    DIED = "died"  # a rank crashed, hung or was killed
    PREFLIGHT = "failed preflight"
    DEAD_NODE = "dead node"


class FailureKind(Word):
    """What a rank's failure means for its run: see job/batch_script.py."""

    MISTAKE = "mistake"
    PREFLIGHT = "preflight"
    HANG = "hang"
    CRASH = "crash"


class JobState(Word):
    """Slurm's states of a job. Slurm may have more of them: what it answers is compared, not converted."""

    PENDING = "PENDING"
    REQUEUED = "REQUEUED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    REQUEUE_FED = "REQUEUE_FED"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    RUNNING = "RUNNING"
    CONFIGURING = "CONFIGURING"
    COMPLETING = "COMPLETING"  # Slurm ends it, its batch script may be at work
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


JOB_WAITS = (
    JobState.PENDING,
    JobState.REQUEUED,
    JobState.REQUEUE_HOLD,
    JobState.REQUEUE_FED,
    JobState.RESV_DEL_HOLD,
    JobState.SPECIAL_EXIT,
)
JOB_AT_WORK = (
    JobState.RUNNING,
    JobState.CONFIGURING,
    JobState.COMPLETING,
    JobState.SIGNALING,
    JobState.STAGE_OUT,
    JobState.STOPPED,
    JobState.SUSPENDED,
    JobState.RESIZING,
)
JOB_ENDED_BADLY = frozenset(
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


class MlflowStatus(Word):
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
