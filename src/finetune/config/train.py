"""Settings of a training run, with their meanings, defaults and checks: the schema of conf/."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_prep.fields import at_least, between, one_of, section, setting
from data_prep.user_error import UserError
from finetune.config.cluster import ClusterConfig, check_log_folder
from finetune.config.suggestions import did_you_mean

RUN_PREFIX = "run:"
PRECISIONS = ("fp32", "bf16")
SCHEDULES = ("constant", "linear", "cosine", "wsd")
ATTENTION_IMPLEMENTATIONS = ("auto", "documents", "sdpa", "eager", "flex_attention", "flash_attention_2")
KERNELS = ("auto", "none", "torch", "liger")
QUANTIZATIONS = ("nf4",)
# methods of PEFT that put virtual tokens before a row
PROMPT_METHODS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT")
RESULTS = ("best", "last")
ON_BAD_STEP = ("stop", "rewind")
LONG_DOCUMENTS = ("auto", "split", "truncate", "drop")
LONG_CONVERSATIONS = ("cut", "drop")


@dataclass(kw_only=True)
class ModelConfig:
    """The base model: loaded from `path`, or built with random weights by `from_scratch`; set exactly one."""

    path: str | None = setting(
        None, "model folder, hub id, run:<run id> (a run's result) or run:<run id>@<step> (its checkpoint)"
    )
    revision: str | None = setting(None, "revision of the hub model in path")
    from_scratch: dict[str, Any] = setting(
        {}, "transformers config of a new model; its vocabulary is that of the corpus"
    )
    attention: str = setting(
        "auto",
        f"attention implementation: {', '.join(ATTENTION_IMPLEMENTATIONS)}; documents: "
        "finetune's own, which computes no masked scores; auto: the fastest one that passes"
        " a check, at the start, that packed documents do not attend to each other",
    )
    quantization: str | None = setting(
        None,
        f"quantization of a frozen base under an adapter: {', '.join(QUANTIZATIONS)} (QLoRA); unset: none",
    )
    kernels: str = setting(
        "auto", f"fused kernels: {', '.join(KERNELS)}; auto: liger if it is installed, otherwise torch"
    )

    def check(self) -> None:
        if self.path is None and not self.from_scratch:
            raise UserError("model.path is missing; write e.g. model=run:<run id> or model=/path/to/folder")
        if self.path is not None and self.from_scratch:
            raise UserError(
                "model.path and model.from_scratch: both are set; set only one, e.g. "
                "model=FOLDER instead of model=llama_tiny"
            )
        if self.from_scratch and "model_type" not in self.from_scratch:
            raise UserError("model.from_scratch.model_type is missing; name the architecture, e.g. llama")
        one_of("model.attention", self.attention, ATTENTION_IMPLEMENTATIONS)
        one_of("model.kernels", self.kernels, KERNELS)
        if self.quantization is not None:
            one_of("model.quantization", self.quantization, QUANTIZATIONS)


@dataclass(kw_only=True)
class DataConfig:
    """The training data of a run."""

    corpus: str = setting(
        "???", "prepared corpus: its name in corpora_dir, or its folder; short form: corpus=NAME"
    )
    corpora_dir: str = setting("corpora", "folder that holds the prepared corpora")
    include_sources: list[str] = setting([], "sources of the corpus to train on; empty: all")
    exclude_sources: list[str] = setting(
        [], "sources of the corpus not to train on; they are still evaluated"
    )
    sequence_length: int = setting(
        512, "tokens per pack, which is a training sequence of one or several documents"
    )
    long_documents: str = setting(
        "auto",
        "treatment of running text longer than a pack: split, truncate (to one pack) or drop; auto: split",
    )
    long_conversations: str = setting(
        "cut",
        "treatment of conversations and prompts longer than a pack: cut (after the last complete answer "
        "that fits) or drop",
    )
    max_lost_share: float = setting(
        0.1,
        "largest share of the training tokens that may be lost to truncating, cutting and dropping; a run "
        "that would lose more does not start",
    )
    stage: bool = setting(
        False, "copy the corpus to the local disk of each node (cluster.node_local) when a job starts"
    )

    def __post_init__(self) -> None:
        at_least("data.sequence_length", self.sequence_length, 2)
        one_of("data.long_documents", self.long_documents, LONG_DOCUMENTS)
        one_of("data.long_conversations", self.long_conversations, LONG_CONVERSATIONS)
        between("data.max_lost_share", self.max_lost_share, 0, 1)

    def trains_on(self, source: str) -> bool:
        if source in self.exclude_sources:
            return False
        return not self.include_sources or source in self.include_sources

    @property
    def corpus_folder(self) -> Path:
        """`corpus` itself if it is a folder with a manifest, else its folder in corpora_dir."""
        folder = Path(self.corpus)
        if (folder / "manifest.json").is_file():
            return folder
        return Path(self.corpora_dir) / self.corpus


@dataclass(kw_only=True)
class TrainConfig:
    """Settings of a training run."""

    name: str = setting("run", "first part of the run id")
    runs_dir: str = setting("runs", "folder that holds the run folders and the MLflow database")
    model: ModelConfig = section(ModelConfig)
    adapter: dict[str, Any] = setting(
        {}, "PEFT config of the adapter, with its peft_type; empty: full fine-tuning"
    )
    zero: dict[str, Any] = setting({"stage": 0}, "zero_optimization section of the DeepSpeed config")
    cluster: ClusterConfig = section(ClusterConfig)
    data: DataConfig = section(DataConfig)

    global_batch_size: int = setting(
        8, "packs (sequences of data.sequence_length tokens) per optimizer step, over all ranks"
    )
    micro_batch_size: int = setting(4, "packs per forward pass on one rank")
    max_steps: int | None = setting(None, "number of optimizer steps; unset: computed from num_epochs")
    num_epochs: float = setting(1.0, "passes over the training packs; used if max_steps is unset")

    lr: float = setting(1e-4, "peak learning rate")
    schedule: str = setting("cosine", f"learning rate schedule after the warm-up: {', '.join(SCHEDULES)}")
    warmup_ratio: float = setting(
        0.05, "share of the steps in which the learning rate rises linearly from zero"
    )
    decay_ratio: float = setting(0.2, "share of the steps, at the end, in which schedule=wsd decays")
    min_lr_ratio: float = setting(
        0.1, "learning rate at the end, as a share of lr; not used with schedule=constant"
    )
    weight_decay: float = setting(0.01, "decoupled weight decay of AdamW; not applied to biases and norms")
    adam_beta1: float = setting(0.9, "AdamW beta1")
    adam_beta2: float = setting(0.95, "AdamW beta2")
    adam_eps: float = setting(1e-8, "AdamW epsilon")
    max_grad_norm: float = setting(1.0, "global norm to which gradients are clipped; 0: no clipping")
    activation_checkpointing: bool = setting(
        False, "recompute each layer in the backward pass: less memory, a third more computation"
    )
    precision: str = setting("fp32", f"precision of weights and activations: {', '.join(PRECISIONS)}")
    seed: int = setting(0, "random seed of initial weights, data order and dropout")

    evaluate_every: int = setting(
        0, "steps between evaluations; 0: evaluate only before the first step and after the last"
    )
    checkpoint_every: int = setting(50, "steps between checkpoints; 0: save only after the last step")
    keep_checkpoints: int = setting(
        2, "number of newest checkpoints to keep, in addition to the one with the best held-out loss"
    )
    result: str = setting(
        "best",
        "model to save at the end: best (lowest held-out loss; the last one if the corpus "
        "has no validation documents) or last; with best, each new lowest loss also saves a"
        " checkpoint",
    )
    on_bad_step: str = setting(
        "stop",
        "action after a bad step (loss NaN, Inf or a spike): stop, or rewind to the last "
        "checkpoint and skip the batch of that step",
    )
    max_rewinds: int = setting(3, "largest number of rewinds; a run then stops")
    spike_stds: float = setting(
        8.0,
        "a loss is a spike if it is this many standard deviations, and at least 0.5 nats, above the mean of "
        "the last steps; 0: no check",
    )
    check_first_loss: bool = setting(
        True,
        "stop if the first loss of a model loaded from model.path is as high as that of "
        "random weights; set false if its weights really are random",
    )
    hang_timeout_min: float = setting(
        30.0, "minutes without progress after which a rank logs its stack traces and ends the job"
    )
    experiment: str = setting("finetune", "name of the MLflow experiment")
    tracking_uri: str | None = setting(None, "MLflow tracking URI; unset: an SQLite database in runs_dir")
    after: str | None = setting(
        None, "id of a preparation on Slurm; the run starts after its successful end (same as --after ID)"
    )
    detach: bool = setting(
        False, "return at once and leave the run in the background; on Slurm this is the default (see wait)"
    )
    wait: bool = setting(False, "on Slurm: show a live table of the runs until all have ended")
    dry_run: bool = setting(
        False, "check everything and print the batch script, but start and write nothing (same as --dry-run)"
    )
    debug: bool = setting(False, "run one rank in this shell under Python's debugger")

    def __post_init__(self) -> None:
        self.model.check()
        self._check_follow_mode()
        self._check_numbers()
        one_of("precision", self.precision, PRECISIONS)
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("result", self.result, RESULTS)
        one_of("on_bad_step", self.on_bad_step, ON_BAD_STEP)
        self._check_zero()
        self._check_adapter()
        if self.data.stage and not self.cluster.node_local:
            raise UserError(
                "data.stage=true needs a folder on each node's own disk; set cluster.node_local=/path"
            )
        has_invalid = any(not (character.isalnum() or character in "-_.") for character in self.name)
        if not self.name or has_invalid or self.name[0] in "-.":
            raise UserError(
                f"name is '{self.name}': must consist of letters, digits, '-', '_' and '.', "
                f"and start with a letter or digit"
            )
        per_pass = self.micro_batch_size * self.cluster.world_size
        if self.global_batch_size % per_pass:
            fitting = max(1, self.global_batch_size // per_pass) * per_pass
            raise UserError(
                f"global_batch_size is {self.global_batch_size}, not a multiple of "
                f"micro_batch_size × ranks = {self.micro_batch_size} × {self.cluster.world_size}; "
                f"choose e.g. {fitting}"
            )

    def _check_follow_mode(self) -> None:
        if self.detach and (self.wait or self.debug):
            raise UserError(
                "detach=true leaves the run in the background, but wait=true and debug=true follow "
                "it; choose one"
            )
        if self.debug and self.cluster.world_size > 1:
            raise UserError("debug=true needs one rank; add cluster.nodes=1 cluster.ranks_per_node=1")

    def _check_numbers(self) -> None:
        for name in ("global_batch_size", "micro_batch_size", "keep_checkpoints"):
            at_least(name, getattr(self, name), 1)
        for name in ("evaluate_every", "checkpoint_every", "weight_decay", "max_grad_norm"):
            at_least(name, getattr(self, name), 0)
        for name in ("seed", "max_rewinds", "spike_stds"):
            at_least(name, getattr(self, name), 0)
        at_least("max_steps", self.max_steps, 1)
        for name in ("lr", "num_epochs", "adam_eps", "hang_timeout_min"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"{name} is {value}: must be above 0 and finite")
        for name in ("warmup_ratio", "decay_ratio", "min_lr_ratio"):
            between(name, getattr(self, name), 0, 1)
        for name in ("adam_beta1", "adam_beta2"):
            between(name, getattr(self, name), 0, 1, below_high=True)

    def _check_zero(self) -> None:
        stage = self.zero.get("stage")
        if stage not in (0, 1, 2, 3):
            raise UserError(f"zero.stage is {stage}; choose 0, 1, 2 or 3, e.g. zero=stage2")
        for key in ("offload_optimizer", "offload_param"):
            offload = self.zero.get(key) or {}
            if offload.get("device") == "nvme" and not offload.get("nvme_path"):
                raise UserError(
                    f"zero.{key}.device is nvme, but its folder is not set; "
                    f"add zero.{key}.nvme_path=/path/on/a/local/disk"
                )
        if stage == 0 and self.precision == "bf16":
            # seen in DeepSpeed 0.19
            raise UserError(
                "zero.stage is 0, but with precision=bf16 DeepSpeed's optimizer then takes a step on zero "
                "gradients when it starts; choose zero=stage1"
            )

    def _check_adapter(self) -> None:
        peft_type = self.adapter.get("peft_type")
        if self.adapter and "peft_type" not in self.adapter:
            raise UserError("adapter.peft_type is missing; name PEFT's method, e.g. LORA (see adapter=lora)")
        if peft_type in PROMPT_METHODS:
            raise UserError(
                f"adapter.peft_type {peft_type} puts virtual tokens before a row, and the documents "
                f"that are packed into one row cannot share these; "
                f"choose a method that changes layers, e.g. adapter=lora"
            )
        if self.model.quantization and (not self.adapter or self.zero["stage"] == 3):
            raise UserError(
                "model.quantization needs a frozen base that is not partitioned between ranks; "
                "choose an adapter, and zero=stage0 to stage2"
            )
        if self.adapter and self.model.from_scratch:
            raise UserError(
                "adapter: cannot be used with a model from scratch, as only the adapter would be saved, "
                "without the random weights of its base; add adapter=none"
            )

    @property
    def gradient_accumulation_steps(self) -> int:
        return self.global_batch_size // (self.micro_batch_size * self.cluster.world_size)

    def with_absolute_paths(self) -> TrainConfig:
        """Return a copy with absolute paths, which is valid in any working directory.

        Raises:
            UserError: runs_dir contains a pattern, such as %j, that Slurm or submitit would replace
                in the path of a log.
        """
        model = self.model
        if model.path:
            prefix = RUN_PREFIX if model.path.startswith(RUN_PREFIX) else ""
            name = model.path.removeprefix(prefix)
            step = None
            if prefix:
                name, step = split_step(name)
            if Path(name).is_dir():
                at_step = "" if step is None else f"@{step}"
                model = dataclasses.replace(model, path=f"{prefix}{Path(name).resolve()}{at_step}")
        data = dataclasses.replace(
            self.data,
            corpus=str(self.data.corpus_folder.resolve()),
            corpora_dir=str(Path(self.data.corpora_dir).resolve()),
        )
        runs_dir = str(Path(self.runs_dir).resolve())
        check_log_folder("runs_dir", runs_dir, self.cluster.scheduler)
        return dataclasses.replace(self, data=data, model=model, runs_dir=runs_dir)


def from_omegaconf(node: Any, schema: type[Any] = TrainConfig) -> Any:
    """Return the typed config of a composed OmegaConf node.

    Raises:
        UserError: a setting is unknown, or __post_init__ rejects a value.
        OmegaConfBaseException: a value has the wrong type, or is missing.
    """
    config = OmegaConf.to_object(OmegaConf.merge(_create_node(schema), node))  # type: ignore[arg-type]
    _check_unknown_keys(config, "")
    return config


@cache
def _create_node(schema: Any) -> Any:
    """Return the schema as a node of OmegaConf.

    The node is cached, because a sweep has many points. Its creation takes half of the time of
    from_omegaconf.
    """
    return OmegaConf.structured(schema)


def _check_unknown_keys(config: Any, prefix: str) -> None:
    """Raise UserError for keys that are not fields of the schema. Hydra lets `+key=value` add any
    key, and OmegaConf sets it as an attribute, where it would have no effect."""
    known = {item.name for item in dataclasses.fields(config)}
    extra = set(vars(config)) - known
    if extra:
        name = min(extra)
        raise UserError(f"unknown setting '{prefix}{name}'{did_you_mean(name, known) or '; remove it'}")
    for name in known:
        if dataclasses.is_dataclass(getattr(config, name)):
            _check_unknown_keys(getattr(config, name), f"{prefix}{name}.")


# Settings that may change when a run is resumed: its length, resources and checks. Settings that
# change the result of an optimizer step are left out.
CHANGEABLE = (
    "cluster",
    "micro_batch_size",
    "max_steps",
    "num_epochs",
    "evaluate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "result",
    "on_bad_step",
    "max_rewinds",
    "spike_stds",
    "hang_timeout_min",
    "detach",
    "wait",
    "debug",
)


def apply_overrides(config: TrainConfig, overrides: list[str]) -> TrainConfig:
    """Return the config of a run that is resumed with other settings.

    Args:
        overrides: the changed settings, each as key=value.

    Raises:
        UserError: an override is not key=value, or its key is unknown or may not change in a run.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if "=" not in override or key.split(".")[0] not in CHANGEABLE:
            hint = did_you_mean(key, CHANGEABLE) or "; start a new run to change others"
            raise UserError(f"{override}: a resumed run can change only {', '.join(CHANGEABLE)}{hint}")
        if key == "cluster":
            raise UserError(
                f"{override}: a resumed run keeps its cluster profile; "
                f"change single settings, such as cluster.nodes=2"
            )
    present = OmegaConf.create(dataclasses.asdict(config))
    merged = OmegaConf.merge(present, OmegaConf.from_dotlist(overrides))
    result: TrainConfig = from_omegaconf(merged)
    return result


