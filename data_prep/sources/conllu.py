"""Universal Dependencies (CoNLL-U): for evaluation, as treebanks are small. One document a sentence, or what
`# newdoc` begins.

The text is the treebank's own (`# text = `), not its words put together. The language is that of the file's
name (no_bokmaal-ud-dev.conllu) unless the corpus file says another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.config import SourceConfig
from data_prep.containers.streams import Member
from data_prep.document import Document, Place, Report
from data_prep.sources import claims
from data_prep.sources.files import decode, find_files, id_from_place, iter_members

SUFFIXES = (".conllu",)
TREEBANKS = {"no_bokmaal": "nob", "no_nynorsk": "nno", "no_nynorsklia": "nno"}


def files(source: SourceConfig) -> list[Path]:
    return find_files(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    for member in iter_members(name, source, report, paths, SUFFIXES):
        treebank = member.name.rpartition("/")[2].partition("-ud")[0]
        language = TREEBANKS.get(treebank) or claims.parse_language(treebank.partition("_")[0])
        base, document, texts = id_from_place(member.place), "", list[str]()
        for place, newdoc, sent_id, text in _sentences(member, report):
            if newdoc or not document:
                if texts:
                    yield _document(f"{base}:{document}", texts, language, source, name)
                document, texts = newdoc, []
            if document:
                texts.append(text)
            else:
                yield _document(
                    f"{base}:{sent_id or place.at.rpartition(' ')[2]}", [text], language, source, name
                )
        if texts:
            yield _document(f"{base}:{document}", texts, language, source, name)


def _document(identity: str, texts: list[str], language: str, source: SourceConfig, name: str) -> Document:
    return Document(
        id=identity,
        text=" ".join(texts),
        source=name,
        license=source.license,
        group=identity,
        language=language,
    )


def _sentences(member: Member, report: Report) -> Iterator[tuple[Place, str, str, str]]:
    """Place, id of the document that begins here, id of the sentence, its text. Words without a text are
    quarantined.

    A document that is given no id is called by its line; one whose first sentence has no text begins with the
    next.
    """
    comments: dict[str, str] = {}
    start, newdoc, has_words = member.place, "", False

    def closed() -> Iterator[tuple[Place, str, str, str]]:
        nonlocal newdoc
        if "newdoc id" in comments or "newdoc" in comments:
            newdoc = comments.get("newdoc id") or start.at.rpartition(" ")[2]
        if comments.get("text"):
            yield start, newdoc, comments.get("sent_id", ""), comments["text"]
            newdoc = ""
        else:
            report.quarantine(start, "a sentence without its text (# text = …)")

    for place, line in member.iter_lines():
        with report.quarantining(place):
            text = decode(line, report).rstrip("\r\n")
            if text and not (comments or has_words):
                start = place
            if text.startswith("#"):
                key, _, value = text[1:].partition("=")
                comments[key.strip()] = value.strip()
            elif text:
                has_words = True
            elif has_words:
                yield from closed()
                comments, has_words = {}, False
    if has_words:
        yield from closed()
