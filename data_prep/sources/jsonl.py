"""JSON lines, or JSON arrays of records, one or one after another. Only `text` is required; `fields` maps other key names."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.config import SourceConfig
from data_prep.containers import Member, break_off
from data_prep.document import Document, Place, Report, Unreadable
from data_prep.sources import claims
from data_prep.sources.files import decode, find, members

_DECODER = json.JSONDecoder()
_SPACES, _SEPARATORS = re.compile(r"\s*"), re.compile(r"[\s,]*")
SUFFIXES = (".jsonl", ".json", ".ndjson")
OPTIONAL = ("id", "group", "language", "title", "date", "url")
FIELDS = ("text", *OPTIONAL)  # what the corpus file's `fields` may map, here as in every reader that has such a line


def files(source: SourceConfig) -> list[Path]:
    return find(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    key = source.fields.get("text", "text")
    for where, record in records(name, source, report, paths):
        with report.quarantining(where):
            if not isinstance(record.get(key), str):
                raise Unreadable(f"no string under '{key}'")
            yield Document(text=clean(record[key]), **described(record, where, source))


def records(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Every JSON object of the files, with its place; what is none is quarantined."""
    for member in members(name, source, report, paths, SUFFIXES):
        for where, value in _values(member, source, report):
            if isinstance(value, dict):
                yield where, value
            else:
                report.quarantine(where, f"a JSON {type(value).__name__}, not an object")


def described(record: dict[str, Any], where: Place, source: SourceConfig) -> dict[str, Any]:
    """What a record says about itself, as Document's attributes. A record without an id is called by its place.

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
    return {"group": document_id, **values, "source": where.source, "license": source.license}


def clean(value: object) -> str:
    """JSON's escapes can hold half a character (a lone surrogate), which is no text: it becomes U+FFFD."""
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def parse(text: str) -> Any:
    """A JSON value.

    Raises:
        Unreadable: it is none, or none that can be held (5,000 digits, brackets a thousand deep).
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as fault:
        raise Unreadable(f"not JSON: {fault.msg} at character {fault.pos}") from None
    except (ValueError, RecursionError) as fault:
        raise Unreadable(f"not JSON that can be read: {fault}") from None


def _values(member: Member, source: SourceConfig, report: Report) -> Iterator[tuple[Place, Any]]:
    with report.quarantining(member.place):
        if member.stream.peek(64)[:64].removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
            yield from _elements(member, source.limits.max_record_bytes, report)
            return
    for where, line in member.lines():
        if line.strip():
            with report.quarantining(where):
                yield where, parse(decode(line, report))


def _elements(member: Member, limit: int, report: Report) -> Iterator[tuple[Place, Any]]:
    """The elements of one array after another, held one at a time. A fault ends them: behind it nothing says where the next one
    begins."""
    text, number = _Text(member, limit), 1
    try:
        while text.skip(_SPACES):
            text.open_array()
            while text.skip(_SEPARATORS) != "]":
                yield replace(member.place, at=f"record {number}"), text.value()
                number += 1
            text.at += 1
    except Unreadable as fault:
        line = Unreadable(f"{fault}; the rest of the file cannot be read")
        break_off(report, replace(member.place, at=f"record {number}"), line)


class _Text:
    """A member's text, of which what lies before `at` has been read."""

    def __init__(self, member: Member, limit: int) -> None:
        self._stream, self._limit = member.stream, limit
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("cp1252")
        self._text, self.at, self._ended = "", 0, False

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Step over what matches; the character behind it, "" at the end."""
        while True:
            self.at = pattern.match(self._text, self.at).end()  # type: ignore[union-attr]  # it matches nothing at all, too
            if self.at < len(self._text) or not self._more():
                return self._text[self.at : self.at + 1]

    def open_array(self) -> None:
        if self._text[self.at] != "[":
            raise Unreadable(f"behind an array stands {self._text[self.at : self.at + 20]!r}, not another array")
        self.at += 1

    def value(self) -> Any:
        """The JSON value at this place, which is stepped over."""
        while True:
            try:
                value, self.at = _DECODER.raw_decode(self._text, self.at)
                return value
            except json.JSONDecodeError as fault:
                is_cut = fault.pos >= len(self._text) - 16 or fault.msg.startswith("Unterminated string")
                if self._ended or not is_cut or not (self._more() or self._text[self.at :].strip()):
                    raise Unreadable(f"not JSON: {fault.msg}") from None
            except (ValueError, RecursionError) as fault:
                raise Unreadable(f"not JSON that can be read: {fault}") from None

    def _more(self) -> bool:
        if len(self._text) - self.at > self._limit:
            raise Unreadable("over limits.max_record_bytes")
        raw = self._stream.read(max(2**16, len(self._text) - self.at))
        self._text, self.at = self._text[self.at :] + self._decoder.decode(raw, final=not raw), 0
        self._ended = not raw
        return not self._ended
