"""The steps that make token shards of the last text stage's documents: `tokenizer`, one task, and `tokenise`,
a task a shard.

execute.py calls them in the processes of a preparation.
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
ENCODER = "encoder.json"  # beside the tokenizer: which library encodes, and why
COMPARED_DOCUMENTS = 1000
TRAINING_CHARACTERS = 200_000_000  # of the sample that a tokenizer is trained on

logger = logging.getLogger(__name__)


# --- the tokenizer ------------------------------------------------------------------------------------------


def place_tokenizer(preparation: Preparation) -> bool:
    """Train or copy the tokenizer, and choose the library that encodes with it. False if it was done
    before."""
    require_documents(preparation.corpus.name, preparation.infos())
    stage, fingerprint = preparation.stage_folder(TOKENISE.name), _tokenizer_fingerprint(preparation)
    if stage.done("tokenizer", fingerprint):
        return False
    stage.path.mkdir(parents=True, exist_ok=True)
    folder = stage.path / "tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    place_files(preparation.corpus, _sample(preparation), folder)
    tokeniser = Tokeniser(preparation.corpus, folder)  # refuses what cannot be used
    if tokeniser.overrides:
        chat, path = preparation.corpus.chat, preparation.corpus.tokenizer.path
        logger.warning(
            "corpus.chat.template=%s takes the place of the chat template of %s", chat.template, path
        )
    chosen = encoder.choose(
        folder / "tokenizer.json", _compared(preparation), preparation.corpus.tokenizer.library
    )
    logger.info("running text is encoded by %s: %s", chosen["library"], chosen["reason"])
    write_json(stage.path / ENCODER, chosen)
    stage.finish(
        "tokenizer", fingerprint, [*(f"tokenizer/{path.name}" for path in sorted(folder.iterdir())), ENCODER]
    )
    return True


@lru_cache(maxsize=1)
def _tokenizer_fingerprint(preparation: Preparation) -> str:
    """Return the fingerprint of the tokenizer: one that is trained depends on all text, one that is given on
    none."""
    trained = preparation.corpus.tokenizer.path is None
    text = [shard.fingerprint for shard in preparation.shards(LAST_TEXT_STAGE)] if trained else []
    return digest("tokenizer", TOKENISE.version, preparation.settings(TOKENISE), text)


def _sample(preparation: Preparation) -> Iterator[str]:
    """Yield the training texts, or, of very many, those whose ids' hashes are low: the same documents
    wherever they stand."""
    available = sum(marker.characters_out for marker in preparation.done(LAST_TEXT_STAGE))
    share = min(1.0, TRAINING_CHARACTERS / max(available, 1))
    for document in preparation.documents(LAST_TEXT_STAGE, ["id", "source", "text", "turns", "split"]):
        if document.split == "train" and (share == 1 or _place(document) < share):
            yield document.whole_text


def _compared(preparation: Preparation) -> Iterator[str]:
    """Yield texts on which the encoders are compared, not of great length: those whose ids' hashes are
    lowest."""
    places = (
        (_place(document), shard.name, row)
        for shard in preparation.shards(LAST_TEXT_STAGE)
        for row, document in enumerate(
            preparation.stage_folder(LAST_TEXT_STAGE).documents([shard.name], ["id", "source"])
        )
    )
    chosen: dict[str, set[int]] = {}
    for _, shard_name, row in heapq.nsmallest(COMPARED_DOCUMENTS, places):
        chosen.setdefault(shard_name, set()).add(row)
    for shard_name, rows in sorted(chosen.items()):
        for row, document in enumerate(
            preparation.stage_folder(LAST_TEXT_STAGE).documents([shard_name], ["text"])
        ):
            if row in rows and document.text:
                yield document.text[:COMPARED_CHARACTERS]


def _place(document: Document) -> float:
    """Return a document's place in a random order: from 0 up to, not including, 1."""
    return int(digest(document.source, document.id)[:12], 16) / 16**12


# --- tokens, shard by shard ---------------------------------------------------------------------------------


def tokenise_shard(preparation: Preparation, number: int) -> bool:
    """Write the tokens of one shard. False if it was done before."""
    shard, stage = token_shards(preparation)[number], preparation.stage_folder(TOKENISE.name)
    before = preparation.marker(LAST_TEXT_STAGE, preparation.shards(LAST_TEXT_STAGE)[number])
    if stage.done(shard.name, shard.fingerprint):
        return False
    tokenizer = stage.done("tokenizer", _tokenizer_fingerprint(preparation), verify=False)
    if tokenizer is None:
        raise UserError("step tokenizer is not done: run it first")
    began, report, masks = time.perf_counter(), Report(), set[str]()
    has_chats = False
    tokeniser = _tokeniser(preparation.work, tokenizer.fingerprint)
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
    stage.report(
        shard.name,
        shard.fingerprint,
        report,
        [f"{split}-{shard.name}.arrow" for split in SPLITS],
        documents_in=before.documents_out,
        documents_out=before.documents_out - len(report.drops),
        masks=sorted(masks),
        has_chats=has_chats,
        seconds=round(time.perf_counter() - began, 3),
    )
    return True


@lru_cache(maxsize=1)
def token_shards(preparation: Preparation) -> list[Shard]:
    """Return the shards of the tokenise stage, which depend on the tokenizer too."""
    setting = preparation.settings(TOKENISE)
    key = digest(TOKENISE.name, TOKENISE.version, setting, _tokenizer_fingerprint(preparation))
    return [
        Shard(shard.name, digest(key, shard.fingerprint)) for shard in preparation.shards(LAST_TEXT_STAGE)
    ]


@lru_cache(maxsize=1)
def _tokeniser(work: Path, _fingerprint: str) -> Tokeniser:
    preparation = Preparation.load(work)
    folder = preparation.stage_folder(TOKENISE.name).path
    return Tokeniser(preparation.corpus, folder / "tokenizer", read_json(folder / ENCODER)["library"])
