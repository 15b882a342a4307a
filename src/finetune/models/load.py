"""Loading of base models from files; under ZeRO-3 each tensor is partitioned when it is read.

If a base has adapters from earlier runs, they are merged into it.

DeepSpeed is imported only where a model is partitioned, because the import takes seconds and an
evaluation does not need it.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections import Counter
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
from finetune.models.parameters import (
    Model,
    enlarge_vocabulary,
    is_partitioned,
    named_tensors,
    replace_parameter,
    tied_names,
)
from finetune.models.safetensors_io import WeightFiles
from finetune.runs import inputs as run_inputs
from finetune.runs.base_model import Base

if TYPE_CHECKING:
    from finetune.models.zero3 import Partitioner

# transformers' progress bar would clutter the logs of all ranks
transformers_logging.disable_progress_bar()
logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_DIGITS = re.compile(r"\d+")
# PEFT inserts these into the names of the base's parameters
_PEFT_INFIX = re.compile(r"\.(base_layer|original_module)\.")


def load(
    base: Base,
    dtype: torch.dtype | str,
    device_map: str | None = None,
    partitioner: Partitioner | None = None,
    quantization: str | None = None,
) -> Model:
    """Load a base model from files, and merge its adapters.

    Args:
        dtype: the parameters' dtype; "auto" keeps that of the files.
        device_map: "auto" spreads the model over all GPUs and the CPU; None loads it on the CPU.
        partitioner: partitions the model for ZeRO-3. All ranks then load the model together, and
            each keeps only its share.
        quantization: "nf4" stores the linear layers in 4 bits on this rank's device. Such layers
            cannot be trained, and no adapter can be merged into them.

    Raises:
        UserError: the files cannot be read or do not fit the model, or a base with adapters is to
            be quantized.
    """
    if quantization and base.adapters:
        raise UserError(
            f"model.quantization: {base.name} is an adapter on a base, and an adapter cannot be "
            "merged into 4-bit weights; remove model.quantization"
        )
    model = None
    if partitioner is not None and torch.distributed.is_initialized():
        model = _load_partitioned(base, dtype, partitioner)
    if model is None:
        model = _load_complete(base, dtype, device_map, quantization)
    # new adapters store this name to identify their base, which a cache folder's path would not
    model.name_or_path = base.name  # type: ignore[assignment]
    for adapter in base.adapters:
        logger.info("merging adapter %s into the base", adapter)
        model = _merge_adapter(model, adapter, partitioner)
        model.requires_grad_(True)  # PEFT froze the base's weights
        end_of_turn.inherit(model, adapter)
    model.train()
    return model


@contextlib.contextmanager
def _as_user_error(problem: str) -> Iterator[None]:
    """Turn a library's ValueError into a UserError, so that the job is not restarted.

    Args:
        problem: start of the error message.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as fault:
        first_line = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise UserError(f"{problem}: {first_line}") from fault


def load_for_evaluation(base: Base) -> Model:
    """Load a base for evaluation, spread over all devices, in the precision of its files."""
    model = load(base, "auto", device_map="auto")
    model.eval()
    return model


def _load_complete(
    base: Base, dtype: torch.dtype | str, device_map: str | None, quantization: str | None
) -> Model:
    settings: dict[str, Any] = {"device_map": device_map}
    if quantization:
        from transformers import BitsAndBytesConfig

        nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": quantization, "bnb_4bit_use_double_quant": True}
        settings = {"quantization_config": BitsAndBytesConfig(**nf4, bnb_4bit_compute_dtype=dtype)}
        settings["device_map"] = {"": World().device}
    # weights of another shape raise no error here, because _check_loaded reports them
    settings |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with _as_user_error(f"model {base.name}: transformers cannot load it"):
        model, info = AutoModelForCausalLM.from_pretrained(
            base.folder, dtype=dtype, use_safetensors=True, **settings
        )
    _check_loaded(
        base,
        own=model.state_dict(),
        missing=info["missing_keys"],
        misshapen=[key[0] for key in info["mismatched_keys"]],
        unexpected=info["unexpected_keys"],
    )
    return model  # type: ignore[no-any-return]


