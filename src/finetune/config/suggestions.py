"""Suggestions for unknown names: similar names, and settings that other trainers name differently."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

# Maps names of settings in Hugging Face's Trainer, TRL, Axolotl, LLaMA-Factory and torchtune to
# our names.
SYNONYMS = {
    "learning_rate": "lr",
    "lr_scheduler_type": "schedule",
    "lr_scheduler": "schedule",
    "scheduler": "schedule",
    "min_lr": "min_lr_ratio",
    "lr_scheduler_kwargs": "min_lr_ratio",
    "cosine_min_lr_ratio": "min_lr_ratio",
    "warmup": "warmup_ratio",
    "warmup_steps": "warmup_ratio",
    "epochs": "num_epochs",
    "num_train_epochs": "num_epochs",
    "steps": "max_steps",
    "num_steps": "max_steps",
    "max_train_steps": "max_steps",
    "max_steps_per_epoch": "max_steps",
    "per_device_train_batch_size": "micro_batch_size",
    "per_gpu_train_batch_size": "micro_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "per_device_eval_batch_size": "micro_batch_size",
    "batch_size": "global_batch_size",
    "train_batch_size": "global_batch_size",
    "gradient_accumulation_steps": "global_batch_size",
    "grad_accum": "global_batch_size",
    "max_seq_length": "data.sequence_length",
    "max_seq_len": "data.sequence_length",
    "max_length": "data.sequence_length",
    "seq_len": "data.sequence_length",
    "seq_length": "data.sequence_length",
    "sequence_len": "data.sequence_length",
    "block_size": "data.sequence_length",
    "cutoff_len": "data.sequence_length",
    "context_length": "data.sequence_length",
    "model_max_length": "data.sequence_length",
    "optim_beta1": "adam_beta1",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "adam_epsilon": "adam_eps",
    "eps": "adam_eps",
    "wd": "weight_decay",
    "max_norm": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "clip_grad_norm": "max_grad_norm",
    "gradient_clipping": "max_grad_norm",
    "gradient_clip_val": "max_grad_norm",
    "gradient_checkpointing": "activation_checkpointing",
    "use_gradient_checkpointing": "activation_checkpointing",
    "recompute": "activation_checkpointing",
    "bf16": "precision",
    "dtype": "precision",
    "torch_dtype": "precision",
    "mixed_precision": "precision",
    "random_seed": "seed",
    "data_seed": "seed",
    "eval_steps": "evaluate_every",
    "eval_every": "evaluate_every",
    "evals_per_epoch": "evaluate_every",
    "eval_strategy": "evaluate_every",
    "evaluation_strategy": "evaluate_every",
    "save_steps": "checkpoint_every",
    "save_every": "checkpoint_every",
    "save_strategy": "checkpoint_every",
    "checkpointing_steps": "checkpoint_every",
    "save_total_limit": "keep_checkpoints",
    "load_best_model_at_end": "result",
    "output_dir": "runs_dir",
    "logging_dir": "runs_dir",
    "save_dir": "runs_dir",
    "run_name": "name",
    "experiment_name": "experiment",
    "mlflow_tracking_uri": "tracking_uri",
    "model_name_or_path": "model",
    "model_name": "model.path",
    "model_path": "model.path",
    "base_model": "model.path",
    "name_or_path": "model.path",
    "model_revision": "model.revision",
    "attn_implementation": "model.attention",
    "flash_attention": "model.attention",
    "flash_attn": "model.attention",
    "use_liger_kernel": "model.kernels",
    "load_in_4bit": "model.quantization",
    "quantization_bit": "model.quantization",
    "dataset": "data.corpus",
    "datasets": "data.corpus",
    "dataset_name": "data.corpus",
    "train_file": "data.corpus",
    "finetuning_type": "adapter",
    "peft": "adapter",
    "use_peft": "adapter",
    "peft_method": "adapter.peft_type",
    "peft_type": "adapter.peft_type",
    "lora_r": "adapter.r",
    "lora_rank": "adapter.r",
    "lora_alpha": "adapter.lora_alpha",
    "lora_dropout": "adapter.lora_dropout",
    "lora_target": "adapter.target_modules",
    "lora_target_modules": "adapter.target_modules",
    "lora_modules_to_save": "adapter.modules_to_save",
    "use_dora": "adapter",
    "deepspeed": "zero",
    "zero_stage": "zero",
    "zero_optimization": "zero",
    "gpus": "cluster.ranks_per_node",
    "num_gpus": "cluster.ranks_per_node",
    "gpus_per_node": "cluster.ranks_per_node",
    "nproc_per_node": "cluster.ranks_per_node",
    "num_processes": "cluster.ranks_per_node",
    "ntasks_per_node": "cluster.ranks_per_node",
    "ranks": "cluster.ranks_per_node",
    "nnodes": "cluster.nodes",
    "num_nodes": "cluster.nodes",
    "cpus_per_task": "cluster.cpus_per_rank",
    "num_workers": "cluster.cpus_per_rank",
    "time": "cluster.timeout_min",
    "timeout": "cluster.timeout_min",
    "time_limit": "cluster.timeout_min",
    "walltime": "cluster.timeout_min",
    "mem": "cluster.memory_per_node",
    "memory": "cluster.memory_per_node",
    "queue": "cluster.partition",
    "project": "cluster.account",
}
# The argument to suggest for a name of SYNONYMS, where our setting has another unit or the user
# needs a certain value of it.
REPLACEMENTS = {
    "warmup_steps": "warmup_ratio=…, a share of the steps",
    "min_lr": "min_lr_ratio=…, a share of lr",
    "gradient_accumulation_steps": (
        "global_batch_size=…, packs per optimizer step over all ranks, which determines accumulation"
    ),
    "bf16": "precision=bf16",
    "load_in_4bit": "adapter=qlora",
    "quantization_bit": "adapter=qlora",
    "flash_attention": "model.attention=flash_attention_2",
    "flash_attn": "model.attention=flash_attention_2",
    "use_liger_kernel": "model.kernels=liger",
    "load_best_model_at_end": "result=best",
    "use_peft": "adapter=lora",
    "peft": "adapter=lora",
    "finetuning_type": "adapter=lora, or adapter=none for all weights",
    "use_dora": "adapter=dora",
    "deepspeed": "zero=stage2",
    "zero_stage": "zero=stage2",
    "model_name_or_path": "model=FOLDER or model=OWNER/NAME",
    "model_name": "model=FOLDER or model=OWNER/NAME",
    "model_path": "model=FOLDER or model=OWNER/NAME",
    "base_model": "model=FOLDER or model=OWNER/NAME",
    "dataset": "corpus=NAME, which `finetune prepare` makes",
    "datasets": "corpus=NAME, which `finetune prepare` makes",
    "dataset_name": "corpus=NAME, which `finetune prepare` makes",
    "train_file": "corpus=NAME, which `finetune prepare` makes",
    "evals_per_epoch": "evaluate_every=…, in steps",
    "eval_strategy": "evaluate_every=…, in steps",
    "evaluation_strategy": "evaluate_every=…, in steps",
    "save_strategy": "checkpoint_every=…, in steps",
    "time": "cluster.timeout_min=…, in minutes",
    "time_limit": "cluster.timeout_min=…, in minutes",
    "walltime": "cluster.timeout_min=…, in minutes",
}
# Maps other names to those of PEFT's settings. These depend on the method: LoRA has lora_alpha and
# lora_dropout, LoKr has alpha and rank_dropout.
ADAPTER_SYNONYMS = {
    "rank": ("r",),
    "lora_r": ("r",),
    "lora_rank": ("r",),
    "dropout": ("lora_dropout", "rank_dropout", "module_dropout"),
    "lora_dropout": ("rank_dropout", "module_dropout"),
    "alpha": ("lora_alpha",),
    "lora_alpha": ("alpha",),
    "lora_target": ("target_modules",),
    "lora_target_modules": ("target_modules",),
    "modules": ("target_modules",),
    "exclude": ("exclude_modules",),
    "dora": ("use_dora",),
    "rslora": ("use_rslora",),
    "method": ("peft_type",),
    "type": ("peft_type",),
}


def find_closest(name: str, choices: Iterable[str], at_most: int = 1) -> list[str]:
    """Return the choices most similar to `name`, best first; [] if none is similar.

    Args:
        at_most: largest number of choices to return.
    """
    by_folded: dict[str, str] = {}
    for choice in choices:
        by_folded.setdefault(_fold(choice), choice)
    wanted = _fold(name)
    found = difflib.get_close_matches(wanted, by_folded, at_most, cutoff=0.65)
    for folded in by_folded:
        if folded not in found and (_is_part(wanted, folded) or _is_part(folded, wanted)):
            found.append(folded)
    return [by_folded[folded] for folded in found[:at_most]]


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `; did you mean '…'?` to append to a message; "" if no choice is similar."""
    found = find_closest(name, choices)
    return f"; did you mean '{found[0]}'?" if found else ""


