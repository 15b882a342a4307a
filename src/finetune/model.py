"""The model a run trains: the base, from files or from scratch, and PEFT's adapter on it. Also how it is saved and loaded."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from peft import PeftModel, get_peft_config, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import logging as transformers_logging

from finetune import base as base_models
from finetune import weights as weight_files
from finetune.attention import ONE_ROW
from finetune.base import Base
from finetune.config import TrainConfig
from finetune.distributed import World
from finetune.loss import TargetHead
from finetune.weights import WeightFiles

transformers_logging.disable_progress_bar()  # a second bar under ours, and noise in the ranks' logs
logger = logging.getLogger(__name__)

Model = torch.nn.Module
_DIGITS = re.compile(r"\d+")
_IN_ADAPTER = re.compile(r"\.(base_layer|original_module)\.")  # what PEFT puts into the names of the base's parameters
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
            _keep_merged(model, merged_base, is_main)
        added = base_models.num_added_tokens(base, config.data.corpus_folder)
        if added:
            enlarge(model, tokenizer["vocab_size"], config)
    _check_sizes(model, config, tokenizer["vocab_size"])
    if config.activation_checkpointing:
        # not re-entrant: the re-entrant kind finds no gradient to compute where the embeddings are frozen under an adapter
        model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    if config.adapter:
        torch.manual_seed(config.seed)  # the same adapter whatever the base drew
        model = _with_adapter(model, config)
        if added:
            _check_added_tokens_are_trained(model, added)
    if _is_partitioned(model):
        from finetune import partition

        partition.settle(model, DTYPES[config.precision], World().device)
    return model


def _check_zero(config: TrainConfig) -> None:
    """What DeepSpeed would refuse in many lines, after the model is loaded, or compile for minutes."""
    zero = config.zero
    if any((zero.get(key) or {}).get("device") == "nvme" for key in ("offload_optimizer", "offload_param")):
        from finetune import partition

        if not partition.has_async_io():
            raise ValueError("zero: offload to nvme needs DeepSpeed's async_io (libaio-dev): choose zero=stage3_offload")
    if torch.cuda.is_available():
        return
    for key in ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients"):
        if zero.get(key):
            raise ValueError(f"zero.{key} needs CUDA, and this rank sees no GPU: choose zero=stage3, or add zero.{key}=false")
    if (zero.get("offload_optimizer") or {}).get("super_offload"):
        raise ValueError("zero.offload_optimizer.super_offload needs CUDA, and this rank sees no GPU: choose zero=stage3_offload")


def load(
    base: Base, dtype: torch.dtype | str, device_map: str | None = None, partition_for: TrainConfig | None = None,
    quantization: str | None = None,
) -> Model:  # fmt: skip
    """A base model from files, its adapters merged.

    Args:
        dtype: "auto" keeps that of the files.
        device_map: "auto" lets accelerate spread the model over all GPUs and the CPU; None leaves it on the CPU.
        partition_for: a run whose ranks load together: under ZeRO-3 each then holds its share only.
        quantization: "nf4" holds the linear layers in 4 bits, on this rank's device; they cannot be trained or merged into.

    Raises:
        ValueError: a weight is missing, has another shape or belongs to no part of the model, so that part would be random.
    """
    if quantization and base.adapters:
        raise ValueError(f"model.quantization: {base.name} is an adapter on a base, and nothing merges into 4 bits: leave it out")
    model = None
    if partition_for is not None and partition_for.zero["stage"] == 3 and torch.distributed.is_initialized():
        model = _load_partitioned(base, partition_for)
    if model is None:
        model = _load_whole(base, dtype, device_map, quantization)
    model.name_or_path = base.name  # type: ignore[assignment]  # what an adapter calls its base; a cache folder means nothing
    for adapter in base.adapters:
        logger.info("merging adapter %s into the base", adapter)
        model = _merge(model, adapter, partition_for).requires_grad_(True)  # PEFT froze it, and leaves it frozen
    model.train()
    return model


def _load_whole(base: Base, dtype: torch.dtype | str, device_map: str | None, quantization: str | None) -> Model:
    settings: dict[str, Any] = {"device_map": device_map}
    if quantization:
        from transformers import BitsAndBytesConfig

        nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": quantization, "bnb_4bit_use_double_quant": True}
        settings = {"quantization_config": BitsAndBytesConfig(**nf4, bnb_4bit_compute_dtype=dtype)}
        settings["device_map"] = {"": World().device}
    model, info = AutoModelForCausalLM.from_pretrained(
        base.folder, dtype=dtype, use_safetensors=True, **settings,
        output_loading_info=True, ignore_mismatched_sizes=True,  # ours to judge: see the next lines
    )  # fmt: skip
    misshapen = [key[0] for key in info["mismatched_keys"]]
    _check_loaded(base, model.state_dict(), info["missing_keys"], misshapen, info["unexpected_keys"])
    return model  # type: ignore[no-any-return]


def _check_loaded(
    base: Base, own: Iterable[str], missing: Iterable[str], misshapen: Iterable[str], unexpected: Iterable[str]
) -> None:
    """Refuse what would be another model than the files'. `own`: the model's names. A tensor that it has no place for is left
    out with a warning if it is of a part that the model has none of (a vision tower), and refused if it is one more of a part
    that it has (layer 31 of 30, a bias): then config.json is of another model."""
    if wrong := sorted({*missing, *misshapen}):
        raise ValueError(
            f"{base.name} lacks {len(wrong)} weights of its kind, e.g. {wrong[0]}: they would be random: get it whole"
        )
    parts = {_part(name) for name in own}
    strange = sorted(unexpected)
    if more := [name for name in strange if _part(name) in parts]:
        raise ValueError(
            f"{base.name} holds {len(more)} weights that its architecture has no place for, e.g. {more[0]}: "
            f"its config.json does not belong to its weights"
        )
    if strange:
        logger.warning("%s: %d weights are not of this architecture and left out, e.g. %s", base.name, len(strange), strange[0])


def _part(name: str) -> str:
    """The module that a tensor belongs to, whatever its number."""
    return _DIGITS.sub("N", name.rpartition(".")[0])


def _load_partitioned(base: Base, config: TrainConfig) -> Model | None:
    """The base with each parameter read by rank 0 and cut into the ranks' slices before the next is read.

    transformers' own way under ZeRO-3 holds the whole model on rank 0, and with other versions left weights random
    (transformers #43257, #45313). Every parameter must come from the files, in its shape.

    Returns:
        None if the files' tensors are not the model's parameters as they are (transformers converts some architectures).
    """
    from finetune import partition

    world, device = World(), World().device
    model = _skeleton(base, DTYPES[config.precision])
    files = WeightFiles(base.folder)  # every rank reads the headers, so that all of them raise what is wrong with them
    if needs_conversion(model, files):
        logger.warning("%s needs transformers' weight conversion: every rank loads it whole before ZeRO-3 cuts it up", base.name)
        return None
    wanted = _tensors(model)
    aliases = {name: first for name, first in _aliases(model).items() if first not in files.shapes}  # a file may have either
    ignored = re.compile("|".join(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ["$^"]))
    _check_loaded(
        base,
        wanted,
        missing=wanted.keys() - files.shapes.keys() - {aliases[name] for name in files.shapes.keys() & aliases.keys()},
        misshapen=[name for name, tensor in wanted.items() if files.shapes.get(name, tensor.shape) != tensor.shape],
        unexpected=[n for n in files.shapes.keys() - wanted.keys() - _aliases(model).keys() if not ignored.search(n)],
    )
    with partition.Partitioner(config)() as partitioned:
        for name, tensor in files if world.is_main else dict.fromkeys(files.shapes).items():
            if (place := aliases.get(name, name)) not in wanted:
                continue
            target = wanted[place]
            if tensor is None:
                tensor = torch.empty(target.shape, dtype=target.dtype, device=device)
            whole = tensor.to(device, target.dtype)
            if isinstance(target, torch.nn.Parameter):
                _replace(model, target, partitioned(whole))
            else:
                torch.distributed.broadcast(whole, 0)
                target.copy_(whole)
    return model


def _skeleton(base: Base, dtype: torch.dtype) -> Model:
    """The model without memory for its parameters; its buffers are computed as always."""
    from accelerate import init_empty_weights

    architecture = AutoConfig.from_pretrained(base.folder)
    with init_empty_weights(include_buffers=False), _EmptyOnMeta():
        model = AutoModelForCausalLM.from_config(architecture, dtype=dtype)
    model.tie_weights()  # moving parameters to no device took them apart
    if (base.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(base.folder)
    return model  # type: ignore[no-any-return]


class _EmptyOnMeta(TorchFunctionMode):
    """Modules allocate weights with torch.empty. accelerate moves them to no device right after, but what malloc gave for them
    stays address space of this process: a quarter of the model was measured."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{**(kwargs or {}), **({"device": "meta"} if func is torch.empty else {})})


def _tensors(model: Model) -> dict[str, torch.Tensor]:
    """Parameters and the buffers that are saved, each once, by the first of its names."""
    buffers = dict(model.named_buffers())
    return {**dict(model.named_parameters()), **{name: buffers[name] for name in model.state_dict() if name in buffers}}


def _aliases(model: Model) -> dict[str, str]:
    """Further names of tied parameters -> their first name."""
    first: dict[int, str] = {}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in every if first.setdefault(id(p), name) != name}


