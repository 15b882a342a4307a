"""JSON lines, JSON arrays of records, or objects that hold a list of records, on one line or many
(json_stream says how).

Only `text` is required; `fields` maps other key names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.config import SourceConfig
from data_prep.document import Document, Place, Report, Turn, Unreadable
from data_prep.fields import setting
from data_prep.sources import claims, json_stream
from data_prep.sources.files import find, members
from data_prep.sources.json_lists import Form
from data_prep.user_error import UserError

SUFFIXES = (".jsonl", ".json", ".ndjson")
OPTIONAL = ("id", "group", "language", "title", "date", "url")
# An object with one of these is a record of a reader; of all others, one with `text`.
RECORD_KEYS = {
    "chat": ("messages", "conversations", "conversation", "prompt", "completion", "instruction", "output")
}
FIELDS = (
    "text",
    *OPTIONAL,
)  # what the corpus file's `fields` may map, here as in every reader that has such a line


@dataclass
class Options:
    """Options of every reader of JSON records."""

    records: str = setting(
        "",
        "path to the list of records in a JSON object, as response.docs; empty: it is detected",
    )

    def __post_init__(self) -> None:
        if self.records and not all(self.records.split(".")):
            raise UserError(
                f"options.records is '{self.records}': give keys joined by dots, as in response.docs"
            )


@dataclass(kw_only=True)
class Description:
    """All of a document but what it says."""

    id: str
    group: str
    source: str
    license: str
    language: str = ""
    title: str = ""
    date: str = ""
    url: str = ""

    def document(self, text: str = "", turns: Sequence[Turn] = (), mask: str = "") -> Document:
        return Document(**vars(self), text=text, turns=list(turns), mask=mask)


def files(source: SourceConfig) -> list[Path]:
    return find(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    key = source.fields.get("text", "text")
    for where, record in records(name, source, report, paths):
        with report.quarantining(where):
            if not isinstance(record.get(key), str):
                raise Unreadable(f"no string under '{key}'")
            yield described(record, where, source).document(clean(record[key]))


def records(
    name: str, source: SourceConfig, report: Report, paths: Sequence[Path], keys: Sequence[str] = ()
) -> Iterator[tuple[Place, dict[str, object]]]:
    """Yield every record of the files, with its place; what is no JSON object is quarantined.

    Args:
        keys: an object with one of these is a record, another may hold the list of them. Default: those of
            RECORD_KEYS.
    """
    usual = RECORD_KEYS.get(source.reader, ("text",))
    form = record_form(source, keys or [source.fields.get(key, key) for key in usual])
    for member in members(name, source, report, paths, SUFFIXES):
        for where, value in json_stream.values(member, form, report):
            if isinstance(value, dict):
                yield where, value
            else:
                report.quarantine(where, f"a JSON {type(value).__name__}, not an object")


def record_form(source: SourceConfig, keys: Sequence[str]) -> Form:
    path = source.options.get("records", "")
    return Form(tuple(keys), tuple(path.split(".")) if path else (), source.limits.max_record_bytes)


def described(record: Mapping[str, object], where: Place, source: SourceConfig) -> Description:
    """Return what a record says about itself. A record without an id is called by its place.

    Raises:
        Unreadable: one of them is a list or an object.
    """
    keys = {ours: source.fields.get(ours, ours) for ours in OPTIONAL}
    found = {ours: record[theirs] for ours, theirs in keys.items() if record.get(theirs) is not None}
    if wrong := [keys[ours] for ours, value in found.items() if isinstance(value, list | dict)]:
        raise Unreadable(f"'{wrong[0]}' is a {type(record[wrong[0]]).__name__}, not a string or a number")
    values = {ours: clean(value) for ours, value in found.items()}
    for ours, claim in (("language", claims.language), ("date", claims.date)):
        if ours in values:
            values[ours] = claim(values[ours])
    document_id = values.setdefault("id", str(where))
    values.setdefault("group", document_id)
    return Description(**values, source=where.source, license=source.license)


def clean(value: object) -> str:
    """JSON's escapes can hold half a character (a lone surrogate), which is no text: it becomes U+FFFD."""
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
