"""The held-out loss of a model on a corpus: in total, by source and by written standard."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from data_prep.shards import Corpus
from data_prep.user_error import UserError
from finetune.config.train import DataConfig
from finetune.data.packs import PackedData
from finetune.distributed import World
from finetune.models import checks
from finetune.models.load import load_for_evaluation
from finetune.models.packed import PackedModel
from finetune.runs import base_model
from finetune.runs import inputs as run_inputs
from finetune.runs.base_model import Base
from finetune.runs.summary import HeldOut
from finetune.tracking import names


def to_metrics(held_out: HeldOut) -> dict[str, float]:
    """Return the held-out losses by metric name."""
    return {
        names.HELD_OUT_LOSS: held_out.loss,
        **{names.HELD_OUT_LOSS_BY_SOURCE.of(name): loss for name, loss in held_out.by_source.items()},
        **{names.HELD_OUT_LOSS_BY_LANGUAGE.of(name): loss for name, loss in held_out.by_language.items()},
    }


def evaluate_held_out_loss(
    packed: PackedModel,
    data: PackedData,
    micro_batch_size: int,
    unigram_loss: float | None,
    world: World,
    after_batch: Callable[[], None] = lambda: None,
) -> HeldOut | None:
    """Compute the held-out loss of a model on all documents of `data`. All ranks must call this.

    Args:
        unigram_loss: loss of a unigram model on the same documents, copied into the result.
        after_batch: called on all ranks after each batch; it may raise to end the evaluation.

    Returns:
        the losses, on all ranks; None if there are no documents.
    """
    if not data.num_packs:
        return None
    groups = sorted({*zip(data.sources.tolist(), data.languages.tolist(), strict=True)})
    pairs = zip(data.sources, data.languages, strict=True)
    group_of_document = np.asarray([groups.index(pair) for pair in pairs])
    # by group: sum of losses, number of targets
    sums = torch.zeros(len(groups), 2, dtype=torch.float64)
    with torch.no_grad():
        for batch in data.iter_epoch(micro_batch_size):
            losses = packed.losses(batch.to(world.device)).per_token
            documents = batch.documents.ravel()[batch.target_positions.numpy()]
            group = torch.from_numpy(group_of_document[documents])
            sums[:, 0].index_add_(0, group, losses.double().cpu())
            sums[:, 1].index_add_(0, group, torch.ones(len(group), dtype=torch.float64))
            after_batch()
    sums = world.all_reduce_sum(sums.to(world.device)).cpu()
    by_source: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))
    by_language: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))
    for (source, language), pair in zip(groups, sums, strict=True):
        by_source[source] += pair
        by_language[language] += pair
    total = sums.sum(0)
    return HeldOut(
        loss=_mean(total),
        tokens=int(total[1]),
        by_source={name: _mean(pair) for name, pair in sorted(by_source.items()) if pair[1]},
        by_language={name: _mean(pair) for name, pair in sorted(by_language.items()) if pair[1]},
        tokens_by_source={name: int(pair[1]) for name, pair in sorted(by_source.items()) if pair[1]},
        tokens_by_language={name: int(pair[1]) for name, pair in sorted(by_language.items()) if pair[1]},
        unigram_loss=unigram_loss,
    )


def evaluate_on_corpus(path: str, config: DataConfig, runs_dir: str) -> HeldOut:
    """Return the held-out loss of a saved model. It is computed in this process.

    Args:
        path: a model folder, a hub id, run:<run id>, or run:<run id>@<step>.

    Raises:
        NotFoundError: there is no such model or corpus.
        UserError: the tokenizers of model and corpus differ, the corpus has no validation
            documents, or the model or corpus is damaged.
    """
    corpus = Corpus(config.corpus_folder)
    corpus.verify()
    return evaluate_base(base_model.resolve(path, runs_dir), corpus, config)


def evaluate_base(base: Base, corpus: Corpus, config: DataConfig) -> HeldOut:
    """Return the held-out loss of a model on the validation split of a corpus.

    Args:
        corpus: a corpus whose `verify` has been called.

    Raises:
        UserError: the tokenizers of model and corpus differ, or the corpus has no validation
            documents.
    """
    run_inputs.check_tokenizer(base, corpus)
    world = World(rank=0, size=1, local_rank=0)
    packed = PackedModel(load_for_evaluation(base))
    checks.choose_attention(packed, "auto", corpus.manifest.tokenizer.vocab_size, world.device)
    checks.check_target_losses(packed, corpus.manifest.tokenizer.vocab_size, world.device)
    with tempfile.TemporaryDirectory() as plan:
        data = PackedData(
            corpus,
            "validation",
            sources=list(corpus.manifest.sources),
            sequence_length=config.sequence_length,
            long_documents=config.long_documents,
            long_conversations=config.long_conversations,
            shuffle_seed=None,
            plan_folder=Path(plan),
            world=world,
        )
        held_out = evaluate_held_out_loss(packed, data, 4, corpus.manifest.unigram_loss, world)
    if held_out is None:
        raise UserError(
            f"corpus {corpus.folder} has no validation documents; "
            f"prepare it with split.validation_share above 0"
        )
    return held_out


def _mean(pair: torch.Tensor) -> float:
    return float(pair[0] / pair[1])
