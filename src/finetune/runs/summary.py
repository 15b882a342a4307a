"""The result of a run, summary.json: rank 0 writes it when the run completes; commands read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

T = TypeVar("T")


def _from_dict(kind: type[T], body: Mapping[str, Any]) -> T:
    """Return a dataclass built from a JSON object. Keys that are not its fields are dropped."""
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in body.items() if name in known})


@dataclass(kw_only=True)
class HeldOut:
    """The held-out loss of a model, and the number of tokens over which it is the mean.

    A loss is the mean over supervised tokens, in nats. Losses and numbers of tokens are given for
    all documents, for each source, and for each language (written standard).

    Attributes:
        unigram_loss: loss of a unigram model on the same documents; it predicts each token by its
            frequency in the training split.
    """

    loss: float
    tokens: int = 0
    by_source: dict[str, float] = field(default_factory=dict)
    by_language: dict[str, float] = field(default_factory=dict)
    tokens_by_source: dict[str, int] = field(default_factory=dict)
    tokens_by_language: dict[str, int] = field(default_factory=dict)
    unigram_loss: float | None = None


@dataclass(kw_only=True)
class StepLoss:
    """An optimizer step, and the held-out loss of the weights after it."""

    step: int
    loss: float


@dataclass(kw_only=True)
class UsedGroup:
    """Number of documents, tokens and used tokens of one source and written standard."""

    source: str
    language: str
    documents: int
    tokens: int
    used: int


@dataclass(kw_only=True)
class LostTokens:
    """Tokens of one source and written standard that are not used, for one reason.

    Attributes:
        documents: number of documents that the tokens belong to.
        tokens: number of tokens.
        reason: why the tokens are not used, as shown to users.
        fate: a short name of the reason, such as truncated or dropped.
        setting: the setting whose change can avoid this.
    """

    source: str
    language: str
    fate: str
    documents: int
    tokens: int
    reason: str
    setting: str


@dataclass(kw_only=True)
class TokenUse:
    """How many tokens of a split are used by training or evaluation, and how many are not.

    Attributes:
        tokens: number of all tokens, used or not.
        used: number of used tokens.
        lost: number of unused tokens.
        groups: the numbers for each source and written standard.
        losses: the unused tokens, for each source, written standard and reason.
    """

    tokens: int
    used: int
    lost: int
    groups: list[UsedGroup] = field(default_factory=list)
    losses: list[LostTokens] = field(default_factory=list)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> TokenUse:
        groups = [_from_dict(UsedGroup, group) for group in body["groups"]]
        losses = [_from_dict(LostTokens, loss) for loss in body["losses"]]
        return cls(
            tokens=body["tokens"],
            used=body["used"],
            lost=body["lost"],
            groups=groups,
            losses=losses,
        )


@dataclass(kw_only=True)
class Summary:
    """The result of a run in figures.

    Attributes:
        steps: optimizer steps taken.
        result_step: the optimizer step whose weights were saved.
        data: number of training documents in use, and of those that were split, cut or left out;
            also the number of unused tokens.
        token_use: used and unused tokens, by split.
        tokens, supervised_tokens: number of tokens, and of supervised tokens (training targets),
            that the run was trained on, over all attempts.
        tokens_per_second: None if the last attempt took no step.
        mfu: model FLOPs utilisation; None if there is no formula for the model.
        peak_flops_origin: the source of peak_flops_per_rank.
        peak_memory_bytes: largest memory that rank 0 allocated.
        seconds: time of rank 0 by phase, over all attempts; `total` is the sum.
        skipped_batches: indices of the batches that were skipped, because they led to bad steps.
        before, after: held-out loss of the base model and of the result; None without validation
            documents.
        best, last: the optimizer step with the lowest held-out loss, and the last one.
        new_stop: the end-of-turn token, if it was added to the tokens that stop generation.
        result: folder of the saved model or adapter.
    """

    run_id: str = ""
    steps: int = 0
    result_step: int | None = None
    data: dict[str, int] = field(default_factory=dict)
    token_use: dict[str, TokenUse] = field(default_factory=dict)
    device: str = ""
    parameters: int = 0
    trainable_parameters: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    tokens_per_second: float | None = None
    mfu: float | None = None
    peak_flops_per_rank: float = 0.0
    peak_flops_origin: str = ""
    peak_memory_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    skipped_batches: list[int] = field(default_factory=list)
    before: HeldOut | None = None
    after: HeldOut | None = None
    best: StepLoss | None = None
    last: StepLoss | None = None
    new_stop: str | None = None
    warnings: list[str] = field(default_factory=list)
    result: str = ""

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Summary:
        """Return the summary in a JSON object.

        Other versions write other keys: missing keys get defaults, and unknown keys are dropped.
        """
        read = dict(body)
        nested = {"before": HeldOut, "after": HeldOut, "best": StepLoss, "last": StepLoss}
        for name, kind in nested.items():
            if body.get(name):
                read[name] = _from_dict(kind, body[name])
        token_use = body.get("token_use") or {}
        read["token_use"] = {split: TokenUse.from_json(use) for split, use in token_use.items()}
        return _from_dict(cls, read)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as a JSON object."""
        return asdict(self)
