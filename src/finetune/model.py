"""The model a run trains: the base, from files or from scratch, and PEFT's adapter on it. Also how it is saved and loaded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_config, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from finetune import base as base_models
from finetune.base import Base
from finetune.config import TrainConfig

transformers_logging.disable_progress_bar()  # a second bar under ours, and noise in the ranks' logs
logger = logging.getLogger(__name__)

Model = torch.nn.Module
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build(config: TrainConfig, tokenizer: dict[str, Any], merged_base: Path, is_main: bool) -> Model:
    """The model to train, on the CPU, the same on every rank.

    Args:
        tokenizer: the corpus manifest's, for the vocabulary and end of sequence of a model from scratch.
        merged_base: where rank 0 keeps the base of a new adapter if earlier adapters had to be merged into it first: an
            adapter's config names one base on disk, and without them it would be put on other weights than it was trained on.

    Raises:
        ValueError: the base or the adapter config is wrong; one line says what.
    """
    torch.manual_seed(config.seed)
    if config.model.path is None:
        model = _from_scratch(config, tokenizer)
    else:
        base = base_models.resolve(config.model.path, config.runs_dir, config.model.revision)
        model = load(base, DTYPES[config.precision], config.model.attention)
        if base.adapters and config.adapter:
            if is_main and not merged_base.exists():
                temporary = merged_base.with_name(f".{merged_base.name}.tmp")
                model.save_pretrained(temporary)  # type: ignore[operator]
                temporary.rename(merged_base)
            model.name_or_path = str(merged_base)  # type: ignore[assignment]
    _check_sizes(model, config, tokenizer["vocab_size"])
    if config.adapter:
        torch.manual_seed(config.seed)  # the same adapter whatever the base drew
        model = _with_adapter(model, config.adapter)
    return model


def load(base: Base, dtype: torch.dtype | str, attention: str, device_map: str | None = None) -> Model:
    """A base model from files, its adapters merged.

    Args:
        dtype: "auto" keeps that of the files.
        device_map: "auto" lets accelerate spread the model over all GPUs and the CPU; None leaves it on the CPU.

    Raises:
        ValueError: a weight is missing or has another shape, so that part of the model would be random.
    """
    model, info = AutoModelForCausalLM.from_pretrained(
        base.folder, dtype=dtype, attn_implementation=attention, use_safetensors=True,
        device_map=device_map, output_loading_info=True, ignore_mismatched_sizes=True,  # ours to judge: see the next lines
    )  # fmt: skip
    if wrong := [*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])]:
        raise ValueError(
            f"{base.name} lacks {len(wrong)} weights of its kind, e.g. {sorted(wrong)[0]}: they would be random: get it whole"
        )
    model.name_or_path = base.name  # what an adapter will call its base; a cache folder means nothing elsewhere
    for adapter in base.adapters:
        logger.info("merging adapter %s into the base", adapter)
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    model.train()
    return model  # type: ignore[no-any-return]


def load_for_evaluation(base: Base) -> Model:
    """A base model, its adapters merged, in evaluation mode and its own precision, spread over the devices at hand."""
    model = load(base, "auto", "sdpa", device_map="auto")
    model.eval()
    return model


def logits(model: Model, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """Next-token logits of packed documents: [packs, length] -> [packs, length, vocabulary].

    Documents in a pack are told apart by their positions starting at 0 again. transformers masks between them only if it
    gets no attention mask and no cache; either of them would make packs leak, silently.
    """
    output = model(input_ids=input_ids, position_ids=position_ids, attention_mask=None, use_cache=False)
    return output.logits  # type: ignore[no-any-return]


def save(model: Model, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write a trained model or adapter as safetensors, for transformers or PEFT to load.

    Args:
        state: whole tensors by parameter name, gathered from all ranks (see Engine.state_on_main).
    """
    if isinstance(model, PeftModel):
        # save_embedding_layers="auto" would ask the hub whether the vocabulary grew: no network in jobs.
        model.save_pretrained(str(folder), state_dict=state, safe_serialization=True, save_embedding_layers=False)
    else:
        model.save_pretrained(str(folder), state_dict=dict(state))  # type: ignore[operator]  # it empties the dict it gets


def is_adapter(model: Model) -> bool:
    return isinstance(model, PeftModel)


def _from_scratch(config: TrainConfig, tokenizer: dict[str, Any]) -> Model:
    settings = {"vocab_size": tokenizer["vocab_size"], "eos_token_id": tokenizer["eos_token_id"], "bos_token_id": None}
    settings |= config.model.from_scratch
    try:
        known = set(AutoConfig.for_model(settings["model_type"]).to_dict())
        if unknown := set(settings) - known - {"bos_token_id", "eos_token_id"}:
            raise ValueError(f"{settings['model_type']} has no setting {', '.join(sorted(unknown))}")
        architecture = AutoConfig.for_model(**settings)
    except (ValueError, TypeError, KeyError) as fault:
        raise ValueError(f"model.from_scratch: {fault}") from None
    model = AutoModelForCausalLM.from_config(
        architecture, dtype=DTYPES[config.precision], attn_implementation=config.model.attention
    )
    model.train()
    return model  # type: ignore[no-any-return]


def _check_sizes(model: Model, config: TrainConfig, vocab_size: int) -> None:
    rows = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if vocab_size > rows:
        raise ValueError(
            f"the corpus' tokenizer has {vocab_size} tokens, the model embeds {rows}: it is not this model's tokenizer"
        )
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and config.data.sequence_length > limit:
        raise ValueError(
            f"data.sequence_length is {config.data.sequence_length}, the model knows {limit} positions: choose at most that"
        )


def _with_adapter(model: Model, settings: dict[str, Any]) -> Model:
    try:
        return get_peft_model(model, get_peft_config({"task_type": "CAUSAL_LM", **settings}))  # type: ignore[no-any-return]
    except (ValueError, TypeError, KeyError) as fault:
        raise ValueError(f"adapter: PEFT refuses this config: {str(fault).splitlines()[0]}") from None
