"""The same text in several languages, as JSON lines with a key for each: {"id", "path", "nob", "nno", "eng"}.

All languages of all pieces of one letter, by `fields: {group: …}` or `path`, are a group.

Pairs are left out, and counted, where a side is empty, where both are the same, and where merge fields
({felt}) differ in number: a model would learn to lose them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from data_prep.config import SourceConfig
from data_prep.document import Document, Place, Report, Turn, Unreadable
from data_prep.fields import one_of, setting
from data_prep.sources import claims, jsonl
from data_prep.sources.files import find
from data_prep.user_error import UserError

LANGUAGES = ("nob", "nno", "eng", "sme", "dan", "swe")
FORMS = ("messages", "prompt_completion", "text")
FIELDS = (*LANGUAGES, *jsonl.OPTIONAL)
_FIELD = re.compile(r"\{[^{}\n]{1,40}\}")
# What is asked for stands in the language that is wanted; Norwegian of one's own written standard is
# rewritten, not translated.
REWRITE = {"nno": "Skriv om teksten til nynorsk:", "nob": "Skriv om teksten til bokmål:"}
TRANSLATE = {
    "nno": "Omset teksten til nynorsk:", "nob": "Oversett teksten til bokmål:", "eng": "Translate the text into English:",
    "sme": "Jorgal teavstta davvisámegillii:", "dan": "Oversæt teksten til dansk:", "swe": "Översätt texten till svenska:",
}  # fmt: skip


@dataclass
class Options(jsonl.Options):
    """Options of parallel texts."""

    form: str = setting(
        "messages",
        "documents made from a record: messages or prompt_completion for each pair of languages, or text "
        "with one document of running text per letter and language",
    )
    pairs: list[str] = setting(
        ["nob-nno", "nno-nob"],
        "pairs of languages as FROM-TO, each a key of the records; the model learns to write TO: nob-nno "
        "rewrites Bokmål as Nynorsk, sme-nob translates",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("options.form", self.form, FORMS)
        for pair in self.pairs:
            a, _, b = pair.partition("-")
            if a not in LANGUAGES or b not in LANGUAGES or a == b:
                raise UserError(
                    f"options.pairs names '{pair}': give two of {', '.join(LANGUAGES)}, as in nob-nno"
                )


def files(source: SourceConfig) -> list[Path]:
    claims.options(source, Options)
    return find(source, jsonl.SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    options = claims.options(source, Options)
    keys = [source.fields.get(language, language) for language in LANGUAGES]
    records = _texts(jsonl.records(name, source, report, paths, keys), source, report)
    if options.form == "text":
        for _, pieces in groupby(records, key=lambda piece: (piece.where.file, piece.described.group)):
            yield from _letters(list(pieces))
        return
    for piece in records:
        for pair in options.pairs:
            a, _, b = pair.partition("-")
            if fault := _fault(piece.texts.get(a, ""), piece.texts.get(b, "")):
                report.counts[fault] += 1
            else:
                turns = _turns(piece.texts[a], piece.texts[b], a, b, options.form)
                mask = "assistant_masks" if options.form == "messages" else "completion_mask"
                own = replace(piece.described, id=f"{piece.described.id}:{pair}", language=b)
                yield own.document(turns=turns, mask=mask)


@dataclass
class Piece:
    """A record: where it stands, what it says of itself, and its text by language."""

    where: Place
    described: jsonl.Description
    texts: dict[str, str]


def _texts(
    records: Iterator[tuple[Place, dict[str, object]]], source: SourceConfig, report: Report
) -> Iterator[Piece]:
    for where, record in records:
        values = {language: record.get(source.fields.get(language, language)) for language in LANGUAGES}
        texts = {
            language: jsonl.clean(value).strip()
            for language, value in values.items()
            if isinstance(value, str)
        }
        with report.quarantining(where):
            if wrong := [
                language
                for language, value in values.items()
                if value is not None and not isinstance(value, str)
            ]:
                raise Unreadable(f"'{wrong[0]}' is a {type(values[wrong[0]]).__name__}, not a string")
            if not any(texts.values()):
                raise Unreadable(f"no text under any of {', '.join(LANGUAGES)}")
            described = jsonl.described(record, where, source)
            if "group" not in source.fields and "group" not in record and isinstance(record.get("path"), str):
                described.group = jsonl.clean(record["path"])
            yield Piece(where, described, texts)


def _letters(pieces: list[Piece]) -> Iterator[Document]:
    """Yield the pieces of one letter as a document in each language."""
    first = pieces[0].described
    for language in LANGUAGES:
        texts = [piece.texts[language] for piece in pieces if piece.texts.get(language)]
        if texts:
            yield Document(
                id=f"{first.id}:{language}",
                text="\n\n".join(texts),
                source=first.source,
                license=first.license,
                group=first.group,
                language=language,
            )


def _fault(a: str, b: str) -> str:
    if not a or not b:
        return "pairs_with_an_empty_side"
    if a == b:
        return "pairs_of_the_same_text"
    return "pairs_with_other_merge_fields" if len(_FIELD.findall(a)) != len(_FIELD.findall(b)) else ""


def _turns(text: str, wanted: str, a: str, b: str, form: str) -> list[Turn]:
    instruction = (REWRITE if a in REWRITE and b in REWRITE else TRANSLATE)[b]
    if form == "messages":
        return [
            Turn(role="user", content=f"{instruction}\n\n{text}", target=False),
            Turn(role="assistant", content=wanted, target=True),
        ]
    return [
        Turn(role="", content=f"{instruction}\n\n{text}\n\n", target=False),
        Turn(role="", content=wanted, target=True),
    ]
