"""The cause of a rank's death, found from its exit status, the end of its log, Slurm's messages and
the job state.

`explain` returns one sentence, `rank N on NODE: <cause>; <remedy>`. The known messages are in
known_causes.py. If none of them matches, the sentence quotes the last line of the log.

Standard library only, Python 3.8 or newer: the batch script runs this outside of a container
(job/batch_script.py).
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.runs import layout
from finetune.runs.known_causes import (
    LOCAL,
    LOST_PEER,
    MEMORY_REMEDY,
    MESSAGES,
    ON_SLURM,
    OUT_OF_MEMORY,
    SIGKILL_REMEDY,
    SIGNAL_CAUSES,
    SIGNAL_MESSAGES,
    STATE_CAUSES,
    USE_MEMORY_REMEDY,
    KnownCause,
)
from finetune.runs.records import Failure, Submission, read_exits, read_submission
from finetune.runs.state import FailureKind, JobState

TAIL_BYTES = 65536  # read from the end of each log, where a rank that dies writes the reason
TAIL_LINES = 200
LINE_LENGTH = 240  # characters of a quoted line

# The batch script's helper (job/batch_script.py) writes this message while an attempt runs. It
# writes all others between attempts.
TIME_LIMIT_MESSAGE = "the time limit was reached"
_BETWEEN_ATTEMPTS = re.compile(
    rb"^\d{4}-\d\d-\d\d [\d:]{8} finetune: "
    rb"(?!the time limit (?:was reached|strikes))[^\n]*\n",  # "strikes": an earlier version's
    re.MULTILINE,
)
_RANK_START = "Starting with JobEnvironment("  # in the first line of a rank's log, from submitit
_RANK_START_LINE = re.compile(rb"^[^\n]*Starting with JobEnvironment\(", re.MULTILINE)
_SRUN_ERROR = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): ([^\n]+)")
_EXIT_CODE = re.compile(r"Exited with exit code (\d+)")
_FAULTHANDLER_FRAME = re.compile(
    r'Current thread [^\n]*most recent call first\):\n\s+File "([^"\n]+)", line \d+ in ([^\n]+)'
)
_NOISE = re.compile(r"^\s*$|^srun: |^slurmstepd|^In: |^Out: |^\d{4}-\d\d-\d\d [\d:]{8} finetune: ")


@dataclass(frozen=True)
class Evidence:
    """Evidence of why an attempt ended.

    Attributes:
        world_size: number of ranks.
        place: ON_SLURM or LOCAL; the remedy depends on it.
        logs: the end of each rank's log, by rank. The log of rank 0 also has messages of the batch
            script.
        failures: records of the ranks that raised an exception (RunFolder.record_failure).
        exits: exit status by rank, as in subprocess: -9 is SIGKILL.
        code: the exit code of srun; None if it is not known.
        state: Slurm's state of the job; "" if it is not known.
        oom_kills: number of processes in the run's memory cgroup that the kernel killed during the
            run.
        job: id of the Slurm job; "" without one.
        memory: a line for users on the memory use that Slurm recorded; "" if it is not known.
    """

    world_size: int
    place: str
    logs: Mapping[int, str] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    exits: Mapping[int, int] = field(default_factory=dict)
    code: int | None = None
    state: str = ""
    oom_kills: int = 0
    job: str = ""
    memory: str = ""


@dataclass(frozen=True)
class Death:
    """A rank that ended without recording a failure.

    Attributes:
        node: the node that it ran on; "" if it is not known.
        status: exit status as in subprocess; None if it is not known.
    """

    rank: int
    node: str = ""
    status: int | None = None


def collect_evidence(
    run: Path,
    failures: Sequence[Failure],
    world_size: int,
    code: int | None = None,
    state: str = "",
    job: str = "*",
    memory: str = "",
) -> Evidence:
    """Collect the evidence of why the newest attempt ended, from a run folder.

    Args:
        failures: the failures that the ranks of this attempt recorded.
        code, state, memory: as in Evidence.
        job: id of the job whose logs are read; "*" for the newest log of each rank.
    """
    newest: dict[int, Path] = {}
    jobs = run / layout.JOBS
    for path in jobs.glob(layout.log_of(job, "*")):
        found = re.search(r"_(\d+)_log\.out$", path.name)
        rank = int(found[1]) if found else 0
        if rank not in newest or path.stat().st_mtime > newest[rank].stat().st_mtime:
            newest[rank] = path
    logs = {rank: read_tail(path, has_batch_lines=rank == 0) for rank, path in newest.items()}
    exits = read_exits(jobs / layout.EXITS)
    submission = _read_submission(run)
    is_slurm = submission is not None and submission.is_on_slurm
    in_allocation = not is_slurm and (jobs / layout.ATTACHED).is_file()
    if in_allocation:  # srun writes its messages into the controller's log there
        srun_log = read_tail(jobs / layout.CONTROLLER_LOG, has_batch_lines=True)
        logs[0] = f"{logs.get(0, '')}\n{srun_log}"
    if job == "*":
        job = submission.job_id if submission else ""
    return Evidence(
        world_size=world_size,
        place=ON_SLURM if is_slurm or in_allocation or code is not None else LOCAL,
        logs=logs,
        failures=tuple(failures),
        exits=exits.ranks,
        code=code,
        state=state,
        oom_kills=exits.oom_kills,
        job=job,
        memory=memory,
    )


def read_tail(path: Path, has_batch_lines: bool) -> str:
    """Return the end of a log, from the start of the newest attempt in it.

    Args:
        has_batch_lines: True if the batch script writes into this log too. The newest attempt then
            starts after the last message that job/batch_script.py writes between attempts.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            content = file.read()
    except OSError:
        return ""
    pattern = _BETWEEN_ATTEMPTS if has_batch_lines else _RANK_START_LINE
    starts = [match.end() for match in pattern.finditer(content)]
    if starts:
        content = content[starts[-1] :]
    text = content.decode("utf-8", "replace").replace("\r", "\n")
    return "\n".join(text.splitlines()[-TAIL_LINES:])


