"""The model a run trains: the base and PEFT's adapter on it, the one way it is called, and how it is saved."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_config, get_peft_model
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping

from finetune.config.train import TrainConfig
from finetune.distributed import World
from finetune.models import safetensors_io as weight_files
from finetune.models import tokenizer as tokenizers
from finetune.models.attention import ONE_ROW
from finetune.models.load import DTYPES, Model, aliases, enlarge, is_partitioned, load, stand_in, tensors
from finetune.models.loss import TargetHead
from finetune.runs import base_model as base_models
from finetune.runs import inputs as run_inputs
from finetune.runs import layout, shared_bases

DESCRIPTION = "description"  # of a checkpoint's model: see describe

logger = logging.getLogger(__name__)


def build(config: TrainConfig, tokenizer: dict[str, Any], merged_base: Path, is_main: bool) -> Model:
    """The model to train: on the CPU, the same on every rank; or, under ZeRO-3, partitioned from the first tensor on.

    A model from scratch is made whole on every rank at any ZeRO stage, so that it starts from the same random numbers; DeepSpeed
    partitions it later. Such models are small.

    Args:
        tokenizer: the corpus manifest's, for the vocabulary and end of sequence of a model from scratch.
        merged_base: where rank 0 keeps the base of a new adapter if earlier adapters had to be merged into it first: an
            adapter's config names one base on disk, and without them it would be put on other weights than it was trained on.

    Raises:
        ValueError: the base or the adapter config is wrong; one line says what.
    """
    _check_zero(config)
    torch.manual_seed(config.seed)
    added = 0
    if config.model.path is None:
        model = _from_scratch(config, tokenizer)
    else:
        base = base_models.resolve(config.model.path, config.runs_dir, config.model.revision)
        model = load(base, DTYPES[config.precision], partition_for=config, quantization=config.model.quantization)
        if base.adapters and config.adapter:
            _keep_merged(model, base.tokenizer_folder, merged_base, is_main)
        added = run_inputs.num_added_tokens(base, config.data.corpus_folder)
        if added:
            enlarge(model, tokenizer["vocab_size"], config)
    _check_sizes(model, config, tokenizer["vocab_size"])
    if config.activation_checkpointing:
        # not re-entrant: the re-entrant kind finds no gradient to compute where the embeddings are frozen under an adapter
        model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    if config.adapter:
        torch.manual_seed(config.seed)  # the same adapter whatever the base drew
        model = _with_adapter(model, config)
        _check_magnitudes(model)
        if added:
            _check_added_tokens_are_trained(model, added)
    if is_partitioned(model):
        from finetune.models import zero3 as partition

        partition.settle(model, DTYPES[config.precision], World().device)
    return model


def check(config: TrainConfig) -> None:
    """What `build` would refuse of a run's base, adapter and corpus together, found out before its job starts, without weights.

    Raises:
        ValueError: one line that says what is wrong.
    """
    assert config.model.path is not None
    base = base_models.resolve(config.model.path, config.runs_dir, config.model.revision)
    vocab_size = run_inputs.open_corpus(config).manifest.tokenizer["vocab_size"]
    added = run_inputs.num_added_tokens(base, config.data.corpus_folder)
    try:
        model = stand_in(AutoConfig.from_pretrained(base.folder))
    except (ValueError, KeyError, OSError) as fault:
        raise ValueError(f"model {base.name}: transformers cannot make it: {str(fault).splitlines()[0]}") from None
    _check_sizes(model, config, 0 if added or base.adapters else vocab_size)  # those get the rows that they lack
    if not config.adapter:
        return
    plain = {"init_lora_weights": True} if isinstance(config.adapter.get("init_lora_weights"), str) else {}
    try:
        adapted = _with_adapter(model, dataclasses.replace(config, adapter={**config.adapter, **plain}), low_cpu_mem_usage=True)
    except (RuntimeError, NotImplementedError, ImportError):  # what cannot be tried so, the job tries
        return
    if added:
        _check_added_tokens_are_trained(adapted, added)


def _check_zero(config: TrainConfig) -> None:
    """What DeepSpeed would refuse in many lines, after the model is loaded, or compile for minutes."""
    zero = config.zero
    if any((zero.get(key) or {}).get("device") == "nvme" for key in ("offload_optimizer", "offload_param")):
        from finetune.models import zero3 as partition

        if not partition.has_async_io():
            raise ValueError("zero: offload to nvme needs DeepSpeed's async_io (libaio-dev): choose zero=stage3_offload")
    if torch.cuda.is_available():
        return
    for key in ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients"):
        if zero.get(key):
            raise ValueError(f"zero.{key} needs CUDA, and this rank sees no GPU: choose zero=stage3, or add zero.{key}=false")
    if (zero.get("offload_optimizer") or {}).get("super_offload"):
        raise ValueError("zero.offload_optimizer.super_offload needs CUDA, and this rank sees no GPU: choose zero=stage3_offload")


def _keep_merged(model: Model, tokenizer_folder: Path, folder: Path, is_main: bool) -> None:
    """Save a base with adapters merged into it, and its tokenizer, once, and name the model after that folder. Runs of equal
    merged bases share the files (shared_bases.py)."""
    world = World()
    if not world.from_main(folder.exists()):
        digest = _digest(model, tokenizer_folder, is_main)
        if not world.from_main(is_main and shared_bases.link(folder, digest)):
            temporary = layout.unfinished(folder)
            if is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            save(model, weights(model), temporary, is_main)
            if is_main:
                tokenizers.place(tokenizer_folder, temporary)
                temporary.rename(folder)
                shared_bases.publish(folder, digest)
    model.name_or_path = str(folder)  # type: ignore[assignment]


def _digest(model: Model, tokenizer_folder: Path, is_main: bool) -> str:
    """Return a digest of all that a saved model consists of, on rank 0; every rank must call it."""
    hasher = hashlib.sha256(model.config.to_json_string().encode())  # type: ignore[union-attr, operator]
    for name, tensor in weights(model):
        if is_main:
            hasher.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            hasher.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for path in (tokenizer_folder / file for file in tokenizers.FILES):
        hasher.update(path.read_bytes() if path.is_file() else b"")
    return hasher.hexdigest()[:16]


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

    @property
    def num_layers(self) -> int:
        return int(self._base.config.get_text_config().num_hidden_layers)

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


def weights(model: Model, trainable_only: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole parameters and saved buffers, one at a time: on rank 0's CPU, elsewhere their shapes (meta tensors). Every rank
    must go through all of them: under ZeRO-3 each is gathered, and naive saving writes empty tensors."""
    from finetune.models import zero3 as partition

    wanted = ((n, t) for n, t in tensors(model).items() if not trainable_only or t.requires_grad or is_of_adapter(model, n))
    return partition.whole(wanted, World().is_main)


