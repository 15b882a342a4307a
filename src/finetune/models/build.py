"""The model that a run trains: a base, from files or from scratch, and PEFT's adapter on it."""

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
from finetune.models.load import DTYPES, build_placeholder, load
from finetune.models.parameters import Model, enlarge_vocabulary, is_partitioned
from finetune.models.save import gather_weights, save
from finetune.models.tokenizer import FILES, copy_files
from finetune.runs import base_model, layout, shared_bases
from finetune.runs import inputs as run_inputs

if TYPE_CHECKING:
    from finetune.models.zero3 import Partitioner

logger = logging.getLogger(__name__)


def build(config: TrainConfig, tokenizer: TokenizerInfo, merged_base: Path, is_main: bool) -> Model:
    """Build the model to train.

    A model loaded from files is complete on each rank's CPU or, under ZeRO-3, partitioned over the
    ranks. A model from scratch is always complete on each rank's CPU: it is small, so DeepSpeed can
    partition it later, and it then starts from the same random numbers at every ZeRO stage.

    Args:
        tokenizer: from the corpus manifest; sets the vocabulary and end of sequence of a model from
            scratch.
        merged_base: folder for the base with its earlier adapters merged. It is used if the base
            has earlier adapters and a new one is trained: rank 0 saves the merged base here,
            because the config of the new adapter must name the folder of its base.
        is_main: True if this is rank 0.

    Raises:
        UserError: the base, the adapter or the ZeRO settings are wrong.
    """
    _check_zero(config.zero)
    partitioner = _make_partitioner(config)
    dtype = DTYPES[config.precision]
    torch.manual_seed(config.seed)
    num_added = 0
    if config.model.path is None:
        model = _build_from_scratch(config.model.from_scratch, tokenizer, dtype)
    else:
        base = base_model.resolve(config.model.path, config.runs_dir, config.model.revision)
        model = load(base, dtype, partitioner=partitioner, quantization=config.model.quantization)
        if base.adapters and config.adapter:
            _save_merged_base(model, base.tokenizer_folder, merged_base, is_main)
        num_added = run_inputs.count_added_tokens(base, config.data.corpus_folder)
        if num_added:
            enlarge_vocabulary(model, tokenizer.vocab_size, partitioner)
    _check_sizes(model, tokenizer.vocab_size, config.data.sequence_length)
    if config.activation_checkpointing:
        # re-entrant checkpointing computes no gradients if an adapter freezes the embeddings
        model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    if config.adapter:
        # seeded again, so that the adapter does not depend on the random numbers drawn for the base
        torch.manual_seed(config.seed)
        model = _add_adapter(model, config.adapter, partitioner)
        _check_dora_magnitudes(model)
        if num_added:
            _check_added_tokens_are_trained(model, num_added)
    if is_partitioned(model):
        from finetune.models import zero3

        zero3.move_unpartitioned_to_device(model, dtype, World().device)
    return model


def check(config: TrainConfig) -> None:
    """Check before a job starts that a run's base, adapter and corpus fit together.

    No weights are read.

    Raises:
        UserError: they do not fit together. Without this check, `build` would raise the same error
            in the job.
    """
    assert config.model.path is not None
    base = base_model.resolve(config.model.path, config.runs_dir, config.model.revision)
    vocab_size = run_inputs.open_corpus(config.data).manifest.tokenizer.vocab_size
    num_added = run_inputs.count_added_tokens(base, config.data.corpus_folder)
    try:
        model = build_placeholder(AutoConfig.from_pretrained(base.folder))
    except (ValueError, KeyError, OSError) as fault:
        raise UserError(
            f"model {base.name}: transformers cannot build this model: {str(fault).splitlines()[0]}"
        ) from None
    # `build` adds embedding rows to these bases
    is_enlarged = bool(num_added or base.adapters)
    _check_sizes(model, 0 if is_enlarged else vocab_size, config.data.sequence_length)
    if not config.adapter:
        return
    adapter = dict(config.adapter)
    if isinstance(adapter.get("init_lora_weights"), str):
        adapter["init_lora_weights"] = True  # other initialisations read the base's weights
    try:
        adapted = _add_adapter(model, adapter, low_cpu_mem_usage=True)
    except (RuntimeError, NotImplementedError, ImportError):
        return  # this adapter needs real weights or a GPU; `build` checks it in the job
    if num_added:
        _check_added_tokens_are_trained(adapted, num_added)


