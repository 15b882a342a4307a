"""The model that a run trains: the base, from files or from scratch, and PEFT's adapter on it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_config, get_peft_model
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import AutoConfig, AutoModelForCausalLM

from data_prep.shards import TokenizerInfo
from data_prep.user_error import UserError
from finetune.config.train import TrainConfig
from finetune.distributed import World
from finetune.models.load import DTYPES, Model, enlarge, is_partitioned, load, stand_in
from finetune.models.save import save, weights
from finetune.models.tokenizer import FILES, place
from finetune.runs import base_model, layout, shared_bases
from finetune.runs import inputs as run_inputs

if TYPE_CHECKING:
    from finetune.models.zero3 import Partitioner

logger = logging.getLogger(__name__)


def build(config: TrainConfig, tokenizer: TokenizerInfo, merged_base: Path, is_main: bool) -> Model:
    """Return the model to train: on the CPU, the same on every rank; or, under ZeRO-3, partitioned from the
    first tensor on.

    A model from scratch is made whole on every rank at any ZeRO stage, so that it starts from the same random
    numbers; DeepSpeed partitions it later. Such models are small.

    Args:
        tokenizer: the corpus manifest's, for the vocabulary and end of sequence of a model from scratch.
        merged_base: where rank 0 keeps the base of a new adapter if earlier adapters had to be merged into it
            first: an adapter's config names one base on disk, and without them it would be put on other
                weights than it was trained on.

    Raises:
        UserError: the base or the adapter config is wrong; one line says what.
    """
    _check_zero(config.zero)
    partitioner = _partitioner(config)
    dtype = DTYPES[config.precision]
    torch.manual_seed(config.seed)
    added = 0
    if config.model.path is None:
        model = _from_scratch(config.model.from_scratch, tokenizer, dtype)
    else:
        base = base_model.resolve(config.model.path, config.runs_dir, config.model.revision)
        model = load(base, dtype, partitioner=partitioner, quantization=config.model.quantization)
        if base.adapters and config.adapter:
            _keep_merged(model, base.tokenizer_folder, merged_base, is_main)
        added = run_inputs.count_added_tokens(base, config.data.corpus_folder)
        if added:
            enlarge(model, tokenizer.vocab_size, partitioner)
    _check_sizes(model, tokenizer.vocab_size, config.data.sequence_length)
    if config.activation_checkpointing:
        # not re-entrant: the re-entrant kind finds no gradient to compute where the embeddings are frozen
        # under an adapter
        model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    if config.adapter:
        torch.manual_seed(config.seed)  # the same adapter whatever the base drew
        model = _with_adapter(model, config.adapter, partitioner)
        _check_magnitudes(model)
        if added:
            _check_added_tokens_are_trained(model, added)
    if is_partitioned(model):
        from finetune.models import zero3

        zero3.move_unpartitioned_to_device(model, dtype, World().device)
    return model


def check(config: TrainConfig) -> None:
    """What `build` would refuse of a run's base, adapter and corpus together, found out before its job
    starts, without weights.

    Raises:
        UserError: one line that says what is wrong.
    """
    assert config.model.path is not None
    base = base_model.resolve(config.model.path, config.runs_dir, config.model.revision)
    vocab_size = run_inputs.open_corpus(config.data).manifest.tokenizer.vocab_size
    added = run_inputs.count_added_tokens(base, config.data.corpus_folder)
    try:
        model = stand_in(AutoConfig.from_pretrained(base.folder))
    except (ValueError, KeyError, OSError) as fault:
        raise UserError(
            f"model {base.name}: transformers cannot make it: {str(fault).splitlines()[0]}"
        ) from None
    gets_rows = bool(added or base.adapters)  # then it gets those that it lacks
    _check_sizes(model, 0 if gets_rows else vocab_size, config.data.sequence_length)
    if not config.adapter:
        return
    plain = {"init_lora_weights": True} if isinstance(config.adapter.get("init_lora_weights"), str) else {}
    try:
        adapted = _with_adapter(model, {**config.adapter, **plain}, low_cpu_mem_usage=True)
    except (RuntimeError, NotImplementedError, ImportError):  # what cannot be tried so, the job tries
        return
    if added:
        _check_added_tokens_are_trained(adapted, added)


def _partitioner(config: TrainConfig) -> Partitioner | None:
    """Return what cuts the model into the ranks' slices as it is loaded; None below ZeRO-3."""
    if config.zero["stage"] != 3:
        return None
    from finetune.models import zero3

    return zero3.Partitioner(zero3.deepspeed_config(config))