def explain(evidence: Evidence) -> str | None:
    """Return why an attempt died, in one sentence; None if there is no evidence."""
    own = [failure for failure in evidence.failures if not is_lost_peer(failure.error)]
    if own:
        return _explain_failure(evidence, min(own, key=lambda failure: failure.time))
    death = _find_first_death(evidence)
    if death is None and evidence.failures:  # all ranks lost a peer, and the dead one is not known
        return min(evidence.failures, key=lambda failure: failure.time).error
    if death is None:
        return _explain_job(evidence)
    node = f" on {death.node}" if death.node else ""
    return f"rank {death.rank}{node}: {_explain_death(evidence, death)}"


def is_lost_peer(error: str) -> bool:
    """Return True if an error shows that a rank failed only because another rank was gone."""
    return any(message in error.lower() for message in LOST_PEER)


def _explain_failure(evidence: Evidence, failure: Failure) -> str:
    """Return the message of a rank that raised an exception.

    If its cause is known, the cause and the remedy come first.
    """
    if failure.kind != FailureKind.CRASH:  # the message was written for users
        return failure.error
    known = _match(failure.error, evidence.place)
    return f"rank {failure.rank}: {known} ({failure.error})" if known else failure.error


def _explain_death(evidence: Evidence, death: Death) -> str:
    """Return cause and remedy for a rank that ended without recording a failure."""
    own_log = evidence.logs.get(death.rank, "")
    batch_log = evidence.logs.get(0, "")
    out_of_memory = _find_memory_message(evidence, f"{own_log}\n{batch_log}")
    if out_of_memory:
        remedy = MEMORY_REMEDY[evidence.place]
        return f"killed because host memory ran out ({out_of_memory}); {remedy}"
    batch_part = ""
    rank_part = own_log
    if death.rank == 0:
        batch_part, _, rank_part = batch_log.partition(_RANK_START)
    known = _match(rank_part, evidence.place) or _match_state(evidence, batch_log)
    if not known and not rank_part:  # the rank never started
        known = _match_batch(batch_part or batch_log, evidence.place)
    if known:
        return known
    number = _signal_of(death, own_log)
    if number == signal.SIGKILL:
        general = SIGKILL_REMEDY[evidence.place].replace("JOB", evidence.job or "JOB")
        remedy = evidence.memory or general
        last = _quote_last_line(own_log)
        return f"killed by SIGKILL, and its log shows no reason; {remedy}; {last}"
    if number in SIGNAL_CAUSES:
        known_signal = SIGNAL_CAUSES[number]
        frame = _FAULTHANDLER_FRAME.search(own_log)
        location = f" in {frame[2]} of {frame[1]}" if frame else ""
        return f"{known_signal.cause}{location}; {known_signal.remedy}"
    status = "" if death.status is None else f" (exit code {death.status})"
    return f"its log shows no known cause{status}; {_quote_last_line(own_log)}"