def _replace(model: Model, old: torch.nn.Parameter, new: torch.nn.Parameter) -> None:
    """Put a parameter into every place where another was: tied ones have several."""
    new.requires_grad_(old.requires_grad)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is old:
                module._parameters[name] = new


def needs_conversion(model: Model, files: WeightFiles, names: Iterable[str] | None = None) -> bool:
    """Whether transformers renames, merges or splits any of these tensors before they are this model's parameters."""
    if getattr(model.config, "quantization_config", None) is not None or any(b.is_meta for b in model.buffers()):
        return True
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    own = dict.fromkeys(names or model.state_dict(), True)
    prefix = model.base_model_prefix
    return any(rename_source_key(name, renamings, converters, prefix, own) != (name, None) for name in files.shapes)


def files_to_compare(model: Model, config: TrainConfig) -> tuple[WeightFiles, dict[str, torch.nn.Parameter]] | None:
    """The files of a run's base and, by their names in them, the parameters that must hold the same numbers now.

    Returns:
        None where there is nothing to compare with: from scratch, earlier adapters merged, or weights that were converted.
    """
    if config.model.path is None:
        return None
    base = base_models.resolve(config.model.path, config.runs_dir, config.model.revision)
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    files = WeightFiles(base.folder)
    named = {_IN_ADAPTER.sub(".", name): p for name, p in plain.named_parameters(remove_duplicate=False)}
    if base.adapters or needs_conversion(plain, files, named):
        logger.warning("the weights of %s were merged or converted: they cannot be compared with its files", base.name)
        return None
    return files, {name: named[name] for name in files.shapes if name in named}