def _check_loaded(
    base: Base,
    own: Iterable[str],
    missing: Iterable[str],
    misshapen: Iterable[str],
    unexpected: Iterable[str],
) -> None:
    """Check that the files contain all tensors of the model, and none that its modules lack.

    The files may contain a tensor that the model lacks. If the model also lacks the tensor's
    module, such as a vision tower, the tensor is ignored with a warning. If the model has the
    module, config.json belongs to another model. Examples are a bias that the model's layers lack,
    and layer 31 for a model with 30 layers.

    Args:
        own: names of the model's tensors.
        missing: names of tensors that the files lack.
        misshapen: names of tensors that have another shape in the files.
        unexpected: names of tensors in the files that the model lacks.

    Raises:
        UserError: tensors are missing or misshapen, or unexpected in a module that the model has.
    """
    absent = sorted({*missing, *misshapen})
    if absent:
        raise UserError(
            f"model {base.name}: {len(absent)} weights are missing or have another shape, e.g. "
            f"{absent[0]}, and would be random; download the model again"
        )
    modules = {_module_kind(name) for name in own}
    foreign = sorted(unexpected)
    surplus = [name for name in foreign if _module_kind(name) in modules]
    if surplus:
        raise UserError(
            f"model {base.name}: {len(surplus)} weights have no place in its architecture, e.g. "
            f"{surplus[0]}, so its config.json does not belong to its weights; download the model "
            "again"
        )
    if foreign:
        logger.warning(
            "%s: %d weights do not belong to its architecture and are ignored, e.g. %s",
            base.name,
            len(foreign),
            foreign[0],
        )


def _module_kind(name: str) -> str:
    """Return the path of a tensor's module with N in place of each number.

    It is then the same for the corresponding modules of all layers.
    """
    return _DIGITS.sub("N", name.rpartition(".")[0])


def _load_partitioned(base: Base, dtype: torch.dtype | str, partitioner: Partitioner) -> Model | None:
    """Load the base tensor by tensor: rank 0 reads a tensor, and every rank keeps its slice.

    transformers' own loading under ZeRO-3 holds the full model on rank 0, and some versions left
    weights random (transformers #43257, #45313). Here every parameter must be in the files, with
    its shape.

    Returns:
        The model; None if transformers must convert the tensors of this architecture.

    Raises:
        UserError: the files cannot be read or do not fit the model.
    """
    world = World()
    model = _build_skeleton(base, dtype)
    # every rank reads the headers, so that all ranks raise the error if a file is damaged
    files = WeightFiles(base.folder)
    if needs_conversion(model, files):
        logger.warning(
            "%s: transformers converts its weights, so every rank loads the full model before it "
            "is partitioned",
            base.name,
        )
        return None
    wanted = named_tensors(model)
    ties = tied_names(model)
    # files may contain a tied parameter under any of its names
    first_names = {name: first for name, first in ties.items() if first not in files.shapes}
    in_files = files.shapes.keys()
    ignored = re.compile("|".join(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ["$^"]))
    found_by_tie = {first_names[name] for name in in_files & first_names.keys()}
    unknown = in_files - wanted.keys() - ties.keys()
    _check_loaded(
        base,
        own=wanted,
        missing=wanted.keys() - in_files - found_by_tie,
        misshapen=[
            name for name, tensor in wanted.items() if files.shapes.get(name, tensor.shape) != tensor.shape
        ],
        unexpected=[name for name in unknown if not ignored.search(name)],
    )
    # only rank 0 reads the tensors; the other ranks need their names and shapes
    named: Iterator[tuple[str, torch.Tensor | None]]
    named = iter(files) if world.is_main else iter(dict.fromkeys(files.shapes).items())
    with partitioner.partition() as partition:
        for name_in_file, tensor in named:
            name = first_names.get(name_in_file, name_in_file)
            if name not in wanted:
                continue
            target = wanted[name]
            if tensor is None:
                tensor = torch.empty(target.shape, dtype=target.dtype, device=world.device)
            full = tensor.to(world.device, target.dtype)
            if isinstance(target, torch.nn.Parameter):
                replace_parameter(model, target, partition(full))
            else:
                torch.distributed.broadcast(full, 0)
                target.copy_(full)
    return model


