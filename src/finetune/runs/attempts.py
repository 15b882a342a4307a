"""The attempts of a run, one for each start of its job, and the rule (`decide`) whether it comes back after a
time limit, a preemption, a death or a dead node.

`attempts.jsonl` in the run folder holds two lines an attempt, `begin` and `end`. One that was killed with its
batch script, as a power cut does, has no `end`: the next one finds that out and writes it. A second `end`
knows better: a node was found dead.

Only the standard library, from Python 3.8 on: the batch script reads this outside of a container
(job/batch_script.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.runs import layout
from finetune.runs.state import EndingCause

REPEATS = 2  # deaths at one step, after which it is the run's own fault
PREFLIGHTS = 3  # failed ones in a row, after which it is no single node's


@dataclass(frozen=True)
class Ending:
    """How an attempt ended.

    Attributes:
        from_step: optimizer steps in the checkpoint it began from; 0: none.
        last_step: the last step it did; from_step if none.
        saved_step: steps in the newest checkpoint when it was over.
        detail: the reason in words.
        bad_nodes: nodes that caused it.
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
        """A fault does; so does anything that brought the run no further, or it would go in circles for
        ever."""
        if self.cause in (EndingCause.DIED, EndingCause.PREFLIGHT, EndingCause.DEAD_NODE):
            return True
        return self.saved_step <= self.from_step


@dataclass(frozen=True)
class Decision:
    """Whether the run is restarted.

    Attributes:
        reason: for people.
        failed: it has ended, and not well.
    """

    restart: bool
    reason: str
    failed: bool = False


def decide(ending: Ending, earlier: list[Ending], max_restarts: int) -> Decision:
    """What follows from how an attempt ended, and how those before it did.

    Args:
        earlier: of the same submission, oldest first: a person who submits again grants new restarts.
        max_restarts: how often the run may come back after a fault, or without having got further.
    """
    if ending.cause == EndingCause.COMPLETED:
        return Decision(restart=False, reason=str(ending.cause))
    if ending.cause == EndingCause.STOPPED:
        return Decision(restart=False, reason="stopped as asked")
    if ending.cause == EndingCause.MISTAKE:
        return Decision(restart=False, reason=ending.detail, failed=True)
    if ending.cause == EndingCause.DIED:
        deaths = 1 + sum(e.cause == EndingCause.DIED and e.died_at == ending.died_at for e in earlier)
        if deaths >= REPEATS:
            where = f"at step {ending.died_at}" if ending.last_step else "before the end of its first step"
            return Decision(
                restart=False, reason=f"died {deaths} times {where}: {ending.detail}", failed=True
            )
    if [e.cause for e in [*earlier, ending][-PREFLIGHTS:]] == [EndingCause.PREFLIGHT] * PREFLIGHTS:
        reason = f"failed {PREFLIGHTS} preflights in a row: {ending.detail}"
        return Decision(restart=False, reason=reason, failed=True)
    used = sum(e.uses_a_restart for e in [*earlier, ending])
    if used > max_restarts:
        last = f"the last attempt: {ending.cause}, {ending.detail}"
        reason = f"gave up after {max_restarts} restarts (cluster.max_restarts); {last}"
        return Decision(restart=False, reason=reason, failed=True)
    return Decision(restart=True, reason=f"{ending.cause} after step {ending.last_step}: {ending.detail}")


@dataclass
class Attempt:
    """One start of the job: the `begin` line, and how it ended (None: it runs, or nobody could write it
    down)."""

    number: int
    job: str
    nodes: tuple[str, ...]
    time: float
    from_step: int
    ending: Ending | None = None
    next_job: str | None = None
    words: str = ""


def read(run: Path) -> list[Attempt]:
    """All attempts of the run in this folder, oldest first."""
    attempts: list[Attempt] = []
    for record in layout.read_json_lines(run / layout.ATTEMPTS):
        if record["event"] == "begin":
            attempts.append(
                Attempt(
                    record["attempt"],
                    record["job"],
                    tuple(record["nodes"]),
                    record["time"],
                    record["from_step"],
                )
            )
        elif attempts and attempts[-1].number == record["attempt"]:
            attempts[-1].next_job = record.get("next_job") or attempts[-1].next_job
            if record["event"] == "handed over":
                continue
            attempts[-1].ending = _ending_of(record)
            attempts[-1].words = record["words"]
    return attempts


def begin(run: Path, job: str, nodes: list[str], now: float, from_step: int) -> Attempt:
    """Note the start of an attempt."""
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


def end(run: Path, number: int, ending: Ending, words: str, now: float) -> None:
    """Note how an attempt ended, and what was decided."""
    record = {"event": "end", "attempt": number, "time": now, **asdict(ending), "words": words}
    layout.append_json_line(run / layout.ATTEMPTS, record)


def hand_over(run: Path, number: int, next_job: str, now: float) -> None:
    """Note the job that was submitted to go on after an attempt, where a site forbids requeue; the attempt
    has ended, or will."""
    record = {"event": "handed over", "attempt": number, "time": now, "next_job": next_job}
    layout.append_json_line(run / layout.ATTEMPTS, record)


def of_submission(attempts: list[Attempt], job: str) -> list[Attempt]:
    """Those that a person started at once: the job's own, and those of jobs that were submitted to go on with
    each other."""
    chain = {job}
    for attempt in reversed(attempts):
        if attempt.job in chain or attempt.next_job in chain:
            chain.add(attempt.job)
    return [attempt for attempt in attempts if attempt.job in chain]


def excluded_nodes(run: Path) -> list[str]:
    """Nodes that this run avoids from now on, since an attempt failed because of them."""
    return sorted({node for attempt in read(run) if attempt.ending for node in attempt.ending.bad_nodes})


def last_restart(run: Path) -> str:
    """Why the run was started anew the last time, and the nodes that it avoids; "" if it never was."""
    words = [attempt.words for attempt in read(run) if attempt.ending]
    avoided = ", ".join(excluded_nodes(run))
    return f"restarted: {words[-1]}{f' (avoids {avoided})' if avoided else ''}" if words else ""


def _ending_of(record: Mapping[str, Any]) -> Ending:
    ending = {key: record[key] for key in Ending.__dataclass_fields__}
    cause, bad_nodes = EndingCause(ending["cause"]), tuple(ending["bad_nodes"])
    return Ending(**{**ending, "cause": cause, "bad_nodes": bad_nodes})
