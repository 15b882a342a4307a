"""Whether a run is restarted depends on how its attempts ended."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from finetune.runs.attempts import Ending, decide
from finetune.runs.state import EndingCause

COMPLETED, STOPPED, MISTAKE, INTERRUPTED, KILLED, DIED, PREFLIGHT, DEAD_NODE = EndingCause


def ending(cause: EndingCause, last: int = 0, saved: int = 0, start: int = 0, detail: str = "why") -> Ending:
    return Ending(cause, from_step=start, last_step=last, saved_step=saved, detail=detail)


@dataclass(frozen=True)
class Case:
    """How an attempt and those before it ended, and the expected decision on a restart."""

    id: str
    how: Ending
    restarts: bool
    words: str = ""
    earlier: tuple[Ending, ...] = ()


CRASH = ending(DIED, 17, 10)
PASSING = tuple(ending(INTERRUPTED, 10 * n, 10 * n, 10 * n - 10) for n in range(1, 9))
TWO_RESTARTS = (CRASH, ending(DEAD_NODE, 19, 10, 10))
THREE_RESTARTS = (*TWO_RESTARTS, ending(DIED, 23, 20, 10))
PREFLIGHTS_APART = (ending(PREFLIGHT), ending(INTERRUPTED, 9, 9))
CASES = [
    Case("done", ending(COMPLETED, 30, 30), False, "completed"),
    Case("a person's wish", ending(STOPPED, 12, 12), False, "stopped as asked"),
    Case("a user's mistake", ending(MISTAKE, detail="lr is too high"), False, "lr is too high"),
    Case("time limit", ending(INTERRUPTED, 12, 12), True, "interrupted after step 12"),
    Case("dead rank", CRASH, True, "died after step 17"),
    Case("dead node", ending(DEAD_NODE, 17, 10), True, "dead node"),
    Case("bad node", ending(PREFLIGHT), True, "failed preflight"),
    Case("twice at one step", ending(DIED, 17, 10, 10), False, "died 2 times at step 18: why", (CRASH,)),
    Case(
        "a dead node in between",
        ending(DIED, 17, 10, 10),
        False,
        "died 2 times at step 18",
        (CRASH, ending(DEAD_NODE, 12, 10, 10)),
    ),
    Case(
        "an interruption at the step of a crash",
        ending(DIED, 17, 17, 17),
        True,
        "died after",
        (ending(INTERRUPTED, 17, 17),),
    ),
    Case(
        "twice before any step",
        ending(DIED),
        False,
        "died 2 times before the end of its first step: why",
        (ending(DIED),),
    ),
    Case("one step further", ending(DIED, 18, 10, 10), True, "died after step 18", (CRASH,)),
    Case("a dead node at the step of a crash", ending(DEAD_NODE, 17, 10, 10), True, earlier=(CRASH,)),
    Case("three preflights", ending(PREFLIGHT), False, "3 preflights in a row", (ending(PREFLIGHT),) * 2),
    Case(
        "three preflights, not in a row",
        ending(PREFLIGHT),
        True,
        earlier=(*PREFLIGHTS_APART, ending(PREFLIGHT)),
    ),
    Case("as many restarts as allowed", ending(DIED, 23, 20, 10), True, earlier=TWO_RESTARTS),
    Case(
        "one more",
        ending(DIED, 33, 30, 20),
        False,
        "gave up after 3 restarts (cluster.max_restarts); the last attempt: died, why",
        THREE_RESTARTS,
    ),
    Case(
        "time limits that brought it further are free", ending(INTERRUPTED, 90, 90, 80), True, earlier=PASSING
    ),
    Case(
        "those that did not are not",
        ending(INTERRUPTED, 9, 9, 9),
        False,
        "gave up after 3",
        (ending(INTERRUPTED, 9, 9, 9),) * 3,
    ),
    Case(
        "killed without having saved",
        ending(KILLED, 15, 10, 10),
        False,
        "gave up after 3",
        (ending(KILLED, 14, 10, 10),) * 3,
    ),
    Case("killed, having saved", ending(KILLED, 25, 20, 10), True, earlier=(ending(KILLED, 14, 10, 0),) * 3),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_run_restarts_or_ends_depending_on_its_endings(case: Case) -> None:
    decision = decide(case.how, list(case.earlier), max_restarts=3)
    assert decision.restart == case.restarts
    assert case.words in decision.reason
    assert decision.failed == (not case.restarts and case.how.cause not in (COMPLETED, STOPPED))
