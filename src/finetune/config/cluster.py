"""Settings of a cluster profile: the schema of conf/cluster/*.yaml. A profile holds the facts that
a site documents, and the resources that a run asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from data_prep.fields import at_least, one_of, section, setting
from data_prep.user_error import UserError
from finetune.config.site import ARCHITECTURES, QueueLimits, SiteConfig

SCHEDULERS = ("local", "slurm")
# gpus-per-task is left out: each rank would see one GPU only, and NCCL could not reach its peers
GPU_REQUESTS = ("gpus-per-node", "gres", "none")
ON_INTERRUPT = ("requeue", "resubmit", "stop")
# options of sbatch that are refused in cluster.sbatch, with the setting or option that sets each
OWN_OPTIONS = {
    "array": "a sweep (-m)", "job-name": "name", "nodes": "cluster.nodes",
    "ntasks": "cluster.ranks_per_node", "ntasks-per-node": "cluster.ranks_per_node",
    "cpus-per-task": "cluster.cpus_per_rank", "time": "cluster.timeout_min",
    "partition": "cluster.partition", "account": "cluster.account", "qos": "cluster.qos",
    "constraint": "cluster.constraint", "mem": "cluster.memory_per_node", "signal": "cluster.signal_lead_s",
    "requeue": "cluster.on_interrupt", "no-requeue": "cluster.on_interrupt", "output": "runs_dir",
    "error": "runs_dir", "dependency": "--after", "chdir": "runs_dir",
}  # fmt: skip
# CUDA architecture of each cluster.gpu_type, for sites with several types of GPU
GPU_TYPES = {"p100": "sm_60", "v100": "sm_70", "a100": "sm_80", "h100": "sm_90"}
CORE_MASKS = ("mask_cpu", "map_cpu")  # values of srun's --cpu-bind that name cores
# patterns that sbatch (also with a width, as in %4t) and submitit replace in the paths of logs
SLURM_PATTERN = r"%\d*[%AaJjNnstuxb]|\\"
SUBMITIT_PATTERN = "%[jtaA]"


# options of sbatch that are refused in cluster.prepare.sbatch, with what sets each
OWN_PREPARE_OPTIONS = {
    "array": "cluster.prepare.tasks",
    "job-name": "corpus.name",
    "nodes": "cluster.prepare.tasks_per_job",
    "ntasks": "cluster.prepare.tasks_per_job",
    "cpus-per-task": "cluster.prepare.tasks_per_job",
    "time": "cluster.prepare.timeout_min",
    "partition": "cluster.prepare.partition",
    "account": "cluster.prepare.account",
    "qos": "cluster.prepare.qos",
    "constraint": "cluster.prepare.constraint",
    "mem": "cluster.prepare.memory",
    "output": "corpora_dir",
    "error": "corpora_dir",
    "dependency": "the order of the steps",
    "requeue": "cluster.on_interrupt",
    "no-requeue": "cluster.on_interrupt",
}


@dataclass(kw_only=True)
class PrepareJobs:
    """Slurm jobs of `finetune prepare`, with tasks of one core and no GPU. They share only account,
    clean_modules and the caches with training; the other settings of the profile are for GPU nodes."""

    partition: str | None = setting(
        None, "Slurm partition of CPU nodes; unset: the site's default (not cluster.partition)"
    )
    qos: str | None = setting(None, "quality of service; unset: the site's default (not cluster.qos)")
    account: str | None = setting(None, "account to charge; unset: cluster.account")
    constraint: str | None = setting(None, "features that the nodes must have")
    architecture: str | None = setting(None, "CPU architecture of the nodes; unset: that of the login nodes")
    tasks: int = setting(
        32, "largest number of tasks per step; fewer if the queue limits a user to fewer jobs"
    )
    tasks_per_job: int | None = setting(
        None,
        "parallel tasks per job, for partitions that allocate whole nodes; unset: with "
        "site.whole_nodes, as many as a node's cores and memory allow; otherwise 1",
    )
    memory: str = setting("8G", "memory per task")
    timeout_min: int = setting(
        240, "time limit of a job, in minutes; consecutive steps that have only one task run in the same job"
    )
    python: str | None = setting(
        None,
        "command that starts Python in a job, e.g. in a container; unset: the Python that "
        "submits (not cluster.python)",
    )
    modules: list[str] = setting([], "module commands at the start of a job; cluster.modules is not used")
    setup: list[str] = setting([], "shell lines at the start of a job; cluster.setup is not used")
    env: dict[str, str] = setting(
        {}, "environment variables of a job, without secrets; cluster.env is not used"
    )
    sbatch: dict[str, str] = setting(
        {}, "further options of sbatch, by their long names; cluster.sbatch is not used"
    )

    def check(self) -> None:
        at_least("cluster.prepare.tasks", self.tasks, 1)
        at_least("cluster.prepare.timeout_min", self.timeout_min, 1)
        at_least("cluster.prepare.tasks_per_job", self.tasks_per_job, 1)
        if self.architecture is not None:
            one_of("cluster.prepare.architecture", self.architecture, ARCHITECTURES)
        _parse_gigabytes(self.memory, "cluster.prepare.memory")
        _check_sbatch_options("cluster.prepare.sbatch", self.sbatch, OWN_PREPARE_OPTIONS)

    def compute_tasks_per_node(self, site: SiteConfig) -> int:
        """Return how many tasks fit into the cores and the memory of a node of the site."""
        by_cores = site.cores_per_node or 1
        if site.memory_per_node_gb is None:
            return by_cores
        gigabytes = _parse_gigabytes(self.memory, "cluster.prepare.memory")
        return max(1, min(by_cores, int(site.memory_per_node_gb // max(gigabytes, 1e-6))))

    def format_memory(self, num_tasks: int) -> str:
        """Return the memory of a number of tasks, in sbatch's notation."""
        number = self.memory.rstrip("KMGTkmgt")
        return f"{int(number) * num_tasks}{self.memory.removeprefix(number)}"


