"""The cause of a rank's death, read from what it left: its exit status, the end of its log, Slurm's messages
and job state.

`explain` returns one sentence, `rank N on NODE: <cause>; <remedy>`. What it recognises is data: the tables
below. Where nothing matches, the sentence quotes the last line of the log instead of guessing.

Only the standard library, from Python 3.8 on: the batch script reads this outside of a container
(job/batch_script.py).
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from finetune.runs import layout
from finetune.runs.records import Failure, Submission, read_exits, read_submission
from finetune.runs.state import FailureKind, JobState

TAIL_BYTES = 65536  # of each log; a rank that dies writes its reason last
TAIL_LINES = 200
LINE_LENGTH = 240  # of a quoted line
LOST_PEER = (
    "closed by peer",
    "reset by peer",
    "broken pipe",
    "remote process exited",
)  # errors of a dead rank's peers
ON_SLURM, LOCAL = "on Slurm", "on this machine"

MEMORY_REMEDY = {
    ON_SLURM: "raise cluster.memory_per_node, spread the model over more ranks (zero=stage3), or lower micro_batch_size",
    LOCAL: "close other programs, choose a smaller model, or lower micro_batch_size or cluster.ranks_per_node",
}
SIGKILL_REMEDY = {
    ON_SLURM: "`sacct -j JOB -o JobID,State,ExitCode,MaxRSS,ReqMem` shows how much memory it had used",
    LOCAL: "the kernel's log (`journalctl -k`, `dmesg`) names a process that it ended for want of memory",
}


class Known(NamedTuple):
    """A message with a known cause; `{0}`, `{1}` … in cause and remedy are the groups of the pattern."""

    pattern: str
    cause: str
    remedy: str


# Host memory: the kernel's or Slurm's messages that a process was ended because memory ran out.
OUT_OF_MEMORY = (
    r"Detected (\d+ oom[_-]kill event)",
    r"(Some of the step tasks have been OOM Killed)",
    r"(oom-kill event\(s\))",
    r"error: \S+: tasks? [\d,-]+: (Out Of Memory)",
    r"(?:task|job|step)\S* .*\b(OUT_OF_MEMORY)\b",
    r"(Exceeded (?:job|step) memory limit)",
)

# In the log of a rank or of the batch script, most telling first: a message further down can be a consequence
# of one above.
MESSAGES = (
    Known(
        r"((?:CUDA|HIP|XPU) out of memory[^\n]{0,60}|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED)",
        "GPU memory ran out ({0})",
        "lower micro_batch_size or data.sequence_length, or spread the model over more GPUs (zero=stage3)",
    ),
    Known(
        r"Bus error[^\n]*(?:shm|shared memory)|/dev/shm[^\n]*No space left|unable to (?:open|mmap) shared memory",
        "/dev/shm is full",
        "give the container or the node more shared memory (/dev/shm)",
    ),
    Known(
        r"(?:\d+ requested and \d+ written|PytorchStreamWriter failed writing file)",
        "a file could not be written whole",
        "look for a full disk or a used-up quota; free space, or choose another runs_dir",
    ),
    Known(
        r"No space left on device(?:[^\n]{0,3}: '([^'\n]+)')?",
        "the disk is full{0: at }",
        "free space there, or choose another runs_dir",
    ),
    Known(
        r"Disk quota exceeded(?:[^\n]{0,3}: '([^'\n]+)')?",
        "the disk quota is used up{0: at }",
        "free space or files there, or choose another runs_dir",
    ),
    Known(
        r"version `(GLIBC(?:XX)?_[\d.]+)' not found(?: \(required by ([^)\n]+)\))?",
        "the node's system lacks {0}{1: for }",
        "use the Python or container that was built for the compute nodes (cluster.python, cluster.modules)",
    ),
    Known(
        r"ImportError: (lib\S+|\S+\.so\S*): cannot open shared object file",
        "the shared library {0} is not found",
        "load the module that provides it (cluster.modules), or set LD_LIBRARY_PATH in cluster.env",
    ),
    Known(
        r"error while loading shared libraries: (\S+):",
        "the shared library {0} is not found",
        "load the module that provides it (cluster.modules), or set LD_LIBRARY_PATH in cluster.env",
    ),
    Known(
        r"(?m)^FATAL: +([^\n]+)",
        "the container did not start ({0})",
        "check the image's path and the binds in cluster.python; compute nodes must see both",
    ),
    Known(
        r"Lmod has detected the following error: *([^\n]+)",
        "a module cannot be loaded ({0})",
        "check cluster.modules with `module spider` on the cluster",
    ),
    Known(
        r"((?:module|ml): (?:command )?not found)",
        "the batch script has no module command ({0})",
        "define it in cluster.setup, or empty cluster.modules",
    ),
    Known(
        r"ModuleNotFoundError: No module named '([^']+)'",
        "Python on the node has no package {0}",
        "install it in the Python of cluster.python",
    ),
    Known(
        r"(?:line )?\d+: (\S+): (?:command not found|not found|No such file or directory)\s*$",
        "the node has no command {0}",
        "check cluster.python, cluster.host_python and cluster.setup",
    ),
    Known(
        r"execve\(\): (\S+): No such file or directory",
        "the node has no command {0}",
        "check cluster.python, cluster.host_python and cluster.setup",
    ),
    Known(
        r"future feature annotations is not defined|SyntaxError: future feature",
        "the host's Python is older than 3.8, or missing",
        "name a newer one in cluster.host_python",
    ),
    Known(
        r"no kernel image is available for execution",
        "the installed torch cannot run on this GPU",
        "install a torch build for its architecture, or choose newer GPUs",
    ),
    Known(
        r"(?:CUDA error: uncorrectable ECC|ECC error|Xid[^\n]*\b(?:48|63|64|79|94|95)\b|GPU has fallen off the bus)",
        "the GPU failed (hardware error)",
        "exclude the node: cluster.sbatch.exclude=NODE",
    ),
    Known(
        r"MemoryError|Cannot allocate memory|DefaultCPUAllocator: (?:not enough|can't allocate) memory|std::bad_alloc",
        "host memory ran out (an allocation failed)",
        "MEMORY",
    ),
    Known(
        r"Watchdog caught collective operation timeout|Timed out waiting \d+ms|wait timeout after \d+ms",
        "a collective timed out: another rank hung or was slow",
        "read the logs of all ranks (finetune logs RUN --rank N)",
    ),
    Known(
        r"ncclRemoteError|ncclSystemError|NCCL error[^\n]*",
        "NCCL lost the network or a peer",
        "read the logs of all ranks; check cluster.env for the site's network",
    ),
    # the batch script's own errors: see launch/environment.py
    Known(r"^error: (cluster\.\w+: [^\n;]+); ([^\n]+)", "{0}", "{1}"),
)

# Messages of faulthandler, bash and srun for each signal.
FATAL: dict[int, str] = {
    signal.SIGSEGV: r"Segmentation fault",
    signal.SIGBUS: r"Bus error",
    signal.SIGILL: r"Illegal instruction",
    signal.SIGABRT: r"Aborted|Fatal Python error: (?!Segm|Bus|Ill|Float)",
    signal.SIGFPE: r"Floating[- ]point exception",
    signal.SIGKILL: r"Killed",
    signal.SIGTERM: r"Terminated",
}
SIGNALS: dict[int, Known] = {
    signal.SIGSEGV: Known(
        "",
        "crashed in native code (SIGSEGV, segmentation fault)",
        "update that library, or try model.kernels=none; the log has the stack",
    ),
    signal.SIGBUS: Known(
        "",
        "crashed on a memory access (SIGBUS)",
        "look for a full /dev/shm, a full disk or a file that was cut off while it was read",
    ),
    signal.SIGILL: Known(
        "",
        "used an instruction that this CPU does not have (SIGILL)",
        "install packages that were built for the node's CPU",
    ),
    signal.SIGABRT: Known(
        "", "aborted in native code (SIGABRT)", "the log's last lines name the failed check"
    ),
    signal.SIGFPE: Known("", "crashed in native code (SIGFPE)", "the log's stack names the library"),
    signal.SIGTERM: Known("", "was ended by SIGTERM", "somebody or the system ended it"),
}

# Slurm's states of a job that it ended, and its messages of the same in a log.
STATES = {
    JobState.OUT_OF_MEMORY: Known(r"(?!)", "host memory ran out (Slurm: OUT_OF_MEMORY)", "MEMORY"),
    JobState.TIMEOUT: Known(
        r"CANCELLED AT \S+ DUE TO TIME LIMIT",
        "the time limit ended it before it could save",
        "raise cluster.signal_lead_s or cluster.timeout_min",
    ),
    JobState.PREEMPTED: Known(
        r"CANCELLED AT \S+ DUE TO PREEMPTION", "a job of higher priority preempted it", "submit it again"
    ),
    JobState.NODE_FAIL: Known(
        r"CANCELLED AT \S+ DUE TO NODE (?:FAILURE|FAIL)[^\n]*|Node failure on (\S+)",
        "a node failed{0: }",
        "submit it again",
    ),
    JobState.DEADLINE: Known(r"DUE TO DEADLINE", "the job's deadline passed", "submit it with a later one"),
    JobState.BOOT_FAIL: Known(r"(?!)", "its node did not boot", "submit it again"),
}

_HELPER = re.compile(rb"^\d{4}-\d\d-\d\d [\d:]{8} finetune: (?!the time limit )[^\n]*\n", re.MULTILINE)
_START_WORDS = "Starting with JobEnvironment("  # the first line of a rank, from submitit
_STARTED = re.compile(rb"^[^\n]*Starting with JobEnvironment\(", re.MULTILINE)
_SRUN = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): ([^\n]+)")
_CODE = re.compile(r"Exited with exit code (\d+)")
_FRAME = re.compile(
    r'Current thread [^\n]*most recent call first\):\n\s+File "([^"\n]+)", line \d+ in ([^\n]+)'
)  # of faulthandler
_NOISE = re.compile(r"^\s*$|^srun: |^slurmstepd|^In: |^Out: |^\d{4}-\d\d-\d\d [\d:]{8} finetune: ")


@dataclass(frozen=True)
class Evidence:
    """The evidence that an attempt left behind.

    Attributes:
        world_size: how many ranks there were.
        where: ON_SLURM or LOCAL, for the remedy.
        logs: the end of each rank's log; rank 0's also holds the batch script's.
        failures: what ranks wrote of their own failure (RunFolder.record_failure).
        exits: the exit status of ranks, as subprocess gives it: -9 is SIGKILL.
        code: the exit code of srun, None where it is not known.
        state: Slurm's state of the job, "" where it is not known.
        oom_kills: processes that the kernel ended in the run's memory cgroup meanwhile.
        job: id of the Slurm job, "" without one.
        memory: what Slurm accounted of its memory, "" where it does not tell.
    """

    world_size: int
    where: str
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
    """A rank that ended, the node it was on ("" where that is not known), and its exit status."""

    rank: int
    node: str = ""
    status: int | None = None


def gather(
    run: Path,
    failures: Sequence[Failure],
    world_size: int,
    code: int | None = None,
    state: str = "",
    job: str = "*",
    memory: str = "",
) -> Evidence:
    """Collect the evidence of the newest attempt from a run folder.

    Args:
        failures: those of the attempt.
        code, state, memory: as in Evidence.
        job: whose logs are read; "*": those of the newest job.
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
    if in_allocation:  # srun reports into a log of its own there
        logs[0] = f"{logs.get(0, '')}\n{read_tail(jobs / layout.CONTROLLER_LOG, has_batch_lines=True)}"
    job_id = submission.job_id if submission else ""
    return Evidence(
        world_size=world_size,
        where=ON_SLURM if is_slurm or in_allocation or code is not None else LOCAL,
        logs=logs,
        failures=tuple(failures),
        exits=exits.ranks,
        code=code,
        state=state,
        oom_kills=exits.oom_kills,
        job=job_id if job == "*" else job,
        memory=memory,
    )


