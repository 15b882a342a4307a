"""JSON values of a stream, however they are laid out, with no more than one record in memory.

A file is JSON lines, arrays one after another, or objects one after another, each on one line or spread over
many. An object that is no record itself (it has none of the reader's keys) may hold the list of records,
however deep in objects within it; what stands beside the list is no record. `options.records` names the list
where it is not found.

A broken element costs itself alone: reading goes on at the next one, which begins a line with the same
indentation, or looks like a record where elements share a line."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from data_prep.containers.streams import Member, break_off
from data_prep.document import Place, Report, Unreadable
from data_prep.sources.files import decode

HEAD = 2**16  # bytes by which the layout of a file is told; of a plain file, Python gives 8 KiB
WINDOW = 2**22  # characters of an object that are looked at to find its list, where it is longer or broken
MAX_DEPTH = 4  # objects within each other that may hold the list
MAX_TRIES = 10_000  # places at which the next element is looked for behind a broken one
EMPTY_LISTS = (
    "data",
    "docs",
    "documents",
    "entries",
    "hits",
    "items",
    "records",
    "results",
    "rows",
    "value",
    "values",
)

_DECODER = json.JSONDecoder()
_SPACES, _SEPARATORS = re.compile(r"\s*"), re.compile(r"[\s,]*")
_LINE_START = re.compile(r'\n([ \t]*)(?:\}[ \t]*)?(?:,[ \t]*)?(\{|\](?=\s*(?:\Z|\[|\}|,\s*")))')
_OPENING = re.compile(r"[},\n\[]\s*(\{)")
_STRING = r'"(?:[^"\\\n]|\\.){0,200}"'
_FIRST_KEYS = re.compile(rf"\{{\s*({_STRING})\s*:(?:\s*(?:{_STRING}|[\w.+-]+)\s*,\s*({_STRING})\s*:)?")
# An object up to its first list of objects: only numbers, words, strings, lists of these and the beginnings
# of objects stand before it.
_PLAIN_LIST = r'\[(?:[^\[\]{}"]|"(?:[^"\\]|\\.)*")*\]\s*,'
_TO_FIRST_LIST = re.compile(
    rf'\s*\{{\s*(?:"((?:[^"\\]|\\.)*)"\s*:\s*(?:"(?:[^"\\]|\\.)*"\s*,|[\w.+-]+\s*,|{_PLAIN_LIST}|\{{)\s*)*'
    r'"((?:[^"\\]|\\.)*)"\s*:\s*\[\s*\{'
)
_COUNTABLE = re.compile(r"[\w.-]{1,60}")
_KEY = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:')


@dataclass(frozen=True)
class Form:
    """What a record is.

    Attributes:
        keys: an object with one of these is a record.
        path: the keys that lead to the list of records; empty: it is found.
        limit: bytes of the longest record.
    """

    keys: tuple[str, ...]
    path: tuple[str, ...] = ()
    limit: int = 2**26

    def is_record(self, value: Any) -> bool:
        return isinstance(value, dict) and any(key in value for key in self.keys)


class NotJson(Unreadable):
    """A value that is not JSON, or not JSON that can be held; the text behind it may be."""


def parse(text: str) -> Any:
    """Return a JSON value.

    Raises:
        Unreadable: it is none, or none that can be held (5,000 digits, brackets a thousand deep).
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as fault:
        raise NotJson(f"not JSON: {fault.msg} at character {fault.pos}") from None
    except (ValueError, RecursionError) as fault:
        raise NotJson(f"not JSON that can be read: {fault}") from None


def values(member: Member, form: Form, report: Report) -> Iterator[tuple[Place, Any]]:
    """Yield every record of a member with its place, and whatever else stands where a record should."""
    with report.quarantining(member.place):
        raw = member.stream.peek(HEAD)[:HEAD].removeprefix(codecs.BOM_UTF8)
        head = raw.decode("utf-8", "replace").lstrip()
        if head[:1] == "[" or (head[:1] == "{" and _is_spread(head, form, is_cut=len(raw) >= 4096)):
            yield from _Sequence(member, form, report).values(is_array=head[:1] == "[")
            return
    finder = ListFinder(form, report)
    for where, line in member.lines():
        if line.strip():
            with report.quarantining(where):
                yield from _values_of_line(decode(line, report), where, finder, report)


def _is_spread(head: str, form: Form, is_cut: bool) -> bool:
    """Return whether the first object of a text goes on behind its first line, or is a broken one that holds
    a list."""
    line, newline, rest = head.partition("\n")
    listed = _TO_FIRST_LIST.match(head)
    holds_list = listed is not None and not set(_KEY.findall(listed[0])) & set(form.keys)
    if is_cut and not newline:
        return holds_list
    try:
        parse(line)
    except NotJson:
        if holds_list:
            return True
    else:
        return False
    try:
        _DECODER.raw_decode(head)
    except json.JSONDecodeError as fault:
        return fault.pos > len(head) - len(rest.lstrip())
    except (ValueError, RecursionError):
        return False
    return True


