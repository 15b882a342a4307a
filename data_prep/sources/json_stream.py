"""Reading of JSON records from a stream in any layout, with at most one record in memory.

A file is JSON lines, or a sequence of arrays or objects, each of which may span several lines. An
object is a record if it has one of the keys that the source's reader looks for. Any other object
may contain the list of records, up to MAX_DEPTH objects deep; its values outside this list are
ignored. If the list is not found, `options.records` can name it.

After a broken element, reading continues at the next element. If each element begins on its own
line, the next element is the next object at the start of a line with the same indentation as the
earlier elements. If elements share a line, it is the next object that resembles the earlier ones.
"""

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
from data_prep.sources.json_text import DECODER, SEPARATORS, SPACES, JsonText, Next, Shape

# Maximum number of bytes at the beginning of a file by which its layout is recognized. For a file
# that is not compressed, only its buffer's 8 KiB are used.
HEAD = 2**16

# Beginning of an object, up to the first list of objects in it. Before the list, the pattern
# accepts numbers, literals, strings, lists of these, and the opening brackets of objects.
_PLAIN_LIST = r'\[(?:[^\[\]{}"]|"(?:[^"\\]|\\.)*")*\]\s*,'
_TO_FIRST_LIST = re.compile(
    rf'\s*\{{\s*(?:"((?:[^"\\]|\\.)*)"\s*:\s*(?:"(?:[^"\\]|\\.)*"\s*,|[\w.+-]+\s*,|{_PLAIN_LIST}|\{{)\s*)*'
    r'"((?:[^"\\]|\\.)*)"\s*:\s*\[\s*\{'
)
_KEY = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:')


