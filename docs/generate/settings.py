"""The pages of settings: of `train`, of `prepare`, and of readers."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, get_args, get_origin, get_type_hints

from data_prep.config import READERS, PrepareConfig
from data_prep.reading import fields_of, options_of
from docs.generate.allowed_values import allowed_values
from docs.generate.markdown import code, escape
from finetune.cli import help as cli_help
from finetune.config.cluster import PrepareJobs
from finetune.config.train import TrainConfig

ENTRY = re.compile(r"(?P<meaning>.*)\s\s\[(?P<kind>[^;\]]+);\s(?P<default>.*)\]", re.DOTALL)


def schemas_of(schema: Any, prefix: str = "") -> dict[str, Any]:
    """Return a dataclass of settings and those nested in it, by the prefix of their keys."""
    found = {prefix: schema}
    kinds = get_type_hints(schema)
    for item in dataclasses.fields(schema):
        key = prefix + item.name
        container = get_origin(kinds[item.name])
        place = {dict: f"{key}.NAME.", list: f"{key}, each entry"}.get(container, f"{key}.")
        inner = kinds[item.name]
        if container in (dict, list):
            inner = get_args(inner)[-1]
        if dataclasses.is_dataclass(inner):
            found |= schemas_of(inner, place)
    return found


def _settings(schema: Any, prefix: str = "") -> str:
    """Return a section for a dataclass of settings, and one for each dataclass nested in it."""
    declared = schemas_of(schema, prefix)
    parts = []
    for group in cli_help.settings_of(schema, prefix):
        if not group.entries:
            continue
        place = _place(group.title, declared)
        title, _, meaning = group.title.partition(": ")
        if not meaning:
            title = "At the top"
            meaning = group.title
        parts.append(f"## {_heading(title)}\n\n{escape(meaning)}.\n")
        parts.append(_entries(group.entries, allowed_values(declared[place])))
    return "\n".join(parts)


def _place(title: str, declared: dict[str, Any]) -> str:
    """Return the key prefix of the settings that a group of the help text describes.

    Return "" if the title does not begin with a key.

    Args:
        title: title of the group. It begins with the key of the group's section, if it has one.
        declared: dataclass of settings by key prefix.
    """
    key, separator, _ = title.partition(": ")
    if separator:
        return next(place for place in (f"{key}.", key) if place in declared)
    return ""


def _heading(title: str) -> str:
    """Return a title. If it begins with a key, the key is marked as code."""
    key, comma, rest = title.partition(",")
    if " " in key:
        return title
    return f"`{key}`{comma}{rest}"


def _entries(entries: list[cli_help.Entry], allowed: dict[str, str]) -> str:
    """Return settings as a definition list, with type, default, allowed values and meaning."""
    parts = []
    for entry in entries:
        found = ENTRY.fullmatch(entry.text.replace("\xa0", " "))
        assert found is not None, entry
        facts = [found["kind"], _default(found["default"])]
        limits = allowed.get(entry.key.rpartition(".")[2])
        if limits is not None:
            facts.append(limits)
        parts.append(f"`{entry.key}` · {' · '.join(facts)}\n: {escape(found['meaning'])}\n")
    return "\n".join(parts)


def _default(default: str) -> str:
    if default in ("required", "unset", "empty"):
        return default
    return f"default `{default}`"


def train_body() -> str:
    """Return all settings of `train`, with a section for each dataclass."""
    return (
        "Type a setting as `key=value`: `finetune train recipe=sample_lora lr=2e-4 cluster.nodes=2`. "
        "The defaults below apply unless a file of `conf/` that the command names sets another value.\n\n"
        + _settings(TrainConfig)
    )


def prepare_body() -> str:
    """Return all settings of `prepare`, and of its jobs on Slurm."""
    parts = [
        "In a corpus file (`conf/corpus/*.yaml`, or your own), keys have no prefix `corpus.`; on the "
        "command line they have it: `finetune prepare corpus=letters corpus.language.keep=[nob]`. "
        "`NAME` is a name that you choose. The options of single readers are on [their own "
        "page](readers.md).\n",
        _settings(PrepareConfig),
        _settings(PrepareJobs, "cluster.prepare."),
    ]
    return "\n".join(parts)


def readers_body() -> str:
    """Return the fields and options of each reader."""
    parts = []
    for reader in READERS:
        parts.append(f"## {reader}\n")
        parts.append(_reader_fields(reader))
        options = options_of(reader)
        if options is None:
            parts.append("It has no options.\n")
            continue
        (group,) = [group for group in cli_help.settings_of(options) if group.entries]
        parts.append(_entries(group.entries, allowed_values(options)))
    return "\n".join(parts)


def _reader_fields(reader: str) -> str:
    names = ", ".join(map(code, fields_of(reader)))
    if not names:
        return ""
    return f"Fields that `fields` may map: {names}.\n"
