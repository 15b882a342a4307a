"""Write shell scripts for each Slurm profile in conf/cluster (`make cluster-env`).

    python -m finetune.launch.render slurm/env tests/sbatch

slurm/env/<cluster>.sh sets up a shell for interactive work. tests/sbatch/<cluster>.sh is the batch
script of a run on one node. tests/sbatch/<cluster>-2-nodes.sh is the batch script of a sweep of
three runs, each on two nodes.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

from finetune.config.cluster import ClusterConfig
from finetune.launch import slurm
from finetune.launch.environment import environment_file, profiles
from finetune.runs import layout

PROJECT = Path("/projects/letters")  # a folder that exists on no machine


def batch_scripts(cluster: ClusterConfig) -> dict[str, str]:
    """Return the example batch scripts of a profile, by file name."""
    code = PROJECT / "runs" / layout.CODE / "0123456789ab"
    run = PROJECT / "runs" / "base-20261128-120000-0a1b" / layout.JOBS
    points = PROJECT / "runs" / layout.SWEEPS / "lora-20261128-120000-0a1b" / "0" / layout.POINTS / "%a"
    sweep = points.parents[2].name
    on_two_nodes = replace(cluster, nodes=2)
    rendered = {
        f"{cluster.name}.sh": slurm.render_script(cluster, run.parent.name, run, code, None),
        f"{cluster.name}-2-nodes.sh": slurm.render_script(on_two_nodes, sweep, points, code, 3),
    }
    here = shlex.quote(sys.executable)
    python = str(PROJECT / ".venv" / "bin" / "python")
    return {name: text.replace(here, python) for name, text in rendered.items()}


def main(environments: Path, scripts: Path) -> None:
    for name, cluster in profiles().items():
        (environments / f"{name}.sh").write_text(environment_file(cluster), encoding="utf-8")
        for file, text in batch_scripts(cluster).items():
            (scripts / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
