"""Tables of messages, signals and Slurm job states with a known cause and remedy; causes.py matches
an attempt's logs against them.

Standard library only, Python 3.8 or newer: the batch script runs this outside of a container
(job/batch_script.py).
"""

from __future__ import annotations

import signal
from typing import NamedTuple

from finetune.runs.state import JobState

ON_SLURM = "on Slurm"
LOCAL = "on this machine"

MEMORY_REMEDY = {
    ON_SLURM: (
        "raise cluster.memory_per_node, spread the model over more ranks (zero=stage3), "
        "or lower micro_batch_size"
    ),
    LOCAL: (
        "close other programs, choose a smaller model, or lower micro_batch_size or cluster.ranks_per_node"
    ),
}
SIGKILL_REMEDY = {
    ON_SLURM: "`sacct -j JOB -o JobID,State,ExitCode,MaxRSS,ReqMem` shows how much memory it had used",
    LOCAL: "the kernel's log (`journalctl -k`, `dmesg`) names processes that it killed for lack of memory",
}

# a remedy of this value, in the tables below, is replaced with the entry of MEMORY_REMEDY
USE_MEMORY_REMEDY = "MEMORY"


class KnownCause(NamedTuple):
    """A message with a known cause.

    Attributes:
        pattern: regular expression of the message.
        cause, remedy: shown to users; `{0}`, `{1}` … are replaced with the groups of the pattern.
    """

    pattern: str
    cause: str
    remedy: str


# errors of ranks that lost their connection to a rank that died (in lower case)
LOST_PEER = ("closed by peer", "reset by peer", "broken pipe", "remote process exited")

# messages of the kernel or Slurm that a process was killed because host memory ran out
OUT_OF_MEMORY = (
    r"Detected (\d+ oom[_-]kill event)",
    r"(Some of the step tasks have been OOM Killed)",
    r"(oom-kill event\(s\))",
    r"error: \S+: tasks? [\d,-]+: (Out Of Memory)",
    r"(?:task|job|step)\S* .*\b(OUT_OF_MEMORY)\b",
    r"(Exceeded (?:job|step) memory limit)",
)

# Messages in the log of a rank or of the batch script, most specific first. A message further down
# can be a consequence of one above it.
MESSAGES = (
    KnownCause(
        r"((?:CUDA|HIP|XPU) out of memory[^\n]{0,60}|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED)",
        "GPU memory ran out ({0})",
        "lower micro_batch_size or data.sequence_length, or spread the model over more GPUs (zero=stage3)",
    ),
    KnownCause(
        r"Bus error[^\n]*(?:shm|shared memory)|/dev/shm[^\n]*No space left"
        r"|unable to (?:open|mmap) shared memory",
        "/dev/shm is full",
        "give the container or the node more shared memory (/dev/shm)",
    ),
    KnownCause(
        r"(?:\d+ requested and \d+ written|PytorchStreamWriter failed writing file)",
        "a file was written only in part",
        "check for a full disk or quota; free space, or choose another runs_dir",
    ),
    KnownCause(
        r"No space left on device(?:[^\n]{0,3}: '([^'\n]+)')?",
        "the disk is full{0: at }",
        "free space there, or choose another runs_dir",
    ),
    KnownCause(
        r"Disk quota exceeded(?:[^\n]{0,3}: '([^'\n]+)')?",
        "the disk quota is used up{0: at }",
        "delete files there, or choose another runs_dir",
    ),
    KnownCause(
        r"version `(GLIBC(?:XX)?_[\d.]+)' not found(?: \(required by ([^)\n]+)\))?",
        "the node's system libraries lack {0}{1:, which is needed by }",
        "use the Python or container that was built for the compute nodes (cluster.python, cluster.modules)",
    ),
    KnownCause(
        r"ImportError: (lib\S+|\S+\.so\S*): cannot open shared object file",
        "the shared library {0} is not found",
        "load the module that provides it (cluster.modules), or set LD_LIBRARY_PATH in cluster.env",
    ),
    KnownCause(
        r"error while loading shared libraries: (\S+):",
        "the shared library {0} is not found",
        "load the module that provides it (cluster.modules), or set LD_LIBRARY_PATH in cluster.env",
    ),
    KnownCause(
        r"(?m)^FATAL: +([^\n]+)",
        "the container did not start ({0})",
        "check the image's path and the binds in cluster.python; compute nodes must see both",
    ),
    KnownCause(
        r"Lmod has detected the following error: *([^\n]+)",
        "a module cannot be loaded ({0})",
        "check cluster.modules with `module spider` on the cluster",
    ),
    KnownCause(
        r"((?:module|ml): (?:command )?not found)",
        "the batch script has no module command ({0})",
        "define it in cluster.setup, or empty cluster.modules",
    ),
    KnownCause(
        r"ModuleNotFoundError: No module named '([^']+)'",
        "Python on the node has no package {0}",
        "install it for the Python that cluster.python names",
    ),
    KnownCause(
        r"(?:line )?\d+: (\S+): (?:command not found|not found|No such file or directory)\s*$",
        "the node has no command {0}",
        "check cluster.python, cluster.host_python and cluster.setup",
    ),
    KnownCause(
        r"execve\(\): (\S+): No such file or directory",
        "the node has no command {0}",
        "check cluster.python, cluster.host_python and cluster.setup",
    ),
    KnownCause(
        r"future feature annotations is not defined|SyntaxError: future feature",
        "the host's Python is older than 3.8, or missing",
        "set cluster.host_python to a Python 3.8 or newer",
    ),
    KnownCause(
        r"no kernel image is available for execution",
        "the installed torch cannot run on this GPU",
        "install a torch build for its architecture, or choose newer GPUs",
    ),
    KnownCause(
        r"(?:CUDA error: uncorrectable ECC|ECC error|Xid[^\n]*\b(?:48|63|64|79|94|95)\b"
        r"|GPU has fallen off the bus)",
        "the GPU failed (hardware error)",
        "exclude the node: cluster.sbatch.exclude=NODE",
    ),
    KnownCause(
        r"MemoryError|Cannot allocate memory|DefaultCPUAllocator: (?:not enough|can't allocate) memory"
        r"|std::bad_alloc",
        "host memory ran out (an allocation failed)",
        USE_MEMORY_REMEDY,
    ),
    KnownCause(
        r"Watchdog caught collective operation timeout|Timed out waiting \d+ms|wait timeout after \d+ms",
        "a collective timed out: another rank hung or was slow",
        "read the logs of all ranks (finetune logs RUN --rank N)",
    ),
    KnownCause(
        r"ncclRemoteError|ncclSystemError|NCCL error[^\n]*",
        "NCCL lost the network or another rank",
        "read the logs of all ranks, and check the site's network variables in cluster.env",
    ),
    # the batch script's own errors: see launch/environment.py
    KnownCause(r"^error: (cluster\.\w+: [^\n;]+); ([^\n]+)", "{0}", "{1}"),
)

