"""A base model from files: read whole, or under ZeRO-3 cut into the ranks' slices as it is read. Also the
adapters that earlier runs put on it, merged, and more rows for added tokens.

DeepSpeed is imported where a model turns out to be partitioned: its import takes seconds, and evaluation
needs none of it.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import logging as transformers_logging

from data_prep.user_error import UserError
from finetune.distributed import World
from finetune.models import end_of_turn
from finetune.models.safetensors_io import WeightFiles
from finetune.runs import inputs as run_inputs
from finetune.runs.base_model import Base

if TYPE_CHECKING:
    from finetune.models.zero3 import Partitioner

transformers_logging.disable_progress_bar()  # a second bar under ours, and noise in the ranks' logs
logger = logging.getLogger(__name__)

Model = torch.nn.Module
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_DIGITS = re.compile(r"\d+")
_IN_ADAPTER = re.compile(
    r"\.(base_layer|original_module)\."
)  # what PEFT puts into the names of the base's parameters


def load(
    base: Base,
    dtype: torch.dtype | str,
    device_map: str | None = None,
    partitioner: Partitioner | None = None,
    quantization: str | None = None,
) -> Model:
    """A base model from files, its adapters merged.

    Args:
        dtype: "auto" keeps that of the files.
        device_map: "auto" lets accelerate spread the model over all GPUs and the CPU; None leaves it on the
            CPU.
        partitioner: under ZeRO-3, of a run whose ranks load together: each then holds its share only.
        quantization: "nf4" holds the linear layers in 4 bits, on this rank's device; they cannot be trained
            or merged into.

    Raises:
        UserError: a weight is missing, has another shape or belongs to no part of the model, so that part
            would be random.
    """
    if quantization and base.adapters:
        raise UserError(
            f"model.quantization: {base.name} is an adapter on a base, and nothing merges into 4 bits: leave it out"
        )
    model = None
    if partitioner is not None and torch.distributed.is_initialized():
        model = _load_partitioned(base, dtype, partitioner)
    if model is None:
        model = _load_whole(base, dtype, device_map, quantization)
    model.name_or_path = base.name  # type: ignore[assignment]  # what an adapter calls its base; a cache folder means nothing
    for adapter in base.adapters:
        logger.info("merging adapter %s into the base", adapter)
        model = _merge(model, adapter, partitioner).requires_grad_(
            True
        )  # PEFT froze it, and leaves it frozen
        end_of_turn.inherit(model, adapter)
    model.train()
    return model


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Raise UserError where a library refuses a model's files: it would do so again however often a job is
    restarted."""
    try:
        yield
    except UserError:
        raise
    except ValueError as fault:
        raise UserError(f"{what}: {(str(fault).splitlines() or [type(fault).__name__])[0]}") from fault


def load_for_evaluation(base: Base) -> Model:
    """A base model, its adapters merged, in evaluation mode and its own precision, spread over the devices at
    hand."""
    model = load(base, "auto", device_map="auto")
    model.eval()
    return model


def _load_whole(
    base: Base, dtype: torch.dtype | str, device_map: str | None, quantization: str | None
) -> Model:
    settings: dict[str, Any] = {"device_map": device_map}
    if quantization:
        from transformers import BitsAndBytesConfig

        nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": quantization, "bnb_4bit_use_double_quant": True}
        settings = {"quantization_config": BitsAndBytesConfig(**nf4, bnb_4bit_compute_dtype=dtype)}
        settings["device_map"] = {"": World().device}
    # weights of other sizes are ours to judge: see the next lines
    settings |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with _explained(f"model {base.name}: transformers cannot load it"):
        model, info = AutoModelForCausalLM.from_pretrained(
            base.folder, dtype=dtype, use_safetensors=True, **settings
        )
    misshapen = [key[0] for key in info["mismatched_keys"]]
    _check_loaded(base, model.state_dict(), info["missing_keys"], misshapen, info["unexpected_keys"])
    return model  # type: ignore[no-any-return]


def _check_loaded(
    base: Base,
    own: Iterable[str],
    missing: Iterable[str],
    misshapen: Iterable[str],
    unexpected: Iterable[str],
) -> None:
    """Refuse what would be another model than the files'. `own`: the model's names. A tensor that it has no
    place for is left out with a warning if it is of a part that the model has none of (a vision tower), and
    refused if it is one more of a part that it has (layer 31 of 30, a bias): then config.json is of another
    model."""
    if wrong := sorted({*missing, *misshapen}):
        raise UserError(
            f"{base.name} lacks {len(wrong)} weights of its kind, e.g. {wrong[0]}: they would be random: get it whole"
        )
    parts = {_part(name) for name in own}
    strange = sorted(unexpected)
    if more := [name for name in strange if _part(name) in parts]:
        raise UserError(
            f"{base.name} holds {len(more)} weights that its architecture has no place for, e.g. {more[0]}: "
            f"its config.json does not belong to its weights"
        )
    if strange:
        logger.warning(
            "%s: %d weights are not of this architecture and left out, e.g. %s",
            base.name,
            len(strange),
            strange[0],
        )


