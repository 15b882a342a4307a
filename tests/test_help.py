"""`--help` lists every setting and every reader's options, and fits the width of the terminal."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from data_prep import reading
from data_prep.config import READERS, PrepareConfig, SourceConfig
from finetune.cli import help
from finetune.cli.setting_errors import iter_keys
from finetune.config.train import TrainConfig


def all_fields(schema: Any) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Yield (`Owner.field`, field) for each field of a dataclass and of those nested in it."""
    for item in dataclasses.fields(schema):
        yield f"{schema.__name__}.{item.name}", item
        kind = get_type_hints(schema)[item.name]
        for inner in (kind, *get_args(kind)):
            if dataclasses.is_dataclass(inner):
                yield from all_fields(inner)


def reader_schemas() -> list[Any]:
    return [schema for reader in READERS if (schema := reading.options_of(reader)) is not None]


def print_help(verb: str, columns: int) -> str:
    environment = {**os.environ, "COLUMNS": str(columns)}
    command = [sys.executable, "-m", "finetune.cli.main", verb, "--help"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout


def first_words(text: str) -> set[str]:
    return {line.split()[0] for line in text.splitlines() if line.strip()}


def test_every_setting_has_a_help_text() -> None:
    fields = [
        found for schema in (TrainConfig, PrepareConfig, *reader_schemas()) for found in all_fields(schema)
    ]
    assert len(fields) > 200
    assert [name for name, item in fields if not item.metadata.get("help", "").strip()] == []


@pytest.mark.parametrize(("verb", "schema"), [("train", TrainConfig), ("prepare", PrepareConfig)])
def test_help_lists_every_setting(verb: str, schema: Any) -> None:
    text = print_help(verb, 120)
    settings = [key for key, kind in iter_keys(schema) if not dataclasses.is_dataclass(kind)]
    assert len(settings) >= 70
    assert [key for key in settings if key not in first_words(text)] == []


def test_help_of_prepare_lists_settings_of_jobs_and_of_mixture_rules() -> None:
    words = first_words(print_help("prepare", 120))
    assert {"cluster.prepare.tasks", "cluster.prepare.memory", "cluster.prepare.sbatch"} <= words
    assert {"languages", "years", "weight", "max_tokens"} <= words


@pytest.mark.parametrize("verb", ["train", "prepare"])
@pytest.mark.parametrize(("columns", "most"), [(80, 80), (120, 120), (200, 120)])
def test_help_fits_the_terminal(verb: str, columns: int, most: int) -> None:
    assert max(map(len, print_help(verb, columns).splitlines())) <= most


def test_help_shows_type_and_default_in_the_syntax_of_settings() -> None:
    text = print_help("prepare", 120)
    for part in (
        "name of the corpus and of its folder  [text; required]",
        "whether near duplicates are removed  [bool; true]",
        "[list of text; [nob, nno]]",
        "[int; 16_000_000]",
        "[text; unset]",
    ):
        assert part in text


def options_in_help() -> dict[str, set[str]]:
    """Return each reader's options, as `finetune prepare --help` lists them."""
    listed: dict[str, set[str]] = {}
    for group in help._list_reader_options():
        for reader in group.title.removesuffix(": none").split(", "):
            listed.setdefault(reader, set()).update(entry.key for entry in group.entries)
    return listed


def test_help_lists_the_options_that_each_reader_accepts() -> None:
    listed = options_in_help()
    assert set(listed) == set(READERS)
    defaults = {
        name: value for schema in reader_schemas() for name, value in dataclasses.asdict(schema()).items()
    }
    for reader in READERS:
        schema = reading.options_of(reader)
        for name in sorted(defaults):
            value = getattr(schema(), name) if name in listed[reader] else defaults[name]
            source = SourceConfig(reader=reader, path="x", license="CC0-1.0", options={name: value})
            if name in listed[reader]:
                reading._reader(source)
                continue
            message = f"reader {reader} has no options"
            if listed[reader]:
                message = f"unknown option of reader {reader}; its options are "
            with pytest.raises(ValueError, match=rf"options\.{name}: {message}") as refused:
                reading._reader(source)
            assert all(known in str(refused.value) for known in listed[reader])


def test_help_lists_the_fields_that_each_reader_reads() -> None:
    listed = {reader: entry.text for entry in help._list_reader_fields() for reader in entry.key.split(", ")}
    for reader in READERS:
        assert listed.get(reader, "") == ", ".join(reading.fields_of(reader))


def test_instances_do_not_share_a_mutable_default() -> None:
    for schema in (TrainConfig, *reader_schemas()):
        for item in dataclasses.fields(schema):
            if get_origin(get_type_hints(schema)[item.name]) in (list, dict):
                assert item.default_factory() is not item.default_factory()
