"""Checks that stop a run on silent errors: each finds a planted fault and passes healthy models."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.shards import TokenizerInfo
from finetune.config.train import DataConfig, ModelConfig, TrainConfig
from finetune.models import build as model
from finetune.models import checks, save
from finetune.models.packed import PackedModel
from finetune.runs import base_model as base
from finetune.training import guards
from tests.corpora import EOS, VOCAB_SIZE
from tests.models import LLAMA, LORA, write_base

TOKENIZER = TokenizerInfo(sha256="", vocab_size=VOCAB_SIZE, eos_token_id=EOS)
ARCHITECTURES = {
    "llama": LLAMA,
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 8},
    "olmo2": {**LLAMA, "model_type": "olmo2"},
    "mistral": {**LLAMA, "model_type": "mistral", "sliding_window": None},
}


def tiny_model(architecture: str = "llama", **changes: object) -> torch.nn.Module:
    settings = ARCHITECTURES[architecture]
    config = TrainConfig(
        data=DataConfig(corpus="none", sequence_length=64),
        zero={"stage": 1},
        model=ModelConfig(from_scratch=settings),
        **changes,  # type: ignore[arg-type]
    )
    return model.build(config, TOKENIZER, Path("none"), is_main=False)


def adapted_model(folder: Path, adapter: dict[str, object] = LORA) -> torch.nn.Module:
    """Write a base to `folder`; return it with an adapter."""
    config = TrainConfig(
        data=DataConfig(corpus="none", sequence_length=64),
        model=ModelConfig(path=str(write_base(folder))),
        adapter=dict(adapter),
    )
    return model.build(config, TOKENIZER, Path("none"), is_main=False)


def change_trainable(trained: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Add random numbers to the trainable parameters, instead of training them; return them."""
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return {name: p.detach().clone() for name, p in trained.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_isolation_holds_on_healthy_models(architecture: str, precision: str) -> None:
    healthy = tiny_model(architecture, precision=precision)
    assert checks.choose_attention(PackedModel(healthy), "auto", VOCAB_SIZE) == "documents"


def test_rounding_in_bf16_passes_however_deep_the_model() -> None:
    """In a random Llama of 8B (32 layers), the logits of sdpa and eager attention differ by 5.4%."""
    error = "differ from those of the documents run one by one"
    reference = torch.randn(1, 48, VOCAB_SIZE, generator=torch.Generator().manual_seed(0)).bfloat16()
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(1))
    checks.check_packed(reference + 0.054 * noise, reference, num_layers=32)
    for share, layers in ((0.25, 32), (0.1, 2)):
        with pytest.raises(checks.GuardError, match=error):
            checks.check_packed(reference + share * noise, reference, num_layers=layers)
    one_wrong = reference.clone()
    one_wrong[0, 7] = (reference[0, 7] + reference[0, 8]) / 2
    with pytest.raises(checks.GuardError, match=error):
        checks.check_packed(one_wrong, reference, num_layers=32)
    with pytest.raises(checks.GuardError, match=error):
        checks.check_packed(reference.float() + 0.002 * noise, reference.float(), num_layers=32)