def parse(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        NotJson: the text is not JSON, or exceeds Python's limit on the digits of an integer (4,300)
            or on nested values.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as fault:
        raise NotJson(f"not JSON: {fault.msg} at character {fault.pos}") from None
    except (ValueError, RecursionError) as fault:
        raise NotJson(f"JSON that Python cannot parse: {fault}") from None


def iter_values(member: Member, form: Form, report: Report) -> Iterator[tuple[Place, Any]]:
    """Yield the records of a file with their places.

    A value in the place of a record is yielded even if it is not an object.

    Args:
        form: description of a record.
    """
    with report.quarantining(member.place):
        raw = member.stream.peek(HEAD)[:HEAD].removeprefix(codecs.BOM_UTF8)
        head = raw.decode("utf-8", "replace").lstrip()
        is_array = head[:1] == "["
        is_object = head[:1] == "{"
        if is_array or (is_object and _is_multiline(head, form, is_truncated=len(raw) >= 4096)):
            yield from _SequenceReader(member, form, report).iter_values(is_array=is_array)
            return
    finder = ListFinder(form, report)
    for place, line in member.iter_lines():
        if line.strip():
            with report.quarantining(place):
                yield from _values_of_line(decode(line, report), place, finder, report)


def _is_multiline(head: str, form: Form, is_truncated: bool) -> bool:
    """Return whether a file that begins with an object is not JSON lines.

    This is so if the first object spans several lines, or if the first line contains a list of
    objects and is either broken or longer than `head`.

    Args:
        head: the beginning of the file, without leading white space.
        is_truncated: true if the file may be longer than `head`.
    """
    line, newline, rest = head.partition("\n")
    to_list = _TO_FIRST_LIST.match(head)
    has_list = to_list is not None and not set(_KEY.findall(to_list[0])) & set(form.keys)
    if is_truncated and not newline:
        return has_list
    try:
        parse(line)
    except NotJson:
        if has_list:
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
    """Yield the values of a line with their places.

    Usually, a line is one record. It may also be several objects, or an object that contains a list
    of records.

    Raises:
        NotJson: the line is not JSON.
    """
    if text.rstrip().endswith(","):  # the lines were copied from an array
        text = text.rstrip()[:-1]
    try:
        found = [parse(text)]
        if finder.is_record(found[0]):
            yield place, found[0]
            return
    except NotJson:
        found = _parse_adjacent_objects(text)
        if not found:
            raise
    for number, value in enumerate(found, start=1):
        value_place = replace(place, at=f"{place.at}.{number}") if len(found) > 1 else place
        with report.quarantining(value_place):
            elements = finder.expand(value)
            if elements is None:
                yield value_place, value
            else:
                yield from _number_elements(elements, value_place)


def _number_elements(elements: list[Any], place: Place) -> Iterator[tuple[Place, Any]]:
    for number, element in enumerate(elements, start=1):
        yield replace(place, at=f"{place.at}.{number}"), element


def _parse_adjacent_objects(text: str) -> list[Any]:
    """Return the objects of a line that consists of JSON objects; [] for any other line."""
    found = []
    at = len(text) - len(text.lstrip())
    while at < len(text):
        try:
            value, at = DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        if not isinstance(value, dict):
            return []
        found.append(value)
        at = SEPARATORS.match(text, at).end()  # type: ignore[union-attr]  # it also matches ""
    return found


class _SequenceReader:
    """Reader of a file that is a sequence of arrays or objects, not JSON lines.

    The methods read from `_text`, starting at its current position.
    """

    def __init__(self, member: Member, form: Form, report: Report) -> None:
        self._place = member.place
        self._form = form
        self._report = report
        self._text = JsonText(member, form.limit, report)
        self._finder = ListFinder(form, report)
        self._number = 1  # number of the next record
        self._has_ended_early = False

    def iter_values(self, is_array: bool) -> Iterator[tuple[Place, Any]]:
        try:
            yield from self._iter_arrays() if is_array else self._iter_objects()
        except Unreadable as fault:
            self._quarantine_rest(fault, self._report)
        if self._text.fault is not None and not self._has_ended_early:
            self._quarantine_rest(self._text.fault, self._report)

    def _current_place(self) -> Place:
        return replace(self._place, at=f"record {self._number}")

    def _quarantine_rest(self, fault: Unreadable, report: Report) -> None:
        """Quarantine the rest of the file.

        Args:
            fault: the reason, unless the stream had an error; this error is then the reason.
            report: the report to which the rest is added.
        """
        self._has_ended_early = self._has_ended_early or report is self._report
        reason = f"{self._text.fault or fault}; the rest of the file cannot be read"
        quarantine_rest(report, self._current_place(), Unreadable(reason))

    def _iter_arrays(self) -> Iterator[tuple[Place, Any]]:
        text = self._text
        while text.skip(SPACES):
            if text.peek(1) != "[":
                raise Unreadable(f"an array is followed by {text.peek(20)!r}, not by another array")
            is_closed = yield from self._iter_elements(self._report)
            if not is_closed:
                return

    def _iter_elements(
        self, report: Report, in_object: bool = False
    ) -> Generator[tuple[Place, Any], None, bool]:
        """Yield the elements of an array; return whether its end was found.

        Args:
            report: receives the broken elements.
            in_object: true if the array is a value in an object. It is then the list of records
                itself; otherwise, its elements may be objects that contain such lists.
        """
        text = self._text
        shape = Shape()
        text.step()
        while True:
            character = text.skip(SEPARATORS)
            place = self._current_place()
            column = text.column
            if character == "]":
                text.step()
                if text.skip(SEPARATORS) != "{":
                    return True
                report.quarantine(place, "not JSON: ] between two elements")
                self._number += 1
                continue
            try:
                value = text.read_value(self._form.limit)
            except NotJson as fault:
                if text.skip_broken(shape, self._form) is Next.NOTHING:
                    self._quarantine_rest(fault, report)
                    return False
                report.quarantine(place, fault)
            else:
                shape.add(value, column)
                if in_object or self._finder.is_record(value):
                    yield place, value
                else:
                    yield from self._expand_element(value, place, report)
            self._number += 1

    def _expand_element(self, value: Any, place: Place, report: Report) -> Iterator[tuple[Place, Any]]:
        with report.quarantining(place):
            elements = self._finder.expand(value, is_element=True)
            if elements is None:
                yield place, value
            else:
                yield from _number_elements(elements, place)

    def _iter_objects(self) -> Iterator[tuple[Place, Any]]:
        text = self._text
        shape = Shape()
        while text.skip(SEPARATORS):
            place = self._current_place()
            column = text.column
            try:
                value = text.read_value(min(self._form.limit, json_text.WINDOW))
            except NotJson as fault:
                remaining_fault = yield from self._read_broken_or_long(fault)
                if remaining_fault is not None:
                    text.column = column
                    place = self._current_place()
                    if text.skip_broken(shape, self._form) is not Next.ELEMENT:
                        raise remaining_fault from None
                    self._report.quarantine(place, remaining_fault)
                    self._number += 1
            else:
                shape.add(value, column)
                yield from self._expand_object(value, place)

    def _expand_object(self, value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
        try:
            elements = self._finder.expand(value)
        except Unreadable as fault:
            self._report.quarantine(place, fault)
            self._number += 1
            return
        for element in [value] if elements is None else elements:
            yield self._current_place(), element
            self._number += 1

    def _read_broken_or_long(self, fault: NotJson) -> Generator[tuple[Place, Any], None, NotJson | None]:
        """Yield the records of an object that is broken or longer than json_text.WINDOW.

        Args:
            fault: the reason why the object could not be read as one value.

        Returns:
            The reason why the rest of the object cannot be read; None if all of it was read.
        """
        text = self._text
        outline = _Outline(text, self._form, self._finder)
        try:
            text.mark()
            try:
                outline.scan()
            finally:
                text.rewind()
            if not outline.is_record:
                yield from self._read_list(outline.choose_list(fault), outline.has_named_list)
                return None
            value = text.read_value(self._form.limit)
        except NotJson as inner:
            return inner
        self._finder.is_record(value)  # this records that the file has records
        place = self._current_place()
        self._number += 1
        yield place, value
        return None

    def _read_list(self, path: tuple[str, ...], is_known: bool) -> Iterator[tuple[Place, Any]]:
        """Yield the elements of the list at `path` in an object.

        Args:
            path: keys that lead to the list.
            is_known: true if the list is known to exist.

        Raises:
            NotJson: the object does not contain the list that options.records names, or is broken
                outside the list.
        """
        before = (self._number, len(self._report.broken))
        yield from self._iter_list_elements(path, ())
        if self._form.path and not is_known and before == (self._number, len(self._report.broken)):
            raise NotJson(f"no list under '{'.'.join(path)}'; set options.records to the path of the list")

    def _iter_list_elements(
        self, wanted: tuple[str, ...], path: tuple[str, ...]
    ) -> Generator[tuple[Place, Any], None, bool]:
        """Yield the elements of the wanted list; return False if the text ends within it.

        Args:
            wanted: keys that lead from the outermost object to the list.
            path: keys that lead from the outermost object to the one at the current position.

        Raises:
            NotJson: the object is broken outside the list.
        """
        text = self._text
        for key, opening in text.iter_keys():
            key_path = (*path, key)
            if opening == "[" and key_path == wanted:
                is_closed = yield from self._iter_elements(self._report, in_object=True)
                if not is_closed:
                    return False
            elif opening == "{" and wanted[: len(key_path)] == key_path:
                is_closed = yield from self._iter_list_elements(wanted, key_path)
                if not is_closed:
                    return False
            elif opening == "[":
                self._skip_list(key_path)
            else:
                text.read_value(self._form.limit)
        return True

    def _skip_list(self, path: tuple[str, ...]) -> None:
        """Skip a list other than the one to read.

        The list is quarantined if it contains records and options.records is not set. It is then a
        second list of records, after the part of the object that was searched for such lists.

        Args:
            path: keys that lead to the list to skip.
        """
        number = self._number
        place = self._current_place()
        elements = self._iter_elements(Report(), in_object=True)
        num_records = sum(self._form.is_record(element) for _, element in elements)
        self._number = number
        if num_records and not self._form.path:
            name = ".".join(path)
            self._report.quarantine(
                place,
                f"a second list of {num_records} records, '{name}', is not read; "
                "set options.records to the list to read",
            )
            self._number += 1


class _Outline:
    """Search for the list of records that a JSON object may contain.

    Only the beginning of the object is searched.

    Attributes:
        is_record: true if the object is a record.
        lists: paths of the lists of records found.
        has_named_list: true if the list that options.records names was found.
    """

    def __init__(self, text: JsonText, form: Form, finder: ListFinder) -> None:
        self._text = text
        self._form = form
        self._finder = finder
        self.is_record = False
        self.lists: list[tuple[str, ...]] = []
        self.has_named_list = False

    def scan(self) -> None:
        """Read the object, up to json_text.WINDOW characters, and set the attributes.

        Raises:
            NotJson: the object is broken before a list of records or one of a record's keys.
        """
        try:
            self._scan_object(())
        except NotJson:
            if not (self.lists or self.is_record or self.has_named_list):
                raise

    def choose_list(self, fault: NotJson) -> tuple[str, ...]:
        """Return the path of the list to read.

        Args:
            fault: error to raise if there is no list of records.

        Raises:
            NotJson: there is no list of records, or there are several.
        """
        if self._form.path:
            return self._form.path
        if not self.lists:
            raise fault
        return self._finder.choose(self.lists)

    def _scan_object(self, path: tuple[str, ...]) -> None:
        for key, opening in self._text.iter_keys():
            key_path = (*path, key)
            if not path and key in self._form.keys and not self.has_named_list:
                self.is_record = True
            if opening == "[" and key_path == self._form.path:
                self.has_named_list = True
                self.is_record = False
                raise NotJson("the list of options.records is found")  # ends the scan; `scan` catches it
            if opening == "[":
                self._scan_list(key_path)
            elif opening == "{" and len(path) < MAX_DEPTH:
                self._scan_object(key_path)
            else:
                self._text.read_value(json_text.WINDOW)

    def _scan_list(self, path: tuple[str, ...]) -> None:
        text = self._text
        shape = Shape()
        has_records = False
        text.step()
        while text.skip(SEPARATORS) != "]":
            column = text.column
            try:
                value = text.read_value(json_text.WINDOW)
            except NotJson:
                if not has_records and _begins_like_record(text, self._form):
                    has_records = True
                    self._add_list(path)
                if text.is_full() or text.skip_broken(shape, self._form) is Next.NOTHING:
                    raise
                continue
            shape.add(value, column)
            if not has_records and self._form.is_record(value):
                has_records = True
                self._add_list(path)
        text.step()

    def _add_list(self, path: tuple[str, ...]) -> None:
        if not self._finder.has_records:
            self.lists.append(path)


def _begins_like_record(text: JsonText, form: Form) -> bool:
    """Return whether the broken element at the current position has one of the keys of a record.

    Only the first line of the element is searched. If this line is only the opening bracket, the
    first 2,000 characters are searched.
    """
    beginning = text.peek(2000)
    if not beginning.startswith("{\n"):
        beginning = beginning.partition("\n")[0]
    return bool(set(_KEY.findall(beginning)) & set(form.keys))
