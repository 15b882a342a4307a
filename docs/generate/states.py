"""The pages of states and of exit codes."""

from __future__ import annotations

from docs.generate.markdown import code, table
from finetune.cli.exit_codes import ExitCode
from finetune.runs import state
from finetune.runs.state import EndingCause, FailureKind, RunState, StopReason

RUN_STATES = {
    RunState.QUEUED: "submitted, or waits for its turn; its ranks have not started",
    RunState.RUNNING: "its ranks are at work",
    RunState.COMPLETED: "all steps are done and the result is saved",
    RunState.STOPPED: "a person asked it to stop; a checkpoint is saved",
    RunState.INTERRUPTED: "a scheduler's signal or the time limit ended it; a checkpoint is saved",
    RunState.FAILED: "a rank failed, or Slurm ended the job",
    RunState.DEAD: "its processes are gone without leaving a reason",
    RunState.CANCELLED: "taken out of the queue, or ended at once by `finetune cancel --now`",
}
STOP_REASONS = {
    StopReason.NONE: "all steps are done",
    StopReason.INTERRUPTED: "a signal, or the end of the job's time",
    StopReason.STOPPED: "a person asked for it (`finetune cancel`, Ctrl-C)",
}
ENDING_CAUSES = {
    EndingCause.COMPLETED: "the run is complete",
    EndingCause.STOPPED: "a person asked for it",
    EndingCause.MISTAKE: "an error of the user, which would occur again in each attempt",
    EndingCause.INTERRUPTED: "time limit, preemption or requeue; all ranks saved and left",
    EndingCause.KILLED: "the job was ended without time to save",
    EndingCause.DIED: "a rank crashed, hung or was killed",
    EndingCause.PREFLIGHT: "the checks before training failed",
    EndingCause.DEAD_NODE: "a node of the job died",
}
FAILURE_KINDS = {
    FailureKind.MISTAKE: "an error of the user, or the finding of a guard; the run is not restarted",
    FailureKind.PREFLIGHT: "a check before training failed; the run may come back on other nodes",
    FailureKind.HANG: "no progress for `hang_timeout_min`",
    FailureKind.CRASH: "any other exception, or a signal",
}


def states_body() -> str:
    """Return tables of states, stop reasons, endings and failures."""
    described = {*RUN_STATES, *STOP_REASONS, *ENDING_CAUSES, *FAILURE_KINDS}
    missing = {*RunState, *StopReason, *EndingCause, *FailureKind} - described
    assert not missing, f"describe {missing} in docs/generate/states.py"
    parts = [
        "## States of a run\n\n`finetune status` shows the state; `outcome.json` holds it once the run "
        "has ended.\n",
        table(("state", "meaning", "`retry` restarts it", "in MLflow"), _state_rows()),
        "## Stop reasons\n\nWhy ranks leave the training loop. Where ranks disagree, the highest number "
        "holds (an all-reduce).\n",
        table(
            ("number", "reason", "meaning", "state of the run"),
            [(str(int(r)), code(r.name), text, code(r.state)) for r, text in STOP_REASONS.items()],
        ),
        "## Endings of an attempt\n\nAn attempt is one start of a run's job on Slurm; `attempts.jsonl` lists "
        "them. [Attempts and requeue](../concepts/attempts-and-requeue.md) has the consequence of each.\n",
        table(("cause", "meaning"), [(code(cause), text) for cause, text in ENDING_CAUSES.items()]),
        "## Kinds of failure\n\nThe kind of a rank's failure in `failure-rank-<rank>.json`.\n",
        table(("kind", "meaning"), [(code(kind), text) for kind, text in FAILURE_KINDS.items()]),
    ]
    return "\n".join(parts)


def _state_rows() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for run_state, meaning in RUN_STATES.items():
        is_retried = "yes" if run_state in state.RETRIED_STATES else "no"
        rows.append((code(run_state), meaning, is_retried, code(state.MLFLOW_STATUS[run_state])))
    return rows


def exit_codes_body() -> str:
    """Return tables of the exit codes of the command line and of jobs."""
    rows = [(code(str(int(exit_code))), exit_code.meaning) for exit_code in ExitCode]
    jobs = [
        ("`0`", "the run is complete"),
        ("`1`", "the run failed, or a person stopped it, so that no job that depends on it starts"),
        ("`75`", "the run is back in the queue; Slurm shows the requeued job as pending"),
    ]
    return (
        "## Of the command line\n\n"
        + table(("code", "meaning"), rows)
        + "\nWith `FINETUNE_TRACEBACK=1` in the environment an error is raised with its traceback instead of "
        "one line.\n\n## Of a job on Slurm\n\n" + table(("code", "meaning"), jobs)
    )
