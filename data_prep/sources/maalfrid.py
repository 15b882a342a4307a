"""Målfrid (Språkbanken): web pages and files of state institutions, one JSON line each, with `lang`, `url`
and the full text.

The text stands under `fulltext`, `text` or `content`, depending on the year; `fields: {text: …}` names
another key. Pages below one folder of one site are a group, as they repeat each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from data_prep.config import SourceConfig
from data_prep.document import Document, Report, Unreadable
from data_prep.sources import claims, jsonl

TEXT_KEYS = ("fulltext", "text", "content")
FIELDS = ("text", *(field for field in jsonl.OPTIONAL if field != "group"))


Options = jsonl.Options


def files(source: SourceConfig) -> list[Path]:
    return jsonl.files(source)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    keys = (source.fields["text"],) if "text" in source.fields else TEXT_KEYS
    language = source.fields.get("language", "lang")
    for place, record in jsonl.iter_records(name, source, report, paths, keys):
        text = next((record[key] for key in keys if isinstance(record.get(key), str)), None)
        url = record.get(source.fields.get("url", "url"))
        with report.quarantining(place):
            if text is None or not isinstance(url, str):
                raise Unreadable(f"no string under '{' or '.join(keys) if text is None else 'url'}'")
            description = jsonl.describe({"id": url, **record}, place, source)
            description.group = site_folder(jsonl.to_valid_text(url))
            description.language = claims.parse_language(record.get(language))
            yield description.document(jsonl.to_valid_text(text))


def site_folder(url: str) -> str:
    """The site and the first folder of an address: what stands below it shares menus and phrases."""
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets that are no IPv6 address
        return url
    folders = parts.path.split("/")
    return f"{parts.netloc.removeprefix('www.')}/{folders[1] if len(folders) > 2 else ''}"
