"""Reader of JSON lines, JSON arrays of records, and JSON objects that contain a list of records.

A record may span several lines; json_stream.py describes the layouts. A record must have the key
`text`, or the key that `fields` maps to it; all other keys are optional.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.config import SourceConfig
from data_prep.document import Document, Place, Report, Turn, Unreadable
from data_prep.fields import setting
from data_prep.sources import claims, json_stream
from data_prep.sources.files import find_files, iter_members
from data_prep.sources.json_lists import Form
from data_prep.user_error import UserError

SUFFIXES = (".jsonl", ".json", ".ndjson")
OPTIONAL = ("id", "group", "language", "title", "date", "url")
# Keys of records, by reader: an object with at least one of these keys is a record. For readers
# that are not listed, an object with `text` is.
RECORD_KEYS = {
    "chat": ("messages", "conversations", "conversation", "prompt", "completion", "instruction", "output")
}
FIELDS = ("text", *OPTIONAL)


@dataclass
class Options:
    """Options that all readers of JSON records have."""

    records: str = setting(
        "",
        "path to the list of records in a JSON object, e.g. response.docs; empty: it is detected",
    )

    def __post_init__(self) -> None:
        if self.records and not all(self.records.split(".")):
            raise UserError(
                f"options.records: must be keys joined by dots, such as response.docs, not '{self.records}'"
            )


@dataclass(kw_only=True)
class Description:
    """A document's metadata. Each attribute is the field of Document with the same name."""

    id: str
    group: str
    source: str
    license: str
    language: str = ""
    title: str = ""
    date: str = ""
    url: str = ""

    def build_document(self, text: str = "", turns: Sequence[Turn] = (), mask: str = "") -> Document:
        return Document(**vars(self), text=text, turns=list(turns), mask=mask)


def list_files(source: SourceConfig) -> list[Path]:
    return find_files(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    key = source.fields.get("text", "text")
    for place, record in iter_records(name, source, report, paths):
        with report.quarantining(place):
            if not isinstance(record.get(key), str):
                raise Unreadable(f"no string under '{key}'")
            yield describe(record, place, source).build_document(to_valid_text(record[key]))


def iter_records(
    name: str, source: SourceConfig, report: Report, paths: Sequence[Path], keys: Sequence[str] = ()
) -> Iterator[tuple[Place, dict[str, object]]]:
    """Yield every record with its place; values that are not JSON objects are quarantined.

    Args:
        name: name of the source.
        report: receives counts and quarantined values.
        paths: the files to read.
        keys: an object with at least one of these keys is a record. Any other object may contain
            the list of records. If `keys` is empty, the keys in RECORD_KEYS are used.
    """
    usual = RECORD_KEYS.get(source.reader, ("text",))
    form = record_form(source, keys or [source.fields.get(key, key) for key in usual])
    for member in iter_members(name, source, report, paths, SUFFIXES):
        for place, value in json_stream.iter_values(member, form, report):
            if isinstance(value, dict):
                yield place, value
            else:
                report.quarantine(place, f"must be a JSON object, but has type {type(value).__name__}")


def record_form(source: SourceConfig, keys: Sequence[str]) -> Form:
    records = source.options.get("records", "")
    path = tuple(records.split(".")) if records else ()
    return Form(tuple(keys), path, source.limits.max_record_bytes)


def describe(record: Mapping[str, object], place: Place, source: SourceConfig) -> Description:
    """Return a record's metadata. If the record has no id, its place is used as the id.

    Raises:
        Unreadable: a value is a list or an object.
    """
    keys = {field: source.fields.get(field, field) for field in OPTIONAL}
    values: dict[str, str] = {}
    for field, key in keys.items():
        value = record.get(key)
        if isinstance(value, list | dict):
            raise Unreadable(f"'{key}' must be a string or number, not a {type(value).__name__}")
        if value is not None:
            values[field] = to_valid_text(value)
    if "language" in values:
        values["language"] = claims.parse_language(values["language"])
    if "date" in values:
        values["date"] = claims.parse_date(values["date"])
    document_id = values.setdefault("id", str(place))
    values.setdefault("group", document_id)
    return Description(**values, source=place.source, license=source.license)


def to_valid_text(value: object) -> str:
    """Convert a JSON string or number to valid Unicode; lone surrogates become U+FFFD."""
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
