"""The pages of sites, one for each profile in conf/cluster, and the overview of all profiles.

    python -m docs.generate.sites

writes the overview in docs/sites/README.md, and a test compares it with the profiles. conf.py
writes the pages at each build.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs.generate.markdown import code, escape, table
from docs.generate.profiles import Profile, count, meanings, period, prose, read_profiles, source_title
from finetune.config.cluster import ClusterConfig, PrepareJobs
from finetune.config.site import QueueLimits, SiteConfig
from finetune.launch.environment import LOCAL_CACHES, SHARED_CACHES, interactive_lines

SITES = Path(__file__).parents[1] / "sites"
README = SITES / "README.md"
TABLE = re.compile(r"(?<=<!-- profiles: begin -->\n\n).*?(?=\n<!-- profiles: end -->)", re.DOTALL)
NOT_KNOWN = "not known"
# Settings with a section of their own. All other settings of a profile are in the section "A job".
ELSEWHERE = {
    *("name", "scheduler", "site", "prepare", "account", "python", "host_python"),
    *("node_local", "shared_cache", "local_cache"),
    *("clean_modules", "modules", "setup", "env", "env_one_node", "env_many_nodes"),
}
CONFIDENCE = """\
**This profile was not run on the machine that it describes.** Each fact below names its source \
and how sure it is: *documented* facts are from the pages of the site or of a manufacturer, \
*community* facts from the scripts and notes of users, or inferred from another site. A limit that \
is not known is not checked.
"""


@dataclass(frozen=True)
class Fact:
    """A row of a table of facts.

    Attributes:
        setting: the setting that holds the fact, without its prefix `site.`.
        value: the value as the page shows it; None if it is not known.
    """

    label: str
    setting: str
    value: object


def texts() -> dict[str, str]:
    """Return the pages of all profiles by file name."""
    return {f"{name}.md": page(profile) for name, profile in read_profiles().items()}


def page(profile: Profile) -> str:
    """Return the page of a profile."""
    sections = {
        "You must give": _to_give(profile),
        "A node": _node(profile),
        "Partitions and limits": _limits(profile),
        "Charges": _charges(profile),
        "A job": _job(profile),
        "Jobs of prepare": _prepare_jobs(profile),
        "Files": _files(profile),
        "Modules, Python, environment": _environment(profile),
        "Notes": "".join(f"- {prose(note)}\n" for note in profile.cluster.site.notes),
        "Sources": _sources(profile),
        "The profile": _file(profile),
    }
    parts = [_introduction(profile)]
    parts += [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return "\n".join(parts)


def _introduction(profile: Profile) -> str:
    site = profile.cluster.site
    lines = [
        f"# {profile.site_name}: profile {profile.name}\n",
        f"Add `{_usage(profile)}` to `finetune train` or `finetune prepare`.\n",
    ]
    if site.confidence != "tested":
        lines.append(CONFIDENCE)
    for walk in SITES.glob("*.md"):
        if re.fullmatch(rf"{walk.stem}(_.*)?", profile.name):
            link = f"[{_title(walk)}](../{walk.name})"
            lines.append(
                f"Step by step: {link}, run on the project's test cluster, configured like this site.\n"
            )
    lines.append(f"{prose(profile.comment)}\n")
    if site.docs:
        lines.append(f"The site's own pages: <{site.docs}>.\n")
    return "\n".join(lines)


def _usage(profile: Profile) -> str:
    """Return the settings that select the profile, with example values of account and Python."""
    site = profile.cluster.site
    words = [f"cluster={profile.name}", f"cluster.account={site.account_example or '…'}"]
    if site.python_example:
        words.append(f"cluster.python='{site.python_example}'")
    return " ".join(words)


def _title(path: Path) -> str:
    return path.read_text("utf-8").partition("\n")[0].removeprefix("# ")


def _to_give(profile: Profile) -> str:
    site = profile.cluster.site
    account = ["`cluster.account`:"]
    if site.account_example:
        account.append(f"your own, in the form of `{site.account_example}`.")
    else:
        account.append("your own, where the site charges one. The profile does not state its form.")
    if site.account_pattern:
        account.append(f"A submission checks it against the pattern `{site.account_pattern}`.")
    if site.account_hint:
        account.append(f"To find it: {prose(site.account_hint)}.")
    stated = [f"site.account_{part}" for part in ("pattern", "example", "hint")]
    if any(getattr(site, setting.removeprefix("site.")) for setting in stated):
        account.append(f"({profile.origin(*stated)})")
    lines = [" ".join(account)]
    if site.python_example:
        lines.append(
            "`cluster.python`: the command of a container's Python; the first line has an example. "
            f"({profile.origin('site.python_example')})"
        )
    return "".join(f"- {line}\n" for line in lines)


def _node(profile: Profile) -> str:
    site = profile.cluster.site
    facts = [
        Fact("GPUs", "accelerator", site.accelerator),
        Fact("GPUs, as Slurm counts", "gpus_per_node", site.gpus_per_node),
        Fact("memory of a GPU", "gpu_memory_gb", _gigabytes(site.gpu_memory_gb)),
        Fact("GPU architecture", "gpu_architecture", site.gpu_architecture),
        Fact("cores", "cores_per_node", site.cores_per_node),
        Fact("memory for jobs", "memory_per_node_gb", _gigabytes(site.memory_per_node_gb)),
        Fact("architecture", "compute_architecture", site.compute_architecture),
        Fact("architecture of login nodes", "login_architecture", site.login_architecture),
    ]
    return _facts(profile, facts)


def _facts(profile: Profile, facts: Iterable[Fact]) -> str:
    """Return a table of facts about the site, each with its source."""
    rows = []
    for fact in facts:
        value = NOT_KNOWN
        if fact.value is not None:
            value = escape(str(fact.value))
        origin = ""
        if getattr(profile.cluster.site, fact.setting) is not None:
            origin = profile.origin(f"site.{fact.setting}")
        rows.append((fact.label, value, origin))
    return table(("fact", "value", "known from"), rows)


def _gigabytes(size: float | None) -> str | None:
    if size is None:
        return None
    return f"{size:g} GB"


def _limits(profile: Profile) -> str:
    cluster = profile.cluster
    site = cluster.site
    facts = [
        Fact("longest job", "max_timeout_min", _limit(site, "max_timeout_min")),
        Fact("most nodes of a job", "max_nodes", _limit(site, "max_nodes")),
        Fact("most tasks of a job array", "max_array_size", site.max_array_size),
    ]
    if site.whole_nodes:
        facts.append(Fact("a job gets whole nodes", "whole_nodes", "yes"))
    parts = [_facts(profile, facts)]
    if site.queues:
        parts.append(f"By partition or quality of service ({profile.origin('site.queues')}):\n")
        parts.append("".join(_queue(cluster, name, limits) for name, limits in site.queues.items()))
    return "\n".join(parts)


def _limit(site: SiteConfig, name: str) -> str | None:
    """Return the site's limit of the name `name`. It applies to queues without a limit of their own.

    If only queues have such a limit, return "by partition". If there is none at all, return None.
    """
    value = getattr(site, name)
    if value is not None and name == "max_timeout_min":
        return period(value)
    if value is not None:
        return str(value)
    if any(getattr(limits, name) is not None for limits in site.queues.values()):
        return "by partition"
    return None


def _queue(cluster: ClusterConfig, name: str, limits: QueueLimits) -> str:
    label = code(name)
    if name in (cluster.partition, cluster.qos):
        label += ", which the profile asks for"
    return f"- {label}: {'; '.join(_describe_limits(limits))}\n"


def _describe_limits(limits: QueueLimits) -> Iterator[str]:
    if limits.max_timeout_min is not None:
        yield f"jobs of at most {period(limits.max_timeout_min)}"
    if limits.max_nodes is not None:
        yield f"{count(limits.max_nodes, 'node')} a job"
    if limits.max_gpus is not None:
        yield f"{count(limits.max_gpus, 'GPU')} a job"
    if limits.max_submitted is not None:
        yield f"{count(limits.max_submitted, 'job')} of a user that run or wait"
    if limits.max_running is not None:
        yield f"{count(limits.max_running, 'job')} of a user at once"
    if limits.note:
        yield prose(limits.note)


def _charges(profile: Profile) -> str:
    cluster = profile.cluster
    site = cluster.site
    cost = _amount(cluster.units_per_node_hour, cluster.billing_unit)
    job = f"An hour of the profile's job on one node costs {cost}"
    if site.billing_per_gpu is None:
        return (
            "The profile does not state how the site charges. A submission reports GPU-hours, "
            f"one for each GPU and hour. {job}.\n"
        )
    prices = {
        "an hour of a GPU": "billing_per_gpu",
        "an hour of a core": "billing_per_core",
        "an hour of a GiB of memory": "billing_per_gib",
    }
    facts = []
    for label, setting in prices.items():
        price = getattr(site, setting)
        if price is not None:
            facts.append(Fact(label, setting, _amount(price, cluster.billing_unit)))
    largest = ""
    if len(facts) > 1:
        largest = ": the largest of its GPUs, cores and memory is charged"
    return f"{job}{largest}.\n\n" + _facts(profile, facts)


def _amount(units: float, unit: str) -> str:
    """Return an amount with its unit, which is given in the plural: `1 GPU-hour`, `2 GPU-hours`."""
    if units == 1:
        unit = unit.removesuffix("s")
    return f"{units:g} {unit}"


def _job(profile: Profile) -> str:
    settings = {key: value for key, value in profile.values.items() if key not in ELSEWHERE}
    return (
        "A run asks for this; change any of it on the command line. Every other setting of `cluster` "
        "has its [default](../../reference/train-settings.md).\n\n"
        + _settings(profile, "", settings, meanings(ClusterConfig))
    )


def _prepare_jobs(profile: Profile) -> str:
    settings = profile.values.get("prepare")
    if settings:
        return _settings(profile, "prepare.", settings, meanings(PrepareJobs))
    return "The profile sets nothing for them: they run in the site's default partition.\n"


def _settings(profile: Profile, prefix: str, settings: dict[str, Any], meaning: dict[str, str]) -> str:
    """Return settings as a definition list, each with its sources and its meaning.

    Args:
        prefix: prefix of the keys of `settings`, such as `prepare.`.
        meaning: help text of each setting.
    """
    parts = []
    for key, value in settings.items():
        name = prefix + key
        explanation = escape(meaning[key])
        if key == "timeout_min":
            explanation += f": {period(value)}"
        typed = " ".join(_typed(f"cluster.{name}", value))
        parts.append(f"`{typed}` · {profile.origin(name)}\n: {explanation}\n")
    return "\n".join(parts)


def _typed(key: str, value: Any) -> Iterator[str]:
    """Yield a setting as on the command line, where each entry of a mapping is one setting."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _typed(f"{key}.{name}", entry)
    elif isinstance(value, list):
        yield f"{key}=[{', '.join(map(str, value))}]"
    else:
        yield f"{key}={value}"