def _build_skeleton(base: Base, dtype: torch.dtype | str) -> Model:
    """Build the model with parameters on the meta device and with complete buffers."""
    from accelerate import init_empty_weights

    with (
        _as_user_error(f"model {base.name}: transformers cannot load it"),
        init_empty_weights(include_buffers=False),
        _EmptyOnMeta(),
    ):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.folder), dtype=dtype)
    model.tie_weights()  # the move to the meta device untied the weights
    if (base.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(base.folder)
    return model  # type: ignore[no-any-return]


def build_placeholder(architecture: PretrainedConfig, writable: bool = False) -> Model:
    """Build a model whose matrices are all zeros and take almost no memory.

    Args:
        writable: True to give each weight its own memory, so that it can be changed.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            expanded = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            if writable or parameter.ndim < 2:  # adapters with trained biases write into these
                expanded = expanded.clone()
            setattr(module, name, torch.nn.Parameter(expanded, requires_grad=False))
    return model  # type: ignore[no-any-return]


class _EmptyOnMeta(TorchFunctionMode):
    """Mode in which torch.empty allocates on the meta device.

    It spares the memory of a model that is built without values. torch's modules allocate their
    weights with torch.empty, and accelerate moves the weights to the meta device only afterwards.
    Without this mode, freed memory stayed in the process' address space: a quarter of the model's
    size was measured.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def needs_conversion(model: Model, files: WeightFiles, names: Iterable[str] | None = None) -> bool:
    """Return whether transformers renames, merges or splits the files' tensors when it loads them.

    Also return True if the model is quantized or has buffers on the meta device.

    Args:
        files: the files from which `model` is loaded.
        names: names of the model's tensors; by default those in its state dict.
    """
    is_quantized = getattr(model.config, "quantization_config", None) is not None
    if is_quantized or any(buffer.is_meta for buffer in model.buffers()):
        return True
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    own = dict.fromkeys(names or model.state_dict(), True)
    prefix = model.base_model_prefix
    for name in files.shapes:
        if rename_source_key(name, renamings, converters, prefix, own) != (name, None):
            return True
    return False


def match_base_files(
    model: Model, base: Base | None
) -> tuple[WeightFiles, dict[str, torch.nn.Parameter]] | None:
    """Return the files of a run's base, and the parameters that must equal their tensors.

    Args:
        base: the base; None for a model from scratch.

    Returns:
        The files, and the parameters by their names in the files. None if there is nothing to
        compare: the model is built from scratch, its weights were converted, or adapters were
        merged into them.
    """
    if base is None:
        return None
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    files = WeightFiles(base.folder)
    named = {_PEFT_INFIX.sub(".", name): p for name, p in plain.named_parameters(remove_duplicate=False)}
    if base.adapters or needs_conversion(plain, files, named):
        logger.warning(
            "%s: its weights were merged or converted, so they are not compared with its files", base.name
        )
        return None
    changed = _find_weights_changed_by_adapter(model)
    if changed:
        logger.warning(
            "the adapter's initialisation changes %d weights of the base, which are not compared "
            "with its files",
            len(changed),
        )
    return files, {name: named[name] for name in files.shapes if name in named.keys() - changed}


def _find_weights_changed_by_adapter(model: Model) -> set[str]:
    """Return the names of the base's weights that the adapter's initialisation changes."""
    if not isinstance(model, PeftModel):
        return set()
    initialisation = str(getattr(model.active_peft_config, "init_lora_weights", None)).lower()
    if not initialisation.startswith(("pissa", "olora")):  # these subtract from the base's weights
        return set()
    modules = model.get_base_model().named_modules()
    return {f"{name}.weight" for name, module in modules if isinstance(module, BaseTunerLayer)}


def _merge_adapter(model: Model, adapter: Path, partitioner: Partitioner | None) -> Model:
    """Return the model with an adapter merged into its weights.

    If an adapter was trained with added tokens, its folder contains the enlarged tokenizer. The
    base then first gets as many embedding rows as it had in that training.
    """
    if (adapter / "tokenizer.json").is_file():
        enlarge_vocabulary(model, run_inputs.tokenizer_size(adapter), partitioner)
    if not is_partitioned(model):
        with _as_user_error(f"adapter {adapter}: PEFT cannot load it"):
            adapted = PeftModel.from_pretrained(model, str(adapter))
        _untie(adapted, partitioner)
        return adapted.merge_and_unload()  # type: ignore[no-any-return]
    from finetune.models import zero3

    assert partitioner is not None
    dtype = next(model.parameters()).dtype
    with partitioner.let_peft_gather(), _as_user_error(f"adapter {adapter}: PEFT cannot load it"):
        adapted = PeftModel.from_pretrained(model, str(adapter))
    _untie(adapted, partitioner)
    zero3.move_unpartitioned_to_device(adapted, dtype, World().device)
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            with zero3.gathered(module.get_base_layer().parameters(), modify=True):
                module.merge()
    return adapted.unload()  # type: ignore[no-any-return]


def _untie(adapted: PeftModel, partitioner: Partitioner | None) -> None:
    """Give each layer that the adapter changes its own copy of a tied weight.

    Otherwise merging a change of the embeddings would also change the LM head.
    """
    num_uses = Counter(id(p) for module in adapted.modules() for p in module._parameters.values())
    for module in adapted.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        layer = module.get_base_layer()
        weight = getattr(layer, "weight", None)
        if weight is None or num_uses[id(weight)] < 2:
            continue
        if is_partitioned(adapted):
            from finetune.models import zero3

            assert partitioner is not None
            with zero3.gathered([weight]):
                full = weight.detach().clone()
            with partitioner.partition() as partition:
                layer.weight = partition(full).requires_grad_(weight.requires_grad)
        else:
            layer.weight = torch.nn.Parameter(weight.detach().clone(), weight.requires_grad)
        config = adapted.get_base_model().config
        config.tie_word_embeddings = False
        config.get_text_config().tie_word_embeddings = False
