"""Checks that stop a run on silent training errors, at each step and at the end of the run.

Each raises GuardError with a remedy; tests/test_guards.py plants a fault for each. The checks of
the model itself are in models/checks.py.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

from finetune.models.checks import GuardError

# Share of ln(vocabulary) that the first loss of a pretrained base must stay below.
FIRST_LOSS_SHARE = 0.9


def check_first_loss(loss: float, vocab_size: int, name: str) -> None:
    """Check that a pretrained base predicts clearly better than chance.

    Chance is ln(vocabulary) nats a token; random weights start there or above. Gemma 3 270M scored
    0.21 to 0.47 of it on nine kinds of Norwegian and English text, and 0.66 to 0.78 on the same
    tokens in random order.

    Raises:
        GuardError: the first loss is above FIRST_LOSS_SHARE of chance, or NaN.
    """
    chance = math.log(vocab_size)
    if not loss < FIRST_LOSS_SHARE * chance:
        raise GuardError(
            f"{name}: its first loss is {loss:.2f} nats a token, and guessing among {vocab_size} "
            f"tokens gives {chance:.2f}: the weights look random, or the text is unlike anything "
            "that the base was trained on; check model.path and the corpus, or set "
            "check_first_loss=false"
        )


class StepCheck:
    """Detector of steps that ruin the weights or do not change them.

    Such a step has a loss or a gradient norm that is NaN or Inf, a gradient that is all zeros, or a
    loss far above those of the last steps (a spike).

    Args:
        spike_stds: a loss is a spike if it exceeds the mean of the last steps by this many standard
            deviations and by SPIKE_NATS; 0 turns the check for spikes off.
        recent: losses of the last good steps before an interruption; see the attribute.

    Attributes:
        recent: losses of the last good steps, 64 at most, to be saved with a checkpoint.
    """

    SPIKE_NATS = 0.5
    MIN_STEPS = 16  # losses needed for a reliable standard deviation

    def __init__(self, spike_stds: float, recent: Iterable[float] = ()) -> None:
        self._spike_stds = spike_stds
        self.recent = deque[float](recent, maxlen=64)

    def find_fault(self, loss: float, grad_norm: float, skipped: bool = False) -> str | None:
        """Return why this step is bad, or None and remember its loss.

        Args:
            skipped: DeepSpeed skipped the update.
        """
        if skipped:
            return f"DeepSpeed skipped the update, as gradients contain NaN or Inf (loss {loss})"
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"loss {loss}, gradient norm {grad_norm}"
        if grad_norm == 0:
            return "the gradient is zero: the loss does not depend on any trainable parameter"
        if self._spike_stds and len(self.recent) >= self.MIN_STEPS:
            mean = statistics.fmean(self.recent)
            deviation = statistics.pstdev(self.recent)
            if loss > mean + max(self._spike_stds * deviation, self.SPIKE_NATS):
                return f"a loss spike: {loss:.3f}, after a mean of {mean:.3f} over {len(self.recent)} steps"
        self.recent.append(loss)
        return None


def check_planned_targets(planned: int, step: int) -> None:
    """Raise GuardError if a step has no supervised tokens: its loss is divided by their number."""
    if planned == 0:
        raise GuardError(
            f"step {step}: the batch has no supervised tokens; check the corpus' loss mask, or "
            "raise global_batch_size"
        )


def check_counted_targets(counted: int, planned: int, step: int) -> None:
    """Raise GuardError if the loss was not divided by the supervised tokens that the ranks had."""
    if counted != planned:
        raise GuardError(
            f"step {step}: the ranks trained on {counted} supervised tokens, and the plan has "
            f"{planned}: plan/ does not fit the corpus; start a new run"
        )


def check_restored(step: int, loss: float, expected: float) -> None:
    """Raise GuardError if restored weights have another held-out loss than when they were saved.

    A difference of 1% is taken for rounding.
    """
    if not abs(loss - expected) <= 0.01 * max(1.0, abs(expected)):
        raise GuardError(
            f"checkpoint of step {step}: it was saved with a held-out loss of {expected:.4f} and "
            f"has {loss:.4f} now, so it does not restore the weights; run `finetune resume` with "
            "result=last to save those of the last step"
        )