def _merge(model: Model, adapter: Path, partition_for: TrainConfig | None) -> Model:
    """The model with an adapter's weights in its own. An adapter trained with added tokens brings its tokenizer: the base gets
    the rows that it had then."""
    if (adapter / "tokenizer.json").is_file():
        enlarge(model, base_models.tokenizer_size(adapter), partition_for)
    if not _is_partitioned(model):
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()  # type: ignore[no-any-return]
    from finetune import partition

    assert partition_for is not None
    with partition.visible_to_peft(partition_for):
        adapted = PeftModel.from_pretrained(model, str(adapter))
    partition.settle(adapted, DTYPES[partition_for.precision], World().device)
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            with partition.gathered(module.get_base_layer().parameters(), modify=True):
                module.merge()
    return adapted.unload()  # type: ignore[no-any-return]


def _keep_merged(model: Model, folder: Path, is_main: bool) -> None:
    """Save a base with adapters merged into it, once, and let it be known by that folder."""
    if not World().from_main(folder.exists()):
        temporary = folder.with_name(f".{folder.name}.tmp")
        save(model, weights(model), temporary, is_main)
        if is_main:
            temporary.rename(folder)
    model.name_or_path = str(folder)  # type: ignore[assignment]


def enlarge(model: Model, rows: int, partition_for: TrainConfig | None) -> None:
    """Give the embeddings and the head at least `rows` rows. New ones are the mean of the old ones: their logits then stay
    inside those that the model gives already (Hewitt 2021, Initializing New Word Embeddings for Pretrained Language Models)."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    if embeddings.num_embeddings >= rows:
        return
    logger.info("enlarging the vocabulary from %d to %d rows", embeddings.num_embeddings, rows)
    owners = [embeddings] if head is None else [embeddings, head]
    for parameter in dict.fromkeys(p for owner in owners for p in owner.parameters()):
        if not _is_partitioned(model):
            _replace(model, parameter, torch.nn.Parameter(_with_mean_rows(parameter.detach(), rows)))
            continue
        from finetune import partition

        assert partition_for is not None
        with partition.gathered([parameter]):
            whole = _with_mean_rows(parameter.detach(), rows)
        with partition.Partitioner(partition_for)() as partitioned:
            _replace(model, parameter, partitioned(whole))
    embeddings.num_embeddings = rows
    if head is not None:
        head.out_features = rows
    model.config.get_text_config().vocab_size = rows  # type: ignore[union-attr, operator]
    if hasattr(model, "vocab_size"):
        model.vocab_size = rows  # type: ignore[assignment]


def _with_mean_rows(old: torch.Tensor, rows: int) -> torch.Tensor:
    """[n, …] -> [rows, …]; the mean is summed in float64 in pieces, so that it is the same on every device and thread count."""
    total = torch.zeros(old.shape[1:], dtype=torch.float64)
    for piece in torch.split(old.cpu(), 4096):
        total += piece.double().sum(0)
    mean = (total / len(old)).to(old)
    return torch.cat([old, mean.expand(rows - len(old), *old.shape[1:])])


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


def weights(model: Model, trainable_only: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole parameters and saved buffers, one at a time: on rank 0's CPU, elsewhere their shapes (meta tensors). Every rank
    must go through all of them: under ZeRO-3 each is gathered, and naive saving writes empty tensors."""
    from finetune import partition

    tensors = _tensors(model).items()
    return partition.whole(
        ((n, t) for n, t in tensors if not trainable_only or t.requires_grad or is_of_adapter(model, n)), World().is_main
    )


