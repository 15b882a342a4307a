"""The reference pages, generated from the code: verbs, settings, files, metrics, states and exit codes.

conf.py calls `write_pages` before Sphinx reads its sources. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints
from unittest import mock

from allowed_values import allowed_values

from data_prep.config import READERS, PrepareConfig
from data_prep.reading import fields_of, options_of
from finetune.cli import help as cli_help
from finetune.cli import verbs
from finetune.config.cluster import PrepareJobs
from finetune.config.train import TrainConfig

HELP_COLUMNS = "92"
ENTRY = re.compile(r"(?P<meaning>.*)\s\s\[(?P<kind>[^;\]]+);\s(?P<default>.*)\]", re.DOTALL)


@dataclass(frozen=True)
class Page:
    """A generated page: its file's stem, its title, what it holds, and its text below the title."""

    name: str
    title: str
    summary: str
    body: Callable[[], str]


def write_pages(folder: Path) -> None:
    """Write all reference pages; leave files as they are that would not change, so that builds are short."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {f"{page.name}.md": f"# {page.title}\n\n{page.summary}\n\n{page.body()}" for page in PAGES}
    texts["index.md"] = _index()
    for path in folder.glob("*.md"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.is_file() or path.read_text("utf-8") != text:
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(text, "utf-8")
            temporary.replace(path)


def _index() -> str:
    rows = "\n".join(f"| [{page.title}]({page.name}.md) | {page.summary} |" for page in PAGES)
    entries = "\n".join(page.name for page in PAGES)
    return (
        "# Reference\n\nThese pages are generated from the code, so they describe the version at hand.\n\n"
        f"| page | content |\n|---|---|\n{rows}\n\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n"
    )


def table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> str:
    """Return a Markdown table; cells may hold Markdown, and their vertical bars are escaped."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _plain(text: str) -> str:
    """Return a text of the code as Markdown, with what would be markup escaped."""
    return re.sub(r"([*_<>\[\]{}$|\\])", r"\\\1", text.replace("\xa0", " "))


# --- verbs --------------------------------------------------------------------------------------------------


def verb_help(name: str) -> str:
    """Return what `finetune NAME --help` prints, without the settings of `train` and `prepare`."""
    verb = verbs.find(name)
    assert verb is not None
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": HELP_COLUMNS}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        verb.run(["--help"])
    return printed.getvalue().partition("\nSettings, as key=value")[0].strip()


def _verbs() -> str:
    rows = [
        (f"[`{row.usage.partition(' ')[0]}`](#{row.usage.partition(' ')[0]})", _plain(row.summary))
        for row in verbs.reference_rows()
    ]
    parts = [table(("verb", "what it does"), rows)]
    for verb in verbs.VERBS:
        parts.append(f"## {verb.name}\n\n```text\n{verb_help(verb.name)}\n```\n")
        if verb.name in SETTINGS_PAGES:
            parts.append(f"All settings: [{verb.name}]({SETTINGS_PAGES[verb.name]}.md).\n")
    return "\n".join(parts)


SETTINGS_PAGES = {"train": "train-settings", "prepare": "prepare-settings"}

# --- settings -----------------------------------------------------------------------------------------------


def schemas_of(schema: Any, prefix: str = "") -> dict[str, Any]:
    """Return the dataclasses that declare settings, by the prefix of the keys in each."""
    found = {prefix: schema}
    kinds = get_type_hints(schema)
    for item in dataclasses.fields(schema):
        kind = kinds[item.name]
        inner = get_args(kind)[-1] if get_origin(kind) in (dict, list) else kind
        if dataclasses.is_dataclass(inner):
            key = prefix + item.name
            place = {dict: f"{key}.NAME.", list: f"{key}, each entry"}.get(get_origin(kind), f"{key}.")
            found |= schemas_of(inner, place)
    return found


def _settings(schema: Any, prefix: str = "") -> str:
    """Return the settings of a dataclass and those nested in it, a section for each."""
    declared = schemas_of(schema, prefix)
    parts = []
    for group in cli_help.settings_of(schema, prefix):
        if not group.entries:
            continue
        place = _place(group.title, declared)
        title, _, meaning = group.title.partition(": ")
        if not meaning:
            title, meaning = "At the top", group.title
        parts.append(f"## {_heading(title)}\n\n{_plain(meaning)}.\n")
        parts.append(_entries(group.entries, allowed_values(declared[place])))
    return "\n".join(parts)


def _place(title: str, declared: dict[str, Any]) -> str:
    """Return the prefix under which the dataclass of a help text's group is declared."""
    key = title.partition(": ")[0] if ": " in title else ""
    for place in (f"{key}.", key):
        if place in declared:
            return place
    return ""


def _heading(title: str) -> str:
    key, _, rest = title.partition(",")
    return f"`{key}`{',' + rest if rest else ''}" if " " not in key else title


def _entries(entries: list[cli_help.Entry], allowed: dict[str, str]) -> str:
    """Return settings as a definition list: name, type, default and limits in one line, the meaning below."""
    parts = []
    for entry in entries:
        found = ENTRY.fullmatch(entry.text.replace("\xa0", " "))
        assert found is not None, entry
        facts = [found["kind"], _default(found["default"])]
        limits = allowed.get(entry.key.rpartition(".")[2])
        if limits is not None:
            facts.append(limits)
        parts.append(f"`{entry.key}` · {' · '.join(facts)}\n: {_plain(found['meaning'])}\n")
    return "\n".join(parts)


def _default(default: str) -> str:
    return default if default in ("required", "unset", "empty") else f"default `{default}`"


def _train_settings() -> str:
    return (
        "Type a setting as `key=value`: `finetune train recipe=sample_lora lr=2e-4 cluster.nodes=2`. "
        "The defaults below hold where no file of `conf/` that the command names says otherwise.\n\n"
        + _settings(TrainConfig)
    )


def _prepare_settings() -> str:
    parts = [
        "In a corpus file (`conf/corpus/*.yaml`, or your own) the keys stand without `corpus.`; on the "
        "command line they have it: `finetune prepare corpus=letters corpus.language.keep=[nob]`. "
        "`NAME` is a name that you choose. The options of single readers are on [their own "
        "page](readers.md).\n",
        _settings(PrepareConfig),
        _settings(PrepareJobs, "cluster.prepare."),
    ]
    return "\n".join(parts)


def _readers() -> str:
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
    names = ", ".join(f"`{name}`" for name in fields_of(reader))
    return f"Fields that `fields` may map: {names}.\n" if names else ""


PAGES = (
    Page("verbs", "Verbs", "Every verb of `finetune`, with its arguments and options.", _verbs),
    Page(
        "train-settings",
        "Settings of train",
        "Every setting of `finetune train`: name, type, default, allowed values, meaning.",
        _train_settings,
    ),
    Page(
        "prepare-settings",
        "Settings of prepare",
        "Every setting of `finetune prepare` and of a corpus file.",
        _prepare_settings,
    ),
    Page("readers", "Readers", "The readers of sources, with their fields and options.", _readers),
)
