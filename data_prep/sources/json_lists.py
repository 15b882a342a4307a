"""Which objects of a JSON file are records, and which hold the list of them. Used by json_stream.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.document import Report, Unreadable

MAX_DEPTH = 4  # objects within each other that may hold the list
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

_COUNTABLE = re.compile(r"[\w.-]{1,60}")


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

    def is_record(self, value: object) -> bool:
        return isinstance(value, dict) and any(key in value for key in self.keys)


class NotJson(Unreadable):
    """A value that is not JSON, or not JSON that can be held; the text behind it may be."""


class ListFinder:
    """Finds the list of records in the objects of one file.

    A file has either records or objects that hold them: once a record was seen, an object that is none is
    broken, and a list in it, of comments perhaps, is no list of records."""

    def __init__(self, form: Form, report: Report) -> None:
        self.form, self._report = form, report
        self.has_records = False

    def is_record(self, value: object) -> bool:
        """Return whether a value that stands in no list is a record, which needs no further look."""
        found = not self.form.path and self.form.is_record(value)
        self.has_records = self.has_records or found
        return found

    def expand(self, value: object, is_element: bool = False) -> list[object] | None:
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
            raise Unreadable(
                f"no list under '{'.'.join(path)}', which options.records names, but {_names(list(value))}"
            )
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


def _follow(value: object, path: tuple[str, ...]) -> object:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _lists(value: dict[str, object], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[object]]]:
    for key, inner in value.items():
        if isinstance(inner, list):
            yield (*path, key), inner
        elif isinstance(inner, dict) and len(path) < MAX_DEPTH:
            yield from _lists(inner, (*path, key))


def _refuse_map(value: dict[str, object], form: Form) -> None:
    """Raise Unreadable where the records are the values of an object, under a key each."""
    for outer in (value, *(inner for inner in value.values() if isinstance(inner, dict))):
        found = [key for key, inner in outer.items() if form.is_record(inner)]
        if len(found) > 1:
            raise Unreadable(
                f"holds {len(found)} records by key, {_names(found[:2])} …, not in a list: write them as a list or one a line"
            )