def _files(profile: Profile) -> str:
    cluster = profile.cluster
    meaning = meanings(ClusterConfig)
    names = ("shared_cache", "local_cache", "node_local")
    folders = {name: getattr(cluster, name) for name in names}
    folders = {name: folder for name, folder in folders.items() if folder is not None}
    if cluster.site.purge_days is None:
        kept = "The profile does not state when the site deletes files.\n"
    else:
        kept = (
            f"The work area deletes files after {cluster.site.purge_days} days: "
            f"keep results elsewhere. ({profile.origin('site.purge_days')})\n"
        )
    return (
        "Corpora and runs lie in `corpora` and `runs` of the folder in which you call `finetune`, "
        f"unless `corpora_dir` and `runs_dir` name other folders; the nodes must see them.\n\n{kept}\n"
        + _settings(profile, "", folders, meaning)
    )


def _environment(profile: Profile) -> str:
    cluster = profile.cluster
    site = cluster.site
    parts = [_python(profile)]
    if site.internet:
        parts.append(f"Compute nodes reach the internet. ({profile.origin('site.internet')})\n")
    else:
        parts.append(
            "The profile does not state that compute nodes reach the internet: have all files on disk.\n"
        )
    variables = ", ".join(code(name) for name in (*SHARED_CACHES, *LOCAL_CACHES))
    file = f"slurm/env/{profile.name}.sh"
    parts.append(
        "These lines set the environment of a job, and of interactive work after "
        f"[`source {file}`](../../../{file}). "
        f"The folders of caches ({variables}) are those of [Files](#files).\n"
    )
    facts = ("clean_modules", "modules", "setup", "env", "env_one_node", "env_many_nodes")
    stated = [name for name in facts if name in profile.values]
    parts.append("".join(f"- {code(name)}: {profile.origin(name)}\n" for name in stated))
    parts.append(_block("bash", "\n".join(interactive_lines(cluster))))
    return "\n".join(parts)


