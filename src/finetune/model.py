"""The model a run trains: the base, from files or from scratch, and PEFT's adapter on it. Also how it is saved and loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_config, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from finetune import base as base_models
from finetune.attention import ONE_ROW
from finetune.base import Base
from finetune.config import TrainConfig
from finetune.loss import TargetHead

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
        model = load(base, DTYPES[config.precision])
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


def load(base: Base, dtype: torch.dtype | str, device_map: str | None = None) -> Model:
    """A base model from files, its adapters merged.

    Args:
        dtype: "auto" keeps that of the files.
        device_map: "auto" lets accelerate spread the model over all GPUs and the CPU; None leaves it on the CPU.

    Raises:
        ValueError: a weight is missing or has another shape, so that part of the model would be random.
    """
    model, info = AutoModelForCausalLM.from_pretrained(
        base.folder, dtype=dtype, use_safetensors=True,
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
    model = load(base, "auto", device_map="auto")
    model.eval()
    return model


class PackedModel:
    """A causal model on packed documents: the one way in which the model is called.

    Args:
        model: the model, whose LM head is made to give losses (loss.py).
        forward: what to call instead of `model`: DeepSpeed's engine around it.
    """

    def __init__(self, model: Model, forward: Callable[..., Any] | None = None) -> None:
        self.model, self._forward = model, forward or model
        self.head = TargetHead(model)

    @property
    def attention(self) -> str:
        return str(self._base.config._attn_implementation)

    @attention.setter
    def attention(self, implementation: str) -> None:
        self._base.set_attn_implementation(implementation)

    def logits(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Next-token logits: [packs, length] -> [packs, length, vocabulary]. For checks: training never makes them whole."""
        logits: torch.Tensor = self._call(input_ids, position_ids).logits
        return logits.view(*input_ids.shape, -1)

    def losses(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, where: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the losses of the positions `where` of the flattened packs, and each of them: see TargetHead.losses."""
        return self.head.losses(lambda: self._call(input_ids, position_ids), where, targets)

    def _call(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> Any:
        """Documents are told apart by their positions starting at 0 again. transformers masks between them only if it gets
        no attention mask and no cache; either of them would make packs leak, silently."""
        if self.attention in ONE_ROW:
            input_ids, position_ids = input_ids.view(1, -1), position_ids.view(1, -1)
        return self._forward(input_ids=input_ids, position_ids=position_ids, attention_mask=None, use_cache=False)

    @property
    def _base(self) -> Any:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model


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


def is_of_adapter(model: Model, name: str) -> bool:
    """Whether PEFT put the parameter or buffer there: some methods keep what they do not train, such as VeRA's projections."""
    return isinstance(model, PeftModel) and f".{model.base_model.prefix}" in name


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
    model = AutoModelForCausalLM.from_config(architecture, dtype=DTYPES[config.precision])
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