def test_isolation_catches_an_attention_mask_of_ones() -> None:
    """Given a mask of ones, transformers silently lets packed documents attend to each other."""
    leaky = tiny_model()

    def logits(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(ids)
        output = leaky(ids, position_ids=positions, attention_mask=mask, use_cache=False)
        return output.logits  # type: ignore[no-any-return]

    with pytest.raises(checks.GuardError, match="attend to each other"):
        checks.check_isolation(logits, VOCAB_SIZE)


def test_isolation_catches_a_cache() -> None:
    leaky = tiny_model()

    def logits(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return leaky(ids, position_ids=positions, use_cache=True).logits  # type: ignore[no-any-return]

    with pytest.raises(checks.GuardError, match="attend to each other"):
        checks.check_isolation(logits, VOCAB_SIZE)


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf"))])
def test_a_step_with_nan_or_inf_is_bad(loss: float, norm: float) -> None:
    check = guards.StepCheck(spike_stds=0)
    assert "gradient norm" in (check.find_fault(loss, norm) or "")
    assert check.find_fault(3.0, 1e-30) is None


def test_a_step_that_deepspeed_skipped_is_bad() -> None:
    """DeepSpeed skips an update with NaN or Inf gradients, and reports an earlier step's norm."""
    from finetune.training.engine import Engine

    class Skipping:
        skipped_steps = 0
        is_gradient_accumulation_boundary = staticmethod(lambda: True)
        bfloat16_enabled = staticmethod(lambda: True)
        get_global_grad_norm = staticmethod(lambda: 1.0)

        def step(self) -> None:
            self.skipped_steps += 1

    engine = Engine.__new__(Engine)
    engine._stage = 1
    engine._engine = Skipping()
    update = engine.step()
    assert update.skipped
    fault = guards.StepCheck(spike_stds=0).find_fault(2.5, update.grad_norm, update.skipped)
    assert "skipped the update" in (fault or "")


def test_a_checkpoint_that_restores_other_weights_is_caught() -> None:
    guards.check_restored(75, 4.6201, 4.62)
    error = r"step 75: the held-out loss was 4\.6200 when it was saved and is 6\.0300"
    with pytest.raises(checks.GuardError, match=error):
        guards.check_restored(75, 6.03, 4.62)


def test_a_step_with_a_gradient_of_zero_is_bad() -> None:
    assert "the gradient is zero" in (guards.StepCheck(spike_stds=0).find_fault(3.0, 0.0) or "")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_with_nan_or_inf_are_not_saved(value: float) -> None:
    checks.check_finite("w", torch.ones(2))
    checks.check_finite("w", torch.ones(2, device="meta"))
    checks.check_finite("codes", torch.ones(2, dtype=torch.uint8))
    with pytest.raises(checks.GuardError, match="w contains NaN or Inf"):
        checks.check_finite("w", torch.tensor([1.0, value]))


def test_nan_in_a_base_is_not_reported_as_a_leak() -> None:
    broken = tiny_model()
    next(broken.parameters()).data[:] = float("nan")
    with pytest.raises(checks.GuardError, match="logits contain NaN or Inf"):
        checks.check_isolation(PackedModel(broken).logits, VOCAB_SIZE)


def test_nan_from_the_adapter_is_not_reported_as_a_fault_of_attention(tmp_path: Path) -> None:
    broken = adapted_model(tmp_path / "base")
    next(p for name, p in broken.named_parameters() if "lora_B" in name).data[:] = float("nan")
    with pytest.raises(checks.NotFiniteError, match=r"NaN or Inf with the adapter \(LORA\)"):
        checks.choose_attention(PackedModel(broken), "auto", VOCAB_SIZE)
    plain = tiny_model()
    next(plain.parameters()).data[:] = float("nan")
    with pytest.raises(checks.NotFiniteError, match="the base's logits"):
        checks.choose_attention(PackedModel(plain), "auto", VOCAB_SIZE)


def test_dora_on_a_weight_with_rows_of_zeros_is_rejected_by_name(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj"
    file = write_base(tmp_path / "base") / "model.safetensors"
    weights = load_file(file)
    weights[f"{name}.weight"][3:5] = 0
    save_file(weights, file, metadata={"format": "pt"})
    config = TrainConfig(
        data=DataConfig(corpus="none", sequence_length=64),
        model=ModelConfig(path=str(tmp_path / "base")),
        adapter={**LORA, "use_dora": True},
    )
    error = f"2 rows in 1 modules of this base are all zeros, e.g. 2 in {name}; choose adapter=lora"
    with pytest.raises(ValueError, match=error):
        model.build(config, TOKENIZER, tmp_path / "merged", is_main=True)
    model.build(dataclasses.replace(config, adapter=dict(LORA)), TOKENIZER, tmp_path / "merged", is_main=True)


def test_positions_that_depend_on_the_longest_document_of_a_row_are_rejected() -> None:
    """LongRoPE (Phi-3, Phi-4-mini) scales all positions of a forward pass by the largest one."""
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "rope_theta": 10000.0,
        "factor": 4.0,
    }
    settings = {**LLAMA, "model_type": "phi3", "pad_token_id": 0, "original_max_position_embeddings": 32}
    settings["rope_parameters"] = {**rope, "original_max_position_embeddings": 32}
    for length in (32, 64):
        config = TrainConfig(
            data=DataConfig(corpus="none", sequence_length=length),
            model=ModelConfig(from_scratch=settings),
            zero={"stage": 1},
        )
        expectation: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if length == 64:
            expectation = pytest.raises(ValueError, match=r"longrope.*choose at most 32")
        with expectation:
            model.build(config, TOKENIZER, Path("none"), is_main=False)


def test_a_spike_is_distinguished_from_noise_and_from_a_falling_loss() -> None:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)).tolist()
    check = guards.StepCheck(spike_stds=8)
    falling = [3 + 6 * 0.97**step + 0.1 * noise[step] for step in range(400)]
    assert not any(check.find_fault(loss, 1.0) for loss in falling)
    assert "spike" in (check.find_fault(5.0, 1.0) or "")
    assert check.find_fault(3.1, 1.0) is None, "the spike itself must not count among the last steps"
    # with few targets per step, as in fine-tuning on short answers, the loss is noisy
    varying = guards.StepCheck(spike_stds=8)
    assert not any(varying.find_fault(2 + 1.5 * abs(value), 1.0) for value in noise)
    assert guards.StepCheck(spike_stds=0).find_fault(1e9, 1.0) is None


