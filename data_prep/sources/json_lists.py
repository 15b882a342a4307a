"""Recognition of the records in a JSON file, and of the list that contains them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.document import Report, Unreadable

MAX_DEPTH = 4  # maximum number of nested objects in which the list of records is searched for
# Usual names of lists of records. An object in which all lists are empty and have such names is
# treated as a file without records.
EMPTY_LISTS = (
    "data", "docs", "documents", "entries", "hits", "items", "records", "results", "rows",
    "value", "values",
)  # fmt: skip

_COUNTABLE = re.compile(r"[\w.-]{1,60}")


@dataclass(frozen=True)
class Form:
    """Description of the records of a JSON file.

    Attributes:
        keys: an object with at least one of these keys is a record.
        path: keys that lead to the list of records; if empty, the list is searched for.
        limit: maximum size of a record, in characters.
    """

    keys: tuple[str, ...]
    path: tuple[str, ...] = ()
    limit: int = 2**26

    def is_record(self, value: object) -> bool:
        return isinstance(value, dict) and any(key in value for key in self.keys)


class NotJson(Unreadable):
    """Error for a JSON value that is invalid, too large or too deeply nested.

    The text after this value may contain valid values.
    """


class ListFinder:
    """Finder of the list of records in the objects of one file.

    A file contains either records, or objects that contain lists of records. After the first
    record, any object that is not a record is broken, and a list in it is not searched for records.

    Attributes:
        has_records: true after the first record that is not in an object's list of records.
    """

    def __init__(self, form: Form, report: Report) -> None:
        self.form = form
        self._report = report
        self.has_records = False

    def is_record(self, value: object) -> bool:
        """Return whether a value is a record; if so, set `has_records`.

        Always false if options.records is set.
        """
        found = not self.form.path and self.form.is_record(value)
        self.has_records = self.has_records or found
        return found

    def expand(self, value: object, is_element: bool = False) -> list[object] | None:
        """Return the records of an object that contains a list of them; None for any other value.

        Args:
            is_element: true if the value is an element of an array. Such a value need not contain
                the list that options.records names.

        Raises:
            Unreadable: the list that options.records names is missing; or options.records is not
                set, and there are several lists of records or the records are not in a list.
        """
        path = self.form.path
        if not isinstance(value, dict):
            return None
        if path:
            named = _follow(value, path)
            if isinstance(named, list):
                return named
        if self.is_record(value) or self.has_records or (path and (is_element or self.form.is_record(value))):
            return None
        if path:
            raise Unreadable(
                f"no list under '{'.'.join(path)}'; set options.records to the path of the list "
                f"(keys of the object: {_quote_names(list(value))})"
            )
        lists = dict(_iter_lists(value, ()))
        holding = [path for path, elements in lists.items() if any(map(self.form.is_record, elements))]
        if holding:
            return lists[self.choose(holding)]
        _refuse_map(value, self.form)
        empty = [path for path, elements in lists.items() if not elements and path[-1] in EMPTY_LISTS]
        if empty and len(empty) == len(lists):
            return []
        return None

    def choose(self, paths: list[tuple[str, ...]]) -> tuple[str, ...]:
        """Return the path of the only list of records, and count its name in the report.

        Args:
            paths: the paths of all lists of records found, at least one.

        Raises:
            NotJson: there are several lists.
        """
        if len(paths) > 1:
            names = _quote_names([".".join(path) for path in paths])
            raise NotJson(f"contains several lists of records, {names}; set options.records to one of them")
        name = ".".join(paths[0])
        if not _COUNTABLE.fullmatch(name):
            name = "other"
        self._report.counts[f"list_found_{name}"] += 1
        return paths[0]


def _quote_names(names: list[str]) -> str:
    shown = [f"'{name[:60]}'" for name in names[:8]] or ["nothing"]
    return ", ".join(shown) + (" …" if len(names) > 8 else "")


def _follow(value: object, path: tuple[str, ...]) -> object:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _iter_lists(
    value: dict[str, object], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], list[object]]]:
    for key, inner in value.items():
        if isinstance(inner, list):
            yield (*path, key), inner
        elif isinstance(inner, dict) and len(path) < MAX_DEPTH:
            yield from _iter_lists(inner, (*path, key))


def _refuse_map(value: dict[str, object], form: Form) -> None:
    """Raise Unreadable if an object contains records as the values of different keys."""
    inner_objects = [inner for inner in value.values() if isinstance(inner, dict)]
    for outer in (value, *inner_objects):
        found = [key for key, inner in outer.items() if form.is_record(inner)]
        if len(found) > 1:
            raise Unreadable(
                f"contains {len(found)} records under separate keys ({_quote_names(found[:2])} …), not in a "
                "list; write them as a list, or one record per line"
            )
