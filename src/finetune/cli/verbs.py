"""The table of verbs, one row each: dispatch, `finetune --help`, suggestions, completion and the rows of a
reference page come from it. Standard library alone.

A new verb is a row here and a module. The module has a function of the verb's name, which takes the arguments
behind the verb, prints help for --help, and returns the exit code. It imports what is heavy inside of its
functions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum, auto
from typing import Any

from finetune.cli.schemas import prepare_schema, train_schema


class Completes(StrEnum):
    """What the arguments of a verb complete to; options complete for every verb."""

    NOTHING = auto()
    SETTINGS = auto()  # keys of the verb's schema, and their values
    CORPUS = auto()
    RUN = auto()
    RUN_OR_SWEEP = auto()
    SHELL = auto()


@dataclass(frozen=True)
class Verb:
    """What a person types behind `finetune`.

    Attributes:
        arguments: what follows it, as help shows it.
        module: where its function is.
        schema: returns the dataclass behind its settings; None: it takes no settings.
        synonyms: what other tools call it, for suggestions.
    """

    name: str
    arguments: str
    summary: str
    module: str
    completes: Completes = Completes.NOTHING
    schema: Callable[[], type[Any]] | None = None
    synonyms: tuple[str, ...] = ()

    def run(self, arguments: list[str]) -> int:
        """Run the verb and return the exit code."""
        function = getattr(importlib.import_module(self.module), self.name)
        code: int = function(arguments)
        return code


@dataclass(frozen=True)
class ReferenceRow:
    """A verb as help and the reference page show it."""

    usage: str
    summary: str


VERBS = (
    Verb(
        "prepare",
        "corpus=NAME",
        "raw text to a corpus folder of licensed, de-identified token shards",
        module="finetune.cli.prepare",
        completes=Completes.SETTINGS,
        schema=prepare_schema,
        synonyms=("data", "preprocess", "tokenize"),
    ),
    Verb(
        "inspect",
        "CORPUS",
        "what was done to its documents and why some were dropped; cuts, tokens, lengths",
        module="finetune.cli.inspect",
        completes=Completes.CORPUS,
        synonyms=("view",),
    ),
    Verb(
        "train",
        "recipe=NAME",
        "train a model; settings follow as key=value, -m sweeps over lists (lr=1e-4,2e-4), --dry-run checks",
        module="finetune.cli.train",
        completes=Completes.SETTINGS,
        schema=train_schema,
        synonyms=("fit", "finetune", "sft", "run", "submit", "sweep"),
    ),
    Verb(
        "resume",
        "RUN",
        "go on with a run that was stopped, killed or failed, from its newest good checkpoint",
        module="finetune.cli.resume",
        completes=Completes.RUN,
        schema=train_schema,
        synonyms=("continue", "restart"),
    ),
    Verb(
        "evaluate",
        "RUN[@STEP]|FOLDER",
        "held-out loss by source and written standard; of several, compared (--against base)",
        module="finetune.cli.evaluate",
        completes=Completes.RUN,
        synonyms=("eval", "test"),
    ),
    Verb(
        "status",
        "[RUN …] [--watch]",
        "what the runs are doing, or how they ended",
        module="finetune.cli.runs",
        completes=Completes.RUN_OR_SWEEP,
        synonyms=("list", "ls", "ps", "queue", "show"),
    ),
    Verb(
        "logs",
        "RUN … [-f] [--rank N]",
        "what a rank has written",
        module="finetune.cli.logs",
        completes=Completes.RUN_OR_SWEEP,
        synonyms=("log", "tail"),
    ),
    Verb(
        "cancel",
        "RUN …",
        "take runs out of the queue; stop running ones, with a checkpoint",
        module="finetune.cli.runs",
        completes=Completes.RUN_OR_SWEEP,
        synonyms=("kill", "stop", "scancel"),
    ),
    Verb(
        "retry",
        "RUN …",
        "start again what failed, or was stopped or cancelled",
        module="finetune.cli.runs",
        completes=Completes.RUN_OR_SWEEP,
        synonyms=("resubmit", "rerun"),
    ),
    Verb(
        "prune",
        "[RUN …]",
        "free what completed runs need no more",
        module="finetune.cli.runs",
        completes=Completes.RUN_OR_SWEEP,
        synonyms=("rm", "delete", "clean"),
    ),
    Verb(
        "sync",
        "[RUN …]",
        "send what runs have said to MLflow (done by itself while a run is followed)",
        module="finetune.cli.sync",
        completes=Completes.RUN_OR_SWEEP,
    ),
    Verb(
        "ui",
        "",
        "open MLflow's user interface on the runs",
        module="finetune.cli.ui",
        synonyms=("mlflow",),
    ),
    Verb(
        "completion",
        "bash|zsh",
        "print what makes verbs, settings, files and run ids complete in the shell",
        module="finetune.cli.completion",
        completes=Completes.SHELL,
    ),
)


def find(name: str) -> Verb | None:
    """Return the verb of a name."""
    return next((verb for verb in VERBS if verb.name == name), None)


def names() -> list[str]:
    """Return the names of all verbs."""
    return [verb.name for verb in VERBS]


def meant_by(name: str) -> str | None:
    """Return the verb that a name is a synonym of, as eval of evaluate."""
    return next((verb.name for verb in VERBS if name in verb.synonyms), None)


def reference_rows() -> list[ReferenceRow]:
    """Return all verbs as `finetune --help` and the reference page show them."""
    return [ReferenceRow(f"{verb.name} {verb.arguments}".rstrip(), verb.summary) for verb in VERBS]
