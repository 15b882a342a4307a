"""Each guard with its planted fault, and its silence on what is healthy."""

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


def tiny(architecture: str = "llama", **changes: object) -> torch.nn.Module:
    data = DataConfig(corpus="none", sequence_length=64)
    config = TrainConfig(
        data=data, zero={"stage": 1}, model=ModelConfig(from_scratch=ARCHITECTURES[architecture]), **changes
    )  # type: ignore[arg-type]
    return model.build(config, TOKENIZER, Path("none"), is_main=False)


def adapted(folder: Path, adapter: dict[str, object] = LORA) -> torch.nn.Module:
    config = TrainConfig(
        data=DataConfig(corpus="none", sequence_length=64),
        model=ModelConfig(path=str(write_base(folder))),
        adapter=dict(adapter),
    )
    return model.build(config, TOKENIZER, Path("none"), is_main=False)


def moved(trained: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trainable tensors, after something like training."""
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return {name: p.detach().clone() for name, p in trained.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_isolation_holds_on_healthy_models(architecture: str, precision: str) -> None:
    healthy = tiny(architecture, precision=precision)
    assert checks.choose_attention(PackedModel(healthy), "auto", VOCAB_SIZE) == "documents"


def test_rounding_in_bf16_is_no_fault_however_deep_the_model() -> None:
    """5.4% of the logits' size is what sdpa and eager differ by in a random Llama of 8B, 32 layers."""
    alone = torch.randn(1, 48, VOCAB_SIZE, generator=torch.Generator().manual_seed(0)).bfloat16()
    noise = torch.randn(alone.shape, generator=torch.Generator().manual_seed(1))
    checks.check_packed(alone + 0.054 * noise, alone, num_layers=32)
    for share, layers in ((0.25, 32), (0.1, 2)):
        with pytest.raises(checks.GuardError, match="other logits than alone"):
            checks.check_packed(alone + share * noise, alone, num_layers=layers)
    one_wrong = alone.clone()
    one_wrong[0, 7] = (alone[0, 7] + alone[0, 8]) / 2
    with pytest.raises(checks.GuardError, match="other logits than alone"):
        checks.check_packed(one_wrong, alone, num_layers=32)
    with pytest.raises(checks.GuardError, match="other logits than alone"):
        checks.check_packed(alone.float() + 0.002 * noise, alone.float(), num_layers=32)


def test_isolation_catches_an_attention_mask_of_ones() -> None:
    """The usual leak: a mask of ones switches transformers' own separation off, silently."""
    leaky = tiny()
    with pytest.raises(checks.GuardError, match="see each other"):
        checks.check_isolation(
            lambda ids, positions: (
                leaky(
                    ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False
                ).logits
            ),
            VOCAB_SIZE,
        )


def test_isolation_catches_a_cache() -> None:
    leaky = tiny()
    with pytest.raises(checks.GuardError, match="see each other"):
        checks.check_isolation(
            lambda ids, positions: leaky(ids, position_ids=positions, use_cache=True).logits, VOCAB_SIZE
        )


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf"))])
def test_a_step_that_is_no_number_is_bad(loss: float, norm: float) -> None:
    check = guards.StepCheck(spike_stds=0)
    assert "gradient norm" in (check.find_fault(loss, norm) or "")
    assert check.find_fault(3.0, 1e-30) is None


def test_a_step_that_deepspeed_skipped_is_bad() -> None:
    """Its optimizers leave the weights alone where gradients are not finite, and keep the norm of the step
    before."""
    from finetune.training.engine import Engine

    class Skipping:
        skipped_steps = 0
        is_gradient_accumulation_boundary = staticmethod(lambda: True)
        bfloat16_enabled = staticmethod(lambda: True)
        get_global_grad_norm = staticmethod(lambda: 1.0)

        def step(self) -> None:
            self.skipped_steps += 1

    engine = Engine.__new__(Engine)
    engine._stage, engine._engine = 1, Skipping()
    update = engine.step()
    assert update.skipped
    fault = guards.StepCheck(spike_stds=0).find_fault(2.5, update.grad_norm, update.skipped)
    assert "skipped the update" in (fault or "")


def test_a_checkpoint_that_gives_back_other_weights_is_caught() -> None:
    guards.check_restored(75, 4.6201, 4.62)
    with pytest.raises(
        checks.GuardError, match=r"step 75 was saved with a held-out loss of 4\.6200 and has 6\.0300"
    ):
        guards.check_restored(75, 6.03, 4.62)


def test_a_step_that_teaches_nothing_is_bad() -> None:
    assert "the gradient is zero" in (guards.StepCheck(spike_stds=0).find_fault(3.0, 0.0) or "")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_not_saved(value: float) -> None:
    checks.check_finite("w", torch.ones(2))
    checks.check_finite("w", torch.ones(2, device="meta"))
    checks.check_finite("codes", torch.ones(2, dtype=torch.uint8))
    with pytest.raises(checks.GuardError, match="w holds values that are no numbers"):
        checks.check_finite("w", torch.tensor([1.0, value]))


def test_a_base_of_nan_is_not_said_to_leak() -> None:
    broken = tiny()
    next(broken.parameters()).data[:] = float("nan")
    with pytest.raises(checks.GuardError, match="logits contain NaN or Inf"):
        checks.check_isolation(PackedModel(broken).logits, VOCAB_SIZE)


def test_logits_that_are_nan_because_of_the_adapter_are_not_blamed_on_attention(tmp_path: Path) -> None:
    broken = adapted(tmp_path / "base")
    next(p for name, p in broken.named_parameters() if "lora_B" in name).data[:] = float("nan")
    with pytest.raises(checks.NotFiniteError, match=r"NaN or Inf with the adapter \(LORA\)"):
        checks.choose_attention(PackedModel(broken), "auto", VOCAB_SIZE)
    plain = tiny()
    next(plain.parameters()).data[:] = float("nan")
    with pytest.raises(checks.NotFiniteError, match="the base's logits"):
        checks.choose_attention(PackedModel(plain), "auto", VOCAB_SIZE)


def test_dora_on_a_weight_with_rows_of_zeros_is_refused_by_name(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj"
    file = write_base(tmp_path / "base") / "model.safetensors"
    weights = load_file(file)
    weights[f"{name}.weight"][3:5] = 0
    save_file(weights, file, metadata={"format": "pt"})
    data, base_model = DataConfig(corpus="none", sequence_length=64), ModelConfig(path=str(tmp_path / "base"))
    config = TrainConfig(data=data, model=base_model, adapter={**LORA, "use_dora": True})
    with pytest.raises(
        ValueError,
        match=f"2 rows in 1 modules of this base are all zeros, e.g. 2 in {name}: choose adapter=lora",
    ):
        model.build(config, TOKENIZER, tmp_path / "merged", is_main=True)
    model.build(dataclasses.replace(config, adapter=dict(LORA)), TOKENIZER, tmp_path / "merged", is_main=True)


def test_positions_that_change_with_a_rows_longest_document_are_refused() -> None:
    """LongRoPE (Phi-3, Phi-4-mini): all positions of a call follow the largest."""
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
        refused = (
            pytest.raises(ValueError, match=r"longrope.*choose at most 32")
            if length == 64
            else contextlib.nullcontext()
        )
        with refused:
            model.build(config, TOKENIZER, Path("none"), is_main=False)


def test_a_spike_is_told_from_noise_and_from_a_falling_loss() -> None:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)).tolist()
    check = guards.StepCheck(spike_stds=8)
    falling = [3 + 6 * 0.97**step + 0.1 * noise[step] for step in range(400)]
    assert not any(check.find_fault(loss, 1.0) for loss in falling)
    assert "spike" in (check.find_fault(5.0, 1.0) or "")
    assert check.find_fault(3.1, 1.0) is None, "the spike itself must not count among the last steps"
    restless = guards.StepCheck(spike_stds=8)  # few targets a step, as in fine-tuning on short answers
    assert not any(restless.find_fault(2 + 1.5 * abs(value), 1.0) for value in noise)
    assert guards.StepCheck(spike_stds=0).find_fault(1e9, 1.0) is None


