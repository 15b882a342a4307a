"""Search for a text in the documents of a corpus at every stage, for `finetune inspect --find`.

Documents are read in batches. Only the first hits are held in memory. For each further document
that contains the text, only a hash of the document's id is held, to count the documents.
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

CONTEXT = 80  # characters of an excerpt on each side of the match
COLUMNS = ["id", "source", "title", "text", "turns"]
TITLE = "title: "


@dataclass
class Hit:
    """A document that contains the text.

    Attributes:
        stages: the stages after which the document contains the text; ["tokenise (<split>)"] if the
            token shards were searched.
        match: the first match in the document, after the first of these stages.
        before, after: the text before and after the match.
        drop: the stage that dropped the document, and its record of the drop; None if the document
            was kept.
        cut_by: the stage that removed the text but kept the document; "" if there is none.
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
    """The result of a search.

    Attributes:
        hits: the first documents that contain the text.
        documents: number of all documents that contain it.
        quarantined: quarantined records that contain it.
    """

    hits: list[Hit] = field(default_factory=list)
    documents: int = 0
    quarantined: list[quarantine.Quarantined] = field(default_factory=list)


def compile_pattern(text: str) -> re.Pattern[str]:
    """Return a regular expression that matches a text, ignoring case and the kind of white space.

    The pattern is in NFC, so it must be applied to text in NFC.

    Raises:
        UserError: the text is empty.
    """
    words = unicodedata.normalize("NFC", text).split()
    if not words:
        raise UserError("--find: the text is empty; give the words to search for")
    return re.compile(r"\s+".join(re.escape(word) for word in words), re.IGNORECASE)


def search_stages(work: Path, stages: list[StageFolder], text: str, max_hits: int) -> Found:
    """Search the documents of all stages, and the quarantined records.

    Args:
        work: the folder of the stages.
        max_hits: maximum number of hits that are returned.

    Raises:
        UserError: the text is empty.
    """
    pattern = compile_pattern(text)
    hits: dict[tuple[str, str], Hit] = {}
    others: set[bytes] = set()
    for stage in stages:
        for document in stage.documents(columns=COLUMNS):
            match = _search(pattern, document)
            if match is None:
                continue
            name = (document.source, document.id)
            if name in hits:
                hits[name].stages.append(stage.name)
            elif len(hits) < max_hits:
                hits[name] = Hit(*name, [stage.name], *match)
            else:
                others.add(hashlib.blake2b("\0".join(name).encode(), digest_size=8).digest())
    _add_fates(stages, hits)
    found = Found(hits=list(hits.values()), documents=len(hits) + len(others))
    broken = list(stages[0].quarantined()) if stages else []
    for record in quarantine.read_excerpts(work, broken):
        if pattern.search(unicodedata.normalize("NFC", f"{record.raw}\n{record.record.error}")):
            found.quarantined.append(record)
    return found


def search_tokens(corpus: Corpus, text: str, max_hits: int) -> Found:
    """Search the decoded token rows of a corpus whose stages' files were deleted.

    Args:
        max_hits: maximum number of hits that are returned.

    Raises:
        UserError: the text is empty.
    """
    pattern = compile_pattern(text)
    found = Found()
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_folder / "tokenizer.json"))
    for split in SPLITS:
        table = corpus.table(split).select(["source", "id", "input_ids"])
        for batch in table.to_batches(max_chunksize=100):
            for row in batch.to_pylist():
                decoded = tokenizer.decode(row["input_ids"], skip_special_tokens=False)
                decoded = unicodedata.normalize("NFC", decoded)
                match = pattern.search(decoded)
                if match is None:
                    continue
                found.documents += 1
                if len(found.hits) < max_hits:
                    stages = [f"tokenise ({split})"]
                    found.hits.append(Hit(row["source"], row["id"], stages, *_excerpt(decoded, match)))
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
    """Return the text before the match, the match, and the text after it, each on one line."""
    before = text[max(0, match.start() - CONTEXT) : match.start()]
    after = text[match.end() : match.end() + CONTEXT]
    return re.sub(r"\s+", " ", before), re.sub(r"\s+", " ", match[0]), re.sub(r"\s+", " ", after)


def _add_fates(stages: list[StageFolder], hits: dict[tuple[str, str], Hit]) -> None:
    """Set, for each hit, the stage that dropped the document or removed the text from it.

    Args:
        hits: the hits by (source, id) of the document.
    """
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