def read_tail(path: Path, has_batch_lines: bool) -> str:
    """Return the end of a log, from the start of the newest attempt in it.

    Args:
        has_batch_lines: the batch script writes into it too; an attempt then starts after the helper's last
            message.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            content = file.read()
    except OSError:
        return ""
    pattern = _HELPER if has_batch_lines else _STARTED
    starts = [match.end() for match in pattern.finditer(content)]
    if starts:
        content = content[starts[-1] :]
    return "\n".join(content.decode("utf-8", "replace").replace("\r", "\n").splitlines()[-TAIL_LINES:])


def explain(evidence: Evidence) -> str | None:
    """Return why an attempt died, in one sentence; None if nothing was left at all."""
    own = [failure for failure in evidence.failures if not is_lost_peer(failure.error)]
    if own:
        return _explain_failure(evidence, min(own, key=lambda failure: failure.time))
    death = _first_death(evidence)
    if death is None and evidence.failures:  # of a peer that nobody knows
        return min(evidence.failures, key=lambda failure: failure.time).error
    if death is None:
        return _explain_job(evidence)
    name = f"rank {death.rank}" + (f" on {death.node}" if death.node else "")
    return f"{name}: {_explain_death(evidence, death)}"


def is_lost_peer(error: str) -> bool:
    """Return whether a rank failed only because another one was gone."""
    return any(words in error.lower() for words in LOST_PEER)


def _explain_failure(evidence: Evidence, failure: Failure) -> str:
    """Return the message of a rank that raised, with a remedy where its kind is known."""
    if failure.kind != FailureKind.CRASH:  # written for people
        return failure.error
    known = _match(failure.error, evidence.where)
    return f"rank {failure.rank}: {known} ({failure.error})" if known else failure.error


def _explain_death(evidence: Evidence, death: Death) -> str:
    """Return cause and remedy for a rank that ended without a message of its own."""
    own_log = evidence.logs.get(death.rank, "")
    batch_log = evidence.logs.get(0, "")
    words = _memory_message(evidence, f"{own_log}\n{batch_log}")
    if words:
        return f"killed for want of host memory ({words}); {MEMORY_REMEDY[evidence.where]}"
    batch_part, _, rank_part = batch_log.partition(_START_WORDS) if death.rank == 0 else ("", "", own_log)
    known = _match(rank_part, evidence.where) or _match_state(evidence, batch_log)
    if not known and not rank_part:  # the rank never came to run
        known = _match_batch(batch_part or batch_log, evidence.where)
    if known:
        return known
    number = _signal_of(death, own_log)
    if number == signal.SIGKILL:
        remedy = evidence.memory or SIGKILL_REMEDY[evidence.where].replace("JOB", evidence.job or "JOB")
        return f"killed by SIGKILL, and no log says by whom; {remedy}; its last line: {last_line(own_log)}"
    if number in SIGNALS:
        frame = _FRAME.search(own_log)
        place = f" in {frame[2]} of {frame[1]}" if frame else ""
        return f"{SIGNALS[number].cause}{place}; {SIGNALS[number].remedy}"
    status = "" if death.status is None else f" (exit code {death.status})"
    return f"no cause is in the log{status}; its last line: {last_line(own_log)}"


def _explain_job(evidence: Evidence) -> str | None:
    """Return why a job ended of which no single rank is known to have died."""
    text = evidence.logs.get(0, "")
    if not text and not evidence.state and evidence.code is None:
        return None
    if words := _memory_message(evidence, text):
        return f"host memory ran out ({words}); {MEMORY_REMEDY[evidence.where]}"
    known = _match_batch(text, evidence.where) or _match_state(evidence, text)
    if known:
        return known
    status = "" if evidence.code is None else f" (exit code {evidence.code})"
    return f"no cause is in the log{status}; its last line: {last_line(text)}"


def _first_death(evidence: Evidence) -> Death | None:
    """Return the rank that ended first without a message: by srun's report, by its exit status, or as it left
    no failure."""
    spoke = {failure.rank for failure in evidence.failures}
    reported = list(_reported_deaths(evidence.logs.get(0, "")))
    silent = [death for death in reported if death.rank not in spoke]
    silent += [
        Death(rank, status=status) for rank, status in evidence.exits.items() if status and rank not in spoke
    ]
    if silent:
        return min(silent, key=_likely_consequence)
    if spoke:
        return next((Death(rank) for rank in range(evidence.world_size) if rank not in spoke), None)
    crashed = [rank for rank, log in sorted(evidence.logs.items()) if _signal_in(log) is not None]
    if crashed:
        return Death(crashed[0])
    return Death(0, status=evidence.code) if evidence.world_size == 1 and evidence.logs else None


def _likely_consequence(death: Death) -> int:
    """Order deaths: a crash comes before a kill, with which srun and we end the ranks that are left, and
    before an exit code."""
    number = _signal_of(death, "")
    if number in (signal.SIGKILL, signal.SIGTERM):
        return 1
    return 0 if number else 2


def _reported_deaths(log: str) -> Iterator[Death]:
    """Yield the ranks of which srun reports an end, in its order."""
    for node, tasks, words in _SRUN.findall(log):
        code = _CODE.search(words)
        status = int(code[1]) if code else None
        for number, pattern in FATAL.items():
            if re.match(pattern, words):
                status = -int(number)
        for rank in _expand(tasks):
            yield Death(rank, node, status)


def _expand(tasks: str) -> Iterator[int]:
    """Yield the numbers of `0-2,5`."""
    for part in tasks.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _signal_of(death: Death, log: str) -> int | None:
    if death.status is not None and death.status < 0:
        return -death.status
    if death.status is not None and death.status > 128:
        return death.status - 128
    return _signal_in(log)


def _signal_in(log: str) -> int | None:
    """Return the signal whose message is in a log (faulthandler's, or the shell's)."""
    for number, pattern in FATAL.items():
        if number not in (signal.SIGKILL, signal.SIGTERM) and re.search(
            rf"(?m)^(?:Fatal Python error: )?(?:{pattern})", log
        ):
            return int(number)
    return None


def _memory_message(evidence: Evidence, text: str) -> str | None:
    """Return the message that the kernel or Slurm ended a process for want of memory."""
    for pattern in OUT_OF_MEMORY:
        found = re.search(pattern, text)
        if found:
            return found[1]
    if evidence.state == JobState.OUT_OF_MEMORY:
        return f"Slurm: {evidence.state}"
    if evidence.oom_kills:
        return f"the kernel counts {evidence.oom_kills} oom_kill in its memory cgroup"
    return None


def _match(text: str, where: str) -> str | None:
    """Return cause and remedy of the first table entry whose message is in the text."""
    for known in MESSAGES:
        found = re.search(known.pattern, text, re.MULTILINE)
        if found:
            return _fill_in(known, found.groups(), where)
    return None


def _match_batch(text: str, where: str) -> str | None:
    """Return cause and remedy of the first message of a batch script, and of the last: one may follow from
    the other."""
    found = []
    for known in MESSAGES:
        match = re.search(known.pattern, text, re.MULTILINE)
        if match:
            found.append((match.start(), _fill_in(known, match.groups(), where)))
    if not found:
        return None
    first, last = min(found)[1], max(found)[1]
    return first if first == last else f"{first}; after that, {last}"


def _match_state(evidence: Evidence, text: str) -> str | None:
    """Return cause and remedy of an end that Slurm decided, by the job's state or by its message in the
    log."""
    for state, known in STATES.items():
        found = re.search(known.pattern, text)
        if found or evidence.state == state:
            return _fill_in(known, found.groups() if found else (), evidence.where)
    return None


def _fill_in(known: Known, groups: tuple[str | None, ...], where: str) -> str:
    """Fill a table entry in: `{0}` is a group, `{0: at }` the same after ` at `, or nothing if the group did
    not match."""

    def fill(match: re.Match[str]) -> str:
        number = int(match[1])
        value = groups[number] if number < len(groups) else None
        return f"{match[2] or ''}{value.strip()}" if value else ""

    remedy = MEMORY_REMEDY[where] if known.remedy == "MEMORY" else known.remedy
    return re.sub(r"\{(\d)(?::([^}]*))?\}", fill, f"{known.cause}; {remedy}")


def last_line(log: str) -> str:
    """Return the last line of a log that is not from Slurm or the helper; "it has none" if there is no such
    line."""
    lines = [line.strip() for line in log.splitlines() if not _NOISE.match(line)]
    if not lines:
        return "it has none"
    return lines[-1] if len(lines[-1]) <= LINE_LENGTH else f"{lines[-1][:LINE_LENGTH]} …"


def _read_submission(run: Path) -> Submission | None:
    try:
        return read_submission(run)
    except (OSError, ValueError):
        return None