def save(model: Model, state: Iterable[tuple[str, torch.Tensor]], folder: Path, is_main: bool = True) -> None:
    """Write a trained model or adapter as safetensors, for transformers or PEFT to load. Every rank calls it, rank 0 writes.

    Args:
        state: whole tensors by parameter name (see `weights`). A model's are written as they come; rank 0 never has them all.
    """
    if isinstance(model, PeftModel) or get_model_conversion_mapping(model, add_legacy=False):
        everything = dict(state)  # an adapter is small; tensors that transformers converts back it must have together
        if is_main and isinstance(model, PeftModel):
            # PEFT looks for tied matrices that it trains under both of their names
            everything |= {name: everything[first] for name, first in aliases(model).items() if first in everything}
            # save_embedding_layers="auto" would ask the hub whether the vocabulary grew: no network in jobs.
            try:
                model.save_pretrained(str(folder), state_dict=everything, safe_serialization=True, save_embedding_layers=False)
            except (ValueError, KeyError) as fault:
                raise ValueError(f"adapter: PEFT cannot save this one: {' '.join(str(fault).split())[:300]}") from None
        elif is_main:
            model.save_pretrained(str(folder), state_dict=everything)  # type: ignore[operator]
        return
    skipped = set(getattr(model, "_keys_to_ignore_on_save", None) or [])
    saved = ((name, tensor) for name, tensor in state if name not in skipped)
    if not is_main:
        for _ in saved:
            pass
        return
    weight_files.write(folder, saved)
    model.config.dtype = next(model.parameters()).dtype
    model.config.architectures = [type(model).__name__]  # type: ignore[union-attr]
    model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    _save_generation_config(model, folder)