@dataclass(kw_only=True)
class ClusterConfig:
    """Where the ranks run, and the resources of their jobs."""

    name: str = setting("local", "name of the profile")
    scheduler: str = setting("local", f"program that starts the ranks: {', '.join(SCHEDULERS)}")
    nodes: int = setting(1, "nodes per job")
    ranks_per_node: int = setting(
        1, "processes per node: one per GPU or, without GPUs, processes that share the cores"
    )
    timeout_min: int = setting(7 * 24 * 60, "time limit of a job, in minutes")
    env: dict[str, str] = setting(
        {}, "environment variables of all ranks; no secrets, because they are written to disk"
    )
    env_one_node: dict[str, str] = setting({}, "extra environment variables for single-node jobs")
    env_many_nodes: dict[str, str] = setting({}, "extra environment variables for multi-node jobs")

    account: str | None = setting(None, "account to charge")
    partition: str | None = setting(None, "Slurm partition; unset: the site's default")
    qos: str | None = setting(None, "Slurm quality of service, e.g. a site's development queue")
    constraint: str | None = setting(None, "features that the nodes must have")
    gpu_request: str = setting("none", f"sbatch option that requests GPUs: {', '.join(GPU_REQUESTS)}")
    gpu_type: str | None = setting(None, "type of GPU in that request, e.g. a100 in gres=gpu:a100:4")
    cpus_per_rank: int = setting(1, "cores per rank")
    memory_per_node: str | None = setting(None, "memory per node, e.g. 440G; unset: the site's default")
    sbatch: dict[str, str] = setting({}, "further options of sbatch, by their long names")
    srun: list[str] = setting([], "further options of srun")
    array_parallelism: int = setting(
        256, "largest number of runs of a sweep that run at the same time; unset: no limit"
    )

    python: str | None = setting(
        None, "command that starts Python in a job, e.g. in a container; unset: the Python that submits"
    )
    host_python: str = setting(
        "python3",
        "Python (3.8 or newer, no packages needed) on the nodes, outside any container; "
        "used to requeue a run if cluster.python is set",
    )
    clean_modules: str | None = setting(
        None,
        "module command at the start of a job that makes it independent of the submitting shell: reset or "
        "purge",
    )
    modules: list[str] = setting(
        [], "module commands to run after clean_modules, e.g. 'load CUDA'; one that fails ends the job"
    )
    setup: list[str] = setting([], "shell lines before the ranks start")
    master_suffix: str = setting(
        "", "suffix that turns a host's name into its name on the fast network, if the site needs one"
    )

    on_interrupt: str = setting(
        "requeue",
        "action after a time limit, a preemption or the death of a rank: requeue, resubmit (for sites that "
        "forbid requeue) or stop",
    )
    max_restarts: int = setting(
        20,
        "largest number of automatic restarts after faults or without progress; resume and "
        "retry start a new count",
    )
    signal_lead_s: int = setting(300, "seconds before the time limit at which the ranks save a checkpoint")
    node_local: str | None = setting(
        None,
        "folder for scratch data, e.g. $SCRATCH, preferably on the node's own disk; each "
        "node uses its own subfolder; may contain variables of the job",
    )
    shared_cache: str | None = setting(
        None,
        "folder for HF_HOME and APPTAINER_CACHEDIR, unless the shell sets them; may contain variables of the "
        "job",
    )
    local_cache: str | None = setting(
        "/tmp/$USER-$SLURM_JOB_ID",
        "folder on each node for compiled code (Triton, TorchInductor, torch extensions)",
    )
    prepare: PrepareJobs = section(PrepareJobs)
    site: SiteConfig = section(SiteConfig)

    def __post_init__(self) -> None:
        for name in ("nodes", "ranks_per_node", "timeout_min", "cpus_per_rank", "array_parallelism"):
            at_least(f"cluster.{name}", getattr(self, name), 1)
        for name in ("max_restarts", "signal_lead_s"):
            at_least(f"cluster.{name}", getattr(self, name), 0)
        one_of("cluster.scheduler", self.scheduler, SCHEDULERS)
        one_of("cluster.gpu_request", self.gpu_request, GPU_REQUESTS)
        one_of("cluster.on_interrupt", self.on_interrupt, ON_INTERRUPT)
        self.site.check()
        self.prepare.check()
        _check_sbatch_options("cluster.sbatch", self.sbatch, OWN_OPTIONS)
        if self.scheduler == "local" and self.nodes > 1:
            raise UserError(
                f"cluster.nodes is {self.nodes}, but cluster={self.name} runs on this machine only; "
                f"choose a Slurm profile, or set cluster.nodes=1"
            )
        if self.scheduler == "slurm":
            self._check_limits()

    def _check_limits(self) -> None:
        """Raise UserError if the request exceeds a limit that the site documents."""
        site = self.site
        queue = self.queue_limits()
        gpus = self.ranks_per_node if self.gpu_request != "none" else 0
        limits = {
            "timeout_min": ("max_timeout_min", queue.max_timeout_min, self.timeout_min),
            "nodes": ("max_nodes", queue.max_nodes, self.nodes),
            "nodes × ranks_per_node": ("max_gpus", queue.max_gpus, self.nodes * gpus),
            "ranks_per_node": ("gpus_per_node", site.gpus_per_node, gpus),
            "cpus_per_rank × ranks_per_node": (
                "cores_per_node",
                site.cores_per_node,
                self.cpus_per_rank * self.ranks_per_node,
            ),
        }
        for key, (limit, maximum, requested) in limits.items():
            if maximum is not None and requested > maximum:
                raise UserError(
                    f"cluster.{key} is {requested}, above the limit of profile {self.name} "
                    f"({limit} {maximum}); choose a smaller value"
                )
        self._check_memory()
        if self.signal_lead_s >= self.timeout_min * 60:
            raise UserError(
                f"cluster.signal_lead_s is {self.signal_lead_s} seconds, but a job has only "
                f"{self.timeout_min} minutes; lower it, or raise cluster.timeout_min"
            )
        self._check_account()

    def _check_memory(self) -> None:
        available = self.site.memory_per_node_gb
        if not self.memory_per_node or not available:
            return
        if _parse_gigabytes(self.memory_per_node) > available:
            raise UserError(
                f"cluster.memory_per_node is {self.memory_per_node}, above the limit of profile "
                f"{self.name} (cluster.site.memory_per_node_gb {available:g}); choose a smaller value"
            )

    def _check_account(self) -> None:
        site = self.site
        if not site.account_pattern:
            return
        if self.account is not None and re.fullmatch(site.account_pattern, self.account):
            return
        example = site.account_example or site.account_pattern
        hint = f" ({site.account_hint})" if site.account_hint else ""
        raise UserError(
            f"cluster.account is {self.account or 'missing'}; "
            f"set an account of {self.name} such as {example}{hint}"
        )

    def queue_limits(self) -> QueueLimits:
        """Return the limits for this partition and quality of service.

        If several define a limit, the quality of service takes precedence over the partition, and
        the partition over the site.
        """
        site = self.site
        found = [QueueLimits(max_timeout_min=site.max_timeout_min, max_nodes=site.max_nodes)]
        for queue in (self.partition, self.qos):
            found.append(site.queues.get(queue or "", QueueLimits()))
        chosen = {}
        for item in fields(QueueLimits):
            values = [getattr(limits, item.name) for limits in found]
            known = [value for value in values if value is not None]
            chosen[item.name] = known[-1] if known else None
        return QueueLimits(**chosen)

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def uses_gpus(self) -> bool:
        """True if jobs request GPUs and do not hide them from torch."""
        return self.gpu_request != "none" and self.env.get("CUDA_VISIBLE_DEVICES") != ""

    @property
    def gpu_architecture(self) -> str | None:
        """CUDA architecture of the requested GPUs: that of gpu_type if known, else the site's."""
        return GPU_TYPES.get(self.gpu_type or "", self.site.gpu_architecture)

    @property
    def binds_cores(self) -> bool:
        """True if the options of srun name each rank's cores; the number of cores must then not be
        passed to srun."""
        bindings = [option for option in self.srun if option.startswith("--cpu-bind")]
        return any(mask in option for option in bindings for mask in CORE_MASKS)

    def describe_submission(self, num_points: int) -> list[str]:
        """Return the lines that are printed when `num_points` runs are submitted.

        They give the cost of the runs, and the limits and notes of the site.
        """
        site = self.site
        lines = []
        if self.gpu_request != "none":
            lines.append(self._describe_cost(num_points))
            if site.whole_nodes and site.gpus_per_node not in (None, self.ranks_per_node):
                lines.append(
                    f"a job gets, and is charged for, whole nodes: "
                    f"{self.ranks_per_node} of {site.gpus_per_node} GPUs are used"
                )
        limits = self.queue_limits()
        if limits.max_running is not None and num_points > limits.max_running:
            lines.append(
                f"{self.name} runs {limits.max_running} of your jobs at once: the others wait in the queue"
            )
        if site.purge_days:
            lines.append(
                f"{self.name} deletes files in its work area after {site.purge_days} days: "
                f"keep results elsewhere"
            )
        lines += site.notes
        if limits.note:
            lines.append(limits.note)
        if site.confidence != "tested":
            lines.append(self._describe_confidence())
        return lines

    def _describe_cost(self, num_points: int) -> str:
        """Return a line with the cost of the runs if all jobs run to their time limit.

        The unit is that of the site's billing if it is known, else GPU-hours.
        """
        cost = num_points * self.nodes * self.units_per_node_hour * self.timeout_min / 60
        account = self.account or "your account"
        return (
            f"uses up to {cost:,.0f} {self.billing_unit} of {account} (if the jobs run to their time limit)"
        )

    @property
    def billing_unit(self) -> str:
        """The unit of a job's cost: the site's, if it is known, else GPU-hours."""
        if self.site.billing_per_gpu is None:
            return "GPU-hours"
        return self.site.billing or "billing units"

    @property
    def units_per_node_hour(self) -> float:
        """The cost of one node for one hour, in `billing_unit`."""
        site = self.site
        gpus = self.ranks_per_node
        if site.whole_nodes and site.gpus_per_node:
            gpus = site.gpus_per_node
        memory = _parse_gigabytes(self.memory_per_node) if self.memory_per_node else 0.0
        units_per_gpu = 1.0 if site.billing_per_gpu is None else site.billing_per_gpu
        return max(
            gpus * units_per_gpu,
            self.cpus_per_rank * self.ranks_per_node * (site.billing_per_core or 0.0),
            memory * (site.billing_per_gib or 0.0),
        )

    def _describe_confidence(self) -> str:
        """Return a line with the confidence in the profile's facts and the dates of their sources.

        Facts whose confidence differs from the profile's are named.
        """
        site = self.site
        facts: dict[str, list[str]] = {}
        for source in site.sources:
            facts.setdefault(source.confidence, []).extend(source.facts)
        described = []
        for confidence, period in self.source_periods().items():
            named = "" if confidence == site.confidence else f": {', '.join(facts[confidence])}"
            described.append(f"{confidence} {period}{named}")
        pages = f"; see {site.docs}" if site.docs else ""
        return f"profile {self.name} was not tried there yet ({'; '.join(described)}){pages}"

    def source_periods(self) -> dict[str, str]:
        """Return the first and last date of the profile's sources, for each level of confidence.

        The level of confidence of the profile itself comes first.
        """
        site = self.site
        dates: dict[str, list[str]] = {site.confidence: [site.verified] if site.verified else []}
        for source in site.sources:
            dates.setdefault(source.confidence, []).append(source.date)
        return {
            confidence: " to ".join(sorted({min(known), max(known)})) if known else "undated"
            for confidence, known in dates.items()
        }


