"""summary.json of a run: written by rank 0 when the run is completed, read by every command that shows what
came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

T = TypeVar("T")


def _read(kind: type[T], body: Mapping[str, Any]) -> T:
    """Make a dataclass of plain data; keys that it does not have are left out."""
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in body.items() if name in known})


@dataclass(kw_only=True)
class HeldOut:
    """Mean loss in nats per supervised token, and the tokens it was measured on, over all and by group.

    Attributes:
        unigram_loss: what the training split's token frequencies alone would score on the same documents.
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
    """A step whose weights were evaluated, and their held-out loss."""

    step: int
    loss: float


@dataclass(kw_only=True)
class UsedGroup:
    """Rows and tokens of one source and written standard, and the tokens of them that are used."""

    source: str
    language: str
    documents: int
    tokens: int
    used: int


@dataclass(kw_only=True)
class LostTokens:
    """Tokens of one source and written standard that are not used: the reason, and the setting that changes
    it."""

    source: str
    language: str
    fate: str
    documents: int
    tokens: int
    reason: str
    setting: str


@dataclass(kw_only=True)
class TokenUse:
    """Tokens of a split, those of them that training or evaluation used, and what was lost by reason."""

    tokens: int
    used: int
    lost: int
    groups: list[UsedGroup] = field(default_factory=list)
    losses: list[LostTokens] = field(default_factory=list)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> TokenUse:
        groups = [_read(UsedGroup, group) for group in body["groups"]]
        losses = [_read(LostTokens, loss) for loss in body["losses"]]
        return cls(tokens=body["tokens"], used=body["used"], lost=body["lost"], groups=groups, losses=losses)


@dataclass(kw_only=True)
class Summary:
    """What came of a run.

    Attributes:
        steps: optimizer steps taken; `result_step` the one whose weights were saved.
        data: documents of the pack plan, and those split, cut or left out.
        token_use: by split.
        tokens, supervised_tokens: trained on, over all attempts.
        tokens_per_second: None if no step was left to take. mfu: None where no formula holds.
        peak_memory_bytes: of rank 0.
        seconds: of rank 0, by phase, over all attempts; `total` is their sum.
        skipped_batches: left out after rewinds.
        before, after: held-out loss of the untrained model and of the result; None without validation
            documents.
        best, last: the checkpoint with the best held-out loss; the last step.
        new_stop: the token that ends a turn, if generation stops there now and did not before.
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
        """Read what `to_json` gave; earlier versions wrote fewer keys, later ones may write more."""
        read = dict(body)
        for name, kind in (("before", HeldOut), ("after", HeldOut), ("best", StepLoss), ("last", StepLoss)):
            if body.get(name):
                read[name] = _read(kind, body[name])
        read["token_use"] = {
            split: TokenUse.from_json(use) for split, use in (body.get("token_use") or {}).items()
        }
        return _read(cls, read)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as plain data."""
        return asdict(self)
