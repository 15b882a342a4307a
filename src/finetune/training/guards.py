"""Checks that stop a run on silent training errors, at each step and at the end of the run.

The functions raise GuardError with a remedy. `StepCheck` instead returns a description of the
fault, and loop.py handles the bad step. tests/test_guards.py plants a fault for each check. Checks
of the model are in models/checks.py.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

from finetune.models.checks import GuardError

# The first loss of a pretrained base must be below this share of ln(vocabulary).
FIRST_LOSS_SHARE = 0.9


def check_first_loss(loss: float, vocab_size: int, name: str) -> None:
    """Check that a pretrained base predicts clearly better than chance.

    A prediction by chance has a loss of ln(vocabulary) nats per token. A model with random weights
    starts at this loss or above it. The first losses of Gemma 3 270M were 0.21 to 0.47 times this
    loss on nine kinds of Norwegian and English text. On the same tokens in random order, they were
    0.66 to 0.78 times this loss.

    Args:
        loss: loss of the first step, in nats per token.
        name: the base's name for the message.

    Raises:
        GuardError: the loss is NaN, or not below FIRST_LOSS_SHARE times the loss of chance.
    """
    chance = math.log(vocab_size)
    if not loss < FIRST_LOSS_SHARE * chance:
        raise GuardError(
            f"model {name}: the first loss is {loss:.2f} nats per token, and uniform guessing among "
            f"{vocab_size} tokens gives {chance:.2f}, so the weights look random, or the text is "
            "unlike the base's training data; check model.path and the corpus, or set "
            "check_first_loss=false"
        )


class StepCheck:
    """Detector of bad steps: steps that may damage the weights or do not change them.

    A step is bad if DeepSpeed skipped its update, if its loss or gradient norm is NaN or Inf, if
    its gradient is all zeros, or if its loss is far above those of the last steps (a spike).

    Args:
        spike_stds: a loss is a spike if it exceeds the mean of the last losses by more than this
            many standard deviations and by more than SPIKE_NATS; 0 turns this check off.
        recent: losses of the last good steps, from a checkpoint.

    Attributes:
        recent: losses of the last good steps, at most 64, for the next checkpoint.
    """

    SPIKE_NATS = 0.5
    MIN_STEPS = 16  # losses needed for a reliable standard deviation

    def __init__(self, spike_stds: float, recent: Iterable[float] = ()) -> None:
        self._spike_stds = spike_stds
        self.recent = deque[float](recent, maxlen=64)

    def find_fault(self, loss: float, grad_norm: float, skipped: bool = False) -> str | None:
        """Return why this step is bad. If it is good, remember its loss and return None.

        Args:
            skipped: True if DeepSpeed skipped the update.
        """
        if skipped:
            return f"DeepSpeed skipped the update because gradients contain NaN or Inf (loss {loss})"
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"NaN or Inf in training (loss {loss}, gradient norm {grad_norm})"
        if grad_norm == 0:
            return "the gradient is zero: the loss does not depend on any trainable parameter"
        if self._spike_stds and len(self.recent) >= self.MIN_STEPS:
            mean = statistics.fmean(self.recent)
            deviation = statistics.pstdev(self.recent)
            if loss > mean + max(self._spike_stds * deviation, self.SPIKE_NATS):
                return f"a loss spike: {loss:.3f} against a mean of {mean:.3f} over {len(self.recent)} steps"
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
    """Raise GuardError if the ranks trained on more or fewer supervised tokens than planned.

    The loss and the gradient would then be wrong, because they are divided by the planned number.
    """
    if counted != planned:
        raise GuardError(
            f"step {step}: the ranks trained on {counted} supervised tokens, and the plan has "
            f"{planned}, so the run's plan/ does not fit the corpus; start a new run"
        )


def check_restored(step: int, loss: float, expected: float) -> None:
    """Raise GuardError if the held-out loss of a loaded checkpoint differs from the saved one.

    A difference of up to 1% is attributed to rounding.

    Args:
        loss: held-out loss after loading.
        expected: held-out loss that was saved with the checkpoint.
    """
    if not abs(loss - expected) <= 0.01 * max(1.0, abs(expected)):
        raise GuardError(
            f"checkpoint of step {step}: the held-out loss was {expected:.4f} when it was saved and "
            f"is {loss:.4f} after loading, so the weights were not restored; run `finetune resume` "
            "with result=last to save the weights of the last step instead"
        )