def test_a_base_that_predicts_no_better_than_chance_is_rejected() -> None:
    with pytest.raises(checks.GuardError, match="weights look random"):
        guards.check_first_loss(8.37, 4000, "base")
    with pytest.raises(checks.GuardError, match="weights look random"):
        guards.check_first_loss(float("nan"), 4000, "base")
    guards.check_first_loss(6.45, 4000, "base")


def test_a_step_must_have_targets_as_many_as_planned() -> None:
    with pytest.raises(checks.GuardError, match="the batch has no supervised tokens"):
        guards.check_planned_targets(0, 1)
    with pytest.raises(checks.GuardError, match="10 supervised tokens, and the plan has 11"):
        guards.check_counted_targets(10, 11, 1)
    guards.check_counted_targets(10, 10, 1)
    guards.check_planned_targets(10, 1)


def test_an_empty_adapter_is_caught(tmp_path: Path) -> None:
    """Under ZeRO-3, tensors that are saved without being gathered have no elements."""
    parameters = adapted_model(tmp_path / "base").named_parameters()
    state = {name: p.detach().clone() for name, p in parameters if p.requires_grad}
    save_file({name: torch.zeros(0) for name in state}, tmp_path / "adapter_model.safetensors")
    num_trained = sum(tensor.numel() for tensor in state.values())
    with pytest.raises(checks.GuardError, match=f"contains only 0 of {num_trained} trained numbers"):
        checks.check_saved(tmp_path, state, None)


def test_an_unchanged_adapter_is_caught_and_a_changed_one_is_not(tmp_path: Path) -> None:
    trained = adapted_model(tmp_path / "base")
    state = {name: p.detach().clone() for name, p in trained.named_parameters() if p.requires_grad}
    save.save(trained, state.items(), tmp_path)
    with pytest.raises(checks.GuardError, match="training changed nothing"):
        checks.check_saved(tmp_path, state, {name: t.clone() for name, t in state.items()})
    before = {name: t.clone() for name, t in state.items()}
    before[next(iter(before))] += 1
    checks.check_saved(tmp_path, state, before)