def _save_generation_config(model: Model, folder: Path) -> None:
    if model.can_generate():  # type: ignore[operator]
        try:
            model.generation_config.save_pretrained(folder)  # type: ignore[union-attr, operator]
        except ValueError as fault:  # some published models' own settings contradict each other; the weights are what counts
            logger.warning("generation_config.json is not written: %s", str(fault).splitlines()[0])


def describe(model: Model, folder: Path) -> None:
    """Write the model's settings, and its adapter's, so that a checkpoint can be made a model without the run (export.py)."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    plain.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    _save_generation_config(plain, folder)
    if isinstance(model, PeftModel):
        stated = dataclasses.replace(model.active_peft_config)
        stated.inference_mode = True  # as PEFT writes it
        stated.save_pretrained(str(folder))


def is_adapter(model: Model) -> bool:
    return isinstance(model, PeftModel)


def is_of_adapter(model: Model, name: str) -> bool:
    """Whether PEFT put the parameter or buffer there: some methods keep what they do not train, such as VeRA's projections."""
    if not isinstance(model, PeftModel):
        return False
    method = model.active_peft_config.peft_type.value.lower()
    return f".{model.base_model.prefix}" in name or f".{method}_" in name


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
    text = model.config.get_text_config()  # type: ignore[union-attr, operator]
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        switch = rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
        if switch and config.data.sequence_length > switch:
            raise ValueError(
                f"data.sequence_length is {config.data.sequence_length}: a document of more than {switch} tokens gives all "
                f"others in its row other positions (longrope), so that they do not stand alone: choose at most {switch}"
            )
    if getattr(text, "output_router_logits", False):
        logger.warning("the model's config asks for its routers' auxiliary loss (output_router_logits): it is not trained on")
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and config.data.sequence_length > limit:
        raise ValueError(
            f"data.sequence_length is {config.data.sequence_length}, the model knows {limit} positions: choose at most that"
        )


def _with_adapter(model: Model, config: TrainConfig, **settings: Any) -> Model:
    visible = contextlib.nullcontext()
    if is_partitioned(model):
        from finetune.models import zero3 as partition

        visible = partition.visible_to_peft(config)  # type: ignore[assignment]
    try:
        with visible:
            adapter = get_peft_config({"task_type": "CAUSAL_LM", **config.adapter})
            if str(getattr(adapter, "init_lora_weights", "")).startswith("pissa_niter"):
                raise ValueError("init_lora_weights=pissa_niter_… changes the base by chance, at each load anew: choose pissa")
            return get_peft_model(model, adapter, **settings)  # type: ignore[no-any-return]
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as fault:
        raise ValueError(f"adapter: PEFT refuses this config: {str(fault).splitlines()[0]}") from None


def _check_magnitudes(model: Model) -> None:
    """DoRA divides each row of a weight by the row's length: one of zeros would be NaN from the first forward pass on."""
    rows: dict[str, int] = {}
    for name, module in model.named_modules():
        for magnitude in getattr(module, "lora_magnitude_vector", {}).values():
            if zeros := int((magnitude.weight == 0).sum()):
                rows[name.removeprefix("base_model.model.")] = zeros
    if rows:
        first = next(iter(rows))
        raise ValueError(
            f"adapter: DoRA divides each weight row by its length, and {sum(rows.values())} rows in {len(rows)} modules of "
            f"this base are all zeros, e.g. {rows[first]} in {first}: choose adapter=lora, or leave these modules out of "
            f"adapter.target_modules"
        )


def _check_added_tokens_are_trained(model: Model, added: int) -> None:
    """New rows of a frozen matrix stay a mean, and an adapter without them does not say what they were."""
    base = model.get_base_model()  # type: ignore[operator]
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    places = {name: module for name, module in base.named_modules() if module is embeddings or module is head}
    frozen = [name for name, module in places.items() if not isinstance(module, AuxiliaryTrainingWrapper)]
    if not frozen:
        return
    tied = base.config.get_text_config().tie_word_embeddings
    names = ",".join(name.rpartition(".")[2] for name in places)
    remedy = "[embed_tokens] and +adapter.ensure_weight_tying=true" if tied else f"[{names}]"
    remedy = remedy.replace("embed_tokens", next(iter(places)).rpartition(".")[2])
    raise ValueError(
        f"the corpus' tokenizer adds {added} tokens to the base's, and the adapter neither trains nor saves their rows in "
        f"{', '.join(frozen)}: add +adapter.modules_to_save={remedy}"
    )