# messages of faulthandler, bash and srun, by signal
SIGNAL_MESSAGES: dict[int, str] = {
    signal.SIGSEGV: r"Segmentation fault",
    signal.SIGBUS: r"Bus error",
    signal.SIGILL: r"Illegal instruction",
    signal.SIGABRT: r"Aborted|Fatal Python error: (?!Segm|Bus|Ill|Float)",
    signal.SIGFPE: r"Floating[- ]point exception",
    signal.SIGKILL: r"Killed",
    signal.SIGTERM: r"Terminated",
}
SIGNAL_CAUSES: dict[int, KnownCause] = {
    signal.SIGSEGV: KnownCause(
        "",
        "crashed in native code (SIGSEGV, segmentation fault)",
        "update the library at the top of the stack in the log, or try model.kernels=none",
    ),
    signal.SIGBUS: KnownCause(
        "",
        "crashed on a memory access (SIGBUS)",
        "check for a full /dev/shm, a full disk, or a file that was truncated while it was read",
    ),
    signal.SIGILL: KnownCause(
        "",
        "used an instruction that this CPU does not have (SIGILL)",
        "install packages that were built for the node's CPU",
    ),
    signal.SIGABRT: KnownCause(
        "",
        "aborted in native code (SIGABRT)",
        "the last lines of its log name the failed check",
    ),
    signal.SIGFPE: KnownCause(
        "",
        "crashed in native code (SIGFPE)",
        "the stack in its log names the library",
    ),
    signal.SIGTERM: KnownCause(
        "",
        "ended by SIGTERM",
        "check whether a user or the system ended the process",
    ),
}

# job states in which Slurm ended the job; the patterns match Slurm's messages for them in a log
STATE_CAUSES = {
    JobState.OUT_OF_MEMORY: KnownCause(
        r"(?!)",
        "host memory ran out (Slurm: OUT_OF_MEMORY)",
        USE_MEMORY_REMEDY,
    ),
    JobState.TIMEOUT: KnownCause(
        r"CANCELLED AT \S+ DUE TO TIME LIMIT",
        "the time limit ended the job before it could save a checkpoint",
        "raise cluster.signal_lead_s or cluster.timeout_min",
    ),
    JobState.PREEMPTED: KnownCause(
        r"CANCELLED AT \S+ DUE TO PREEMPTION",
        "the job was preempted by one of higher priority",
        "submit it again",
    ),
    JobState.NODE_FAIL: KnownCause(
        r"CANCELLED AT \S+ DUE TO NODE (?:FAILURE|FAIL)[^\n]*|Node failure on (\S+)",
        "a node failed{0: }",
        "submit it again",
    ),
    JobState.DEADLINE: KnownCause(
        r"DUE TO DEADLINE",
        "the job's deadline passed",
        "submit it again with a later deadline",
    ),
    JobState.BOOT_FAIL: KnownCause(
        r"(?!)",
        "the job's node did not boot",
        "submit it again",
    ),
}
