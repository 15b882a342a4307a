"""Reader of Talk of Norway: speeches in Stortinget 1998-2016 as CSV, and labelled sentences.

A speech begins with the speaker's name and party, if the row has them. All speeches of a transcript
form a group, which a split keeps together. If the row names no transcript, all speeches of its day
form a group.

The sentences have no context. They are CSV rows or lines of text files. A text file's name ends
with the code of its written standard, as in …_nob.txt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.config import SourceConfig
from data_prep.containers import streams
from data_prep.document import Document, Place, Report
from data_prep.sources import claims, table
from data_prep.sources.files import decode, find_files, iter_members

SUFFIXES = (".csv", ".txt")


def list_files(source: SourceConfig) -> list[Path]:
    return find_files(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    for member in iter_members(name, source, report, paths, SUFFIXES):
        if member.name.lower().endswith(".csv"):
            for place, row in table.csv_rows(member, ",", ("text",), source, report):
                yield _speech(row, place, source)
        else:
            yield from _sentences(member, source, report)


def _speech(row: dict[str, str], place: Place, source: SourceConfig) -> Document:
    first_and_last = (row[key] for key in ("rep_first_name", "rep_last_name") if row.get(key))
    speaker = row.get("rep_name") or " ".join(first_and_last)
    if not speaker and row.get("speaker_role", "").lower() == "president":
        speaker = "Presidenten"
    party = row.get("party_id") or row.get("party_name") or ""
    lead = speaker
    if speaker and party:
        lead = f"{speaker} ({party})"
    if speaker:
        lead += ": "
    day = claims.parse_date(row.get("date"))
    return Document(
        id=row.get("id") or str(place),
        text=lead + row["text"],
        source=place.source,
        license=source.license,
        date=day,
        group=row.get("transcript") or row.get("debate_reference") or day or str(place),
        language=claims.parse_language(row.get("language")),
        title=row.get("debate_title") or row.get("title") or "",
    )


def _sentences(member: streams.Member, source: SourceConfig, report: Report) -> Iterator[Document]:
    language = claims.parse_language(Path(member.name).stem.rpartition("_")[2])
    for place, line in member.iter_lines():
        with report.quarantining(place):
            if text := decode(line, report).strip():
                yield Document(
                    id=str(place),
                    text=text,
                    source=place.source,
                    license=source.license,
                    group=str(place),
                    language=language,
                )
