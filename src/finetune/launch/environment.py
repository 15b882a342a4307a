"""Shell lines that make a node ready for a job, from the cluster's profile. The batch script holds them; slurm/env/<cluster>.sh
holds them for interactive work, rendered by `python -m finetune.launch.environment slurm/env`, never written by hand.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from omegaconf import OmegaConf

from finetune.cluster import ClusterConfig
from finetune.config import conf_dir, from_omegaconf


def environment_lines(cluster: ClusterConfig) -> list[str]:
    """For a job of the profile's number of nodes."""
    further = cluster.env_many_nodes if cluster.nodes > 1 else cluster.env_one_node
    return [
        *(f"module {command}" for command in cluster.modules),
        *_exports({**cluster.env, **further}),
        "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not take it from sbatch by itself",
        *cluster.setup,
    ]


def environment_file(cluster: ClusterConfig) -> str:
    """slurm/env/<cluster>.sh, to be sourced in an allocation of any number of nodes."""
    lines = [
        f"# source this in an allocation on {cluster.name}. Rendered from conf/cluster/{cluster.name}.yaml: `make cluster-env`"
    ]
    lines += [f"module {command}" for command in cluster.modules]
    lines += _exports(cluster.env)
    for condition, variables in (("-gt", cluster.env_many_nodes), ("-eq", cluster.env_one_node)):
        if variables:
            inner = [f"    {line}" for line in _exports(variables)]
            lines += [f'if [ "${{SLURM_JOB_NUM_NODES:-1}}" {condition} 1 ]; then', *inner, "fi"]
    lines += ["export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}", *cluster.setup]
    return "\n".join(lines) + "\n"


def _exports(variables: dict[str, str]) -> list[str]:
    return [f"export {key}={_quoted(value)}" for key, value in variables.items()]


def _quoted(value: str) -> str:
    """For the shell; variables of the job, such as $SLURM_JOB_ID, are put in there."""
    escaped = re.sub(r'(["\\`])', r"\\\1", value)
    return f'"{escaped}"' if "$" in value else shlex.quote(value)


def profiles() -> dict[str, ClusterConfig]:
    """Every Slurm profile in conf/cluster, by name, without an account."""
    found = {}
    for path in sorted((conf_dir() / "cluster").glob("*.yaml")):
        node = OmegaConf.load(path)
        if OmegaConf.select(node, "scheduler") == "slurm":
            account = OmegaConf.select(node, "site.account_example")
            found[path.stem] = from_omegaconf(OmegaConf.merge({"account": account} if account else {}, node), ClusterConfig)
    return found


def main(folder: Path) -> None:
    for name, cluster in profiles().items():
        (folder / f"{name}.sh").write_text(environment_file(cluster), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