def _python(profile: Profile) -> str:
    site = profile.cluster.site
    sentences = []
    if site.python_example:
        sentences.append("Jobs take Python and torch from the container that `cluster.python` names.")
    else:
        sentences.append("Jobs use the Python with which you submit, unless `cluster.python` names another.")
    if site.crosses_architectures:
        sentences.append(
            f"Login nodes are {code(str(site.login_architecture))}, compute nodes "
            f"{code(str(site.compute_architecture))}: a Python of one does not run on the other."
        )
    if site.gpu_architecture:
        sentences.append(f"torch must be built for `{site.gpu_architecture}`.")
    return " ".join(sentences) + "\n"


def _sources(profile: Profile) -> str:
    parts = []
    for number, source in enumerate(profile.cluster.site.sources, start=1):
        facts = ", ".join(map(code, source.facts))
        parts.append(f"### {source_title(number, source)}\n\n{prose(source.source)}\n\n{facts}\n")
    return "\n".join(parts)


def _file(profile: Profile) -> str:
    """Return the text of the profile's file in a collapsed section.

    A link leads to a batch script that was made with this profile.
    """
    name = profile.name
    return (
        f"The comments give the reasons for single values. [tests/sbatch/{name}.sh]"
        f"(../../../tests/sbatch/{name}.sh) is the batch script of a run on one node.\n\n"
        f"<details><summary>conf/cluster/{name}.yaml</summary>\n\n"
        f"{_block('yaml', profile.text.strip())}\n</details>\n"
    )


def _block(language: str, text: str) -> str:
    """Return a block of code whose lines are wrapped on narrow screens."""
    return f"```{{code-block}} {language}\n:class: wrapped\n\n{text}\n```\n"


# --- the overview ---


def overview() -> str:
    """Return the table of all profiles, with links to their pages."""
    rows = []
    for name, profile in read_profiles().items():
        cluster = profile.cluster
        charged = ""
        if cluster.site.billing_per_gpu is not None:
            charged = _amount(cluster.units_per_node_hour, cluster.billing_unit)
        known = "; ".join(" ".join(item) for item in cluster.source_periods().items())
        link = f"[`{name}`](profiles/{name}.md)"
        rows.append((link, profile.site_name, escape(cluster.site.accelerator or ""), known, charged))
    return table(("profile", "site", "GPUs of a node", "known from", "cost of a node-hour"), rows)


def with_overview(text: str) -> str:
    """Return the text of docs/sites/README.md with a new table of profiles."""
    changed, num_tables = TABLE.subn(lambda _: overview(), text)
    assert num_tables == 1, (
        f"{README}: must have one table between its comments `profiles: begin` and `profiles: end`"
    )
    return changed


def main() -> None:
    README.write_text(with_overview(README.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