def _explain_job(evidence: Evidence) -> str | None:
    """Return why a job ended, if no rank is known to have died; None without evidence."""
    text = evidence.logs.get(0, "")
    if not text and not evidence.state and evidence.code is None:
        return None
    out_of_memory = _find_memory_message(evidence, text)
    if out_of_memory:
        return f"host memory ran out ({out_of_memory}); {MEMORY_REMEDY[evidence.place]}"
    known = _match_batch(text, evidence.place) or _match_state(evidence, text)
    if known:
        return known
    status = "" if evidence.code is None else f" (exit code {evidence.code})"
    return f"its log shows no known cause{status}; {_quote_last_line(text)}"


def _find_first_death(evidence: Evidence) -> Death | None:
    """Return the rank that was the first to end without recording a failure; None if there is none.

    Its end is known from a message of srun, an exit status, a crash in its log, or the lack of a
    failure file that other ranks have.
    """
    recorded = {failure.rank for failure in evidence.failures}
    reported = list(_parse_srun_errors(evidence.logs.get(0, "")))
    silent = [death for death in reported if death.rank not in recorded]
    for rank, status in evidence.exits.items():
        if status and rank not in recorded:
            silent.append(Death(rank, status=status))
    if silent:
        return min(silent, key=_sort_key_by_origin)
    if recorded:
        missing = [rank for rank in range(evidence.world_size) if rank not in recorded]
        return Death(missing[0]) if missing else None
    crashed = [rank for rank, log in sorted(evidence.logs.items()) if _signal_in(log) is not None]
    if crashed:
        return Death(crashed[0])
    return Death(0, status=evidence.code) if evidence.world_size == 1 and evidence.logs else None


def _sort_key_by_origin(death: Death) -> int:
    """Return a sort key that puts the likely origin of a failure first.

    A crash comes first. SIGKILL and SIGTERM come next, since srun and finetune end the other ranks
    with them. Exit codes come last.
    """
    number = _signal_of(death, "")
    if number in (signal.SIGKILL, signal.SIGTERM):
        return 1
    return 0 if number else 2


def _parse_srun_errors(log: str) -> Iterator[Death]:
    """Yield the ranks whose end srun reports, in the order of its messages."""
    for node, tasks, message in _SRUN_ERROR.findall(log):
        code = _EXIT_CODE.search(message)
        status = int(code[1]) if code else None
        for number, pattern in SIGNAL_MESSAGES.items():
            if re.match(pattern, message):
                status = -int(number)
        for rank in _expand(tasks):
            yield Death(rank, node, status)


def _expand(tasks: str) -> Iterator[int]:
    """Yield the numbers in Slurm's notation of task ids, as in `0-2,5`."""
    for part in tasks.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _signal_of(death: Death, log: str) -> int | None:
    """Return the signal that ended a rank; None if no signal did.

    It is taken from the exit status (negative, or 128 + signal), or else from the log.
    """
    if death.status is not None and death.status < 0:
        return -death.status
    if death.status is not None and death.status > 128:
        return death.status - 128
    return _signal_in(log)


