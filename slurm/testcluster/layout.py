"""The layout of a test cluster: nodes, partitions, limits and accounts that Slurm declares."""

from __future__ import annotations

from dataclasses import dataclass

ACCOUNT = "nn9999k"


@dataclass(frozen=True)
class Limits:
    """Limits of a quality of service.

    As at sites, a partition with limits on a user's jobs has its own quality of service.
    """

    max_time: str | None = None
    max_gpus: int | None = None
    max_submitted: int | None = None
    max_running: int | None = None

    def options(self) -> list[str]:
        """Return the limits as options of sacctmgr, but not on GPUs (see gpu_limit_commands)."""
        values = {
            "MaxWall": self.max_time,
            "MaxSubmitJobsPerUser": self.max_submitted,
            "MaxJobsPerUser": self.max_running,
        }
        return [f"{key}={value}" for key, value in values.items() if value is not None]


@dataclass(frozen=True)
class Partition:
    """A partition of all nodes."""

    name: str
    max_time: str = "7-00:00:00"
    is_default: bool = False
    max_nodes: int | None = None
    whole_nodes: bool = False
    limits: Limits | None = None
    options: str = ""

    @property
    def quality(self) -> str:
        """The name of the quality of service that holds the limits."""
        return f"partition_{self.name}"

    def line(self) -> str:
        """Return the partition's line of slurm.conf."""
        values = {
            "PartitionName": self.name,
            "Nodes": "ALL",
            "Default": "YES" if self.is_default else "NO",
            "MaxTime": self.max_time,
            "State": "UP",
            "MaxNodes": self.max_nodes,
            "OverSubscribe": "EXCLUSIVE" if self.whole_nodes else None,
            "QOS": self.quality if self.limits else None,
        }
        settings = [f"{key}={value}" for key, value in values.items() if value is not None]
        if self.options:
            settings.append(self.options)
        return " ".join(settings)


@dataclass(frozen=True)
class Layout:
    """The nodes, partitions, qualities of service and accounts that slurm.conf declares.

    Attributes:
        gpus: GPUs of a node by type; the type "" is for GPUs without a type.
        requeue: jobs may be requeued (JobRequeue).
        enforce_limits: EnforcePartLimits: ALL refuses a job beyond its partition's limits, NO lets
            it wait.
        login_hosts: further names of this machine that nodes resolve.
    """

    partitions: tuple[Partition, ...] = (
        Partition(
            "debug", "1-00:00:00", is_default=True, options="PriorityTier=1 PreemptMode=REQUEUE GraceTime=15"
        ),
        Partition("urgent", "1-00:00:00", options="PriorityTier=10 PreemptMode=OFF"),
    )
    qualities: tuple[tuple[str, Limits], ...] = ()
    accounts: tuple[str, ...] = (ACCOUNT,)
    gpus: tuple[tuple[str, int], ...] = (("", 4),)
    cpus: int = 8
    memory_mb: int = 8000
    features: str = "none"
    interface: str = "eth0"
    requeue: bool = True
    enforce_limits: str = "NO"
    login_hosts: tuple[str, ...] = ()

    def all_qualities(self) -> dict[str, Limits]:
        """Return the qualities of service by name, including those of partitions."""
        of_partitions = {
            partition.quality: partition.limits for partition in self.partitions if partition.limits
        }
        return {**of_partitions, **dict(self.qualities)}

    def gpu_limit_commands(self) -> list[list[str]]:
        """Return sacctmgr's commands that limit GPUs; the controller must be registered before."""
        return [
            ["modify", "qos", name, "set", f"MaxTRESPerJob=gres/gpu={limits.max_gpus}"]
            for name, limits in self.all_qualities().items()
            if limits.max_gpus is not None
        ]

    def accounting_commands(self) -> list[list[str]]:
        """Return the commands of sacctmgr that set up accounts and limits."""
        commands = [["add", "cluster", "testcluster"]]
        # Qualities of service with equal limits share a command, as each command takes a third of a
        # second.
        alike: dict[tuple[str, ...], list[str]] = {}
        for name, limits in self.all_qualities().items():
            alike.setdefault(tuple(limits.options()), []).append(name)
        commands += [["add", "qos", ",".join(names), *options] for options, names in alike.items()]
        accounts = ",".join(self.accounts)
        commands.append(["add", "account", accounts, "cluster=testcluster"])
        commands.append(["add", "user", "root", f"account={accounts}"])
        if self.qualities:
            names = ",".join(["normal", *(name for name, _ in self.qualities)])
            commands.append(["modify", "user", "root", "set", f"qos={names}", "defaultqos=normal"])
        return commands