def test_a_base_that_guesses_is_refused_and_one_that_knows_is_not() -> None:
    with pytest.raises(checks.GuardError, match="weights look random"):
        guards.check_first_loss(8.37, 4000, "base")
    with pytest.raises(checks.GuardError, match="weights look random"):
        guards.check_first_loss(float("nan"), 4000, "base")
    guards.check_first_loss(6.45, 4000, "base")


def test_targets_must_be_there_and_be_those_of_the_plan() -> None:
    with pytest.raises(checks.GuardError, match="no token to learn from"):
        guards.check_planned_targets(0, 1)
    with pytest.raises(checks.GuardError, match="the plan 11"):
        guards.check_counted_targets(10, 11, 1)
    guards.check_counted_targets(10, 10, 1)
    guards.check_planned_targets(10, 1)


def test_an_empty_adapter_is_caught(tmp_path: Path) -> None:
    """What ZeRO-3 leaves when parameters are not gathered: files with tensors of no elements."""
    state = {
        name: p.detach().clone()
        for name, p in adapted(tmp_path / "base").named_parameters()
        if p.requires_grad
    }
    save_file({name: torch.zeros(0) for name in state}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(checks.GuardError, match=f"holds 0 of {sum(t.numel() for t in state.values())}"):
        checks.check_saved(tmp_path, state, None)


def test_an_unchanged_adapter_is_caught_and_a_changed_one_is_not(tmp_path: Path) -> None:
    trained = adapted(tmp_path / "base")
    state = {name: p.detach().clone() for name, p in trained.named_parameters() if p.requires_grad}
    save.save(trained, state.items(), tmp_path)
    with pytest.raises(checks.GuardError, match="nothing was learned"):
        checks.check_saved(tmp_path, state, {name: t.clone() for name, t in state.items()})
    before = {name: t.clone() for name, t in state.items()}
    before[next(iter(before))] += 1
    checks.check_saved(tmp_path, state, before)


METHODS = {
    "lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True},
    "saved_modules": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "vera": {"peft_type": "VERA", "target_modules": ["q_proj", "v_proj"], "r": 8, "save_projection": False},
    "ia3": {"peft_type": "IA3", "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_adapter_restores_what_was_trained(tmp_path: Path, method: str) -> None:
    settings = METHODS[method]
    trained = adapted(tmp_path / "base", settings if "peft_type" in settings else {**LORA, **settings})
    moved(trained)
    state = dict(save.gather_weights(trained, trainable_only=True))
    save.save(trained, state.items(), tmp_path / "adapter")
    checks.check_saved(tmp_path / "adapter", state, None)
    checks.check_reloads(tmp_path / "adapter", trained, state)


def test_an_adapter_that_peft_cannot_save_is_one_line(tmp_path: Path) -> None:
    """VeRA shares projections between layers under a name that is lost. A run tries it before its first
    step."""
    trained = adapted(tmp_path / "base", {**METHODS["vera"], "save_projection": True})
    with pytest.raises(ValueError, match=r"cannot save this one: .*save_projection` to `False`"):
        save.save(trained, save.gather_weights(trained, trainable_only=True), tmp_path / "adapter")


@pytest.mark.parametrize("fault", ["renamed", "altered", "other scaling"])
def test_an_adapter_that_reloads_to_another_is_caught(tmp_path: Path, fault: str) -> None:
    trained = adapted(tmp_path / "base")
    state = moved(trained)
    save.save(trained, state.items(), tmp_path / "adapter")
    file, settings = (
        tmp_path / "adapter" / "adapter_model.safetensors",
        tmp_path / "adapter" / "adapter_config.json",
    )
    tensors = load_file(file)
    name = next(iter(tensors))
    if fault == "renamed":  # PEFT only warns of a key that it does not find
        save_file(
            {(f"module.{key}" if key == name else key): tensor for key, tensor in tensors.items()}, file
        )
    elif fault == "altered":
        save_file({**tensors, name: tensors[name] * 1.01}, file)
    else:
        settings.write_text(settings.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    with pytest.raises(
        checks.GuardError, match="lora_alpha" if fault == "other scaling" else "does not restore"
    ):
        checks.check_reloads(tmp_path / "adapter", trained, state)


def test_a_rank_that_hangs_leaves_its_stack_and_ends(tmp_path: Path) -> None:
    """In a process of its own: a thread holds the main thread up while it trains, as a lost collective
    would."""
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


@pytest.mark.parametrize("record", ["raise OSError(28, 'No space left on device')", "time.sleep(60)"])
def test_a_rank_that_hangs_ends_though_nothing_can_be_recorded(tmp_path: Path, record: str) -> None:
    """A full file system, and one that does not answer."""
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


def test_a_rank_that_fails_leaves_its_peers_though_nothing_can_be_recorded(tmp_path: Path) -> None:
    """A thread that never ends stands for the destructors that wait for peers."""
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
    whole = tiny()
    save.save(whole, save.gather_weights(whole), tmp_path)
    model.load(base.resolve(str(tmp_path), tmp_path), torch.float32)
    weights = load_file(tmp_path / "model.safetensors")
    lost = "model.layers.1.mlp.up_proj.weight"
    for broken in (
        {k: v for k, v in weights.items() if k != lost},
        {**weights, lost: weights[lost][:-1].clone()},
    ):
        save_file(broken, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match="up_proj"):
            model.load(base.resolve(str(tmp_path), tmp_path), torch.float32)
    save_file(
        {**weights, "vision_tower.weight": torch.ones(2)},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    model.load(base.resolve(str(tmp_path), tmp_path), torch.float32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"from_scratch": {**LLAMA, "num_hidden_layerz": 7}}, "llama has no setting num_hidden_layerz"),
        ({"from_scratch": {**LLAMA, "max_position_embeddings": 32}}, "the model has 32 positions"),
        ({"from_scratch": {**LLAMA, "vocab_size": 100}}, "has 300 tokens, the model embeds 100"),
    ],
)
def test_models_that_would_be_silently_other_than_meant_are_refused(
    changes: dict[str, object], words: str
) -> None:
    config = TrainConfig(
        data=DataConfig(corpus="none", sequence_length=64), model=ModelConfig(**changes), zero={"stage": 1}
    )  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        model.build(config, TOKENIZER, Path("none"), is_main=False)


def test_an_adapter_on_an_adapter_names_a_base_with_the_first_one_merged(tmp_path: Path) -> None:
    """PEFT must find the weights that the second adapter was trained on, not those under the first."""
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

    def trained(parent: TrainConfig, folder: Path, merged: Path) -> torch.nn.Module:
        adapter = model.build(parent, TOKENIZER, merged, is_main=True)
        generator = torch.Generator().manual_seed(len(folder.name))
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        save.save(adapter, save.gather_weights(adapter, trainable_only=True), folder)
        return adapter.eval()

    trained(config, first.adapter, tmp_path / "unused")
    second_config = dataclasses.replace(config, model=ModelConfig(path="run:first"))
    merged = tmp_path / "runs" / "second" / "merged_base"
    second = trained(second_config, tmp_path / "second", merged)
    from_disk = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(merged), tmp_path / "second"
    ).eval()
    assert from_disk.peft_config["default"].base_model_name_or_path == str(merged)
    assert (merged / "tokenizer.json").read_bytes() == (tmp_path / "base" / "tokenizer.json").read_bytes()
    again = tmp_path / "runs" / "third" / "merged_base"
    trained(second_config, tmp_path / "third", again)
    assert (again / "model.safetensors").samefile(merged / "model.safetensors"), "a copy for each run"
    ids = torch.arange(4, 36)[None]
    assert torch.allclose(from_disk(ids).logits, second(ids).logits, atol=1e-5)
    plain_base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    assert not torch.allclose(plain_base(ids).logits, second(ids).logits, atol=1e-2)