def _make_partitioner(config: TrainConfig) -> Partitioner | None:
    """Return a partitioner for loading under ZeRO-3; None below stage 3."""
    if config.zero["stage"] != 3:
        return None
    from finetune.models import zero3

    return zero3.Partitioner(zero3.deepspeed_config(config))


def _check_zero(zero: Mapping[str, Any]) -> None:
    """Check settings that DeepSpeed would reject only later, after minutes of loading or compiling.

    Raises:
        UserError: a setting needs a GPU or a library that this rank lacks.
    """
    offloads = [zero.get(key) or {} for key in ("offload_optimizer", "offload_param")]
    if any(offload.get("device") == "nvme" for offload in offloads):
        from finetune.models import zero3

        if not zero3.has_async_io():
            raise UserError(
                "zero: offload to nvme needs DeepSpeed's async_io, which cannot be built here; "
                "install libaio-dev, or choose zero=stage3_offload"
            )
    if torch.cuda.is_available():
        return
    for key in ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients"):
        if zero.get(key):
            raise UserError(
                f"zero.{key}: it needs CUDA, and this rank has no GPU; choose zero=stage3, or add "
                f"zero.{key}=false"
            )
    if (zero.get("offload_optimizer") or {}).get("super_offload"):
        raise UserError(
            "zero.offload_optimizer.super_offload: it needs CUDA, and this rank has no GPU; choose "
            "zero=stage3_offload"
        )


def _save_merged_base(model: Model, tokenizer_folder: Path, folder: Path, is_main: bool) -> None:
    """Save a base with merged adapters and its tokenizer in `folder`; set the model's name to it.

    If the folder exists, an earlier attempt of the run has saved it. Runs with equal merged bases
    share the files (shared_bases.py).
    """
    world = World()
    if not world.broadcast_object(folder.exists()):
        digest = _compute_digest(model, tokenizer_folder, is_main)
        is_linked = is_main and shared_bases.link(folder, digest)
        if not world.broadcast_object(is_linked):
            temporary = layout.temporary_folder(folder)
            if is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            save(model, gather_weights(model), temporary, is_main)
            if is_main:
                copy_files(tokenizer_folder, temporary)
                temporary.rename(folder)
                shared_bases.publish(folder, digest)
    model.name_or_path = str(folder)  # type: ignore[assignment]


def _compute_digest(model: Model, tokenizer_folder: Path, is_main: bool) -> str:
    """Return a digest of a model and its tokenizer; all ranks call it, and only rank 0's is valid."""
    hasher = hashlib.sha256(model.config.to_json_string().encode())  # type: ignore[union-attr, operator]
    for name, tensor in gather_weights(model):
        if is_main:
            hasher.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            hasher.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for path in (tokenizer_folder / file for file in FILES):
        hasher.update(path.read_bytes() if path.is_file() else b"")
    return hasher.hexdigest()[:16]


def _build_from_scratch(
    architecture: Mapping[str, Any], tokenizer: TokenizerInfo, dtype: torch.dtype
) -> Model:
    settings = {
        "vocab_size": tokenizer.vocab_size,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        **architecture,
    }
    try:
        known = set(AutoConfig.for_model(settings["model_type"]).to_dict())
        unknown = set(settings) - known - {"bos_token_id", "eos_token_id"}
        if unknown:
            quoted = ", ".join(f"'{name}'" for name in sorted(unknown))
            raise ValueError(f"unknown setting {quoted} of {settings['model_type']}")
        model_config = AutoConfig.for_model(**settings)
    except (ValueError, TypeError, KeyError) as fault:
        raise UserError(f"model.from_scratch: {fault}") from None
    try:
        model = AutoModelForCausalLM.from_config(model_config, dtype=dtype)
    except ValueError as fault:  # sizes that do not fit together
        raise UserError(f"model.from_scratch: {fault}") from fault
    model.train()
    return model  # type: ignore[no-any-return]


