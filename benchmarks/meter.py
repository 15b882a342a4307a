"""Script that trains with another system, in that system's environment: `meter.py settings.json`.

It counts the tokens that enter the model. All other systems train with a subclass of transformers'
Trainer, so one callback with a forward hook measures all of them.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
import transformers

# This file is run as a script, so it imports rules.py from its own folder.
from rules import non_padding_tokens  # type: ignore[import-not-found]

LOGGED = ("torch", "transformers", "peft", "accelerate", "trl", "llamafactory", "axolotl", "liger-kernel")

# Arguments of a model that hold tokens, masks or positions. Labels are not passed, because TRL's
# model then returns no logits.
INPUTS = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "use_cache",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "seq_idx",
)


# mypy does not read transformers (see pyproject.toml).
class Meter(transformers.TrainerCallback):  # type: ignore[misc]
    """Trainer callback that records the tokens and the end time of each optimizer step.

    When training ends, it also tests whether documents that share a row are isolated.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._pad = settings["pad_token_id"]
        self._eos = settings["eos_token_id"]
        self._seen: Any = 0
        self._batch: dict[str, Any] = {}
        self.tokens: list[int] = []
        self.ends: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        self._seen = self._seen + non_padding_tokens(kwargs["input_ids"], self._pad)
        self._batch = kwargs

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.tokens.append(int(self._seen))
        self.ends.append(time.time())
        self._seen = 0

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        versions = {name: _version(name) for name in LOGGED}
        measured = {
            "tokens": self.tokens,
            "ends": self.ends,
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "dtype": str(next(model.parameters()).dtype),
            "gradient_checkpointing": bool(args.gradient_checkpointing),
            "isolated": self._isolated(model),
            "rows": list(self._batch["input_ids"].shape),
            "versions": {name: version for name, version in versions.items() if version},
        }
        Path(self._settings["result"]).write_text(json.dumps(measured), encoding="utf-8")

    @torch.no_grad()
    def _isolated(self, model: Any) -> bool | None:
        """Return True if documents in one row are isolated; None if no row holds two documents.

        The tokens of the first document in a row of the last batch are changed. If documents are
        isolated, the logits of the later documents stay the same.
        """
        inputs = {key: value for key, value in self._batch.items() if key in INPUTS}
        ids = self._batch["input_ids"].clone()
        for row in range(len(ids)):
            ends = (ids[row] == self._eos).nonzero().flatten().tolist()
            if not ends or ends[0] == 0:
                continue
            later = [p for p in range(ends[0] + 1, ids.shape[1]) if ids[row, p] != self._pad]
            if not later:
                continue
            before = model(**inputs).logits[row, later]
            # The first ids of the vocabulary are single bytes, so these are valid tokens.
            ids[row, : ends[0]] = (ids[row, : ends[0]] + 7) % 200 + 10
            after = model(**{**inputs, "input_ids": ids}).logits[row, later]
            tolerance = 1e-2 if before.dtype == torch.bfloat16 else 1e-4
            return bool(torch.allclose(before.float(), after.float(), atol=tolerance))
        return None


def measure_every_trainer(settings: dict[str, Any]) -> None:
    """Add the meter to every Trainer that is created from now on."""
    original = transformers.Trainer.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.add_callback(Meter(settings))

    transformers.Trainer.__init__ = init