def split_step(name: str) -> tuple[str, int | None]:
    """Return the run id and the step of ID@STEP, the name of a checkpoint.

    A name without @STEP is that of the run's result; its step is None.
    """
    found = re.fullmatch(r"(.+)@(\d+)", name)
    return (found[1], int(found[2])) if found else (name, None)


def save(config: TrainConfig, path: Path) -> None:
    node = OmegaConf.create(dataclasses.asdict(config))
    path.write_text(OmegaConf.to_yaml(node), encoding="utf-8")


def load(path: Path) -> TrainConfig:
    """Return the resolved config in a file that `save` wrote.

    Raises:
        UserError: the file was edited and is no longer valid.
    """
    try:
        config = from_omegaconf(OmegaConf.load(path))
    except OmegaConfBaseException as fault:
        raise UserError(f"{path}: {describe(fault)}") from None
    assert isinstance(config, TrainConfig)
    return config


def describe(fault: OmegaConfBaseException) -> str:
    """Return an error of OmegaConf as one line: the key, then the problem with its value."""
    message = (fault.msg or str(fault)).strip().splitlines()[0]
    if fault.full_key and fault.full_key not in message:
        return f"{fault.full_key}: {message}"
    return message


def package_dir(name: str) -> str:
    """Return the folder of an installed package.

    conf/corpus/sample.yaml uses it, as `${package_dir:…}`, in the path of its texts.
    """
    file = importlib.import_module(name).__file__
    assert file is not None
    return str(Path(file).parent)


def conf_dir() -> Path:
    """Return conf/ of the checkout, or its copy in the installed package."""
    return Path(package_dir("finetune.conf"))
