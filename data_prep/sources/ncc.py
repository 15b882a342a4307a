"""Shards of the Norwegian Colossal Corpus (NbAiLab/NCC): JSON lines with doc_type, publish_year and a
language by fasttext.

Only the public sector's document types are read unless `doc_types` says otherwise. Online newspapers, which
were withdrawn under Språkbank-avtalen in December 2024, are never read, from no old copy either. An unknown
year is 2021 in this corpus, which cannot be told from the year: a date of 2021 says nothing. Long documents
come in parts there; what is a part of what, it does not say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from data_prep.config import SourceConfig
from data_prep.document import Document, Report
from data_prep.fields import setting
from data_prep.sources import claims, jsonl
from data_prep.sources.files import find
from data_prep.user_error import UserError

WITHDRAWN = "newspapers_online_*"
PUBLIC_SECTOR = ["maalfrid_*", "parliament", "government_*", "publicreports", "lovdata_*"]


@dataclass
class Options(jsonl.Options):
    """Options of the Norwegian Colossal Corpus."""

    doc_types: list[str] = setting(list(PUBLIC_SECTOR), "document types to read, as names or patterns with *")
    min_confidence: float = setting(0.0, "minimum confidence of fasttext in the language, from 0 to 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bad := [pattern for pattern in self.doc_types if pattern.startswith("newspapers_online")]:
            raise UserError(
                f"options.doc_types names {bad[0]}: online newspapers were withdrawn from NCC, take it out"
            )


def files(source: SourceConfig) -> list[Path]:
    claims.options(source, Options)
    return find(source, jsonl.SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    options = claims.options(source, Options)
    for where, record in jsonl.records(name, source, report, paths, ("doc_type", "text")):
        doc_type, text = record.get("doc_type"), record.get("text")
        if not isinstance(doc_type, str) or not isinstance(text, str):
            report.quarantine(
                where, f"no string under '{'text' if isinstance(doc_type, str) else 'doc_type'}'"
            )
        elif fnmatchcase(doc_type, WITHDRAWN):
            report.counts["withdrawn_newspapers"] += 1
        elif not any(fnmatchcase(doc_type, pattern) for pattern in options.doc_types):
            report.counts["other_doc_types"] += 1
        elif (confidence := _confidence(record.get("lang_fasttext_conf"))) is None:
            report.quarantine(
                where, f"lang_fasttext_conf is {record.get('lang_fasttext_conf')!r}, not a number"
            )
        elif confidence < options.min_confidence:
            report.counts["below_min_confidence"] += 1
        else:
            document_id = jsonl.clean(record.get("id") or where)
            yield Document(
                id=f"{doc_type}/{document_id}",
                text=jsonl.clean(text),
                source=name,
                license=source.license,
                group=document_id,
                language=claims.language(record.get("lang_fasttext")),
                date=claims.date(record.get("publish_year")),
            )


def _confidence(value: object) -> float | None:
    """NCC writes numbers as strings; a record without one is not doubted."""
    if value is None:
        return 1.0
    try:
        return float(value) if isinstance(value, str | int | float) else None
    except (ValueError, OverflowError):
        return None
