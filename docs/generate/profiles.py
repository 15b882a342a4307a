"""The profiles of conf/cluster for the pages of sites: comments, settings and sources."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from docs.generate.markdown import code, escape
from finetune.config.cluster import ClusterConfig, PrepareJobs
from finetune.config.site import Source
from finetune.config.train import conf_dir
from finetune.launch import environment

TEST_CLUSTER = "testcluster"
# Parts of a text that are not escaped: code, addresses, settings with their values.
TOKEN = re.compile(
    r"(?P<code>`[^`]+`)"
    r"|(?P<url>https?://[^\s),]+)"
    r"|(?P<setting>cluster[\w.]*=(?:'[^']*'|[^\s,;()]+))"
)
SITE_NAME = re.compile(r"[^(:,]+ \([^)]*\)")
PERIODS = ((24 * 60, "day"), (60, "hour"), (1, "minute"))


@dataclass(frozen=True)
class Profile:
    """A profile with its file.

    Attributes:
        cluster: the loaded profile. Its account and Python are example values for the site.
        text: the text of its file in conf/cluster.
        values: the keys and values in that file.
    """

    cluster: ClusterConfig
    text: str
    values: dict[str, Any]

    @property
    def name(self) -> str:
        return self.cluster.name

    @property
    def comment(self) -> str:
        """The comment at the top of the profile's file, as one paragraph."""
        head = re.match(r"(?:#.*\n)+", self.text)
        assert head is not None, f"begin conf/cluster/{self.name}.yaml with a comment that describes it"
        return " ".join(line.removeprefix("#").strip() for line in head[0].splitlines())

    @property
    def site_name(self) -> str:
        """The site's name and operator, with which the comment begins: `Saga (Sigma2)`."""
        found = SITE_NAME.match(self.comment)
        return found[0] if found else self.name

    def sources_of(self, setting: str) -> list[tuple[int, Source]]:
        """Return the sources of a setting and of the settings below it, each with its number.

        A source that names a setting also documents all settings below it, unless another source
        names a more specific one.
        """
        above = [setting]
        while "." in above[-1]:
            above.append(above[-1].rpartition(".")[0])
        known = {fact for source in self.cluster.site.sources for fact in source.facts}
        nearest = next((key for key in above if key in known), None)
        return [
            (number, source)
            for number, source in enumerate(self.cluster.site.sources, start=1)
            if any(fact == nearest or fact.startswith(f"{setting}.") for fact in source.facts)
        ]

    def origin(self, *settings: str) -> str:
        """Return links to the sources of settings, each with its confidence.

        Without a source, return "choice of the profile" or "default".
        """
        found: dict[int, Source] = {}
        for setting in settings:
            found |= dict(self.sources_of(setting))
        links = []
        for number in sorted(found):
            anchor = _anchor(source_title(number, found[number]))
            links.append(f"[{found[number].confidence}\N{NO-BREAK SPACE}{number}](#{anchor})")
        if links:
            return ", ".join(links)
        if any(setting.partition(".")[0] in self.values for setting in settings):
            return "choice of the profile"
        return "default"


def read_profiles() -> dict[str, Profile]:
    """Return the profiles of conf/cluster that describe real sites, by name."""
    found = {}
    for name, cluster in environment.profiles().items():
        if name == TEST_CLUSTER:
            continue
        text = (conf_dir() / "cluster" / f"{name}.yaml").read_text("utf-8")
        values = OmegaConf.to_container(OmegaConf.create(text))
        assert isinstance(values, dict)
        found[name] = Profile(cluster, text, {str(key): value for key, value in values.items()})
    return found


def source_title(number: int, source: Source) -> str:
    return f"Source {number}: {source.confidence}, {source.date}"


def _anchor(title: str) -> str:
    """Return the anchor that Sphinx gives to a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def prose(text: str) -> str:
    """Return a text of a profile as Markdown, with links for addresses, and settings as code."""
    parts = []
    end = 0
    for found in TOKEN.finditer(text):
        token = found[0]
        if found["setting"]:
            token = code(token.removesuffix("."))
        elif found["url"]:
            token = f"<{token.removesuffix('.')}>"
        parts += [escape(text[end : found.start()]), token]
        end = found.end() - (not found["code"] and found[0].endswith("."))
    return "".join([*parts, escape(text[end:])])


def meanings(schema: type[ClusterConfig] | type[PrepareJobs]) -> dict[str, str]:
    """Return the help text of each setting of a dataclass."""
    return {item.name: str(item.metadata["help"]) for item in dataclasses.fields(schema)}


def period(minutes: int) -> str:
    """Return a number of minutes in the largest unit that divides it: `2 hours`, `90 minutes`."""
    size, unit = next((size, unit) for size, unit in PERIODS if minutes % size == 0)
    return count(minutes // size, unit)


def count(number: int, noun: str) -> str:
    """Return a number and its noun: `1 node`, `2 nodes`."""
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"
