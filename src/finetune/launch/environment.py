"""Render, from a cluster's profile, the shell lines that prepare a node for a job.

The lines are part of every batch script, and of slurm/env/*.sh for interactive work.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from functools import cache

from omegaconf import OmegaConf

from finetune.config.cluster import ClusterConfig
from finetune.config.train import conf_dir, from_omegaconf

SHARED_CACHES = {
    "HF_HOME": "huggingface",
    "APPTAINER_CACHEDIR": "apptainer",
    "SINGULARITY_CACHEDIR": "apptainer",
}
LOCAL_CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "torch-extensions",
}
# /etc/profile may reset PATH. The folders of the earlier PATH must still come first.
FIND_MODULE = (
    "type module > /dev/null 2>&1 || { shell_path=$PATH; source /etc/profile; PATH=$shell_path:$PATH; }"
)
RUN_MODULE = """\
run_module() {
    module "$@" && return
    echo "error: cluster.modules: 'module $*' failed on $(hostname); choose modules that this node has" >&2
    exit 1
}"""


def environment_lines(cluster: ClusterConfig) -> list[str]:
    """Return the lines of a batch script that set up a job's environment."""
    extra = cluster.env_many_nodes if cluster.nodes > 1 else cluster.env_one_node
    return [
        *node_lines(cluster),
        *module_lines(cluster.clean_modules, cluster.modules),
        "",
        "# the job's environment",
        *_cache_lines(cluster),
        *_exports({**cluster.env, **extra}),
        *_srun_lines(cluster),
        *cluster.setup,
    ]


def node_lines(cluster: ClusterConfig) -> list[str]:
    """Return shell lines that undo settings of the user's shell, which a job inherits.

    There are two reasons for such lines. If the nodes have another CPU architecture than the login
    node, its libraries and programs cannot run there. If cluster.python is set, that Python must
    not import the packages of the user's shell.
    """
    site = cluster.site
    if site.crosses_architectures:
        return [
            "",
            f"# submitted from {site.login_architecture}, but this node is {site.compute_architecture}",
            "unset LD_LIBRARY_PATH LD_PRELOAD PYTHONHOME PYTHONPATH",
            "PATH=/usr/local/bin:/usr/bin:/bin:$PATH",
        ]
    if cluster.python is not None:
        return [
            "",
            "# the job's Python must not import the submitting shell's packages",
            "unset PYTHONHOME PYTHONPATH",
        ]
    return []


def module_lines(clean: str | None, modules: list[str]) -> list[str]:
    """Return lines that load modules; a module that cannot be loaded ends the job.

    Args:
        clean: the module command that runs first, `reset` or `purge`; None if the site needs none.
        modules: further module commands, such as `load Python/3.11`.
    """
    if not clean and not modules:
        return []
    lines = ["", "# modules; only login shells define the function `module`", FIND_MODULE]
    if clean:
        lines.append(f"module {clean} > /dev/null 2>&1  # unload the submitting shell's modules")
    if modules:
        lines += [RUN_MODULE, *(f"run_module {command}" for command in modules)]
    return lines


def _cache_lines(cluster: ClusterConfig) -> list[str]:
    """Return lines that move caches out of the home folder, which is slow and small."""
    lines = []
    if cluster.shared_cache:
        for variable, folder in SHARED_CACHES.items():
            line = f'export {variable}="${{{variable}:-{cluster.shared_cache}/{folder}}}"'
            if variable == "HF_HOME":
                # Models that were downloaded without HF_HOME are in the home folder, where the job
                # must find them.
                line = f"[ -d ~/.cache/huggingface ] || {line}"
            lines.append(line)
    if cluster.local_cache:
        caches = {variable: f"{cluster.local_cache}/{folder}" for variable, folder in LOCAL_CACHES.items()}
        lines += _exports(caches)
    return lines


def _srun_lines(cluster: ClusterConfig) -> list[str]:
    lines = [
        "export SLURM_EXPORT_ENV=ALL  # pass this environment to ranks, even if SBATCH_EXPORT=NONE was set"
    ]
    if cluster.binds_cores:
        lines.append(
            "unset SRUN_CPUS_PER_TASK  # srun refuses a number of cores together with a mask of cores"
        )
    else:
        lines.append(
            "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not inherit it from sbatch"
        )
    return lines


def environment_file(cluster: ClusterConfig) -> str:
    """Return the text of slurm/env/<cluster>.sh, to be sourced in an allocation of any size."""
    lines = [
        f"# source this in an allocation on {cluster.name}",
        f"# rendered from conf/cluster/{cluster.name}.yaml by `make cluster-env`",
        *_source_lines(cluster),
        *interactive_lines(cluster),
    ]
    return "\n".join(lines) + "\n"


def interactive_lines(cluster: ClusterConfig) -> list[str]:
    """Return the lines that prepare an interactive shell in an allocation of one or more nodes."""
    lines = []
    if cluster.clean_modules:
        lines.append(f"module {cluster.clean_modules}")
    lines += [f"module {command}" for command in cluster.modules]
    lines += [*_cache_lines(cluster), *_exports(cluster.env)]
    for condition, variables in (("-gt", cluster.env_many_nodes), ("-eq", cluster.env_one_node)):
        if variables:
            inner = [f"    {line}" for line in _exports(variables)]
            lines += [f'if [ "${{SLURM_JOB_NUM_NODES:-1}}" {condition} 1 ]; then', *inner, "fi"]
    return [*lines, *_srun_lines(cluster), *cluster.setup]


def _source_lines(cluster: ClusterConfig) -> list[str]:
    """Return comments with the source, date and confidence of each fact in the profile."""
    lines = []
    for source in cluster.site.sources:
        where = f"{source.confidence}, {source.date}: {source.source}"
        for text, indent in ((where, "# "), (", ".join(source.facts), "#     ")):
            wrapped = textwrap.wrap(text, 106, break_long_words=False, break_on_hyphens=False)
            lines += [f"{indent}{line}" for line in wrapped]
    return lines


def _exports(variables: dict[str, str]) -> list[str]:
    return [f"export {key}={_quote(value)}" for key, value in variables.items()]


def _quote(value: str) -> str:
    r"""Quote a value for the shell. A variable such as $SLURM_JOB_ID is expanded; \$ gives a plain $."""
    escaped = re.sub(r'(["`]|\\(?!\$))', r"\\\1", value)
    if "$" in value:
        return f'"{escaped}"'
    return shlex.quote(value)


@cache
def profiles() -> dict[str, ClusterConfig]:
    """Return all Slurm profiles by name.

    A profile that sets no account, or no Python, gets the example that is given for its site.
    """
    found = {}
    for path in sorted((conf_dir() / "cluster").glob("*.yaml")):
        node = OmegaConf.load(path)
        if OmegaConf.select(node, "scheduler") != "slurm":
            continue
        examples = {key: OmegaConf.select(node, f"site.{key}_example") for key in ("account", "python")}
        given = {key: value for key, value in examples.items() if value}
        found[path.stem] = from_omegaconf(OmegaConf.merge(given, node), ClusterConfig)
    return found
