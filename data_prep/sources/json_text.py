"""A JSON text with one value of it in memory, and the way from a broken value to the next. Used by
json_stream.py."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from data_prep.containers.streams import Member
from data_prep.document import Report, Unreadable
from data_prep.sources.json_lists import Form, NotJson

WINDOW = 2**22  # characters of an object that are looked at to find its list, where it is longer or broken
MAX_TRIES = 10_000  # places at which the next element is looked for behind a broken one

DECODER = json.JSONDecoder()
SPACES, SEPARATORS = re.compile(r"\s*"), re.compile(r"[\s,]*")
_LINE_START = re.compile(r'\n([ \t]*)(?:\}[ \t]*)?(?:,[ \t]*)?(\{|\](?=\s*(?:\Z|\[|\}|,\s*")))')
_OPENING = re.compile(r"[},\n\[]\s*(\{)")
_STRING = r'"(?:[^"\\\n]|\\.){0,200}"'
_FIRST_KEYS = re.compile(rf"\{{\s*({_STRING})\s*:(?:\s*(?:{_STRING}|[\w.+-]+)\s*,\s*({_STRING})\s*:)?")


class Behind(Enum):
    """What was found behind a broken element."""

    ELEMENT = auto()
    CLOSED = auto()
    NOTHING = auto()


@dataclass
class Shape:
    """What the elements of one list look like, as far as they were read.

    Attributes:
        beginnings: how their text begins: the first key, and the second where the first value is short.
        within: how objects within them begin.
        keys: their keys.
        column: of the last one, where it began a line, else None.
    """

    beginnings: set[tuple[str, str]] = field(default_factory=set)
    within: set[tuple[str, str]] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    column: int | None = None
    seen: int = 0

    def add(self, value: Any, column: int | None) -> None:
        self.seen += 1
        self.column = column
        if isinstance(value, dict) and self.seen <= 8:
            self.beginnings.add(_beginning(value))
            self.within.update(map(_beginning, _objects_within(value)))
            self.keys.update(value)

    def begins_alike(self, text: str, at: int) -> bool:
        match = _FIRST_KEYS.match(text, at)
        return match is not None and (match[1], match[2] or "") in self.beginnings - self.within

    def is_alike(self, value: Any, form: Form) -> bool:
        if not isinstance(value, dict):
            return False
        common = len(self.keys & set(value))
        return form.is_record(value) or 2 * common > max(len(self.keys), 1)


def _beginning(value: dict[str, object]) -> tuple[str, str]:
    match = _FIRST_KEYS.match(json.dumps(dict(list(value.items())[:2]), ensure_ascii=False))
    return (match[1], match[2] or "") if match else ("", "")


def _objects_within(value: dict[str, object]) -> Iterator[dict[str, object]]:
    waiting: list[Any] = [*value.values()]
    while waiting:  # no recursion: they may be nested as deep as JSON can be read
        inner = waiting.pop()
        if isinstance(inner, dict):
            yield inner
            waiting.extend(inner.values())
        elif isinstance(inner, list):
            waiting.extend(inner)


class JsonText:
    """A member's text, of which what lies before `at` has been read, and may be forgotten unless a mark
    stands before it.

    Attributes:
        fault: of the stream, where it breaks off.
        column: of this place, where only white space and commas stand before it on its line, else None.
    """

    def __init__(self, member: Member, limit: int, report: Report) -> None:
        self._stream, self._limit, self._report = member.stream, limit, report
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self.at, self._ended = "", 0, False
        self.fault: Unreadable | None = None
        self.column: int | None = 0
        self._mark: int | None = None
        self._marked_column: int | None = 0

    def mark(self) -> None:
        """Keep the text from here on, up to WINDOW, until `go_back`."""
        self._mark, self._marked_column = self.at, self.column

    def go_back(self) -> None:
        assert self._mark is not None
        self.at, self.column, self._mark = self._mark, self._marked_column, None

    def is_full(self) -> bool:
        """Return whether no more is kept behind the mark."""
        return self._mark is not None and len(self._text) - self._mark > WINDOW

    def peek(self, count: int) -> str:
        while len(self._text) - self.at < count and self._more():
            pass
        return self._text[self.at : self.at + count]

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Step over what matches; return the character behind it, "" at the end."""
        passed = ""
        while True:
            begin = self.at
            self.at = pattern.match(self._text, begin).end()  # type: ignore[union-attr]  # it matches nothing at all, too
            passed += self._text[begin : self.at]
            if self.at < len(self._text) or not self._more():
                break
        if "\n" in passed:
            self.column = len(passed.rpartition("\n")[2])
        return self._text[self.at : self.at + 1]

    def step(self) -> None:
        """Step over one character."""
        self.at, self.column = self.at + 1, None

    def members(self) -> Iterator[tuple[str, str]]:
        """Yield the keys of the object that begins here, each with the first character of its value, which
        must be stepped over before the next key is asked for.

        Raises:
            NotJson: it is none.
        """
        self.step()
        while (character := self.skip(SEPARATORS)) != "}":
            if character != '"':
                raise NotJson("not JSON: Expecting property name enclosed in double quotes")
            key = self.value(self._limit)
            if self.skip(SPACES) != ":":
                raise NotJson("not JSON: Expecting ':' delimiter")
            self.step()
            yield key, self.skip(SPACES)
        self.step()

    def value(self, limit: int) -> Any:
        """Return the JSON value at this place, and step over it.

        Raises:
            NotJson: it is none, or longer than `limit`; this place is where it was.
        """
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self.at)
            except json.JSONDecodeError as fault:
                is_cut = fault.pos >= len(self._text) - 16 or fault.msg.startswith(
                    ("Unterminated string", "Invalid \\")
                )
                if self._ended or not is_cut:
                    raise NotJson(f"not JSON: {fault.msg}") from None
                if len(self._text) - self.at > limit or self.is_full():
                    raise NotJson("over limits.max_record_bytes") from None
                if not (self._more() or self._text[self.at :].strip()):
                    raise NotJson(f"not JSON: {fault.msg}") from None
            except (ValueError, RecursionError) as fault:
                raise NotJson(f"not JSON that can be read: {fault}") from None
            else:
                if end - self.at > limit:
                    raise NotJson("over limits.max_record_bytes")
                self.at, self.column = end, None
                return value

    def skip_broken(self, shape: Shape, form: Form) -> Behind:
        """Step from a broken element to the next one, or to the end of its list."""
        if own := _FIRST_KEYS.match(self.peek(2000)):
            shape.beginnings.add((own[1], own[2] or ""))
        column = shape.column if shape.seen and self.column is not None else self.column
        behind = self._skip_alike(shape, form) if column is None else self._skip_lines(column)
        if behind is Behind.NOTHING:
            self.at = len(self._text)
        return behind

    def _skip_lines(self, column: int) -> Behind:
        """Look for a line that begins an element where the broken one began, or that ends the list."""
        scan = self.at
        while True:
            match = _LINE_START.search(self._text, scan)
            if match is None:
                scan = self._keep_looking()
                if scan < 0:
                    return Behind.NOTHING
            elif match[2] == "{" and column in (match.end() - match.start() - 2, len(match[1])):
                self.at = match.start(2)
                return Behind.ELEMENT
            elif match[2] == "]" and len(match[1]) <= column:
                self.at = match.start(2)
                return Behind.CLOSED
            else:
                scan = match.end()

    def _skip_alike(self, shape: Shape, form: Form) -> Behind:
        """Look for an object that begins, or is, like the elements read so far."""
        scan, tries = self.at + 1, 0
        while tries < MAX_TRIES:
            match = _OPENING.search(self._text, scan)
            if match is None:
                scan = self._keep_looking()
                if scan < 0:
                    return Behind.NOTHING
                continue
            self.at, tries = match.start(1), tries + 1
            self.peek(300)  # may drop what lies before this place
            if shape.begins_alike(self._text, self.at) or self._is_alike_here(shape, form):
                self.column = None
                return Behind.ELEMENT
            scan = self.at
        return Behind.NOTHING

    def _is_alike_here(self, shape: Shape, form: Form) -> bool:
        kept, self._mark = self._mark, self.at if self._mark is None else self._mark
        begin = self.at - self._mark
        try:
            return shape.is_alike(self.value(form.limit), form)
        except NotJson:
            return False
        finally:
            self.at = self._mark + begin
            self._mark = kept

    def _keep_looking(self) -> int:
        """Read on, keeping the last of what was looked at; return where to look, -1 at the end."""
        self.at = max(self.at, len(self._text) - 1000)
        return self.at if not self.is_full() and self._more() else -1

    def _more(self) -> bool:
        begin = self.at if self._mark is None else self._mark
        raw = self._read(max(2**16, len(self._text) - begin))
        self._text, self.at = self._text[begin:] + self._decode(raw), self.at - begin
        self._mark = None if self._mark is None else 0
        self._ended = not raw
        return not self._ended

    def _read(self, size: int) -> bytes:
        """Read about so many bytes, in pieces: what comes before a break is kept."""
        pieces, missing = [], size
        try:
            while missing > 0 and (piece := self._stream.read1(2**16)):
                pieces.append(piece)
                missing -= len(piece)
        except Unreadable as fault:
            self.fault = fault
        return b"".join(pieces)

    def _decode(self, raw: bytes) -> str:
        """Decode UTF-8; what is none is taken for Windows-1252, as in `decode`, and counted once a file."""
        state = self._decoder.getstate()
        try:
            return self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError:
            self._decoder = codecs.getincrementaldecoder("utf-8-sig")("cp1252")
            self._decoder.setstate(state)
            self._report.counts["decoded_as_cp1252"] += 1
            return self._decoder.decode(raw, final=not raw)
