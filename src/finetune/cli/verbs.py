"""The table of verbs: source of dispatch, help, suggestions, completion and reference page.

This module imports only the standard library. A new verb takes a row here and a module. The module
has a function of the verb's name, which takes the arguments after the verb, prints help for --help
and returns the exit code. It imports heavy packages inside its functions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum, auto
from typing import Any

from finetune.cli.schemas import prepare_schema, train_schema


class Completes(StrEnum):
    """The kind of argument that shell completion offers for a verb.

    Whatever the kind, the options of the verb are offered too.
    """

    NOTHING = auto()
    SETTINGS = auto()  # keys of the verb's schema, and values of those keys
    CORPUS = auto()
    RUN = auto()
    RUN_OR_SWEEP = auto()
    SHELL = auto()


@dataclass(frozen=True)
class Verb:
    """A verb of `finetune`.

    Attributes:
        arguments: its arguments, as `finetune --help` shows them.
        module: the module that holds its function.
        schema: function that returns the dataclass of its settings; None if it has none.
        synonyms: names of the same command in other tools, used for suggestions.
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
    """A verb as `finetune --help` and the reference page show it."""

    usage: str
    summary: str


VERBS = (
    Verb(
        "prepare",
        "corpus=NAME",
        "turn raw text into a corpus folder of licensed, de-identified token shards",
        module="finetune.cli.prepare",
        completes=Completes.SETTINGS,
        schema=prepare_schema,
        synonyms=("data", "preprocess", "tokenize"),
    ),
    Verb(
        "inspect",
        "CORPUS",
        "show what preparation changed, cut and dropped, and the tokens and lengths",
        module="finetune.cli.inspect",
        completes=Completes.CORPUS,
        synonyms=("view",),
    ),
    Verb(
        "train",
        "recipe=NAME",
        "train a model; key=value sets a setting, -m sweeps over lists (lr=1e-4,2e-4)",
        module="finetune.cli.train",
        completes=Completes.SETTINGS,
        schema=train_schema,
        synonyms=("fit", "finetune", "sft", "run", "submit", "sweep"),
    ),
    Verb(
        "resume",
        "RUN",
        "resume a stopped, killed or failed run from its newest valid checkpoint",
        module="finetune.cli.resume",
        completes=Completes.RUN,
        schema=train_schema,
        synonyms=("continue", "restart"),
    ),
    Verb(
        "evaluate",
        "RUN[@STEP]|FOLDER",
        "compute held-out loss by source and written standard (nob, nno …), for one or several models",
        module="finetune.cli.evaluate",
        completes=Completes.RUN,
        synonyms=("eval", "test"),
    ),
    Verb(
        "status",
        "[RUN …] [--watch]",
        "show the state of runs, and how they ended",
        module="finetune.cli.runs",
        completes=Completes.RUN_OR_SWEEP,
        synonyms=("list", "ls", "ps", "queue", "show"),
    ),
    Verb(
        "logs",
        "RUN … [-f] [--rank N]",
        "print the log of a rank",
        module="finetune.cli.logs",
        completes=Completes.RUN_OR_SWEEP,
        synonyms=("log", "tail"),
    ),
    Verb(
        "cancel",
        "RUN …",
        "remove runs from the queue; stop running ones, with a checkpoint",
        module="finetune.cli.runs",
        completes=Completes.RUN_OR_SWEEP,
        synonyms=("kill", "stop", "scancel"),
    ),
    Verb(
        "retry",
        "RUN …",
        "resubmit runs that failed, were stopped or were cancelled",
        module="finetune.cli.runs",
        completes=Completes.RUN_OR_SWEEP,
        synonyms=("resubmit", "rerun"),
    ),
    Verb(
        "prune",
        "[RUN …]",
        "list files that completed runs no longer need; delete them with --yes",
        module="finetune.cli.runs",
        completes=Completes.RUN_OR_SWEEP,
        synonyms=("rm", "delete", "clean"),
    ),
    Verb(
        "sync",
        "[RUN …]",
        "send new metrics of runs to MLflow (automatic while `finetune train` waits for a run)",
        module="finetune.cli.sync",
        completes=Completes.RUN_OR_SWEEP,
    ),
    Verb(
        "ui",
        "",
        "start MLflow's user interface for the runs",
        module="finetune.cli.ui",
        synonyms=("mlflow",),
    ),
    Verb(
        "completion",
        "bash|zsh",
        "print the shell script that completes verbs, settings, files and run ids",
        module="finetune.cli.completion",
        completes=Completes.SHELL,
    ),
)


def find(name: str) -> Verb | None:
    """Return the verb with this name; None if there is none."""
    return next((verb for verb in VERBS if verb.name == name), None)


def names() -> list[str]:
    """Return the names of all verbs."""
    return [verb.name for verb in VERBS]


def resolve_synonym(name: str) -> str | None:
    """Return the name of the verb with this synonym (evaluate for eval); None if there is none."""
    return next((verb.name for verb in VERBS if name in verb.synonyms), None)


def reference_rows() -> list[ReferenceRow]:
    """Return the rows of all verbs for `finetune --help` and the reference page."""
    return [ReferenceRow(f"{verb.name} {verb.arguments}".rstrip(), verb.summary) for verb in VERBS]
