"""The rules by which all systems are measured: tokens, steps and FLOP.

This module uses only the standard library, because it runs in each system's own environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The shape of a Llama model; its fields have the names of transformers' config."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool

    @property
    def _projections(self) -> list[tuple[int, int]]:
        """Input and output size of each linear layer of a block: q, k, v, o, gate, up, down."""
        hidden = self.hidden_size
        inner = self.intermediate_size
        key_value = hidden // self.num_attention_heads * self.num_key_value_heads
        attention = [(hidden, hidden), (hidden, key_value), (hidden, key_value), (hidden, hidden)]
        return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]

    @property
    def non_embedding_parameters(self) -> int:
        """Number of parameters without the token embeddings and the output layer."""
        block = sum(a * b for a, b in self._projections) + 2 * self.hidden_size
        return self.num_hidden_layers * block + self.hidden_size

    @property
    def parameters(self) -> int:
        embeddings = self.vocab_size * self.hidden_size
        number = 1 if self.tie_word_embeddings else 2
        return self.non_embedding_parameters + number * embeddings

    def lora_parameters(self, r: int) -> int:
        """Return the number of LoRA parameters on all linear layers except the output layer."""
        return self.num_hidden_layers * r * sum(a + b for a, b in self._projections)

    def matmuls(self, tokens: int) -> list[tuple[int, int, int]]:
        """Return the distinct shapes (m, k, n) of the matrix products in a forward pass."""
        shapes = dict.fromkeys([*self._projections, (self.hidden_size, self.vocab_size)])
        return [(tokens, a, b) for a, b in shapes]


def flop_per_token(non_embedding_parameters: int, lora: bool) -> int:
    """Return the number of floating-point operations for training on one token.

    Each parameter needs 2 operations for the forward pass, 2 for the gradient of the layer's input
    and, in full training, 2 for the gradient of the weights (Kaplan et al. 2020, section 2.1).
    Attention scores, embeddings, the output layer and the adapter are left out, for all systems.
    """
    return (4 if lora else 6) * non_embedding_parameters


def share_of_limit(tokens_per_second: float, flop_per_token: int, limit: float) -> float:
    """Return the share of the machine's measured matmul limit (FLOP/s) that training reached."""
    return tokens_per_second * flop_per_token / limit


def non_padding_tokens(input_ids: Any, pad_token_id: int) -> Any:
    """Return the number of tokens that are not padding, as a scalar tensor or array.

    Texts never contain the padding token, so the count is right whatever attention mask a system
    uses for packed rows: 2D, 4D or none.
    """
    return (input_ids != pad_token_id).sum()


def tokens_per_second(tokens: Sequence[int], ends: Sequence[float], warmup: int) -> float:
    """Return the training speed, measured from the end of warm-up to the end of the last step.

    Args:
        tokens: non-padding tokens of each optimizer step.
        ends: end time of each optimizer step, in seconds on one clock.
        warmup: number of steps of warm-up.

    Raises:
        ValueError: warmup is below 1 or leaves no step, or tokens and ends differ in length.
    """
    if len(tokens) != len(ends) or not 1 <= warmup < len(ends):
        raise ValueError(
            f"nothing to measure: the run has {len(tokens)} token counts and {len(ends)} end times of "
            f"steps, and {warmup} warm-up steps"
        )
    return sum(tokens[warmup:]) / (ends[-1] - ends[warmup - 1])


def read_steps(records: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[float]]:
    """Return the tokens and the end times of the training steps of a run.

    End times are in seconds since the epoch.

    Args:
        records: the records of the run's metrics.jsonl.

    Raises:
        ValueError: the steps are not numbered 1, 2, 3 and so on; this happens after a resume.
    """
    steps = [record for record in records if "train/tokens" in record["values"]]
    if [record["step"] for record in steps] != list(range(1, len(steps) + 1)):
        raise ValueError(
            "metrics.jsonl: steps are not numbered 1, 2, 3, …; measure a run that was not resumed"
        )
    tokens = [int(record["values"]["train/tokens"]) for record in steps]
    ends = [record["time_ms"] / 1000 for record in steps]
    return tokens, ends