def _part(name: str) -> str:
    """The module that a tensor belongs to, whatever its number."""
    return _DIGITS.sub("N", name.rpartition(".")[0])


def _load_partitioned(base: Base, dtype: torch.dtype | str, partitioner: Partitioner) -> Model | None:
    """The base with each parameter read by rank 0 and cut into the ranks' slices before the next is read.

    transformers' own way under ZeRO-3 holds the whole model on rank 0, and with other versions left weights
    random (transformers #43257, #45313). Every parameter must come from the files, in its shape.

    Returns:
        None if the files' tensors are not the model's parameters as they are (transformers converts some
        architectures).
    """
    world, device = World(), World().device
    model = _skeleton(base, dtype)
    files = WeightFiles(
        base.folder
    )  # every rank reads the headers, so that all of them raise what is wrong with them
    if needs_conversion(model, files):
        logger.warning(
            "%s needs transformers' weight conversion: every rank loads it whole before ZeRO-3 cuts it up",
            base.name,
        )
        return None
    wanted = tensors(model)
    ties = aliases(model)
    places = {
        name: first for name, first in ties.items() if first not in files.shapes
    }  # a file may have either
    ignored = re.compile("|".join(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ["$^"]))
    _check_loaded(
        base,
        wanted,
        missing=wanted.keys()
        - files.shapes.keys()
        - {places[name] for name in files.shapes.keys() & places.keys()},
        misshapen=[
            name for name, tensor in wanted.items() if files.shapes.get(name, tensor.shape) != tensor.shape
        ],
        unexpected=[n for n in files.shapes.keys() - wanted.keys() - ties.keys() if not ignored.search(n)],
    )
    with partitioner.partition() as partitioned:
        for name, tensor in files if world.is_main else dict.fromkeys(files.shapes).items():
            if (place := places.get(name, name)) not in wanted:
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


