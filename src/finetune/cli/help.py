"""`--help` of the verbs with settings (train, prepare), generated from their dataclasses."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf

from data_prep.config import READERS, PrepareConfig
from data_prep.fields import heading
from data_prep.reading import fields_of, options_of
from finetune.config.cluster import PrepareJobs
from finetune.config.train import TrainConfig, conf_dir

MAX_WIDTH = 120
KINDS = {str: "text", dict: "mapping", list: "list"}


@dataclass(frozen=True)
class Entry:
    """A setting or option, with its description, type and default."""

    key: str
    text: str


@dataclass(frozen=True)
class Group:
    """A heading, and the settings or options below it."""

    title: str
    entries: list[Entry]


TRAIN_OPTIONS = [
    Entry("-m", "run a sweep: one run for each combination of values, as in lr=1e-4,2e-4 seed=0,1"),
    Entry("--after ID", "start after the preparation on Slurm with this id"),
    Entry("--dry-run", "check everything and print the batch script, but start and write nothing"),
    Entry(
        "--config-dir FOLDER", "folder with further config files, in subfolders named like the groups below"
    ),
    Entry("--cfg job", "print the composed config and exit"),
]
TRAIN_USAGE = (
    "usage: finetune train [recipe=NAME] [key=value …] [-m] [--after ID] [--dry-run] [--config-dir FOLDER]"
)
GROUPS_TITLE = (
    "Config files that set several settings at once, selected with group=name. * marks the default. "
    "model= also accepts a model folder, a hub id or run:<id>."
)
SETTINGS_TITLE = (
    "Settings, written key=value, with [type; default]. The selected config files may change these defaults."
)
PREPARE_USAGE = "usage: finetune prepare corpus=NAME [key=value …] [--config-dir FOLDER]"
PREPARE_NOTES = (
    "To add a corpus, write FOLDER/corpus/NAME.yaml, with the keys listed below, without the prefix "
    "'corpus.', and pass --config-dir FOLDER; conf/corpus in the repository has an example of each reader.",
    "To resume a preparation that was interrupted, run the same command again.",
    "With cluster=NAME of a Slurm site, the steps run as job arrays, one after the other; the settings "
    "cluster.prepare.… below configure these jobs.",
    "corpora_dir/.NAME.stages keeps the output of each stage and the documents that it dropped. Caution: "
    "the first stages contain raw text that is not de-identified.",
)
FIELDS_TITLE = (
    "Fields of readers, set as corpus.sources.NAME.fields.OURS=THEIRS. Readers not listed have none."
)
OPTIONS_TITLE = "Options of readers, set as corpus.sources.NAME.options.KEY=VALUE, with [type; default]."


def train_help() -> str:
    """Return the text of `finetune train --help`."""
    parts = [
        _paragraph(TRAIN_USAGE),
        _render_entries(TRAIN_OPTIONS),
        _paragraph(GROUPS_TITLE) + _render_entries(_list_file_groups()),
        _paragraph(SETTINGS_TITLE),
        *map(_render, settings_of(TrainConfig)),
    ]
    return "\n".join(parts)


def prepare_help() -> str:
    """Return the text of `finetune prepare --help`."""
    corpora = sorted(path.stem for path in (conf_dir() / "corpus").glob("*.yaml"))
    parts = [
        _paragraph(PREPARE_USAGE),
        _paragraph(f"Corpora: {', '.join(corpora)}."),
        *map(_paragraph, PREPARE_NOTES),
        _paragraph(SETTINGS_TITLE),
        *map(_render, settings_of(PrepareConfig)),
        *map(_render, settings_of(PrepareJobs, "cluster.prepare.")),
        _paragraph(FIELDS_TITLE) + _render_entries(_list_reader_fields()),
        _paragraph(OPTIONS_TITLE),
        *map(_render, _list_reader_options()),
    ]
    return "\n".join(parts)


def settings_of(schema: Any, prefix: str = "") -> Iterator[Group]:
    """Yield the settings of a dataclass, one group for it and one for each nested dataclass.

    NAME stands for a key that the user chooses. Settings in the entries of a list have no prefix.
    """
    kinds = get_type_hints(schema)
    entries = [Entry(prefix + item.name, _describe(item, kinds[item.name])) for item in _own_fields(schema)]
    title = heading(schema).removesuffix(".")
    if prefix:
        title = f"{prefix.removesuffix('.')}: {title}"
    yield Group(title, entries)
    for item in dataclasses.fields(schema):
        kind = kinds[item.name]
        container = get_origin(kind)
        inner = get_args(kind)[-1] if container in (dict, list) else kind
        if not dataclasses.is_dataclass(inner):
            continue
        key = prefix + item.name
        if container is list:
            first, *nested = settings_of(inner)
            yield Group(f"{key}, each entry: {first.title}", first.entries)
            yield from nested
        elif container is dict:
            yield from settings_of(inner, f"{key}.NAME.")
        else:
            yield from settings_of(inner, f"{key}.")


def _own_fields(schema: Any) -> list[dataclasses.Field[Any]]:
    """Return the fields of a dataclass that have an entry of their own in its help text.

    These are its settings, and the nested dataclasses that have no default.
    """
    kinds = get_type_hints(schema)
    return [
        item
        for item in dataclasses.fields(schema)
        if not dataclasses.is_dataclass(kinds[item.name]) or item.default_factory is dataclasses.MISSING
    ]


def _describe(item: dataclasses.Field[Any], kind: Any) -> str:
    """Return a setting's help text and `[type; default]`.

    A short `[type; default]` has no-break spaces, so that it stays on one line.
    """
    facts = f"[{_describe_kind(kind)}; {_default_of(item)}]"
    if len(facts) < 40:
        facts = facts.replace(" ", "\xa0")
    return f"{item.metadata['help']}  {facts}"


def _describe_kind(kind: Any) -> str:
    inner = [part for part in get_args(kind) if part is not NoneType]
    if NoneType in get_args(kind):
        return _describe_kind(inner[0])
    if get_origin(kind) is list and not dataclasses.is_dataclass(inner[0]):
        return f"list of {_describe_kind(inner[0])}"
    if dataclasses.is_dataclass(kind):
        return "section"
    return KINDS.get(get_origin(kind) or kind, str(kind.__name__))


def _default_of(item: dataclasses.Field[Any]) -> str:
    if item.default_factory is not dataclasses.MISSING:
        return _format_value(item.default_factory())
    if item.default is dataclasses.MISSING or item.default == "???":
        return "required"
    return _format_value(item.default)


def _format_value(value: Any) -> str:
    """Return a value as a user would type it; `unset` for None and `empty` for an empty string."""
    if value is None:
        return "unset"
    if value == "":
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_format_value(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_format_value, value)) + "]"
    if isinstance(value, int) and value >= 100_000:
        return f"{value:_}"
    return str(value)


def _list_file_groups() -> list[Entry]:
    """Return the groups of config files of `train` with their files; * marks the default."""
    defaults: dict[str, str] = {}
    for entry in OmegaConf.load(conf_dir() / "train.yaml").defaults:
        if not isinstance(entry, str):
            defaults.update(entry)
    folders = sorted(path for path in conf_dir().iterdir() if path.is_dir())
    entries = []
    for folder in folders:
        if folder.name.startswith("_") or folder.name == "corpus":
            continue
        names = [path.stem for path in sorted(folder.glob("*.yaml"))]
        marked = [f"{name}*" if name == defaults.get(folder.name) else name for name in names]
        entries.append(Entry(folder.name, ", ".join(marked)))
    return entries


def _list_reader_fields() -> list[Entry]:
    """Return the names of the fields that each reader finds in the files of a source.

    Readers with the same fields share an entry. Readers without fields have none.
    """
    readers_of: dict[tuple[str, ...], list[str]] = {}
    for reader in READERS:
        readers_of.setdefault(fields_of(reader), []).append(reader)
    return [Entry(", ".join(readers), ", ".join(names)) for names, readers in readers_of.items() if names]


def _list_reader_options() -> Iterator[Group]:
    """Yield the options of readers in groups. A reader is a function that reads a source's files.

    A group has the options that the same readers accept. The last group names the readers that
    accept none.
    """
    readers_of: dict[Entry, list[str]] = {}
    without = []
    for reader in READERS:
        schema = options_of(reader)
        if schema is None:
            without.append(reader)
            continue
        kinds = get_type_hints(schema)
        for item in dataclasses.fields(schema):
            readers_of.setdefault(Entry(item.name, _describe(item, kinds[item.name])), []).append(reader)
    groups: dict[str, list[Entry]] = {}
    for entry, readers in readers_of.items():
        groups.setdefault(", ".join(readers), []).append(entry)
    for reader_names, entries in groups.items():
        yield Group(reader_names, entries)
    yield Group(f"{', '.join(without)}: none", [])


def _width() -> int:
    return min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 0)).columns)


def _paragraph(text: str) -> str:
    return textwrap.fill(text, _width(), break_on_hyphens=False, break_long_words=False) + "\n"


def _render(group: Group) -> str:
    return _paragraph(group.title) + _render_entries(group.entries)


def _render_entries(entries: list[Entry]) -> str:
    """Return the entries in two columns; a key too long for its column has its own line."""
    width = _width()
    longest = width // 3
    fitting = [len(entry.key) for entry in entries if len(entry.key) <= longest]
    column = max(fitting, default=longest // 2) + 4
    lines = []
    for entry in entries:
        text = textwrap.wrap(entry.text, width - column, break_on_hyphens=False, break_long_words=False)
        if len(entry.key) > longest:
            lines.append(f"  {entry.key}")
        else:
            text[0] = f"  {entry.key}".ljust(column) + text[0]
            lines.append(text.pop(0))
        lines += [" " * column + line for line in text]
    return "".join(f"{line}\n" for line in lines).replace("\xa0", " ")