def check_log_folder(name: str, folder: str, scheduler: str) -> None:
    """Raise UserError if a log folder's path contains a pattern that Slurm or submitit replaces.

    An example is %j, which is replaced with the job's id.

    Args:
        name: the setting that names the folder, for the message.
        scheduler: local or slurm. If it is local, patterns that only Slurm replaces are accepted.
    """
    pattern = f"{SLURM_PATTERN}|{SUBMITIT_PATTERN}" if scheduler == "slurm" else SUBMITIT_PATTERN
    found = re.search(pattern, folder)
    if found:
        raise UserError(
            f"{name}: {folder} contains '{found[0]}', which is replaced in the paths of a job's logs; "
            f"choose another folder with {name}=…"
        )


def _check_sbatch_options(key: str, options: Iterable[str], own_options: Mapping[str, str]) -> None:
    """Raise UserError if `options` contains an option of sbatch that another setting controls.

    Args:
        key: the setting with the options, for the message.
        own_options: for each option of sbatch that another setting controls, that setting.
    """
    for option in options:
        owner = own_options.get(option.replace("_", "-"))
        if owner:
            raise UserError(f"{key}.{option}: this option is set by {owner}; remove it from {key}")


def _parse_gigabytes(text: str, key: str = "cluster.memory_per_node") -> float:
    """Return a size in Slurm's notation, such as 440G or 800000, in gigabytes.

    A number without K, M, G or T is in megabytes.

    Raises:
        UserError: the text is not such a size.
    """
    found = re.fullmatch(r"(\d+)([KMGT]?)", text.upper())
    if not found:
        raise UserError(f"{key} is {text}; write a number with K, M, G or T, such as 440G")
    return int(found[1]) * {"K": 1e-6, "": 1e-3, "M": 1e-3, "G": 1, "T": 1e3}[found[2]]
