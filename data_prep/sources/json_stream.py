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
from dataclasses import replace
from typing import Any

from data_prep.containers.streams import Member, quarantine_rest
from data_prep.document import Place, Report, Unreadable
from data_prep.sources import json_text
from data_prep.sources.files import decode
from data_prep.sources.json_lists import MAX_DEPTH, Form, ListFinder, NotJson
from data_prep.sources.json_text import DECODER, SEPARATORS, SPACES, Behind, JsonText, Shape

HEAD = 2**16  # bytes by which the layout of a file is told; of a plain file, Python gives 8 KiB

# An object up to its first list of objects: only numbers, words, strings, lists of these and the beginnings
# of objects stand before it.
_PLAIN_LIST = r'\[(?:[^\[\]{}"]|"(?:[^"\\]|\\.)*")*\]\s*,'
_TO_FIRST_LIST = re.compile(
    rf'\s*\{{\s*(?:"((?:[^"\\]|\\.)*)"\s*:\s*(?:"(?:[^"\\]|\\.)*"\s*,|[\w.+-]+\s*,|{_PLAIN_LIST}|\{{)\s*)*'
    r'"((?:[^"\\]|\\.)*)"\s*:\s*\[\s*\{'
)
_KEY = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:')


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


def iter_values(member: Member, form: Form, report: Report) -> Iterator[tuple[Place, Any]]:
    """Yield every record of a member with its place, and whatever else stands where a record should."""
    with report.quarantining(member.place):
        raw = member.stream.peek(HEAD)[:HEAD].removeprefix(codecs.BOM_UTF8)
        head = raw.decode("utf-8", "replace").lstrip()
        if head[:1] == "[" or (head[:1] == "{" and _is_spread(head, form, is_cut=len(raw) >= 4096)):
            yield from _Sequence(member, form, report).values(is_array=head[:1] == "[")
            return
    finder = ListFinder(form, report)
    for place, line in member.iter_lines():
        if line.strip():
            with report.quarantining(place):
                yield from _values_of_line(decode(line, report), place, finder, report)


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
        DECODER.raw_decode(head)
    except json.JSONDecodeError as fault:
        return fault.pos > len(head) - len(rest.lstrip())
    except (ValueError, RecursionError):
        return False
    return True


def _values_of_line(
    text: str, place: Place, finder: ListFinder, report: Report
) -> Iterator[tuple[Place, Any]]:
    """Yield what a line holds: mostly one record; several objects where line breaks were lost, or a whole
    list."""
    if text.rstrip().endswith(","):  # lines cut out of an array
        text = text.rstrip()[:-1]
    try:
        found = [parse(text)]
        if finder.is_record(found[0]):
            yield place, found[0]
            return
    except NotJson:
        found = _joined(text)
        if not found:
            raise
    several = len(found) > 1
    for number, value in enumerate(found, start=1):
        value_place = replace(place, at=f"{place.at}.{number}") if several else place
        with report.quarantining(value_place):
            elements = finder.expand(value)
            if elements is None:
                yield value_place, value
            else:
                for count, element in enumerate(elements, start=1):
                    yield replace(value_place, at=f"{value_place.at}.{count}"), element


