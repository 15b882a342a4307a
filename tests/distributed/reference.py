"""A plain training loop. Training with finetune must give the same losses and weights.

The loop uses torch alone in one process, and runs the documents one by one, without packing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.shards import Corpus
from finetune.config.train import TrainConfig
from finetune.data.packing import cut_segments, pack
from finetune.models import build as models
from finetune.training.schedule import Schedule


def train(config: TrainConfig, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train; return the losses by step and the final trainable parameters."""
    assert config.max_steps is not None
    corpus = Corpus(config.data.corpus)
    documents = [np.asarray(ids) for ids in corpus.split("train")["input_ids"]]
    lengths = np.asarray([len(ids) for ids in documents])
    plans: dict[int, Any] = {}
    model = models.build(config, corpus.manifest.tokenizer, Path("unused"), is_main=False)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [
        {"params": [p for p in trainable.values() if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_eps)
    sequence_length = config.data.sequence_length
    all_segments = cut_segments(lengths, sequence_length)
    losses = []
    schedule = Schedule.of(config, num_packs=0)
    for step in range(steps):
        pieces = []
        for index in range(step * config.global_batch_size, (step + 1) * config.global_batch_size):
            for epoch in range(index + 1):
                if epoch not in plans:
                    plans[epoch] = pack(all_segments, sequence_length, config.seed, epoch)
                num_packs = plans[epoch]["pack"][-1] + 1
                if index < num_packs:
                    break
                index -= num_packs
            segments = plans[epoch][plans[epoch]["pack"] == index]
            for segment in segments:
                start = segment["start"]
                pieces.append(documents[segment["document"]][start : start + segment["length"]])
        loss_sum = torch.zeros(())
        targets = 0
        for piece in pieces:
            ids = torch.from_numpy(piece).long()[None]
            out = model(input_ids=ids, use_cache=False).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(out.float(), ids[0, 1:], reduction="sum")
            loss_sum = loss_sum + loss
            targets += ids.shape[1] - 1
        optimizer.zero_grad()
        (loss_sum / targets).backward()
        torch.nn.utils.clip_grad_norm_(trainable.values(), config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step)
        optimizer.step()
        losses.append(float(loss_sum / targets))
    return losses, {name: p.detach() for name, p in trainable.items()}