def find_synonym(name: str) -> str | None:
    """Return the key of SYNONYMS that equals a name if case, `-` and `_` are ignored.

    For learningRate, this is learning_rate. Return None if there is none.
    """
    return next((theirs for theirs in SYNONYMS if _squeeze(theirs) == _squeeze(name)), None)


def _squeeze(name: str) -> str:
    return _fold(name).replace("_", "")


def _is_part(part: str, whole: str) -> bool:
    """Return True if `part` is one or more whole words of `whole`.

    attention is a word of model.attention; train is not a word of constraint.
    """
    return len(part) > 2 and re.search(rf"(^|[\W_]){re.escape(part)}([\W_]|$)", whole) is not None


def _fold(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


# --- keys of libraries ----------------------------------------------------------------------------


@cache
def adapter_keys(peft_type: str) -> tuple[str, ...]:
    """Return the keys of a PEFT method's config; () if PEFT or the method is not found.

    They are read from PEFT's source, because importing PEFT takes seconds and needs torch.
    """
    package = _package("peft")
    if package is None:
        return ()
    for path in sorted(package.glob("tuners/*/config.py")):
        tree = _parse(path)
        for defined in ast.walk(tree):
            if isinstance(defined, ast.ClassDef) and _sets_peft_type(defined, peft_type):
                common = _list_fields(_parse(package / "config.py"), "PeftConfig")
                return (*_list_all_fields(tree, defined.name), *common)
    return ()


@cache
def zero_keys() -> tuple[str, ...]:
    """Return the keys of DeepSpeed's zero_optimization, read from DeepSpeed's source."""
    package = _package("deepspeed")
    if package is None:
        return ()
    tree = _parse(package / "runtime" / "zero" / "config.py")
    return tuple(_list_fields(tree, "DeepSpeedZeroConfig"))


@cache
def model_keys(model_type: str) -> tuple[str, ...]:
    """Return the keys of an architecture's config, read from the source of transformers."""
    package = _package("transformers")
    if package is None:
        return ()
    keys: list[str] = []
    for path in sorted(package.glob(f"models/{model_type}/configuration_{model_type}.py")):
        tree = _parse(path)
        for defined in ast.walk(tree):
            if isinstance(defined, ast.ClassDef):
                keys += _list_fields(tree, defined.name)
    return tuple(dict.fromkeys(keys))


def _package(name: str) -> Path | None:
    found = importlib.util.find_spec(name)
    return Path(found.origin).parent if found and found.origin else None


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):  # another version of the library: suggest nothing
        return ast.Module(body=[], type_ignores=[])


