"""Reader of the Norwegian Colossal Corpus (NbAiLab/NCC): JSON lines with doc_type and publish_year.

A document's language is the one that fasttext detected. Only document types of the public sector
are read, unless `doc_types` names others. Online newspapers were withdrawn under Språkbank-avtalen
in December 2024; they are never read, not even from an older copy.

The corpus gives an unknown year as 2021, so the date 2021 carries no information. It splits long
documents into parts, but does not record which parts belong together.
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
from data_prep.sources.files import find_files
from data_prep.user_error import UserError

WITHDRAWN = "newspapers_online_*"
PUBLIC_SECTOR = ["maalfrid_*", "parliament", "government_*", "publicreports", "lovdata_*"]


@dataclass
class Options(jsonl.Options):
    """Options of reader `ncc`."""

    doc_types: list[str] = setting(list(PUBLIC_SECTOR), "document types to read, as names or patterns with *")
    min_confidence: float = setting(0.0, "minimum confidence of fasttext in the language, from 0 to 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        bad = [pattern for pattern in self.doc_types if pattern.startswith("newspapers_online")]
        if bad:
            raise UserError(
                f"options.doc_types: online newspapers were withdrawn from NCC; remove '{bad[0]}'"
            )


def list_files(source: SourceConfig) -> list[Path]:
    claims.parse_options(source, Options)
    return find_files(source, jsonl.SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    options = claims.parse_options(source, Options)
    for place, record in jsonl.iter_records(name, source, report, paths, ("doc_type", "text")):
        doc_type = record.get("doc_type")
        text = record.get("text")
        if not isinstance(doc_type, str):
            report.quarantine(place, "no string under 'doc_type'")
        elif not isinstance(text, str):
            report.quarantine(place, "no string under 'text'")
        elif fnmatchcase(doc_type, WITHDRAWN):
            report.counts["withdrawn_newspapers"] += 1
        elif not any(fnmatchcase(doc_type, pattern) for pattern in options.doc_types):
            report.counts["other_doc_types"] += 1
        elif (confidence := _confidence(record.get("lang_fasttext_conf"))) is None:
            report.quarantine(
                place, f"lang_fasttext_conf is {record.get('lang_fasttext_conf')!r}, not a number"
            )
        elif confidence < options.min_confidence:
            report.counts["below_min_confidence"] += 1
        else:
            document_id = jsonl.to_valid_text(record.get("id") or place)
            yield Document(
                id=f"{doc_type}/{document_id}",
                text=jsonl.to_valid_text(text),
                source=name,
                license=source.license,
                group=document_id,
                language=claims.parse_language(record.get("lang_fasttext")),
                date=claims.parse_date(record.get("publish_year")),
            )


def _confidence(value: object) -> float | None:
    """Return fasttext's confidence; 1.0 if the record has none, None if it is not a number."""
    if value is None:
        return 1.0
    try:  # NCC writes numbers as strings
        return float(value) if isinstance(value, str | int | float) else None
    except (ValueError, OverflowError):
        return None
