"""The attempts of a run, one for each start of its job, and the rule for restarting the job.

`decide` applies the rule after a time limit, a preemption, a crash or a dead node.

`attempts.jsonl` in the run folder holds two lines per attempt, `begin` and `end`. A line `handed
over` is added if another job was submitted to continue the run. If the batch script was killed
before it wrote `end`, as by a power cut, the next attempt writes this line. A second `end` line of
an attempt replaces the first; it is written when a dead node is found later.

Standard library only, Python 3.8 or newer: the batch script runs this outside of a container
(job/batch_script.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.runs import layout
from finetune.runs.state import EndingCause

# If this many attempts die at the same step, the run is considered at fault, not its nodes.
MAX_DEATHS_AT_ONE_STEP = 2
# If this many preflights fail in a row, the cause is not considered to be a single node.
MAX_FAILED_PREFLIGHTS = 3


@dataclass(frozen=True)
class Ending:
    """The end of an attempt.

    Attributes:
        cause: the kind of end.
        from_step: optimizer steps in the checkpoint that the attempt started from; 0 without one.
        last_step: the last optimizer step that was completed; from_step if there was none.
        saved_step: optimizer steps in the newest checkpoint after the attempt.
        detail: description of the cause, as shown to users.
        bad_nodes: nodes that caused the end.
    """

    cause: EndingCause
    from_step: int
    last_step: int
    saved_step: int
    detail: str = ""
    bad_nodes: tuple[str, ...] = ()

    @property
    def died_at(self) -> int:
        return self.last_step + 1

    @property
    def uses_a_restart(self) -> bool:
        """True if a restart after this end counts towards cluster.max_restarts.

        It counts after a fault, and after an attempt that saved no new step. Other restarts are not
        limited, because the run makes progress.
        """
        if self.cause in (EndingCause.DIED, EndingCause.PREFLIGHT, EndingCause.DEAD_NODE):
            return True
        return self.saved_step <= self.from_step


@dataclass(frozen=True)
class Decision:
    """The decision to restart a run or to end it.

    Attributes:
        reason: the reason for the decision, as shown to users.
        failed: True if the run ends in failure.
    """

    restart: bool
    reason: str
    failed: bool = False


def decide(ending: Ending, earlier: list[Ending], max_restarts: int) -> Decision:
    """Decide whether to restart a run, given how its attempts ended.

    Args:
        ending: end of the newest attempt.
        earlier: ends of the earlier attempts of the same submission, oldest first; a new submission
            starts with the full number of restarts.
        max_restarts: largest number of restarts after a fault or an attempt without progress. Other
            restarts are not counted.
    """
    if ending.cause == EndingCause.COMPLETED:
        return Decision(restart=False, reason=str(ending.cause))
    if ending.cause == EndingCause.STOPPED:
        return Decision(restart=False, reason="stopped as asked")
    if ending.cause == EndingCause.MISTAKE:
        return Decision(restart=False, reason=ending.detail, failed=True)
    if ending.cause == EndingCause.DIED:
        earlier_deaths = [one for one in earlier if one.cause == EndingCause.DIED]
        deaths = 1 + sum(one.died_at == ending.died_at for one in earlier_deaths)
        if deaths >= MAX_DEATHS_AT_ONE_STEP:
            step = f"at step {ending.died_at}"
            when = step if ending.last_step else "before the end of its first step"
            reason = f"died {deaths} times {when}: {ending.detail}"
            return Decision(restart=False, reason=reason, failed=True)
    newest_causes = [e.cause for e in [*earlier, ending][-MAX_FAILED_PREFLIGHTS:]]
    if newest_causes == [EndingCause.PREFLIGHT] * MAX_FAILED_PREFLIGHTS:
        reason = f"failed {MAX_FAILED_PREFLIGHTS} preflights in a row: {ending.detail}"
        return Decision(restart=False, reason=reason, failed=True)
    used = sum(e.uses_a_restart for e in [*earlier, ending])
    if used > max_restarts:
        last = f"the last attempt: {ending.cause}, {ending.detail}"
        reason = f"gave up after {max_restarts} restarts (cluster.max_restarts); {last}"
        return Decision(restart=False, reason=reason, failed=True)
    reason = f"{ending.cause} after step {ending.last_step}: {ending.detail}"
    return Decision(restart=True, reason=reason)


@dataclass
class Attempt:
    """One start of the job.

    Attributes:
        nodes: names of the nodes on which the attempt ran.
        time: its start, in seconds since the epoch.
        ending: None while the attempt runs, or if its end was not recorded.
        next_job: id of the job that was submitted to continue the run.
        reason: why the job was or was not restarted after this attempt; stored under the key
            "words".
    """

    number: int
    job: str
    nodes: tuple[str, ...]
    time: float
    from_step: int
    ending: Ending | None = None
    next_job: str | None = None
    reason: str = ""


def read(run: Path) -> list[Attempt]:
    """Return all attempts of the run in a folder, oldest first."""
    attempts: list[Attempt] = []
    for record in layout.read_json_lines(run / layout.ATTEMPTS):
        if record["event"] == "begin":
            attempt = Attempt(
                record["attempt"],
                record["job"],
                tuple(record["nodes"]),
                record["time"],
                record["from_step"],
            )
            attempts.append(attempt)
        elif attempts and attempts[-1].number == record["attempt"]:
            attempts[-1].next_job = record.get("next_job") or attempts[-1].next_job
            if record["event"] == "handed over":
                continue
            attempts[-1].ending = _parse_ending(record)
            attempts[-1].reason = record["words"]
    return attempts


def begin(run: Path, job: str, nodes: list[str], now: float, from_step: int) -> Attempt:
    """Record the start of an attempt.

    Args:
        nodes: names of the nodes of the attempt.
        now: seconds since the epoch.
        from_step: optimizer steps in the checkpoint that the attempt starts from; 0 without one.
    """
    attempt = Attempt(len(read(run)) + 1, job, tuple(nodes), now, from_step)
    record = {
        "event": "begin",
        "attempt": attempt.number,
        "job": job,
        "nodes": nodes,
        "time": now,
        "from_step": from_step,
    }
    layout.append_json_line(run / layout.ATTEMPTS, record)
    return attempt


def end(run: Path, number: int, ending: Ending, reason: str, now: float) -> None:
    """Record how an attempt ended, and the reason why the job is or is not restarted.

    Args:
        number: the attempt's number in the run, from 1.
        now: seconds since the epoch.
    """
    record = {"event": "end", "attempt": number, "time": now, **asdict(ending), "words": reason}
    layout.append_json_line(run / layout.ATTEMPTS, record)


def hand_over(run: Path, number: int, next_job: str, now: float) -> None:
    """Record the job that was submitted to continue the run after an attempt.

    Sites that forbid requeue need such a job. The attempt may still be running.

    Args:
        number: the attempt's number in the run, from 1.
        now: seconds since the epoch.
    """
    record = {"event": "handed over", "attempt": number, "time": now, "next_job": next_job}
    layout.append_json_line(run / layout.ATTEMPTS, record)


def filter_by_submission(attempts: list[Attempt], job: str) -> list[Attempt]:
    """Return the attempts of `job` and of the earlier jobs that it continues."""
    chain = {job}
    for attempt in reversed(attempts):
        if attempt.job in chain or attempt.next_job in chain:
            chain.add(attempt.job)
    return [attempt for attempt in attempts if attempt.job in chain]


def excluded_nodes(run: Path) -> list[str]:
    """Return the nodes that the run's next attempts avoid, because an attempt failed on them."""
    endings = [attempt.ending for attempt in read(run) if attempt.ending]
    return sorted({node for ending in endings for node in ending.bad_nodes})


def describe_last_restart(run: Path) -> str:
    """Return why the run was last restarted, and which nodes it avoids; "" without a restart."""
    reasons = [attempt.reason for attempt in read(run) if attempt.ending]
    if not reasons:
        return ""
    avoided = ", ".join(excluded_nodes(run))
    note = f" (avoids {avoided})" if avoided else ""
    return f"restarted: {reasons[-1]}{note}"


def _parse_ending(record: Mapping[str, Any]) -> Ending:
    values = {key: record[key] for key in Ending.__dataclass_fields__}
    values["cause"] = EndingCause(values["cause"])
    values["bad_nodes"] = tuple(values["bad_nodes"])
    return Ending(**values)
