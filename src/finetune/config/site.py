"""Facts about a site that a cluster profile holds: its machines, limits and charges, with their sources."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.fields import one_of, setting

CONFIDENCES = ("tested", "documented", "community")
ARCHITECTURES = ("x86_64", "aarch64")


@dataclass(kw_only=True)
class QueueLimits:
    """Limits of a partition or quality of service; unset: unknown and not checked."""

    max_timeout_min: int | None = setting(None, "longest time limit of a job, in minutes")
    max_nodes: int | None = setting(None, "largest number of nodes of a job")
    max_gpus: int | None = setting(None, "largest number of GPUs of a job")
    max_submitted: int | None = setting(
        None, "largest number of queued and running jobs per user; each task of an array counts as a job"
    )
    max_running: int | None = setting(
        None,
        "largest number of running jobs per user; further jobs wait in the queue, and a "
        "submission prints that",
    )
    note: str | None = setting(None, "further information for users, printed at submission")


@dataclass(kw_only=True)
class Source:
    """A source of facts of a profile."""

    facts: list[str] = setting(
        [], "settings of the profile that come from it, e.g. site.queues; a section includes its settings"
    )
    source: str = setting("", "the page, script or person")
    date: str = setting("", "date of the page (a month or a day), or the day on which it was read")
    confidence: str = setting(
        "documented",
        "basis of the facts: tested (with this profile), documented (by the site) or "
        "community (users' scripts)",
    )


@dataclass(kw_only=True)
class SiteConfig:
    """Facts about a site. Its limits are checked before a submission (unset: unknown and not checked). A
    submission reports its cost and the notes. accelerator, gpu_memory_gb and internet inform readers only."""

    docs: str | None = setting(None, "address of the site's documentation")
    confidence: str = setting(
        "documented",
        "basis of the facts: tested (with this profile), documented (by the site) or "
        "community (users' scripts)",
    )
    verified: str | None = setting(None, "date of the documentation or of the test")
    sources: list[Source] = setting([], "the sources of the facts in the profile")
    notes: list[str] = setting([], "further information for users of the site, printed at submission")
    accelerator: str | None = setting(None, "accelerators of a node, e.g. 4 x GH200")
    gpu_architecture: str | None = setting(
        None, "CUDA architecture of the GPUs, e.g. sm_90; torch must be built for it"
    )
    login_architecture: str | None = setting(
        None, f"CPU architecture of the login nodes: {', '.join(ARCHITECTURES)}"
    )
    compute_architecture: str | None = setting(
        None, "CPU architecture of the compute nodes; the job's Python must be built for it"
    )
    gpus_per_node: int | None = setting(None, "GPUs per node")
    gpu_memory_gb: float | None = setting(None, "memory per GPU, in GB")
    cores_per_node: int | None = setting(None, "cores per node")
    memory_per_node_gb: float | None = setting(None, "memory per node that jobs can request, in GB")
    max_timeout_min: int | None = setting(None, "longest time limit of a job, in minutes")
    max_nodes: int | None = setting(None, "largest number of nodes of a job")
    max_array_size: int | None = setting(None, "largest number of tasks of a job array")
    queues: dict[str, QueueLimits] = setting({}, "limits of partitions and qualities of service, by name")
    whole_nodes: bool = setting(False, "whether a job gets, and is charged for, whole nodes")
    account_pattern: str | None = setting(None, "regular expression that account names match")
    account_example: str | None = setting(None, "example of an account name")
    account_hint: str | None = setting(None, "how a user finds the name of the account")
    python_example: str | None = setting(None, "example of cluster.python, if jobs need a container")
    internet: bool = setting(False, "whether compute nodes reach the internet, perhaps through a proxy")
    purge_days: int | None = setting(None, "days after which files in the work area are deleted")
    billing: str | None = setting(None, "unit in which jobs are charged, e.g. GPU-hours")
    billing_per_gpu: float | None = setting(
        None, "units per GPU and hour; the largest of the charges for GPUs, cores and memory counts"
    )
    billing_per_core: float | None = setting(None, "units per core and hour")
    billing_per_gib: float | None = setting(None, "units per GiB of memory and hour")

    def check(self) -> None:
        one_of("cluster.site.confidence", self.confidence, CONFIDENCES)
        for name in ("login_architecture", "compute_architecture"):
            value = getattr(self, name)
            if value is not None:
                one_of(f"cluster.site.{name}", value, ARCHITECTURES)
        for source in self.sources:
            one_of("cluster.site.sources.confidence", source.confidence, CONFIDENCES)

    @property
    def crosses_architectures(self) -> bool:
        """True if the CPU architectures of login and compute nodes are known and differ."""
        if self.login_architecture is None or self.compute_architecture is None:
            return False
        return self.login_architecture != self.compute_architecture
