"""Every metric: its name in metrics.jsonl and MLflow, its unit and its meaning. No other module spells a
metric's name.

Standard library only: the batch script's helper reads metrics outside of a container (job/batch_script.py).
"""

from __future__ import annotations

from dataclasses import dataclass


class Metric(str):
    """The name of a metric, with its unit and meaning; it can be used wherever a string can."""

    unit: str
    meaning: str

    def __new__(cls, name: str, unit: str, meaning: str) -> Metric:
        metric = super().__new__(cls, name)
        metric.unit = unit
        metric.meaning = meaning
        return metric

    def __reduce__(self) -> tuple[type[Metric], tuple[str, str, str]]:  # for copies, also in another process
        return Metric, (str(self), self.unit, self.meaning)


@dataclass(frozen=True)
class Family:
    """Metrics that share a prefix, a unit and a meaning; `name` in the meaning stands for what follows the
    prefix."""

    prefix: str
    unit: str
    meaning: str

    def of(self, name: str) -> str:
        """Return the name of one of its metrics."""
        return f"{self.prefix}{name}"


LOSS_UNIT = "nats per supervised token"

TRAIN_LOSS = Metric("train/loss", LOSS_UNIT, "mean loss over the global batch of a step, before its update")
GRAD_NORM = Metric("train/grad_norm", "1", "norm of the whole gradient before clipping")
LEARNING_RATE = Metric("train/lr", "1", "learning rate of the step")
TOKENS = Metric("train/tokens", "tokens", "tokens of the step over all ranks, padding left out")
SUPERVISED_TOKENS = Metric(
    "train/supervised_tokens", "tokens", "tokens of the step that are targets, over all ranks"
)
TOKENS_PER_SECOND = Metric(
    "train/tokens_per_second", "tokens/s", "tokens of the step by the time of its slowest rank"
)
TOKENS_PER_SECOND_PER_RANK = Metric(
    "train/tokens_per_second_per_rank", "tokens/s", "the same, divided by the ranks"
)
PEAK_MEMORY = Metric("train/peak_memory_bytes", "bytes", "largest memory that a rank had allocated so far")
DATA_SECONDS = Metric("train/data_seconds", "s", "longest time that a rank waited for data in the step")
NUM_STEPS = Metric("train/num_steps", "optimizer steps", "steps that the run is to take in all")
MFU = Metric("train/mfu", "1", "model FLOPs utilisation: share of a rank's peak FLOP/s that model FLOPs took")
DATA_CHECKSUM = Metric("data/checksum", "1", "CRC of the step's tokens: equal data, equal checksum")
DATA_TOKENS_LOST = Metric(
    "data/tokens_lost", "tokens", "training tokens cut off or left out by the pack plan"
)
HELD_OUT_LOSS = Metric("validation/loss", LOSS_UNIT, "mean loss on the validation split")
CHECKPOINT_SECONDS = Metric("checkpoint/seconds", "s", "time that training stood still for a checkpoint")
CHECKPOINT_BEYOND_GRACE = Metric(
    "checkpoint/seconds_beyond_grace", "s", "time of a step and a checkpoint beyond cluster.signal_lead_s"
)
REWINDS = Metric("guard/rewinds", "rewinds", "times that the run went back to a checkpoint after a bad step")
WORSE_THAN_START = Metric(
    "guard/worse_than_start", "1", "1 if the result's held-out loss is above that of the start"
)
WORSE_THAN_UNIGRAM = Metric(
    "guard/worse_than_unigram",
    "1",
    "1 if the result's held-out loss is above that of token frequencies alone",
)
RESULT_STEP = Metric("result/step", "optimizer steps", "step whose weights were saved as the result")
RESULT_LOSS = Metric("result/loss", LOSS_UNIT, "held-out loss of the result")

HELD_OUT_LOSS_BY_SOURCE = Family(
    "validation/loss/source/", LOSS_UNIT, "held-out loss on documents of source `name`"
)
HELD_OUT_LOSS_BY_LANGUAGE = Family(
    "validation/loss/language/", LOSS_UNIT, "held-out loss on documents in written standard `name`"
)
DATA_COUNT = Family("data/", "documents", "documents of the pack plan, and those split, cut or left out")
TIME = Family("time/", "s", "time of rank 0 in phase `name`, over all attempts of the run")

# all of the above
METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
FAMILIES = tuple(value for value in list(globals().values()) if isinstance(value, Family))


def describe(name: str) -> Metric | None:
    """Return a metric by its name, with unit and meaning; None if there is no such metric."""
    for metric in METRICS:
        if metric == name:
            return metric
    for family in FAMILIES:
        if name.startswith(family.prefix):
            return Metric(name, family.unit, family.meaning)
    return None
