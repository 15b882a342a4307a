"""Checks in every step and at the end of a run that stop it on silent training errors. Each raises GuardError
with a remedy; each has its planted fault in tests/test_guards.py. Those of the model itself:
models/checks.py."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

from finetune.models.checks import GuardError

FIRST_LOSS_SHARE = 0.9


def check_first_loss(loss: float, vocab_size: int, name: str) -> None:
    """A base that was really loaded predicts clearly better than chance, which is ln(vocabulary) nats a
    token.

    Random weights start at ln(vocabulary) or above it. Gemma 3 270M scored 0.21 to 0.47 of it on nine kinds
    of Norwegian and English text, and 0.66 to 0.78 on the same tokens in random order.
    """
    chance = math.log(vocab_size)
    if not loss < FIRST_LOSS_SHARE * chance:
        raise GuardError(
            f"the first loss of {name} is {loss:.2f} nats a token, guessing among {vocab_size} tokens gives {chance:.2f}: its "
            f"weights look random, or the text is nothing like what it knows; if that is meant, set check_first_loss=false"
        )


class StepCheck:
    """Tells a step that would ruin the weights, or teach nothing: a loss or gradient that is no number, a
    gradient of nothing but zeros, or a loss far above the last ones.

    Args:
        spike_stds: a spike is this many standard deviations, and SPIKE_NATS, above the mean of the last
            steps; 0: no spikes.
        recent: losses of the last good steps, as the attribute `recent` had them when the run was
            interrupted.
    """

    SPIKE_NATS = 0.5
    ENOUGH = 16

    def __init__(self, spike_stds: float, recent: Iterable[float] = ()) -> None:
        self._stds, self.recent = spike_stds, deque[float](recent, maxlen=64)

    def fault(self, loss: float, grad_norm: float, skipped: bool = False) -> str | None:
        """What is wrong with this step, or None.

        Args:
            skipped: DeepSpeed left the weights as they were.
        """
        if skipped:
            return f"DeepSpeed skipped the update, as gradients contain NaN or Inf (loss {loss})"
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"loss {loss}, gradient norm {grad_norm}"
        if grad_norm == 0:
            return "the gradient is zero: nothing that is trained is on the loss's path"
        if self._stds and len(self.recent) >= self.ENOUGH:
            mean, deviation = statistics.fmean(self.recent), statistics.pstdev(self.recent)
            if loss > mean + max(self._stds * deviation, self.SPIKE_NATS):
                return f"a loss spike: {loss:.3f}, after a mean of {mean:.3f} over {len(self.recent)} steps"
        self.recent.append(loss)
        return None


def check_planned(planned: int, step: int) -> None:
    """There is something to learn from in a step: its loss is divided by the number of targets."""
    if planned == 0:
        raise GuardError(
            f"step {step} has no token to learn from: check the corpus' loss mask, or raise global_batch_size"
        )


def check_targets(counted: int, planned: int, step: int) -> None:
    """The tokens that the ranks trained on are those that the loss was divided by."""
    if counted != planned:
        raise GuardError(
            f"step {step}: the ranks counted {counted} supervised tokens, the plan {planned}: plan/ does not fit the corpus"
        )


def check_restored(step: int, loss: float, expected: float) -> None:
    """The weights that a checkpoint gives back have the held-out loss that they were saved with, up to
    rounding."""
    if not abs(loss - expected) <= 0.01 * max(1.0, abs(expected)):
        raise GuardError(
            f"the checkpoint of step {step} was saved with a held-out loss of {expected:.4f} and has {loss:.4f} now: it does not "
            f"restore the weights; `finetune resume` with result=last saves those of the last step"
        )