def _check_zero(zero: Mapping[str, Any]) -> None:
    """Refuse what DeepSpeed would refuse in many lines, after the model is loaded, or compile for minutes."""
    if any((zero.get(key) or {}).get("device") == "nvme" for key in ("offload_optimizer", "offload_param")):
        from finetune.models import zero3

        if not zero3.has_async_io():
            raise UserError(
                "zero: offload to nvme needs DeepSpeed's async_io (libaio-dev): choose zero=stage3_offload"
            )
    if torch.cuda.is_available():
        return
    for key in ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients"):
        if zero.get(key):
            raise UserError(
                f"zero.{key} needs CUDA, and this rank sees no GPU: choose zero=stage3, or add zero.{key}=false"
            )
    if (zero.get("offload_optimizer") or {}).get("super_offload"):
        raise UserError(
            "zero.offload_optimizer.super_offload needs CUDA, and this rank sees no GPU: choose zero=stage3_offload"
        )


def _keep_merged(model: Model, tokenizer_folder: Path, folder: Path, is_main: bool) -> None:
    """Save a base with adapters merged into it, and its tokenizer, once, and name the model after that
    folder. Runs of equal merged bases share the files (shared_bases.py)."""
    world = World()
    if not world.broadcast_object(folder.exists()):
        digest = _digest(model, tokenizer_folder, is_main)
        if not world.broadcast_object(is_main and shared_bases.link(folder, digest)):
            temporary = layout.temporary_folder(folder)
            if is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            save(model, weights(model), temporary, is_main)
            if is_main:
                place(tokenizer_folder, temporary)
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
    for path in (tokenizer_folder / file for file in FILES):
        hasher.update(path.read_bytes() if path.is_file() else b"")
    return hasher.hexdigest()[:16]


def _from_scratch(stated: Mapping[str, Any], tokenizer: TokenizerInfo, dtype: torch.dtype) -> Model:
    settings = {
        "vocab_size": tokenizer.vocab_size,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    settings |= stated
    try:
        known = set(AutoConfig.for_model(settings["model_type"]).to_dict())
        if unknown := set(settings) - known - {"bos_token_id", "eos_token_id"}:
            raise ValueError(f"{settings['model_type']} has no setting {', '.join(sorted(unknown))}")
        architecture = AutoConfig.for_model(**settings)
    except (ValueError, TypeError, KeyError) as fault:
        raise UserError(f"model.from_scratch: {fault}") from None
    try:
        model = AutoModelForCausalLM.from_config(architecture, dtype=dtype)
    except ValueError as fault:  # sizes that do not fit together
        raise UserError(f"model.from_scratch: {fault}") from fault
    model.train()
    return model  # type: ignore[no-any-return]


def _check_sizes(model: Model, vocab_size: int, sequence_length: int) -> None:
    rows = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if vocab_size > rows:
        raise UserError(
            f"the corpus' tokenizer has {vocab_size} tokens, the model embeds {rows}: it is not this model's tokenizer"
        )
    text = model.config.get_text_config()  # type: ignore[union-attr, operator]
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        switch = rope.get("original_max_position_embeddings") or getattr(
            text, "original_max_position_embeddings", None
        )
        if switch and sequence_length > switch:
            raise UserError(
                f"data.sequence_length is {sequence_length}: a document of more than {switch} tokens gives all "
                f"others in its row other positions (longrope), so that they do not stand alone: choose at most {switch}"
            )
    if getattr(text, "output_router_logits", False):
        logger.warning(
            "the model's config asks for its routers' auxiliary loss (output_router_logits): it is not trained on"
        )
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and sequence_length > limit:
        raise UserError(
            f"data.sequence_length is {sequence_length}, the model has {limit} positions: choose at most that"
        )


def _with_adapter(
    model: Model, stated: Mapping[str, Any], partitioner: Partitioner | None = None, **settings: Any
) -> Model:
    visible: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if partitioner is not None and is_partitioned(model):
        visible = partitioner.visible_to_peft()
    try:
        with visible:
            adapter = get_peft_config({"task_type": "CAUSAL_LM", **stated})
            if str(getattr(adapter, "init_lora_weights", "")).startswith("pissa_niter"):
                raise ValueError(
                    "init_lora_weights=pissa_niter_… changes the base by chance, at each load anew: choose pissa"
                )
            return get_peft_model(model, adapter, **settings)  # type: ignore[no-any-return]
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as fault:
        raise UserError(f"adapter: PEFT refuses this config: {str(fault).splitlines()[0]}") from None


def _check_magnitudes(model: Model) -> None:
    """DoRA divides each row of a weight by the row's length: one of zeros would be NaN from the first forward
    pass on."""
    rows: dict[str, int] = {}
    for name, module in model.named_modules():
        for magnitude in getattr(module, "lora_magnitude_vector", {}).values():
            if zeros := int((magnitude.weight == 0).sum()):
                rows[name.removeprefix("base_model.model.")] = zeros
    if rows:
        first = next(iter(rows))
        raise UserError(
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
    raise UserError(
        f"the corpus' tokenizer adds {added} tokens to the base's, and the adapter neither trains nor saves their rows in "
        f"{', '.join(frozen)}: add +adapter.modules_to_save={remedy}"
    )
