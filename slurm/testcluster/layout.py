"""The layout of a test cluster: its nodes, partitions, limits and accounts."""

from __future__ import annotations

from dataclasses import dataclass

ACCOUNT = "nn9999k"


@dataclass(frozen=True)
class Limits:
    """Limits of a quality of service (QoS) in Slurm.

    A partition with limits on a user's jobs has a QoS of its own, as on real clusters.

    Attributes:
        max_time: longest time of a job.
        max_gpus: largest number of GPUs of a job.
        max_submitted: largest number of a user's jobs in the queue.
        max_running: largest number of a user's running jobs.
    """

    max_time: str | None = None
    max_gpus: int | None = None
    max_submitted: int | None = None
    max_running: int | None = None

    def options(self) -> list[str]:
        """Return the limits as options of sacctmgr, except the limit on GPUs (gpu_limit_commands)."""
        values = {
            "MaxWall": self.max_time,
            "MaxSubmitJobsPerUser": self.max_submitted,
            "MaxJobsPerUser": self.max_running,
        }
        return [f"{key}={value}" for key, value in values.items() if value is not None]


@dataclass(frozen=True)
class Partition:
    """A partition of the cluster. Each partition contains all nodes."""

    name: str
    max_time: str = "7-00:00:00"
    is_default: bool = False
    max_nodes: int | None = None
    whole_nodes: bool = False
    limits: Limits | None = None
    options: str = ""

    @property
    def quality(self) -> str:
        """The name of the quality of service that has the partition's limits."""
        return f"partition_{self.name}"

    def line(self) -> str:
        """Return the partition's line in slurm.conf."""
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
    """The nodes, partitions, qualities of service and accounts of a test cluster.

    Attributes:
        qualities: name and limits of each quality of service that is not a partition's.
        gpus: pairs of a GPU type and the number of such GPUs per node; the type may be "".
        cpus: cores per node.
        memory_mb: memory per node.
        features: features of the nodes, for --constraint.
        interface: name of the nodes' network interface.
        requeue: True if jobs may be requeued (JobRequeue).
        enforce_limits: EnforcePartLimits. With ALL, Slurm refuses a job that exceeds its
            partition's limits. With NO, the job waits for ever.
        login_hosts: further host names by which the nodes find this machine.
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
        """Return the commands of sacctmgr that limit GPUs.

        They work only after slurmctld has registered with the accounting.
        """
        return [
            ["modify", "qos", name, "set", f"MaxTRESPerJob=gres/gpu={limits.max_gpus}"]
            for name, limits in self.all_qualities().items()
            if limits.max_gpus is not None
        ]

    def accounting_commands(self) -> list[list[str]]:
        """Return the commands of sacctmgr that set up accounts and limits."""
        commands = [["add", "cluster", "testcluster"]]
        # Qualities of service with equal limits are added by one command, since each command takes
        # a third of a second.
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
