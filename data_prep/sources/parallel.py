"""Reader of parallel texts: JSON lines with a key for each language: {"id", "nob", "nno", "eng"}.

A letter is a text in several languages. It may be split into several records. All records of a
letter, in all languages, form a group, which a split of the data keeps together. The letter's name
is under the key that `fields: {group: …}` names, or under `group` or `path`.

A pair of texts is left out and counted if one of them is empty, if both are equal, or if they
differ in the number of merge fields such as {felt}. A difference in merge fields would teach a
model to drop them.
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
from data_prep.sources.files import find_files
from data_prep.user_error import UserError

LANGUAGES = ("nob", "nno", "eng", "sme", "dan", "swe")
FORMS = ("messages", "prompt_completion", "text")
FIELDS = (*LANGUAGES, *jsonl.OPTIONAL)
_MERGE_FIELD = re.compile(r"\{[^{}\n]{1,40}\}")
# Instructions in each target language. REWRITE is used between the written standards of Norwegian,
# TRANSLATE between all other languages.
REWRITE = {"nno": "Skriv om teksten til nynorsk:", "nob": "Skriv om teksten til bokmål:"}
TRANSLATE = {
    "nno": "Omset teksten til nynorsk:",
    "nob": "Oversett teksten til bokmål:",
    "eng": "Translate the text into English:",
    "sme": "Jorgal teavstta davvisámegillii:",
    "dan": "Oversæt teksten til dansk:",
    "swe": "Översätt texten till svenska:",
}


@dataclass
class Options(jsonl.Options):
    """Options of reader `parallel`."""

    form: str = setting(
        "messages",
        "documents made from a record: messages or prompt_completion for each pair of "
        "languages, or text: one document of running text per language",
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
                    f"options.pairs: each must be two of {', '.join(LANGUAGES)}, such as nob-nno, "
                    f"not '{pair}'"
                )


def list_files(source: SourceConfig) -> list[Path]:
    claims.parse_options(source, Options)
    return find_files(source, jsonl.SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    options = claims.parse_options(source, Options)
    keys = [source.fields.get(language, language) for language in LANGUAGES]
    pieces = _iter_pieces(jsonl.iter_records(name, source, report, paths, keys), source, report)
    if options.form == "text":
        for _, letter in groupby(pieces, key=lambda piece: (piece.place.file, piece.description.group)):
            yield from _letters(list(letter))
        return
    mask = "assistant_masks" if options.form == "messages" else "completion_mask"
    for piece in pieces:
        for pair in options.pairs:
            a, _, b = pair.partition("-")
            fault = _find_fault(piece.texts.get(a, ""), piece.texts.get(b, ""))
            if fault:
                report.counts[fault] += 1
            else:
                turns = _build_turns(piece.texts[a], piece.texts[b], a, b, options.form)
                description = replace(piece.description, id=f"{piece.description.id}:{pair}", language=b)
                yield description.build_document(turns=turns, mask=mask)


@dataclass
class Piece:
    """A record: a letter, or a part of one, in several languages.

    Attributes:
        description: its metadata.
        texts: its text by language.
    """

    place: Place
    description: jsonl.Description
    texts: dict[str, str]


def _iter_pieces(
    records: Iterator[tuple[Place, dict[str, object]]], source: SourceConfig, report: Report
) -> Iterator[Piece]:
    for place, record in records:
        with report.quarantining(place):
            texts = {}
            for language in LANGUAGES:
                value = record.get(source.fields.get(language, language))
                if isinstance(value, str):
                    texts[language] = jsonl.to_valid_text(value).strip()
                elif value is not None:
                    raise Unreadable(f"'{language}' must be a string, not a {type(value).__name__}")
            if not any(texts.values()):
                raise Unreadable(f"no text under any of {', '.join(LANGUAGES)}")
            description = jsonl.describe(record, place, source)
            if "group" not in source.fields and "group" not in record and isinstance(record.get("path"), str):
                description.group = jsonl.to_valid_text(record["path"])
            yield Piece(place, description, texts)


def _letters(pieces: list[Piece]) -> Iterator[Document]:
    """Yield one document for each language of a letter. Each has the text of all the records.

    Args:
        pieces: the records of the letter.
    """
    first = pieces[0].description
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


def _find_fault(a: str, b: str) -> str:
    """Return why a pair of texts is left out, as the name of a count; "" if the pair is usable."""
    if not a or not b:
        return "pairs_with_an_empty_side"
    if a == b:
        return "pairs_of_the_same_text"
    if len(_MERGE_FIELD.findall(a)) != len(_MERGE_FIELD.findall(b)):
        return "pairs_with_other_merge_fields"
    return ""


def _build_turns(text: str, target: str, a: str, b: str, form: str) -> list[Turn]:
    """Return the turns of a pair: an instruction with the text to translate, and the answer.

    Args:
        text: the text to translate, in language `a`.
        target: the translation, in language `b`.
        form: "messages" for turns of a user and an assistant; otherwise, the turns are plain text.
    """
    instructions = REWRITE if a in REWRITE and b in REWRITE else TRANSLATE
    prompt = f"{instructions[b]}\n\n{text}"
    if form == "messages":
        return [
            Turn(role="user", content=prompt, target=False),
            Turn(role="assistant", content=target, target=True),
        ]
    return [
        Turn(role="", content=f"{prompt}\n\n", target=False),
        Turn(role="", content=target, target=True),
    ]
