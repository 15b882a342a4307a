"""Reader of Universal Dependencies treebanks (CoNLL-U). They are small, and meant for evaluation.

A comment `# newdoc` begins a document, which ends before the next such comment. Without these
comments, each sentence is a document. The text is taken from the comment `# text = …`, not rebuilt
from tokens. The language is taken from the file's name (no_bokmaal-ud-dev.conllu).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.config import SourceConfig
from data_prep.containers.streams import Member
from data_prep.document import Document, Place, Report
from data_prep.sources import claims
from data_prep.sources.files import decode, find_files, id_from_place, iter_members

SUFFIXES = (".conllu",)
TREEBANKS = {"no_bokmaal": "nob", "no_nynorsk": "nno", "no_nynorsklia": "nno"}


def list_files(source: SourceConfig) -> list[Path]:
    return find_files(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    def document(identity: str, texts: list[str], language: str) -> Document:
        return Document(
            id=identity,
            text=" ".join(texts),
            source=name,
            license=source.license,
            group=identity,
            language=language,
        )

    for member in iter_members(name, source, report, paths, SUFFIXES):
        treebank = member.name.rpartition("/")[2].partition("-ud")[0]
        language = TREEBANKS.get(treebank) or claims.parse_language(treebank.partition("_")[0])
        file_id = id_from_place(member.place)
        document_id = ""
        texts: list[str] = []
        for sentence in _iter_sentences(member, report):
            if sentence.newdoc or not document_id:
                if texts:
                    yield document(f"{file_id}:{document_id}", texts, language)
                document_id = sentence.newdoc
                texts = []
            if document_id:
                texts.append(sentence.text)
            else:
                sentence_id = sentence.sent_id or _line_number(sentence.place)
                yield document(f"{file_id}:{sentence_id}", [sentence.text], language)
        if texts:
            yield document(f"{file_id}:{document_id}", texts, language)


@dataclass(frozen=True)
class _Sentence:
    """A sentence of a treebank.

    Attributes:
        newdoc: id of the document that begins with this sentence; "" if none does.
        sent_id: id of the sentence in the treebank; "" if it has none.
    """

    place: Place
    newdoc: str
    sent_id: str
    text: str


def _iter_sentences(member: Member, report: Report) -> Iterator[_Sentence]:
    """Yield the sentences of a file; a sentence without a `# text` comment is quarantined.

    If a document has no id, the number of its first line is used as its id. If a document's first
    sentence is quarantined, the document begins with the next sentence.
    """
    comments: dict[str, str] = {}
    start = member.place
    newdoc = ""
    has_tokens = False

    def finish_sentence() -> Iterator[_Sentence]:
        nonlocal newdoc
        if "newdoc id" in comments or "newdoc" in comments:
            newdoc = comments.get("newdoc id") or _line_number(start)
        if comments.get("text"):
            yield _Sentence(start, newdoc, comments.get("sent_id", ""), comments["text"])
            newdoc = ""
        else:
            report.quarantine(start, "the sentence has no text (# text = …)")

    for place, line in member.iter_lines():
        with report.quarantining(place):
            text = decode(line, report).rstrip("\r\n")
            if text and not (comments or has_tokens):
                start = place
            if text.startswith("#"):
                key, _, value = text[1:].partition("=")
                comments[key.strip()] = value.strip()
            elif text:
                has_tokens = True
            elif has_tokens:
                yield from finish_sentence()
                comments = {}
                has_tokens = False
    if has_tokens:
        yield from finish_sentence()


def _line_number(place: Place) -> str:
    return place.at.rpartition(" ")[2]