def _check_sizes(model: Model, vocab_size: int, sequence_length: int) -> None:
    """Check that the vocabulary and the sequence length fit the model.

    Raises:
        UserError: the model has too few embedding rows or positions, or a long document would
            change the positions of the others in its pack.
    """
    num_rows = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if vocab_size > num_rows:
        raise UserError(
            f"data.corpus: its tokenizer has {vocab_size} tokens, and the model embeds {num_rows}; "
            "prepare the corpus with the model's own tokenizer (corpus.tokenizer.path)"
        )
    text_config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    rope = getattr(text_config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        limit = rope.get("original_max_position_embeddings")
        limit = limit or getattr(text_config, "original_max_position_embeddings", None)
        if limit and sequence_length > limit:
            raise UserError(
                f"data.sequence_length: {sequence_length} is too long for packs with this model "
                f"(longrope), in which a document of more than {limit} tokens changes the "
                f"positions of all others; choose at most {limit}"
            )
    if getattr(text_config, "output_router_logits", False):
        logger.warning(
            "the model's config asks for its routers' auxiliary loss (output_router_logits), "
            "which is not part of the training loss"
        )
    num_positions = getattr(model.config, "max_position_embeddings", None)
    if num_positions is not None and sequence_length > num_positions:
        raise UserError(
            f"data.sequence_length: {sequence_length} is more than the model's {num_positions} "
            f"positions; choose at most {num_positions}"
        )


def _add_adapter(
    model: Model, settings: Mapping[str, Any], partitioner: Partitioner | None = None, **options: Any
) -> Model:
    """Return PEFT's model with an adapter on `model`.

    Args:
        settings: the adapter's settings (`adapter` in the config).
        partitioner: required if the model is partitioned; PEFT then gathers the weights it reads.
        options: further arguments of peft.get_peft_model.

    Raises:
        UserError: PEFT rejects the settings.
    """
    gathering: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if partitioner is not None and is_partitioned(model):
        gathering = partitioner.let_peft_gather()
    try:
        with gathering:
            adapter = get_peft_config({"task_type": "CAUSAL_LM", **settings})
            if str(getattr(adapter, "init_lora_weights", "")).startswith("pissa_niter"):
                raise ValueError(
                    "init_lora_weights=pissa_niter_… changes the base by random numbers, which "
                    "differ at each load; choose init_lora_weights=pissa"
                )
            return get_peft_model(model, adapter, **options)  # type: ignore[no-any-return]
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as fault:
        raise UserError(f"adapter: PEFT rejects these settings: {str(fault).splitlines()[0]}") from None


def _check_dora_magnitudes(model: Model) -> None:
    """Check that no row of a DoRA weight is all zeros.

    DoRA divides each row by its norm, so a row of zeros gives NaN in the first forward pass.

    Raises:
        UserError: a row is all zeros.
    """
    zero_rows: dict[str, int] = {}
    for name, module in model.named_modules():
        for magnitude in getattr(module, "lora_magnitude_vector", {}).values():
            num_zeros = int((magnitude.weight == 0).sum())
            if num_zeros:
                zero_rows[name.removeprefix("base_model.model.")] = num_zeros
    if zero_rows:
        first = next(iter(zero_rows))
        raise UserError(
            f"adapter: DoRA divides each weight row by its norm, and {sum(zero_rows.values())} "
            f"rows in {len(zero_rows)} modules of this base are all zeros, e.g. {zero_rows[first]} "
            f"in {first}; choose adapter=lora, or leave these modules out of adapter.target_modules"
        )


def _check_added_tokens_are_trained(model: Model, num_added: int) -> None:
    """Check that the adapter trains the embedding rows of added tokens.

    Otherwise these rows stay a mean of the other rows, and the saved adapter lacks them.

    Raises:
        UserError: the adapter does not train the embeddings or the LM head.
    """
    base = model.get_base_model()  # type: ignore[operator]
    embeddings = base.get_input_embeddings()
    head = base.get_output_embeddings()
    matrices = {name: module for name, module in base.named_modules() if module in (embeddings, head)}
    frozen = [name for name, module in matrices.items() if not isinstance(module, AuxiliaryTrainingWrapper)]
    if not frozen:
        return
    own_names = [name.rpartition(".")[2] for name in matrices]
    if base.config.get_text_config().tie_word_embeddings:
        remedy = f"[{own_names[0]}] and +adapter.ensure_weight_tying=true"
    else:
        remedy = f"[{','.join(own_names)}]"
    raise UserError(
        f"adapter: the corpus' tokenizer adds {num_added} tokens to the base's tokenizer, and the "
        f"adapter neither trains nor saves their rows in {', '.join(frozen)}; add "
        f"+adapter.modules_to_save={remedy}"
    )
