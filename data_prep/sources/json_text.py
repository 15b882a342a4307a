"""Reading of a JSON text value by value, continuing after broken values. Used by json_stream.py."""

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

# An object that is broken or longer than this is not read as one value. Instead, this many of its
# characters are searched for the list of records.
WINDOW = 2**22
MAX_TRIES = 10_000  # positions tried, after a broken element, as the beginning of the next one

DECODER = json.JSONDecoder()
SPACES = re.compile(r"\s*")
SEPARATORS = re.compile(r"[\s,]*")
_LINE_START = re.compile(r'\n([ \t]*)(?:\}[ \t]*)?(?:,[ \t]*)?(\{|\](?=\s*(?:\Z|\[|\}|,\s*")))')
_OPENING = re.compile(r"[},\n\[]\s*(\{)")
_STRING = r'"(?:[^"\\\n]|\\.){0,200}"'
_TOO_LARGE = "larger than limits.max_record_bytes; raise that limit if this is intended"
_FIRST_KEYS = re.compile(rf"\{{\s*({_STRING})\s*:(?:\s*(?:{_STRING}|[\w.+-]+)\s*,\s*({_STRING})\s*:)?")


class Next(Enum):
    """Item found in a text after a broken element; the text's position is before this item."""

    ELEMENT = auto()  # the next element of the list
    END_OF_LIST = auto()  # the bracket that closes the list
    NOTHING = auto()  # neither; the text has ended