def _values_of_line(text: str, where: Place, finder: ListFinder, report: Report) -> Iterator[tuple[Place, Any]]:
    """Yield what a line holds: mostly one record; several objects where line breaks were lost, or a whole
    list."""
    if text.rstrip().endswith(","):  # lines cut out of an array
        text = text.rstrip()[:-1]
    try:
        found = [parse(text)]
        if finder.is_record(found[0]):
            yield where, found[0]
            return
    except NotJson:
        found = _joined(text)
        if not found:
            raise
    several = len(found) > 1
    for number, value in enumerate(found, start=1):
        place = replace(where, at=f"{where.at}.{number}") if several else where
        with report.quarantining(place):
            elements = finder.expand(value)
            if elements is None:
                yield place, value
            else:
                for count, element in enumerate(elements, start=1):
                    yield replace(place, at=f"{place.at}.{count}"), element


def _joined(text: str) -> list[Any]:
    """Return the objects that stand behind each other on a line; none if anything else does."""
    found, at = [], len(text) - len(text.lstrip())
    while at < len(text):
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        if not isinstance(value, dict):
            return []
        found.append(value)
        at = _SEPARATORS.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing at all, too
    return found


class ListFinder:
    """Finds the list of records in the objects of one file.

    A file has either records or objects that hold them: once a record was seen, an object that is none is
    broken, and a list in it, of comments perhaps, is no list of records."""

    def __init__(self, form: Form, report: Report) -> None:
        self.form, self._report = form, report
        self.has_records = False

    def is_record(self, value: Any) -> bool:
        """Return whether a value that stands in no list is a record, which needs no further look."""
        found = not self.form.path and self.form.is_record(value)
        self.has_records = self.has_records or found
        return found

    def expand(self, value: Any, is_element: bool = False) -> list[Any] | None:
        """Return the records of an object that holds them in a list; None if it is none of that kind, as an
        element mostly is.

        Raises:
            Unreadable: the list that a setting names is not in it, or several are and none is named.
        """
        path = self.form.path
        if not isinstance(value, dict):
            return None
        if path and isinstance(named := _follow(value, path), list):
            return named
        if self.is_record(value) or self.has_records or (path and (is_element or self.form.is_record(value))):
            return None
        if path:
            raise Unreadable(f"no list under '{'.'.join(path)}', which options.records names, but {_names(list(value))}")
        lists = dict(_lists(value, ()))
        holding = [path for path, elements in lists.items() if any(map(self.form.is_record, elements))]
        if holding:
            return lists[self.choose(holding)]
        _refuse_map(value, self.form)
        empty = [path for path, elements in lists.items() if not elements and path[-1] in EMPTY_LISTS]
        return [] if empty and len(empty) == len(lists) else None

    def choose(self, paths: list[tuple[str, ...]]) -> tuple[str, ...]:
        """Return the only one of the lists of records, and count it by its name.

        Raises:
            NotJson: there are several.
        """
        if len(paths) > 1:
            names = _names([".".join(path) for path in paths])
            raise NotJson(f"holds several lists of records, {names}: name the one to read by options.records")
        name = ".".join(paths[0])
        self._report.counts[f"list_found_{name if _COUNTABLE.fullmatch(name) else 'other'}"] += 1
        return paths[0]


def _names(names: list[str]) -> str:
    shown = [f"'{name[:60]}'" for name in names[:8]] or ["nothing"]
    return ", ".join(shown) + (" …" if len(names) > 8 else "")