def common_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that have the same name in all systems.

    All systems pass these settings to transformers' TrainingArguments.
    """
    return {
        "per_device_train_batch_size": settings["batch_size"],
        "gradient_accumulation_steps": 1,
        "max_steps": settings["num_steps"],
        "learning_rate": settings["lr"],
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "seed": settings["seed"],
        "bf16": settings["precision"] == "bf16",
        "gradient_checkpointing": settings["gradient_checkpointing"],
        "save_strategy": "no",
        "report_to": "none",
        "output_dir": settings["output"],
    }


def train_with_trl(settings: dict[str, Any]) -> None:
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    packing = settings["packing"]
    packing_strategy = {"packing_strategy": packing} if packing else {}
    # In full training the weights are float32, as in finetune's optimizer, because bf16 would lose
    # small updates.
    keeps_bf16 = settings["precision"] == "bf16" and settings["lora_r"]
    arguments = SFTConfig(
        **common_settings(settings),
        max_length=settings["sequence_length"],
        packing=packing is not None,
        **packing_strategy,
        use_liger_kernel=settings.get("liger", False),
        model_init_kwargs={
            "dtype": "bfloat16" if keeps_bf16 else "float32",
            "attn_implementation": settings.get("attention", "sdpa"),
        },
    )
    lora = LoraConfig(
        r=settings["lora_r"],
        lora_alpha=2 * settings["lora_r"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    trainer = SFTTrainer(
        model=settings["model"],
        args=arguments,
        train_dataset=load_dataset("json", data_files=settings["documents"], split="train"),
        peft_config=lora if settings["lora_r"] else None,
    )
    trainer.train()


def train_with_llamafactory(settings: dict[str, Any]) -> None:
    # LLaMA-Factory's data module imports torchaudio, which is not needed here, and which is not
    # available for every version of torch.
    speech = types.ModuleType("torchaudio")
    speech.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = speech
    from llamafactory.train.tuner import run_exp

    folder = Path(settings["output"])
    folder.mkdir(parents=True, exist_ok=True)
    lines = Path(settings["documents"]).read_text(encoding="utf-8").splitlines()
    # The template "empty" adds no end-of-sequence token.
    texts = [json.loads(line)["text"] + settings["eos_token"] for line in lines]
    records = [json.dumps({"prompt": "", "text": text}, ensure_ascii=False) for text in texts]
    (folder / "documents.jsonl").write_text("\n".join(records) + "\n", encoding="utf-8")
    # neat_packing isolates documents, but exists only for prompts with responses.
    columns = {"prompt": "prompt", "response": "text"}
    datasets = {"bench": {"file_name": "documents.jsonl", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(datasets), encoding="utf-8")
    run_exp(
        {
            **common_settings(settings),
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": settings["model"],
            "template": "empty",
            "dataset": "bench",
            "dataset_dir": str(folder),
            "cutoff_len": settings["sequence_length"],
            "train_on_prompt": True,
            "packing": True,
            "neat_packing": True,
            "finetuning_type": "lora",
            "lora_rank": settings["lora_r"],
            "lora_alpha": 2 * settings["lora_r"],
            "lora_dropout": 0.0,
            "lora_target": "all",
            "overwrite_cache": True,
            "flash_attn": "sdpa",
            "plot_loss": False,
            "overwrite_output_dir": True,
            "ddp_timeout": 180000000,
            "disable_gradient_checkpointing": not settings["gradient_checkpointing"],
            "enable_thinking": None,
        }
    )


def train_with_axolotl(settings: dict[str, Any]) -> None:
    from axolotl.cli.train import do_cli

    output = Path(settings["output"])
    output.mkdir(parents=True, exist_ok=True)
    config = {
        "base_model": settings["model"],
        "datasets": [{"path": settings["documents"], "ds_type": "json", "type": "completion"}],
        "dataset_prepared_path": str(output / "prepared"),
        "output_dir": str(output),
        "sequence_len": settings["sequence_length"],
        "sample_packing": True,
        "pad_to_sequence_len": True,
        "val_set_size": 0,
        "adapter": "lora",
        "lora_r": settings["lora_r"],
        "lora_alpha": 2 * settings["lora_r"],
        "lora_dropout": 0.0,
        "lora_target_linear": True,
        # These kernels use Triton, which needs a GPU.
        "lora_mlp_kernel": False,
        "lora_qkv_kernel": False,
        "lora_o_kernel": False,
        "micro_batch_size": settings["batch_size"],
        "gradient_accumulation_steps": 1,
        "max_steps": settings["num_steps"],
        "optimizer": "adamw_torch",
        "lr_scheduler": "cosine",
        "learning_rate": settings["lr"],
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "bf16": settings["precision"] == "bf16",
        "fp16": False,
        "tf32": False,
        "seed": settings["seed"],
        "gradient_checkpointing": settings["gradient_checkpointing"],
        "attn_implementation": "sdpa",
        "save_strategy": "no",
        "special_tokens": {"pad_token": "<pad>"},
    }
    path = output / "axolotl.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is valid YAML
    sys.argv = [sys.argv[0]]
    do_cli(str(path))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    measure_every_trainer(settings)
    systems = {
        "trl": train_with_trl,
        "llamafactory": train_with_llamafactory,
        "axolotl": train_with_axolotl,
    }
    systems[settings["peer"]](settings)


if __name__ == "__main__":
    main()