@dataclass
class Shape:
    """Features of a list's elements, to find the next element after a broken one.

    Attributes:
        beginnings: the first two keys of each of the first 8 elements, and of each broken element.
            The second key is "" if the element has only one key, or its first value is a list or an
            object.
        within: the first two keys of each object nested in the first 8 elements.
        keys: all keys of the first 8 elements.
        column: column in which the last element begins, if only white space and commas precede it
            on its line; else None.
        seen: number of elements read.
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

    def has_beginning(self, text: str, at: int) -> bool:
        """Return whether the text at `at` begins with the first keys of an element read so far."""
        match = _FIRST_KEYS.match(text, at)
        return match is not None and (match[1], match[2] or "") in self.beginnings - self.within

    def is_like(self, value: Any, form: Form) -> bool:
        """Return whether a value is a record, or has more than half of the keys in `self.keys`."""
        if not isinstance(value, dict):
            return False
        common = len(self.keys & set(value))
        return form.is_record(value) or 2 * common > max(len(self.keys), 1)


def _beginning(value: dict[str, object]) -> tuple[str, str]:
    match = _FIRST_KEYS.match(json.dumps(dict(list(value.items())[:2]), ensure_ascii=False))
    if match is None:
        return ("", "")
    return (match[1], match[2] or "")


def _objects_within(value: dict[str, object]) -> Iterator[dict[str, object]]:
    waiting: list[Any] = [*value.values()]
    while waiting:  # a loop, because JSON may be nested as deep as Python's recursion limit
        inner = waiting.pop()
        if isinstance(inner, dict):
            yield inner
            waiting.extend(inner.values())
        elif isinstance(inner, list):
            waiting.extend(inner)


class JsonText:
    """The text of an unpacked file, with a current position.

    Only a part of the text is in memory. The text before the position is dropped. Between `mark`
    and `rewind`, the text after the marked position is kept.

    Attributes:
        at: the current position, as an index of the part in memory.
        column: column of the position if only white space and commas precede it on its line, else
            None.
        fault: error of the stream if its data is truncated or corrupt, else None.
    """

    def __init__(self, member: Member, limit: int, report: Report) -> None:
        self._stream = member.stream
        self._limit = limit
        self._report = report
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self.at = 0
        self._has_ended = False
        self.fault: Unreadable | None = None
        self.column: int | None = 0
        self._mark: int | None = None
        self._marked_column: int | None = 0

    def mark(self) -> None:
        """Remember the current position, and keep the text after it for `rewind`."""
        self._mark = self.at
        self._marked_column = self.column

    def rewind(self) -> None:
        """Return to the position that `mark` remembered, and forget it."""
        assert self._mark is not None
        self.at = self._mark
        self.column = self._marked_column
        self._mark = None

    def is_full(self) -> bool:
        """Return whether reading must stop because more than WINDOW characters are kept for `rewind`."""
        return self._mark is not None and len(self._text) - self._mark > WINDOW

    def peek(self, count: int) -> str:
        """Return the next `count` characters, or fewer at the end, without moving the position."""
        while len(self._text) - self.at < count and self._read_more():
            pass
        return self._text[self.at : self.at + count]

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Skip the text that matches a pattern, and return the next character; "" at the end.

        Args:
            pattern: a pattern that also matches an empty string, such as SPACES.
        """
        skipped = ""
        while True:
            begin = self.at
            self.at = pattern.match(self._text, begin).end()  # type: ignore[union-attr]
            skipped += self._text[begin : self.at]
            if self.at < len(self._text) or not self._read_more():
                break
        if "\n" in skipped:
            self.column = len(skipped.rpartition("\n")[2])
        return self._text[self.at : self.at + 1]

    def step(self) -> None:
        """Skip one character."""
        self.at += 1
        self.column = None

    def iter_keys(self) -> Iterator[tuple[str, str]]:
        """Yield each key of the object at the position, with the first character of its value.

        The value must be read or skipped before the next key is requested.

        Raises:
            NotJson: the object is broken.
        """
        self.step()
        while (character := self.skip(SEPARATORS)) != "}":
            if character != '"':
                raise NotJson("not JSON: Expecting property name enclosed in double quotes")
            key = self.read_value(self._limit)
            if self.skip(SPACES) != ":":
                raise NotJson("not JSON: Expecting ':' delimiter")
            self.step()
            yield key, self.skip(SPACES)
        self.step()

    def read_value(self, limit: int) -> Any:
        """Return the JSON value at the current position, and move past it.

        Args:
            limit: maximum length of the value in characters.

        Raises:
            NotJson: there is no valid value, or it is too long. The position is then unchanged.
        """
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self.at)
            except json.JSONDecodeError as fault:
                is_at_end = fault.pos >= len(self._text) - 16
                is_truncated = is_at_end or fault.msg.startswith(("Unterminated string", "Invalid \\"))
                if self._has_ended or not is_truncated:
                    raise NotJson(f"not JSON: {fault.msg}") from None
                if len(self._text) - self.at > limit or self.is_full():
                    raise NotJson(_TOO_LARGE) from None
                if not (self._read_more() or self._text[self.at :].strip()):
                    raise NotJson(f"not JSON: {fault.msg}") from None
            except (ValueError, RecursionError) as fault:
                raise NotJson(f"JSON that Python cannot parse: {fault}") from None
            else:
                if end - self.at > limit:
                    raise NotJson(_TOO_LARGE)
                self.at = end
                self.column = None
                return value

    def skip_broken(self, shape: Shape, form: Form) -> Next:
        """Skip a broken element of a list, and return which item follows it.

        Args:
            shape: features of the list's elements; the broken element's first keys are added.
            form: description of a record.
        """
        beginning = _FIRST_KEYS.match(self.peek(2000))
        if beginning:
            shape.beginnings.add((beginning[1], beginning[2] or ""))
        column = shape.column if shape.seen and self.column is not None else self.column
        found = self._skip_to_similar(shape, form) if column is None else self._skip_to_line(column)
        if found is Next.NOTHING:
            self.at = len(self._text)
        return found

    def _skip_to_line(self, column: int) -> Next:
        """Skip to the next line that begins an element in `column`, or that closes the list."""
        start = self.at
        while True:
            match = _LINE_START.search(self._text, start)
            if match is None:
                if not self._extend_search():
                    return Next.NOTHING
                start = self.at
            elif match[2] == "{" and column in (match.end() - match.start() - 2, len(match[1])):
                self.at = match.start(2)
                return Next.ELEMENT
            elif match[2] == "]" and len(match[1]) <= column:
                self.at = match.start(2)
                return Next.END_OF_LIST
            else:
                start = match.end()

    def _skip_to_similar(self, shape: Shape, form: Form) -> Next:
        """Skip to the next object that resembles the elements read so far; return what is found."""
        start = self.at + 1
        tries = 0
        while tries < MAX_TRIES:
            match = _OPENING.search(self._text, start)
            if match is None:
                if not self._extend_search():
                    return Next.NOTHING
                start = self.at
                continue
            self.at = match.start(1)
            tries += 1
            self.peek(300)  # this may drop the text before the position, and change `at`
            if shape.has_beginning(self._text, self.at) or self._is_value_similar(shape, form):
                self.column = None
                return Next.ELEMENT
            start = self.at
        return Next.NOTHING

    def _is_value_similar(self, shape: Shape, form: Form) -> bool:
        """Return whether the value at the position resembles the list's elements.

        The position does not change.
        """
        outer_mark = self._mark
        if self._mark is None:
            self._mark = self.at
        offset = self.at - self._mark
        try:
            return shape.is_like(self.read_value(form.limit), form)
        except NotJson:
            return False
        finally:
            self.at = self._mark + offset
            self._mark = outer_mark

    def _extend_search(self) -> bool:
        """Read more text for a search; return False if there is none.

        The position moves to 1,000 characters before the end of the searched text, so that a match
        across that end is found.
        """
        self.at = max(self.at, len(self._text) - 1000)
        return not self.is_full() and self._read_more()

    def _read_more(self) -> bool:
        begin = self.at if self._mark is None else self._mark
        raw = self._read_bytes(max(2**16, len(self._text) - begin))
        self._text = self._text[begin:] + self._decode(raw)
        self.at -= begin
        self._mark = None if self._mark is None else 0
        self._has_ended = not raw
        return not self._has_ended

    def _read_bytes(self, size: int) -> bytes:
        """Read about `size` bytes in chunks; if the data is truncated, return the bytes before that."""
        pieces = []
        missing = size
        try:
            while missing > 0 and (piece := self._stream.read1(2**16)):
                pieces.append(piece)
                missing -= len(piece)
        except Unreadable as fault:
            self.fault = fault
        return b"".join(pieces)

    def _decode(self, raw: bytes) -> str:
        """Decode UTF-8; bytes that are not UTF-8 are read as Windows-1252, and the file is counted."""
        state = self._decoder.getstate()
        try:
            return self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError:
            self._decoder = codecs.getincrementaldecoder("utf-8-sig")("cp1252")
            self._decoder.setstate(state)
            self._report.counts["decoded_as_cp1252"] += 1
            return self._decoder.decode(raw, final=not raw)