def _follow(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _lists(value: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    for key, inner in value.items():
        if isinstance(inner, list):
            yield (*path, key), inner
        elif isinstance(inner, dict) and len(path) < MAX_DEPTH:
            yield from _lists(inner, (*path, key))


def _refuse_map(value: dict[str, Any], form: Form) -> None:
    """Raise Unreadable where the records are the values of an object, under a key each."""
    for outer in (value, *(inner for inner in value.values() if isinstance(inner, dict))):
        found = [key for key, inner in outer.items() if form.is_record(inner)]
        if len(found) > 1:
            raise Unreadable(
                f"holds {len(found)} records by key, {_names(found[:2])} …, not in a list: write them as a list or one a line"
            )


class Behind(Enum):
    """What was found behind a broken element."""

    ELEMENT = auto()
    CLOSED = auto()
    NOTHING = auto()


@dataclass
class _Shape:
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


def _beginning(value: dict[str, Any]) -> tuple[str, str]:
    match = _FIRST_KEYS.match(json.dumps(dict(list(value.items())[:2]), ensure_ascii=False))
    return (match[1], match[2] or "") if match else ("", "")


def _objects_within(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    waiting: list[Any] = [*value.values()]
    while waiting:  # no recursion: they may be nested as deep as JSON can be read
        inner = waiting.pop()
        if isinstance(inner, dict):
            yield inner
            waiting.extend(inner.values())
        elif isinstance(inner, list):
            waiting.extend(inner)


class _Sequence:
    """The values of a text that is not JSON lines."""

    def __init__(self, member: Member, form: Form, report: Report) -> None:
        self._place, self._form, self._report = member.place, form, report
        self._text = JsonText(member, form.limit, report)
        self._finder = ListFinder(form, report)
        self._number = 1
        self._is_broken_off = False

    def values(self, is_array: bool) -> Iterator[tuple[Place, Any]]:
        try:
            yield from self._arrays() if is_array else self._objects()
        except Unreadable as fault:
            self._break_off(fault, self._report)
        if self._text.fault is not None and not self._is_broken_off:
            self._break_off(self._text.fault, self._report)

    def _where(self) -> Place:
        return replace(self._place, at=f"record {self._number}")

    def _break_off(self, fault: Unreadable, report: Report) -> None:
        """Report that the text cannot be read to its end; where the stream under it breaks off, that is why."""
        self._is_broken_off = self._is_broken_off or report is self._report
        line = f"{self._text.fault or fault}; the rest of the file cannot be read"
        break_off(report, self._where(), Unreadable(line))

    def _arrays(self) -> Iterator[tuple[Place, Any]]:
        text = self._text
        while text.skip(_SPACES):
            if text.peek(1) != "[":
                raise Unreadable(f"behind an array stands {text.peek(20)!r}, not another array")
            closed = yield from self._elements(self._report)
            if not closed:
                return

    def _elements(self, report: Report, in_object: bool = False) -> Generator[tuple[Place, Any], None, bool]:
        """Yield the elements of the array that begins here; return whether its end was found. One in an
        object is the list of records; of others, the elements may be objects that hold it."""
        text, shape = self._text, _Shape()
        text.step()
        while True:
            character = text.skip(_SEPARATORS)
            where, column = self._where(), text.column
            if character == "]":
                text.step()
                if text.skip(_SEPARATORS) != "{":
                    return True
                report.quarantine(where, "not JSON: ] between two elements")
                self._number += 1
                continue
            try:
                value = text.value(self._form.limit)
            except NotJson as fault:
                behind = text.skip_broken(shape, self._form)
                if behind is Behind.NOTHING:
                    self._break_off(fault, report)
                    return False
                report.quarantine(where, fault)
            else:
                shape.add(value, column)
                if in_object or self._finder.is_record(value):
                    yield where, value
                else:
                    yield from self._of_value(value, where, report)
            self._number += 1

    def _of_value(self, value: Any, where: Place, report: Report) -> Iterator[tuple[Place, Any]]:
        with report.quarantining(where):
            elements = self._finder.expand(value, is_element=True)
            if elements is None:
                yield where, value
            else:
                for count, element in enumerate(elements, start=1):
                    yield replace(where, at=f"{where.at}.{count}"), element

    def _objects(self) -> Iterator[tuple[Place, Any]]:
        text, shape = self._text, _Shape()
        while text.skip(_SEPARATORS):
            where, column = self._where(), text.column
            try:
                value = text.value(min(self._form.limit, WINDOW))
            except NotJson as fault:
                lost = yield from self._of_broken_or_long(fault)
                if lost is not None:
                    text.column, where = column, self._where()
                    if text.skip_broken(shape, self._form) is not Behind.ELEMENT:
                        raise lost from None
                    self._report.quarantine(where, lost)
                    self._number += 1
            else:
                shape.add(value, column)
                yield from self._of_whole(value, where)

    def _of_whole(self, value: Any, where: Place) -> Iterator[tuple[Place, Any]]:
        try:
            elements = self._finder.expand(value)
        except Unreadable as fault:
            self._report.quarantine(where, fault)
            self._number += 1
            return
        for element in [value] if elements is None else elements:
            yield self._where(), element
            self._number += 1

    def _of_broken_or_long(self, fault: NotJson) -> Generator[tuple[Place, Any], None, NotJson | None]:
        """Yield the records of an object that cannot be held whole; return the fault that it ends with, if it
        does."""
        text, outline = self._text, _Outline(self._text, self._form, self._finder)
        try:
            text.mark()
            try:
                outline.look()
            finally:
                text.go_back()
            if not outline.is_record:
                yield from self._of_list(outline.choose(fault), outline.is_named)
                return None
            value = text.value(self._form.limit)
        except NotJson as inner:
            return inner
        self._finder.is_record(value)
        where = self._where()
        self._number += 1
        yield where, value
        return None

    def _of_list(self, path: tuple[str, ...], is_there: bool) -> Iterator[tuple[Place, Any]]:
        before = self._number, len(self._report.broken)
        yield from self._of_object(path, ())
        if self._form.path and not is_there and before == (self._number, len(self._report.broken)):
            raise NotJson(f"no list under '{'.'.join(path)}', which options.records names")

    def _of_object(self, wanted: tuple[str, ...], path: tuple[str, ...]) -> Generator[tuple[Place, Any], None, bool]:
        """Yield the elements of the wanted list of the object that begins here; return False if the text
        ended in the list.

        Raises:
            NotJson: what stands beside the list is broken.
        """
        text = self._text
        for key, opening in text.members():
            here = (*path, key)
            if opening == "[" and here == wanted:
                closed = yield from self._elements(self._report, in_object=True)
                if not closed:
                    return False
            elif opening == "{" and wanted[: len(here)] == here:
                closed = yield from self._of_object(wanted, here)
                if not closed:
                    return False
            elif opening == "[":
                self._pass_over_list(here)
            else:
                text.value(self._form.limit)
        return True

    def _pass_over_list(self, path: tuple[str, ...]) -> None:
        """Step over a list that is not read; one of records that was not seen when the list was chosen is a
        broken record."""
        number, where = self._number, self._where()
        held = sum(self._form.is_record(element) for _, element in self._elements(Report(), in_object=True))
        self._number = number
        if held and not self._form.path:
            name = ".".join(path)
            self._report.quarantine(where, f"a second list of {held} records, '{name}': name the one to read by options.records")
            self._number += 1


class _Outline:
    """The keys and lists of an object of which only the beginning is looked at."""

    def __init__(self, text: JsonText, form: Form, finder: ListFinder) -> None:
        self._text, self._form, self._finder = text, form, finder
        self.is_record = False
        self.lists: list[tuple[str, ...]] = []
        self.is_named = False

    def look(self) -> None:
        try:
            self._object(())
        except NotJson:
            if not (self.lists or self.is_record or self.is_named):
                raise

    def choose(self, fault: NotJson) -> tuple[str, ...]:
        """Return the path of the list to read.

        Raises:
            NotJson: there are several, or none: then it is `fault`.
        """
        if self._form.path:
            return self._form.path
        if not self.lists:
            raise fault
        return self._finder.choose(self.lists)

    def _object(self, path: tuple[str, ...]) -> None:
        for key, opening in self._text.members():
            here = (*path, key)
            if not path and key in self._form.keys and not self.is_named:
                self.is_record = True
            if opening == "[" and here == self._form.path:
                self.is_named, self.is_record = True, False
                raise NotJson("found")
            if opening == "[":
                self._list(here)
            elif opening == "{" and len(path) < MAX_DEPTH:
                self._object(here)
            else:
                self._text.value(WINDOW)

    def _list(self, path: tuple[str, ...]) -> None:
        text, shape, found = self._text, _Shape(), False
        text.step()
        while text.skip(_SEPARATORS) != "]":
            column = text.column
            try:
                value = text.value(WINDOW)
            except NotJson:
                if not found and _holds_key(text, self._form):
                    found = self._add(path)
                if text.is_full() or text.skip_broken(shape, self._form) is Behind.NOTHING:
                    raise
                continue
            shape.add(value, column)
            if not found and self._form.is_record(value):
                found = self._add(path)
        text.step()

    def _add(self, path: tuple[str, ...]) -> bool:
        if not self._finder.has_records:
            self.lists.append(path)
        return True


def _holds_key(text: JsonText, form: Form) -> bool:
    """Return whether a broken element begins like a record: one of the keys stands in its first line."""
    line = text.peek(2000).partition("\n")[0] if text.peek(2) != "{\n" else text.peek(2000)
    return bool(set(_KEY.findall(line)) & set(form.keys))


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
        while (character := self.skip(_SEPARATORS)) != "}":
            if character != '"':
                raise NotJson("not JSON: Expecting property name enclosed in double quotes")
            key = self.value(self._limit)
            if self.skip(_SPACES) != ":":
                raise NotJson("not JSON: Expecting ':' delimiter")
            self.step()
            yield key, self.skip(_SPACES)
        self.step()

    def value(self, limit: int) -> Any:
        """Return the JSON value at this place, and step over it.

        Raises:
            NotJson: it is none, or longer than `limit`; this place is where it was.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self.at)
            except json.JSONDecodeError as fault:
                is_cut = fault.pos >= len(self._text) - 16 or fault.msg.startswith(("Unterminated string", "Invalid \\"))
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

    def skip_broken(self, shape: _Shape, form: Form) -> Behind:
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

    def _skip_alike(self, shape: _Shape, form: Form) -> Behind:
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

    def _is_alike_here(self, shape: _Shape, form: Form) -> bool:
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
