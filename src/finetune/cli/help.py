"""`--help` of a verb with settings (train, prepare), generated from the declarations of the settings."""

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
    """One setting: its key, and its meaning with its type and default."""

    key: str
    text: str


@dataclass(frozen=True)
class Group:
    """The settings of one dataclass under its heading."""

    title: str
    entries: list[Entry]


TRAIN_OPTIONS = [
    Entry("-m", "sweep: every combination of lr=1e-4,2e-4 and the like is a run of its own, queued"),
    Entry("--dry-run", "check everything as for a start, print the batch script, and write nothing"),
    Entry("--config-dir FOLDER", "more recipes and other files, in folders named as below"),
    Entry("--cfg job", "print the composed config and train nothing"),
]


def train_help() -> str:
    """Return what `finetune train --help` prints."""
    parts = [
        _paragraph(
            "usage: finetune train [recipe=NAME] [key=value …] [-m] [--dry-run] [--config-dir FOLDER]"
        ),
        _render_entries(TRAIN_OPTIONS),
        _paragraph(
            "Files to choose from, as group=name, * by default (model= takes a folder, hub id or run:<id>, too):"
        )
        + _render_entries(_file_groups()),
        _paragraph("Settings, as key=value, with what holds where no chosen file says otherwise:"),
        *map(_render, settings_of(TrainConfig)),
    ]
    return "\n".join(parts)


def prepare_help() -> str:
    """Return what `finetune prepare --help` prints."""
    corpora = sorted(path.stem for path in (conf_dir() / "corpus").glob("*.yaml"))
    parts = [
        _paragraph("usage: finetune prepare corpus=NAME [key=value …] [--config-dir FOLDER]"),
        _paragraph(f"Corpora: {', '.join(corpora)}.")
        + _paragraph(
            "Write your own as FOLDER/corpus/NAME.yaml, without the 'corpus.' of the keys below, "
            "and give --config-dir FOLDER; conf/corpus in the repository has examples of all readers."
        ),
        _paragraph("A preparation that was stopped or killed resumes when it is run again.")
        + _paragraph(
            "With cluster=NAME of a Slurm site its steps are job arrays, each after the one before; "
            "cluster.prepare.… below sets them."
        )
        + _paragraph(
            "corpora_dir/.NAME.stages keeps what each stage wrote and dropped; the first stages hold raw text, "
            "which is not de-identified."
        ),
        _paragraph("Settings, as key=value, with what holds where the corpus file says nothing else:"),
        *map(_render, settings_of(PrepareConfig)),
        *map(_render, settings_of(PrepareJobs, "cluster.prepare.")),
        _paragraph("Fields of readers, as corpus.sources.NAME.fields.OURS=THEIRS (others have none):")
        + _render_entries(_reader_fields()),
        _paragraph(
            "Options of readers, as corpus.sources.NAME.options.KEY, with what holds where it is not given:"
        ),
        *map(_render, _reader_options()),
    ]
    return "\n".join(parts)


def settings_of(schema: Any, prefix: str = "") -> Iterator[Group]:
    """Yield the settings below a dataclass, one group for it and one for each nested dataclass.

    NAME stands for a key of the user's. What is set in the entries of a list has no prefix.
    """
    kinds = get_type_hints(schema)
    entries = [Entry(prefix + item.name, _describe(item, kinds[item.name])) for item in _plain(schema)]
    title = heading(schema).removesuffix(".")
    yield Group(f"{prefix.removesuffix('.')}: {title}" if prefix else title, entries)
    for item in dataclasses.fields(schema):
        kind = kinds[item.name]
        inner = get_args(kind)[-1] if get_origin(kind) in (dict, list) else kind
        if not dataclasses.is_dataclass(inner):
            continue
        key = prefix + item.name
        if get_origin(kind) is list:
            first, *nested = settings_of(inner)
            yield Group(f"{key}, each entry: {first.title}", first.entries)
            yield from nested
        else:
            yield from settings_of(inner, f"{key}.NAME." if get_origin(kind) is dict else f"{key}.")


def _plain(schema: Any) -> list[dataclasses.Field[Any]]:
    """Return the fields that are settings themselves, not a section with a default for each of its own."""
    kinds = get_type_hints(schema)
    return [
        item
        for item in dataclasses.fields(schema)
        if not dataclasses.is_dataclass(kinds[item.name]) or item.default_factory is dataclasses.MISSING
    ]


def _describe(item: dataclasses.Field[Any], kind: Any) -> str:
    """Return a setting's meaning with its type and default, in brackets that stay on one line if short."""
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
    return KINDS.get(get_origin(kind) or kind, "section" if dataclasses.is_dataclass(kind) else kind.__name__)


def _default_of(item: dataclasses.Field[Any]) -> str:
    if item.default_factory is not dataclasses.MISSING:
        return _as_typed(item.default_factory())
    if item.default is dataclasses.MISSING or item.default == "???":
        return "required"
    return "unset" if item.default is None else _as_typed(item.default)


def _as_typed(value: Any) -> str:
    """Return a value as a user would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_as_typed(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_typed, value)) + "]"
    if isinstance(value, int) and value >= 100_000:
        return f"{value:_}"
    return "empty" if value == "" else str(value)


def _file_groups() -> list[Entry]:
    """Return every group of files with its names, the default one marked."""
    entries = [
        entry for entry in OmegaConf.load(conf_dir() / "train.yaml").defaults if not isinstance(entry, str)
    ]
    defaults = {group: name for entry in entries for group, name in entry.items()}
    folders = [
        path
        for path in conf_dir().iterdir()
        if path.is_dir() and path.name[0] != "_" and path.name != "corpus"
    ]
    listed = []
    for folder in sorted(folders):
        names = [path.stem for path in sorted(folder.glob("*.yaml"))]
        marked = [f"{name}*" if name == defaults.get(folder.name) else name for name in names]
        listed.append(Entry(folder.name, ", ".join(marked)))
    return listed


def _reader_fields() -> list[Entry]:
    """Return our names of fields by reader; readers of the same fields share an entry."""
    readers_of: dict[tuple[str, ...], list[str]] = {}
    for reader in READERS:
        readers_of.setdefault(fields_of(reader), []).append(reader)
    return [Entry(", ".join(readers), ", ".join(names)) for names, readers in readers_of.items() if names]


def _reader_options() -> Iterator[Group]:
    """Yield the options of readers, those of the same readers in one group; at last the readers without
    any."""
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
    for readers_named, entries in groups.items():
        yield Group(readers_named, entries)
    yield Group(f"{', '.join(without)}: none", [])


def _width() -> int:
    return min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 0)).columns)


def _paragraph(text: str) -> str:
    return textwrap.fill(text, _width(), break_on_hyphens=False, break_long_words=False) + "\n"


def _render(group: Group) -> str:
    return _paragraph(group.title) + _render_entries(group.entries)


def _render_entries(entries: list[Entry]) -> str:
    """Return the entries in two columns; a key that is too long for the first has a line of its own."""
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