METHODS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "saved_modules": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "vera": {
        "peft_type": "VERA",
        "target_modules": ["q_proj", "v_proj"],
        "r": 8,
        "save_projection": False,
    },
    "ia3": {
        "peft_type": "IA3",
        "target_modules": ["k_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_adapter_restores_what_was_trained(tmp_path: Path, method: str) -> None:
    settings = METHODS[method]
    trained = adapted_model(tmp_path / "base", settings if "peft_type" in settings else {**LORA, **settings})
    change_trainable(trained)
    state = dict(save.gather_weights(trained, trainable_only=True))
    save.save(trained, state.items(), tmp_path / "adapter")
    checks.check_saved(tmp_path / "adapter", state, None)
    checks.check_reloads(tmp_path / "adapter", trained, state)


def test_an_adapter_that_peft_cannot_save_is_a_user_error(tmp_path: Path) -> None:
    """PEFT cannot save VeRA's shared projections. A run therefore tries to save before step 1."""
    trained = adapted_model(tmp_path / "base", {**METHODS["vera"], "save_projection": True})
    with pytest.raises(ValueError, match=r"PEFT cannot save this adapter: .*save_projection` to `False`"):
        save.save(trained, save.gather_weights(trained, trainable_only=True), tmp_path / "adapter")


@pytest.mark.parametrize("fault", ["renamed", "altered", "other scaling"])
def test_an_adapter_that_reloads_differently_is_caught(tmp_path: Path, fault: str) -> None:
    trained = adapted_model(tmp_path / "base")
    state = change_trainable(trained)
    save.save(trained, state.items(), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    settings = tmp_path / "adapter" / "adapter_config.json"
    tensors = load_file(file)
    name = next(iter(tensors))
    error = "does not restore"
    if fault == "renamed":  # PEFT only warns if a key is missing
        tensors[f"module.{name}"] = tensors.pop(name)
        save_file(tensors, file)
    elif fault == "altered":
        save_file({**tensors, name: tensors[name] * 1.01}, file)
    else:
        settings.write_text(settings.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
        error = "lora_alpha is 16, but was 8 in training"
    with pytest.raises(checks.GuardError, match=error):
        checks.check_reloads(tmp_path / "adapter", trained, state)


def test_a_rank_that_hangs_dumps_its_stack_and_ends(tmp_path: Path) -> None:
    """The main thread sleeps. It stands in for a rank that waits for others in a collective."""
    script = f"""
import sys, time, pathlib
sys.path[:0] = {[str(p) for p in sys.path]!r}
from finetune.training.watchdog import Watchdog
Watchdog.GRACE = 1.0
folder = pathlib.Path({str(tmp_path)!r})
def lost_collective(): time.sleep(60)
with Watchdog(folder / "healthy.txt", 2.0, print) as watchdog:
    for _ in range(6):
        time.sleep(0.5)
        watchdog.beat()
with Watchdog(folder / "stack.txt", 1.0, lambda fault: (folder / "fault").write_text(fault)) as watchdog:
    lost_collective()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "lost_collective" in (tmp_path / "stack.txt").read_text()
    assert "no progress for 1 s" in (tmp_path / "fault").read_text()
    assert not (tmp_path / "healthy.txt").exists()


def test_a_rank_that_fails_after_its_dump_keeps_it(tmp_path: Path) -> None:
    """When a peer ends first, this rank's collective fails before this rank's grace period ends."""
    script = f"""
import sys, time, pathlib
sys.path[:0] = {[str(p) for p in sys.path]!r}
from finetune.training.watchdog import Watchdog
folder = pathlib.Path({str(tmp_path)!r})
def lost_collective(seconds, error):
    time.sleep(seconds)
    if error:
        raise ConnectionError
for name, seconds, error in (("kept", 1.5, True), ("slow", 1.5, False), ("early", 0, True)):
    try:
        with Watchdog(folder / name, 0.5, print):
            lost_collective(seconds, error)
    except ConnectionError:
        pass
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    assert "lost_collective" in (tmp_path / "kept").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("record", ["raise OSError(28, 'No space left on device')", "time.sleep(60)"])
def test_a_rank_that_hangs_ends_even_if_the_reason_cannot_be_recorded(tmp_path: Path, record: str) -> None:
    """The reason cannot be written, because the file system is full or does not respond."""
    script = f"""
import sys, time, pathlib
sys.path[:0] = {[str(p) for p in sys.path]!r}
from finetune.training.watchdog import Watchdog
Watchdog.GRACE = Watchdog.RECORD_SECONDS = 1.0
def fails(fault):
    print(fault, flush=True)
    {record}
with Watchdog(pathlib.Path({str(tmp_path)!r}) / "stack.txt", 1.0, fails):
    time.sleep(60)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "no progress for 1 s" in done.stdout


def test_a_rank_that_fails_ends_even_if_the_reason_cannot_be_recorded(tmp_path: Path) -> None:
    """A thread that never ends stands in for destructors that wait for other ranks."""
    script = f"""
import os, sys, threading, time
sys.path[:0] = {[str(p) for p in sys.path]!r}
from finetune.job import rank as job
from finetune.runs.folder import RunFolder
def fails(run, environment, stop):
    threading.Thread(target=time.sleep, args=(600,)).start()
    RunFolder.write_json = lambda *_: (run.path / "started.json" / "below a file").write_text("")
    raise ValueError("what went wrong")
job.train_as_rank = fails
os.environ["SUBMITIT_DEBUG_JOB_ID"] = "debug"
job.run_job({str(tmp_path)!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "what went wrong" in done.stderr


def test_missing_and_misshapen_weights_are_caught(tmp_path: Path) -> None:
    complete = tiny_model()
    save.save(complete, save.gather_weights(complete), tmp_path)
    model.load(base.resolve(str(tmp_path), tmp_path), torch.float32)
    weights = load_file(tmp_path / "model.safetensors")
    lost = "model.layers.1.mlp.up_proj.weight"
    without = {name: tensor for name, tensor in weights.items() if name != lost}
    misshapen = {**weights, lost: weights[lost][:-1].clone()}
    for damaged in (without, misshapen):
        save_file(damaged, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match="up_proj"):
            model.load(base.resolve(str(tmp_path), tmp_path), torch.float32)
    with_other_part = {**weights, "vision_tower.weight": torch.ones(2)}
    save_file(with_other_part, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model.load(base.resolve(str(tmp_path), tmp_path), torch.float32)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"from_scratch": {**LLAMA, "num_hidden_layerz": 7}}, "unknown setting 'num_hidden_layerz' of llama"),
        ({"from_scratch": {**LLAMA, "max_position_embeddings": 32}}, "the model's 32 positions"),
        ({"from_scratch": {**LLAMA, "vocab_size": 100}}, "has 300 tokens, and the model embeds 100"),
    ],
)
def test_settings_that_would_silently_build_another_model_are_rejected(
    changes: dict[str, object], error: str
) -> None:
    config = TrainConfig(
        data=DataConfig(corpus="none", sequence_length=64),
        model=ModelConfig(**changes),  # type: ignore[arg-type]
        zero={"stage": 1},
    )
    with pytest.raises(ValueError, match=error):
        model.build(config, TOKENIZER, Path("none"), is_main=False)


def test_an_adapter_on_an_adapter_names_a_base_into_which_the_first_is_merged(tmp_path: Path) -> None:
    """PEFT must load the merged weights on which the second adapter was trained, not the base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from finetune.config import train as configuration
    from finetune.runs.folder import RunFolder

    first = RunFolder(tmp_path / "runs" / "first")
    first.path.mkdir(parents=True)
    config = TrainConfig(
        data=DataConfig(corpus="none", sequence_length=64),
        model=ModelConfig(path=str(write_base(tmp_path / "base"))),
        adapter=dict(LORA),
        runs_dir=str(tmp_path / "runs"),
    )
    configuration.save(config, first.config_file)
    first.write_json("outcome.json", {"state": "completed"})

    def train_and_save(parent: TrainConfig, folder: Path, merged: Path) -> torch.nn.Module:
        adapter = model.build(parent, TOKENIZER, merged, is_main=True)
        generator = torch.Generator().manual_seed(len(folder.name))
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        save.save(adapter, save.gather_weights(adapter, trainable_only=True), folder)
        return adapter.eval()

    train_and_save(config, first.adapter, tmp_path / "unused")
    second_config = dataclasses.replace(config, model=ModelConfig(path="run:first"))
    merged = tmp_path / "runs" / "second" / "merged_base"
    second = train_and_save(second_config, tmp_path / "second", merged)
    merged_model = AutoModelForCausalLM.from_pretrained(merged)
    from_disk = PeftModel.from_pretrained(merged_model, tmp_path / "second").eval()
    assert from_disk.peft_config["default"].base_model_name_or_path == str(merged)
    assert (merged / "tokenizer.json").read_bytes() == (tmp_path / "base" / "tokenizer.json").read_bytes()
    merged_again = tmp_path / "runs" / "third" / "merged_base"
    train_and_save(second_config, tmp_path / "third", merged_again)
    file, file_again = (folder / "model.safetensors" for folder in (merged, merged_again))
    assert file_again.samefile(file), "a second run has a copy of an equal merged base"
    ids = torch.arange(4, 36)[None]
    assert torch.allclose(from_disk(ids).logits, second(ids).logits, atol=1e-5)
    plain_base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    assert not torch.allclose(plain_base(ids).logits, second(ids).logits, atol=1e-2)
