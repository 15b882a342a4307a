"""All metrics, with their names in metrics.jsonl and MLflow, units and meanings. No other module
spells the name of a metric.

Standard library only: the batch script's helper reads metrics outside of a container
(job/batch_script.py).
"""

from __future__ import annotations

from dataclasses import dataclass


class Metric(str):
    """The name of a metric, a str with a unit and a meaning."""

    unit: str
    meaning: str

    def __new__(cls, name: str, unit: str, meaning: str) -> Metric:
        metric = super().__new__(cls, name)
        metric.unit = unit
        metric.meaning = meaning
        return metric

    def __reduce__(self) -> tuple[type[Metric], tuple[str, str, str]]:
        """Return the arguments to recreate the metric, for copies and pickles."""
        return Metric, (str(self), self.unit, self.meaning)


@dataclass(frozen=True)
class Family:
    """Metrics that share a prefix, a unit and a meaning.

    The word `name` in `meaning` stands for the rest of the metric's name, after the prefix.
    """

    prefix: str
    unit: str
    meaning: str

    def of(self, name: str) -> str:
        """Return the name of the family's metric for a source, language, phase or other name."""
        return f"{self.prefix}{name}"


LOSS_UNIT = "nats per supervised token"

TRAIN_LOSS = Metric(
    "train/loss",
    LOSS_UNIT,
    "mean loss over the step's global batch, before the weight update",
)
GRAD_NORM = Metric("train/grad_norm", "1", "global norm of the gradient before clipping")
LEARNING_RATE = Metric("train/lr", "1", "learning rate of the step")
TOKENS = Metric("train/tokens", "tokens", "tokens of the step over all ranks, without padding")
SUPERVISED_TOKENS = Metric(
    "train/supervised_tokens",
    "tokens",
    "target tokens of the step, over all ranks",
)
TOKENS_PER_SECOND = Metric(
    "train/tokens_per_second",
    "tokens/s",
    "tokens of the step over all ranks, divided by the time of the slowest rank",
)
TOKENS_PER_SECOND_PER_RANK = Metric(
    "train/tokens_per_second_per_rank",
    "tokens/s",
    "train/tokens_per_second divided by the number of ranks",
)
PEAK_MEMORY = Metric(
    "train/peak_memory_bytes",
    "bytes",
    "largest memory that any rank has allocated so far",
)
DATA_SECONDS = Metric(
    "train/data_seconds",
    "s",
    "longest time that any rank waited for data in the step",
)
NUM_STEPS = Metric("train/num_steps", "optimizer steps", "total number of steps of the run")
MFU = Metric(
    "train/mfu",
    "1",
    "model FLOPs utilisation: model FLOP/s as a share of a rank's peak FLOP/s",
)
DATA_CHECKSUM = Metric("data/checksum", "1", "CRC of the step's tokens, to compare data of two runs")
DATA_TOKENS_LOST = Metric(
    "data/tokens_lost",
    "tokens",
    "training tokens that the pack plan cuts or leaves out",
)
HELD_OUT_LOSS = Metric("validation/loss", LOSS_UNIT, "mean loss on the validation split")
CHECKPOINT_SECONDS = Metric("checkpoint/seconds", "s", "time for which a checkpoint paused training")
CHECKPOINT_BEYOND_GRACE = Metric(
    "checkpoint/seconds_beyond_grace",
    "s",
    "time by which a step and a checkpoint exceed cluster.signal_lead_s",
)
REWINDS = Metric("guard/rewinds", "rewinds", "number of rewinds to a checkpoint after a bad step")
WORSE_THAN_START = Metric(
    "guard/worse_than_start",
    "1",
    "1 if the result's held-out loss is above that of the base model",
)
WORSE_THAN_UNIGRAM = Metric(
    "guard/worse_than_unigram",
    "1",
    "1 if the result's held-out loss is above that of a unigram model",
)
RESULT_STEP = Metric("result/step", "optimizer steps", "step whose weights were saved as the result")
RESULT_LOSS = Metric("result/loss", LOSS_UNIT, "held-out loss of the result")

HELD_OUT_LOSS_BY_SOURCE = Family(
    "validation/loss/source/",
    LOSS_UNIT,
    "held-out loss on documents of source `name`",
)
HELD_OUT_LOSS_BY_LANGUAGE = Family(
    "validation/loss/language/",
    LOSS_UNIT,
    "held-out loss on documents in written standard `name`",
)
DATA_COUNT = Family(
    "data/",
    "documents",
    "number of documents in the pack plan, or of those split, cut or left out",
)
TIME = Family("time/", "s", "time of rank 0 in phase `name`, over all attempts of the run")

METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
FAMILIES = tuple(value for value in list(globals().values()) if isinstance(value, Family))


def describe(name: str) -> Metric | None:
    """Return the metric with this name, its unit and its meaning; None if there is none."""
    for metric in METRICS:
        if metric == name:
            return metric
    for family in FAMILIES:
        if name.startswith(family.prefix):
            return Metric(name, family.unit, family.meaning)
    return None
