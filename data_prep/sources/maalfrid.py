"""Reader of Målfrid (Språkbanken): web pages and files of state institutions as JSON lines.

A record has `lang` and `url`. Its full text is under `fulltext`, `text` or `content`, depending on
the year; `fields: {text: …}` can name a different key. Pages in the same first folder of a site
form a group, which a split keeps together, because these pages have text in common.
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


def list_files(source: SourceConfig) -> list[Path]:
    return jsonl.list_files(source)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    keys = (source.fields["text"],) if "text" in source.fields else TEXT_KEYS
    language = source.fields.get("language", "lang")
    for place, record in jsonl.iter_records(name, source, report, paths, keys):
        text = next((record[key] for key in keys if isinstance(record.get(key), str)), None)
        url = record.get(source.fields.get("url", "url"))
        with report.quarantining(place):
            if text is None:
                quoted = " or ".join(f"'{key}'" for key in keys)
                raise Unreadable(f"no string under {quoted}; set fields.text to the key of the text")
            if not isinstance(url, str):
                raise Unreadable("no string under 'url'")
            description = jsonl.describe({"id": url, **record}, place, source)
            description.group = site_folder(jsonl.to_valid_text(url))
            description.language = claims.parse_language(record.get(language))
            yield description.build_document(jsonl.to_valid_text(text))


def site_folder(url: str) -> str:
    """Return the site and first folder of an address. Pages with the same value form a group."""
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets that do not enclose an IPv6 address
        return url
    folders = parts.path.split("/")
    first_folder = folders[1] if len(folders) > 2 else ""
    return f"{parts.netloc.removeprefix('www.')}/{first_folder}"
