"""The rules every system is measured by. Pure: run in every system's own environment, and by the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A Llama: hidden size, layers, heads, key/value heads, intermediate size, vocabulary, tied
    embeddings."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool

    @property
    def _projections(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one block: q, k, v, o, gate, up, down."""
        hidden, inner = self.hidden_size, self.intermediate_size
        key_value = hidden // self.num_attention_heads * self.num_key_value_heads
        attention = [(hidden, hidden), (hidden, key_value), (hidden, key_value), (hidden, hidden)]
        return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]

    @property
    def non_embedding_parameters(self) -> int:
        """All but the token embeddings and the output layer; the norms are in it."""
        block = sum(a * b for a, b in self._projections) + 2 * self.hidden_size
        return self.num_hidden_layers * block + self.hidden_size

    @property
    def parameters(self) -> int:
        return self.non_embedding_parameters + self.vocab_size * self.hidden_size * (
            1 if self.tie_word_embeddings else 2
        )

    def lora_parameters(self, r: int) -> int:
        """Of LoRA on every linear layer but the output layer."""
        return self.num_hidden_layers * r * sum(a + b for a, b in self._projections)

    def matmuls(self, tokens: int) -> list[tuple[int, int, int]]:
        """(m, k, n) of the forward matrix products over `tokens` tokens, each kind once."""
        return [
            (tokens, a, b)
            for a, b in dict.fromkeys([*self._projections, (self.hidden_size, self.vocab_size)])
        ]


def flop_per_token(non_embedding_parameters: int, lora: bool) -> int:
    """Floating-point operations of training on one token: 2 a parameter forward, 2 for the gradient of what
    goes in, and in full training 2 for the gradient of the weights (Kaplan et al. 2020, section 2.1).
    Attention scores, embeddings, the output layer and the adapter itself are left out, for every system
    alike."""
    return (4 if lora else 6) * non_embedding_parameters


def share_of_limit(tokens_per_second: float, flop_a_token: int, limit: float) -> float:
    """Share of the machine's measured matmul limit (FLOP/s) that training reached."""
    return tokens_per_second * flop_a_token / limit


def non_padding_tokens(input_ids: Any, pad_token_id: int) -> Any:
    """Tokens that go into the model and are not padding: a tensor or an array in, a scalar of its kind out.

    The padding token never stands in a text, so this holds whatever mask a system makes of its packs: 2D, 4D
        or none.
    """
    return (input_ids != pad_token_id).sum()


def tokens_per_second(tokens: Sequence[int], ends: Sequence[float], warmup: int) -> float:
    """Tokens of the steps after the first `warmup`, over the time from the end of warm-up to the end of the
    last step.

    Args:
        tokens: non-padding tokens of each optimizer step.
        ends: when each step ended, in seconds on one clock.

    Raises:
        ValueError: there is no step to measure, or the two do not belong together.
    """
    if len(tokens) != len(ends) or not 1 <= warmup < len(ends):
        raise ValueError(
            f"{len(tokens)} counts and {len(ends)} ends of steps, {warmup} of them warm-up: nothing to measure"
        )
    return sum(tokens[warmup:]) / (ends[-1] - ends[warmup - 1])


def spooled_steps(records: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[float]]:
    """Tokens and end (seconds since 1970) of each training step, from the lines of a run's metrics.jsonl."""
    steps = [record for record in records if "train/tokens" in record["values"]]
    if [record["step"] for record in steps] != list(range(1, len(steps) + 1)):
        raise ValueError("the spool's steps are not 1, 2, 3, …: was the run resumed?")
    return [int(record["values"]["train/tokens"]) for record in steps], [
        record["time_ms"] / 1000 for record in steps
    ]