def _skeleton(base: Base, dtype: torch.dtype | str) -> Model:
    """The model without memory for its parameters; its buffers are computed as always."""
    from accelerate import init_empty_weights

    with (
        _explained(f"model {base.name}: transformers cannot load it"),
        init_empty_weights(include_buffers=False),
        _EmptyOnMeta(),
    ):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.folder), dtype=dtype)
    model.tie_weights()  # moving parameters to no device took them apart
    if (base.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(base.folder)
    return model  # type: ignore[no-any-return]


def stand_in(architecture: PretrainedConfig, writable: bool = False) -> Model:
    """A model of which every matrix is one zero, spread out: it takes no memory to speak of.

    Args:
        writable: give each weight its own memory after all.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            spread = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            if writable or parameter.ndim < 2:  # an adapter may bring biases
                spread = spread.clone()
            setattr(module, name, torch.nn.Parameter(spread, requires_grad=False))
    return model  # type: ignore[no-any-return]


class _EmptyOnMeta(TorchFunctionMode):
    """Modules allocate weights with torch.empty. accelerate moves them to no device right after, but what
    malloc gave for them stays address space of this process: a quarter of the model was measured."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{**(kwargs or {}), **({"device": "meta"} if func is torch.empty else {})})


def needs_conversion(model: Model, files: WeightFiles, names: Iterable[str] | None = None) -> bool:
    """Whether transformers renames, merges or splits any of these tensors before they are this model's
    parameters."""
    if getattr(model.config, "quantization_config", None) is not None or any(
        b.is_meta for b in model.buffers()
    ):
        return True
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    own = dict.fromkeys(names or model.state_dict(), True)
    prefix = model.base_model_prefix
    return any(
        rename_source_key(name, renamings, converters, prefix, own) != (name, None) for name in files.shapes
    )


def files_to_compare(
    model: Model, base: Base | None
) -> tuple[WeightFiles, dict[str, torch.nn.Parameter]] | None:
    """Return the files of a run's base and, by their names in them, the parameters that must hold the same
    numbers now.

    Returns:
        None where there is nothing to compare with: from scratch, earlier adapters merged, or weights that
            were converted.
    """
    if base is None:
        return None
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    files = WeightFiles(base.folder)
    named = {_IN_ADAPTER.sub(".", name): p for name, p in plain.named_parameters(remove_duplicate=False)}
    if base.adapters or needs_conversion(plain, files, named):
        logger.warning(
            "the weights of %s were merged or converted: they cannot be compared with its files", base.name
        )
        return None
    changed = _changed_by_adapter(model)
    if changed:
        logger.warning(
            "the adapter's start changes %d weights of the base: they are not compared with its files",
            len(changed),
        )
    return files, {name: named[name] for name in files.shapes if name in named.keys() - changed}


def _changed_by_adapter(model: Model) -> set[str]:
    """Weights that PiSSA or OLoRA (init_lora_weights) take their start out of, by their names in the base."""
    start = (
        getattr(model.active_peft_config, "init_lora_weights", None) if isinstance(model, PeftModel) else None
    )
    if not str(start).lower().startswith(("pissa", "olora")):
        return set()
    plain = model.get_base_model()  # type: ignore[operator]
    return {f"{name}.weight" for name, module in plain.named_modules() if isinstance(module, BaseTunerLayer)}


def _merge(model: Model, adapter: Path, partitioner: Partitioner | None) -> Model:
    """Return the model with an adapter's weights in its own.

    An adapter trained with added tokens brings its tokenizer: the base gets the rows that it had then.
    """
    if (adapter / "tokenizer.json").is_file():
        enlarge(model, run_inputs.tokenizer_size(adapter), partitioner)
    if not is_partitioned(model):
        with _explained(f"adapter {adapter}: PEFT cannot load it"):
            adapted = PeftModel.from_pretrained(model, str(adapter))
        _untie(adapted, partitioner)
        return adapted.merge_and_unload()  # type: ignore[no-any-return]
    from finetune.models import zero3

    assert partitioner is not None
    dtype = next(model.parameters()).dtype
    with partitioner.visible_to_peft(), _explained(f"adapter {adapter}: PEFT cannot load it"):
        adapted = PeftModel.from_pretrained(model, str(adapter))
    _untie(adapted, partitioner)
    zero3.move_unpartitioned_to_device(adapted, dtype, World().device)
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            with zero3.gathered(module.get_base_layer().parameters(), modify=True):
                module.merge()
    return adapted.unload()  # type: ignore[no-any-return]


def _untie(adapted: PeftModel, partitioner: Partitioner | None) -> None:
    """Give a layer that an adapter changes a matrix of its own, if it shares one: merged into a tied matrix,
    the embeddings' change would be the head's too."""
    places: dict[int, int] = {}
    for module in adapted.modules():
        for parameter in module._parameters.values():
            places[id(parameter)] = places.get(id(parameter), 0) + 1
    for module in adapted.modules():
        weight = (
            getattr(module.get_base_layer(), "weight", None) if isinstance(module, BaseTunerLayer) else None
        )
        if weight is None or places.get(id(weight), 0) < 2:
            continue
        if is_partitioned(adapted):
            from finetune.models import zero3

            assert partitioner is not None
            with zero3.gathered([weight]):
                whole = weight.detach().clone()
            with partitioner.partition() as partitioned:
                module.get_base_layer().weight = partitioned(whole).requires_grad_(weight.requires_grad)
        else:
            module.get_base_layer().weight = torch.nn.Parameter(weight.detach().clone(), weight.requires_grad)
        config = adapted.get_base_model().config
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False


def enlarge(model: Model, rows: int, partitioner: Partitioner | None) -> None:
    """Give the embeddings and the head at least `rows` rows. New ones are the mean of the old ones: their
    logits then stay inside those that the model gives already (Hewitt 2021, Initializing New Word Embeddings
    for Pretrained Language Models)."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    if embeddings.num_embeddings >= rows:
        return
    logger.info("enlarging the vocabulary from %d to %d rows", embeddings.num_embeddings, rows)
    owners = [embeddings] if head is None else [embeddings, head]
    for parameter in dict.fromkeys(p for owner in owners for p in owner.parameters()):
        if not is_partitioned(model):
            _replace(model, parameter, torch.nn.Parameter(_with_mean_rows(parameter.detach(), rows)))
            continue
        from finetune.models import zero3

        assert partitioner is not None
        with zero3.gathered([parameter]):
            whole = _with_mean_rows(parameter.detach(), rows)
        with partitioner.partition() as partitioned:
            _replace(model, parameter, partitioned(whole))
    embeddings.num_embeddings = rows
    if head is not None:
        head.out_features = rows
    model.config.get_text_config().vocab_size = rows  # type: ignore[union-attr, operator]
    if hasattr(model, "vocab_size"):
        model.vocab_size = rows  # type: ignore[assignment]


def _with_mean_rows(old: torch.Tensor, rows: int) -> torch.Tensor:
    """[n, …] -> [rows, …]; the mean is summed in float64 in pieces, so that it is the same on every device
    and thread count."""
    total = torch.zeros(old.shape[1:], dtype=torch.float64)
    for piece in torch.split(old.cpu(), 4096):
        total += piece.double().sum(0)
    mean = (total / len(old)).to(old)
    return torch.cat([old, mean.expand(rows - len(old), *old.shape[1:])])


def tensors(model: Model) -> dict[str, torch.Tensor]:
    """Parameters and the buffers that are saved, each once, by the first of its names."""
    buffers = dict(model.named_buffers())
    return {
        **dict(model.named_parameters()),
        **{name: buffers[name] for name in model.state_dict() if name in buffers},
    }


def aliases(model: Model) -> dict[str, str]:
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


def is_partitioned(model: Model) -> bool:
    """Return whether the model is under ZeRO-3: by DeepSpeed's mark, which zero3.py explains."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())