def _signal_in(log: str) -> int | None:
    """Return the signal that faulthandler or the shell reports in a log; None without a report."""
    for number, pattern in SIGNAL_MESSAGES.items():
        if number in (signal.SIGKILL, signal.SIGTERM):
            continue
        if re.search(rf"(?m)^(?:Fatal Python error: )?(?:{pattern})", log):
            return int(number)
    return None


def _find_memory_message(evidence: Evidence, text: str) -> str | None:
    """Return a message that host memory ran out and a process was killed.

    It is a message of the kernel or of Slurm in `text`, else the job's state, else the kernel's
    count of killed processes. Return None if none of these shows it.
    """
    for pattern in OUT_OF_MEMORY:
        found = re.search(pattern, text)
        if found:
            return found[1]
    if evidence.state == JobState.OUT_OF_MEMORY:
        return f"Slurm: {evidence.state}"
    if evidence.oom_kills:
        return f"the kernel counted {evidence.oom_kills} oom_kill in the run's memory cgroup"
    return None


def _match(text: str, place: str) -> str | None:
    """Return cause and remedy of the first entry of MESSAGES that matches; None if none does.

    Args:
        place: ON_SLURM or LOCAL, for the choice of the remedy.
    """
    for known in MESSAGES:
        found = re.search(known.pattern, text, re.MULTILINE)
        if found:
            return _fill_in(known, found.groups(), place)
    return None


def _match_batch(text: str, place: str) -> str | None:
    """Return causes and remedies of the first and the last known message in a batch script's log.

    The last may be a consequence of the first. Return None if no message is known.

    Args:
        text: the log.
        place: ON_SLURM or LOCAL, for the choice of the remedy.
    """
    found = []
    for known in MESSAGES:
        match = re.search(known.pattern, text, re.MULTILINE)
        if match:
            found.append((match.start(), _fill_in(known, match.groups(), place)))
    if not found:
        return None
    first = min(found)[1]
    last = max(found)[1]
    return first if first == last else f"{first}; after that, {last}"


def _match_state(evidence: Evidence, text: str) -> str | None:
    """Return cause and remedy if Slurm ended the job; None otherwise.

    Slurm ended it if the job's state or a message in `text` says so.
    """
    for state, known in STATE_CAUSES.items():
        found = re.search(known.pattern, text)
        if found or evidence.state == state:
            return _fill_in(known, found.groups() if found else (), evidence.place)
    return None


def _fill_in(known: KnownCause, groups: tuple[str | None, ...], place: str) -> str:
    """Return `cause; remedy` of a table entry, with the groups of its pattern filled in.

    `{0}` is replaced with the first group, and `{0: at }` with ` at ` and the first group. Both are
    removed if the group did not match.

    Args:
        groups: the groups of the match.
        place: ON_SLURM or LOCAL, for the choice of the remedy.
    """

    def fill(match: re.Match[str]) -> str:
        number = int(match[1])
        value = groups[number] if number < len(groups) else None
        return f"{match[2] or ''}{value.strip()}" if value else ""

    remedy = MEMORY_REMEDY[place] if known.remedy == USE_MEMORY_REMEDY else known.remedy
    return re.sub(r"\{(\d)(?::([^}]*))?\}", fill, f"{known.cause}; {remedy}")


def _quote_last_line(log: str) -> str:
    """Return a clause that quotes the last line of a log.

    Empty lines, and lines of Slurm, the batch script or its helper (job/batch_script.py), are
    ignored.
    """
    lines = [line.strip() for line in log.splitlines() if not _NOISE.match(line)]
    if not lines:
        return "its log is empty"
    last = lines[-1]
    if len(last) > LINE_LENGTH:
        last = f"{last[:LINE_LENGTH]} …"
    return f"last line of its log: {last}"


def _read_submission(run: Path) -> Submission | None:
    try:
        return read_submission(run)
    except (OSError, ValueError):
        return None