def _joined(text: str) -> list[Any]:
    """Return the objects that stand behind each other on a line; none if anything else does."""
    found, at = [], len(text) - len(text.lstrip())
    while at < len(text):
        try:
            value, at = DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        if not isinstance(value, dict):
            return []
        found.append(value)
        at = SEPARATORS.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing at all, too
    return found


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
            self._quarantine_rest(fault, self._report)
        if self._text.fault is not None and not self._is_broken_off:
            self._quarantine_rest(self._text.fault, self._report)

    def _where(self) -> Place:
        return replace(self._place, at=f"record {self._number}")

    def _quarantine_rest(self, fault: Unreadable, report: Report) -> None:
        """Report that the text cannot be read to its end; where the stream under it breaks off, that is
        why."""
        self._is_broken_off = self._is_broken_off or report is self._report
        line = f"{self._text.fault or fault}; the rest of the file cannot be read"
        quarantine_rest(report, self._where(), Unreadable(line))

    def _arrays(self) -> Iterator[tuple[Place, Any]]:
        text = self._text
        while text.skip(SPACES):
            if text.peek(1) != "[":
                raise Unreadable(f"behind an array stands {text.peek(20)!r}, not another array")
            closed = yield from self._elements(self._report)
            if not closed:
                return

    def _elements(self, report: Report, in_object: bool = False) -> Generator[tuple[Place, Any], None, bool]:
        """Yield the elements of the array that begins here; return whether its end was found. One in an
        object is the list of records; of others, the elements may be objects that hold it."""
        text, shape = self._text, Shape()
        text.step()
        while True:
            character = text.skip(SEPARATORS)
            place, column = self._where(), text.column
            if character == "]":
                text.step()
                if text.skip(SEPARATORS) != "{":
                    return True
                report.quarantine(place, "not JSON: ] between two elements")
                self._number += 1
                continue
            try:
                value = text.value(self._form.limit)
            except NotJson as fault:
                behind = text.skip_broken(shape, self._form)
                if behind is Behind.NOTHING:
                    self._quarantine_rest(fault, report)
                    return False
                report.quarantine(place, fault)
            else:
                shape.add(value, column)
                if in_object or self._finder.is_record(value):
                    yield place, value
                else:
                    yield from self._of_value(value, place, report)
            self._number += 1

    def _of_value(self, value: Any, place: Place, report: Report) -> Iterator[tuple[Place, Any]]:
        with report.quarantining(place):
            elements = self._finder.expand(value, is_element=True)
            if elements is None:
                yield place, value
            else:
                for count, element in enumerate(elements, start=1):
                    yield replace(place, at=f"{place.at}.{count}"), element

    def _objects(self) -> Iterator[tuple[Place, Any]]:
        text, shape = self._text, Shape()
        while text.skip(SEPARATORS):
            place, column = self._where(), text.column
            try:
                value = text.value(min(self._form.limit, json_text.WINDOW))
            except NotJson as fault:
                lost = yield from self._of_broken_or_long(fault)
                if lost is not None:
                    text.column, place = column, self._where()
                    if text.skip_broken(shape, self._form) is not Behind.ELEMENT:
                        raise lost from None
                    self._report.quarantine(place, lost)
                    self._number += 1
            else:
                shape.add(value, column)
                yield from self._of_whole(value, place)

    def _of_whole(self, value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
        try:
            elements = self._finder.expand(value)
        except Unreadable as fault:
            self._report.quarantine(place, fault)
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
        place = self._where()
        self._number += 1
        yield place, value
        return None

    def _of_list(self, path: tuple[str, ...], is_there: bool) -> Iterator[tuple[Place, Any]]:
        before = self._number, len(self._report.broken)
        yield from self._of_object(path, ())
        if self._form.path and not is_there and before == (self._number, len(self._report.broken)):
            raise NotJson(f"no list under '{'.'.join(path)}', which options.records names")

    def _of_object(
        self, wanted: tuple[str, ...], path: tuple[str, ...]
    ) -> Generator[tuple[Place, Any], None, bool]:
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
        number, place = self._number, self._where()
        held = sum(self._form.is_record(element) for _, element in self._elements(Report(), in_object=True))
        self._number = number
        if held and not self._form.path:
            name = ".".join(path)
            self._report.quarantine(
                place, f"a second list of {held} records, '{name}': name the one to read by options.records"
            )
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
                self._text.value(json_text.WINDOW)

    def _list(self, path: tuple[str, ...]) -> None:
        text, shape, found = self._text, Shape(), False
        text.step()
        while text.skip(SEPARATORS) != "]":
            column = text.column
            try:
                value = text.value(json_text.WINDOW)
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
