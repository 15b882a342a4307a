"""The steps that turn the documents of the last text stage into token shards.

The step `tokenizer` is one task; the step `tokenise` has one task for each shard.
"""

from __future__ import annotations

import heapq
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from itertools import islice
from pathlib import Path

from data_prep.document import Document, Report
from data_prep.plan import LAST_TEXT_STAGE, Preparation, Shard, digest, require_documents
from data_prep.shards import SPLITS
from data_prep.stage_files import read_json, write_json
from data_prep.stages.tokenise import Tokenise
from data_prep.tokens import encoder
from data_prep.tokens.encoder import COMPARED_CHARACTERS
from data_prep.tokens.row import TokenFile
from data_prep.tokens.tokeniser import Tokeniser
from data_prep.tokens.tokenizer_files import place_files
from data_prep.user_error import UserError

TOKENISE = Tokenise()
BATCH = 512
# File with the library that encodes running text, and the reason for the choice.
ENCODER = "encoder.json"
COMPARED_DOCUMENTS = 1000
TRAINING_CHARACTERS = 200_000_000  # size of the sample on which a tokenizer is trained

logger = logging.getLogger(__name__)


# --- the tokenizer -------------------------------------------------------------------------------


def place_tokenizer(preparation: Preparation) -> bool:
    """Train or copy the tokenizer, and choose the library that encodes running text.

    Return False if this was done before.
    """
    require_documents(preparation.corpus.name, preparation.stage_infos())
    stage = preparation.stage_folder(TOKENISE.name)
    fingerprint = _tokenizer_fingerprint(preparation)
    if stage.read_marker("tokenizer", fingerprint):
        return False
    stage.path.mkdir(parents=True, exist_ok=True)
    folder = stage.path / "tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    settings = preparation.corpus.tokenizer
    place_files(preparation.corpus, _training_texts(preparation), folder)
    # This raises UserError if the tokenizer cannot be used.
    tokeniser = Tokeniser(preparation.corpus, folder)
    if tokeniser.overrides:
        logger.warning(
            "corpus.chat.template=%s replaces the chat template of %s",
            preparation.corpus.chat.template,
            settings.path,
        )
    chosen = encoder.choose(folder / "tokenizer.json", _texts_to_compare(preparation), settings.library)
    logger.info("running text is encoded by %s: %s", chosen["library"], chosen["reason"])
    write_json(stage.path / ENCODER, chosen)
    files = [f"tokenizer/{path.name}" for path in sorted(folder.iterdir())]
    stage.write_marker("tokenizer", fingerprint, [*files, ENCODER])
    return True


@lru_cache(maxsize=1)
def _tokenizer_fingerprint(preparation: Preparation) -> str:
    """Return a hash of all that the tokenizer depends on.

    The tokenizer depends on settings and, if it is trained, on the text of the corpus.
    """
    text: list[str] = []
    if preparation.corpus.tokenizer.path is None:
        text = [shard.fingerprint for shard in preparation.shards(LAST_TEXT_STAGE)]
    return digest("tokenizer", TOKENISE.version, preparation.settings(TOKENISE), text)


def _training_texts(preparation: Preparation) -> Iterator[str]:
    """Yield the texts on which a tokenizer is trained: the training split, or a sample of it.

    The sample consists of the documents whose source and id have the lowest hashes, so it does not
    depend on the order of the documents.
    """
    available = sum(marker.characters_out for marker in preparation.markers(LAST_TEXT_STAGE))
    share = min(1.0, TRAINING_CHARACTERS / max(available, 1))
    for document in preparation.documents(LAST_TEXT_STAGE, ["id", "source", "text", "turns", "split"]):
        if document.split == "train" and (share == 1 or _random_order(document) < share):
            yield document.whole_text


def _texts_to_compare(preparation: Preparation) -> Iterator[str]:
    """Yield the beginnings of randomly chosen texts, to compare gigatoken with tokenizers."""
    stage = preparation.stage_folder(LAST_TEXT_STAGE)
    candidates = (
        (_random_order(document), shard.name, row)
        for shard in preparation.shards(LAST_TEXT_STAGE)
        for row, document in enumerate(stage.documents([shard.name], ["id", "source"]))
    )
    chosen: dict[str, set[int]] = {}
    for _, shard_name, row in heapq.nsmallest(COMPARED_DOCUMENTS, candidates):
        chosen.setdefault(shard_name, set()).add(row)
    for shard_name, rows in sorted(chosen.items()):
        for row, document in enumerate(stage.documents([shard_name], ["text"])):
            if row in rows and document.text:
                yield document.text[:COMPARED_CHARACTERS]


def _random_order(document: Document) -> float:
    """Return a number in [0, 1) that depends on source and id only, to order documents randomly."""
    return int(digest(document.source, document.id)[:12], 16) / 16**12


# --- tokens, shard by shard ----------------------------------------------------------------------


def tokenise_shard(preparation: Preparation, number: int) -> bool:
    """Write the tokens of one shard. Return False if it was done before."""
    shard = token_shards(preparation)[number]
    stage = preparation.stage_folder(TOKENISE.name)
    input_marker = preparation.marker(LAST_TEXT_STAGE, preparation.shards(LAST_TEXT_STAGE)[number])
    if stage.read_marker(shard.name, shard.fingerprint):
        return False
    tokenizer = stage.read_marker("tokenizer", _tokenizer_fingerprint(preparation), verify=False)
    if tokenizer is None:
        raise UserError(
            "step 'tokenizer' is not done; run it first: "
            f"python -m data_prep.pipeline {preparation.work} tokenizer"
        )
    began = time.perf_counter()
    report = Report()
    masks: set[str] = set()
    has_chats = False
    tokeniser = _load_tokeniser(preparation.work, tokenizer.fingerprint)
    documents = preparation.stage_folder(LAST_TEXT_STAGE).documents([shard.name])
    with ExitStack() as stack:
        files = {
            split: stack.enter_context(TokenFile(stage.path / f"{split}-{shard.name}.arrow"))
            for split in SPLITS
        }
        while batch := list(islice(documents, BATCH)):
            masks.update(document.mask for document in batch if document.mask)
            for document, rows in tokeniser.rows(batch, report):
                has_chats = has_chats or any(turn.role for turn in document.turns)
                report.counts["rows_of_single_turns"] += len(rows) - 1
                files[document.split].add(document, rows)
            for file in files.values():
                file.flush()
    stage.write_report(
        shard.name,
        shard.fingerprint,
        report,
        [f"{split}-{shard.name}.arrow" for split in SPLITS],
        documents_in=input_marker.documents_out,
        documents_out=input_marker.documents_out - len(report.drops),
        masks=sorted(masks),
        has_chats=has_chats,
        seconds=round(time.perf_counter() - began, 3),
    )
    return True


@lru_cache(maxsize=1)
def token_shards(preparation: Preparation) -> list[Shard]:
    """Return the shards of the tokenise stage; their fingerprints depend on the tokenizer too."""
    settings = preparation.settings(TOKENISE)
    key = digest(TOKENISE.name, TOKENISE.version, settings, _tokenizer_fingerprint(preparation))
    return [
        Shard(shard.name, digest(key, shard.fingerprint)) for shard in preparation.shards(LAST_TEXT_STAGE)
    ]


@lru_cache(maxsize=1)
def _load_tokeniser(work: Path, _fingerprint: str) -> Tokeniser:
    preparation = Preparation.load(work)
    folder = preparation.stage_folder(TOKENISE.name).path
    return Tokeniser(preparation.corpus, folder / "tokenizer", read_json(folder / ENCODER)["library"])
