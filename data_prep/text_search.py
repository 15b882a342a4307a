"""Search for a text in the documents of a corpus, at every stage of their preparation. For `finetune inspect
--find`.

Stages are read a batch of documents at a time; kept are the first hits, and a hash of each further document
that has one.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from data_prep import quarantine
from data_prep.document import Document, Drop
from data_prep.shards import SPLITS, Corpus
from data_prep.stage_files import StageFolder
from data_prep.user_error import UserError

AROUND = 80  # characters of an excerpt on each side of the text
COLUMNS = ["id", "source", "title", "text", "turns"]
TITLE = "title: "


@dataclass
class Hit:
    """A document that holds the text.

    Attributes:
        stages: the stages after which it did; "tokenise" if it was found in token shards.
        before, match, after: the text in the first of them, with what stands around it.
        drop: how it was dropped, with the stage that did so; None if it was not.
        cut_by: the stage that took the text out of a document which went on; "" if none did.
    """

    source: str
    id: str
    stages: list[str]
    before: str
    match: str
    after: str
    drop: tuple[str, Drop] | None = None
    cut_by: str = ""


@dataclass
class Found:
    """The result of a search: the first hits, and how many documents and quarantined records hold the text in
    all."""

    hits: list[Hit] = field(default_factory=list)
    documents: int = 0
    quarantined: list[quarantine.Quarantined] = field(default_factory=list)


def pattern_of(text: str) -> re.Pattern[str]:
    """Return what finds a text whatever its case, its white space and the way in which its letters are
    composed.

    Raises:
        UserError: the text is empty.
    """
    words = unicodedata.normalize("NFC", text).split()
    if not words:
        raise UserError("--find: the text is empty; give the words to look for")
    return re.compile(r"\s+".join(re.escape(word) for word in words), re.IGNORECASE)


def search_stages(work: Path, stages: list[StageFolder], text: str, most: int) -> Found:
    """Search the documents of all stages, and the records that reading could not make a document of.

    Args:
        most: how many hits are kept.
    """
    pattern, found = pattern_of(text), Found()
    kept: dict[tuple[str, str], Hit] = {}
    others: set[bytes] = set()
    for stage in stages:
        for document in stage.documents(columns=COLUMNS):
            match = _search(pattern, document)
            if match is None:
                continue
            name = (document.source, document.id)
            if name in kept:
                kept[name].stages.append(stage.name)
            elif len(kept) < most:
                kept[name] = Hit(*name, [stage.name], *match)
            else:
                others.add(hashlib.blake2b("\0".join(name).encode(), digest_size=8).digest())
    found.hits, found.documents = list(kept.values()), len(kept) + len(others)
    _add_fates(stages, kept)
    broken = list(stages[0].quarantined()) if stages else []
    for record in quarantine.with_excerpts(work, broken):
        if pattern.search(unicodedata.normalize("NFC", f"{record.raw}\n{record.record.error}")):
            found.quarantined.append(record)
    return found


def search_tokens(corpus: Corpus, text: str, most: int) -> Found:
    """Search the decoded rows of a corpus whose stages' files are gone."""
    pattern, found = pattern_of(text), Found()
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_folder / "tokenizer.json"))
    for split in SPLITS:
        for batch in corpus.table(split).select(["source", "id", "input_ids"]).to_batches(max_chunksize=100):
            for row in batch.to_pylist():
                decoded = unicodedata.normalize(
                    "NFC", tokenizer.decode(row["input_ids"], skip_special_tokens=False)
                )
                match = pattern.search(decoded)
                if match is None:
                    continue
                found.documents += 1
                if len(found.hits) < most:
                    found.hits.append(
                        Hit(row["source"], row["id"], [f"tokenise ({split})"], *_excerpt(decoded, match))
                    )
    return found


def _search(pattern: re.Pattern[str], document: Document) -> tuple[str, str, str] | None:
    for text in _texts(document):
        normal = unicodedata.normalize("NFC", text)
        match = pattern.search(normal)
        if match:
            return _excerpt(normal, match)
    return None


def _texts(document: Document) -> Iterator[str]:
    yield document.text
    yield from (turn.content for turn in document.turns)
    if document.title:
        yield f"{TITLE}{document.title}"


def _excerpt(text: str, match: re.Match[str]) -> tuple[str, str, str]:
    """Return what stands before the match, the match, and what follows it, each on one line."""
    before = text[max(0, match.start() - AROUND) : match.start()]
    after = text[match.end() : match.end() + AROUND]
    return re.sub(r"\s+", " ", before), re.sub(r"\s+", " ", match[0]), re.sub(r"\s+", " ", after)


def _add_fates(stages: list[StageFolder], hits: dict[tuple[str, str], Hit]) -> None:
    """Note for each hit which stage dropped the document, or took the text out of it."""
    for stage in stages:
        for drop in stage.drops():
            hit = hits.get((drop.source, drop.id))
            if hit is not None and hit.drop is None:
                hit.drop = (stage.name, drop)
    names = [stage.name for stage in stages]
    for hit in hits.values():
        following = names[names.index(hit.stages[-1]) + 1 :]
        if following and not (hit.drop and hit.drop[0] == following[0]):
            hit.cut_by = following[0]