def _sets_peft_type(defined: ast.ClassDef, peft_type: str) -> bool:
    assignment = f"self.peft_type = PeftType.{peft_type}"
    found = [ast.unparse(node) for node in ast.walk(defined) if isinstance(node, ast.Assign)]
    return assignment in found


def _list_all_fields(tree: ast.Module, name: str) -> Iterator[str]:
    """Yield the fields of a class and of its bases in the same file."""
    for defined in ast.walk(tree):
        if isinstance(defined, ast.ClassDef) and defined.name == name:
            yield from _list_fields(tree, name)
            for base in defined.bases:
                yield from _list_all_fields(tree, ast.unparse(base))


def _list_fields(tree: ast.Module, name: str) -> Iterator[str]:
    for defined in ast.walk(tree):
        if isinstance(defined, ast.ClassDef) and defined.name == name:
            for node in defined.body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    yield _find_alias(node.value) or node.target.id


def _find_alias(default: ast.expr | None) -> str | None:
    """Return the alias under which pydantic reads a field; None without an alias.

    For max_live_parameters, this is stage3_max_live_parameters.
    """
    for keyword in default.keywords if isinstance(default, ast.Call) else []:
        if keyword.arg == "alias" and isinstance(keyword.value, ast.Constant):
            return str(keyword.value.value)
    return None