def save(model: Model, state: Iterable[tuple[str, torch.Tensor]], folder: Path, is_main: bool = True) -> None:
    """Write a trained model or adapter as safetensors, for transformers or PEFT to load. Every rank calls it, rank 0 writes.

    Args:
        state: whole tensors by parameter name (see `weights`). A model's are written as they come; rank 0 never has them all.
    """
    if isinstance(model, PeftModel) or get_model_conversion_mapping(model, add_legacy=False):
        everything = dict(state)  # an adapter is small; tensors that transformers converts back it must have together
        if is_main and isinstance(model, PeftModel):
            # PEFT looks for tied matrices that it trains under both of their names
            everything |= {name: everything[first] for name, first in _aliases(model).items() if first in everything}
            # save_embedding_layers="auto" would ask the hub whether the vocabulary grew: no network in jobs.
            try:
                model.save_pretrained(str(folder), state_dict=everything, safe_serialization=True, save_embedding_layers=False)
            except (ValueError, KeyError) as fault:
                raise ValueError(f"adapter: PEFT cannot save this one: {' '.join(str(fault).split())[:300]}") from None
        elif is_main:
            model.save_pretrained(str(folder), state_dict=everything)  # type: ignore[operator]
        return
    skipped = set(getattr(model, "_keys_to_ignore_on_save", None) or [])
    tensors = ((name, tensor) for name, tensor in state if name not in skipped)
    if not is_main:
        for _ in tensors:
            pass
        return
    weight_files.write(folder, tensors)
    model.config.dtype = next(model.parameters()).dtype
    model.config.architectures = [type(model).__name__]  # type: ignore[union-attr]
    model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    if model.can_generate():  # type: ignore[operator]
        try:
            model.generation_config.save_pretrained(folder)  # type: ignore[union-attr, operator]
        except ValueError as fault:  # some published models' own settings contradict each other; the weights are what counts
            logger.warning("generation_config.json is not written: %s", str(fault).splitlines()[0])


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
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and config.data.sequence_length > limit:
        raise ValueError(
            f"data.sequence_length is {config.data.sequence_length}, the model knows {limit} positions: choose at most that"
        )


def _with_adapter(model: Model, config: TrainConfig) -> Model:
    visible = contextlib.nullcontext()
    if _is_partitioned(model):
        from finetune import partition

        visible = partition.visible_to_peft(config)  # type: ignore[assignment]
    try:
        with visible:
            adapter = get_peft_config({"task_type": "CAUSAL_LM", **config.adapter})
            return get_peft_model(model, adapter)  # type: ignore[no-any-return]
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as fault:
        raise ValueError(f"adapter: PEFT refuses this config: {str(fault).splitlines()[0]}") from None


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


def _is_partitioned(model: Model) -> bool:
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())
