"""`finetune evaluate`: computes the held-out loss of models, and compares them."""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from data_prep.user_error import UserError
from finetune.cli import result_tables
from finetune.cli.run_arguments import add_corpora_dir, make_parser
from finetune.config import extras
from finetune.config.train import RUN_PREFIX, DataConfig, split_step
from finetune.runs import base_model, layout, rank_warnings
from finetune.runs import inputs as run_inputs
from finetune.runs.base_model import Base
from finetune.runs.folder import RunFolder
from finetune.runs.summary import HeldOut
from finetune.terminal import console

if TYPE_CHECKING:
    from data_prep.shards import Corpus

BASE = "base"  # value of --against for the model that the run started from
GROUPS = ("by_language", "by_source")
DESCRIPTION = (
    "Compute the held-out loss of a run's result, a run's checkpoint or a model, on the validation "
    "split of a corpus. Several models are evaluated on the same packs; the table shows their "
    "difference to the first model, or to the model of --against."
)


@dataclass(frozen=True)
class Subject:
    """A model to evaluate.

    Attributes:
        label: the model's name in the output.
        run: the run that trained the model; None for a model folder or hub id.
    """

    label: str
    model: Base
    run: RunFolder | None = None


@dataclass(frozen=True)
class Difference:
    """The losses of a model minus those of another model."""

    loss: float
    by_language: dict[str, float]
    by_source: dict[str, float]

    @classmethod
    def between(cls, result: HeldOut, first: HeldOut) -> Difference:
        """Return the losses of `result` minus those of `first`."""
        by_group = {}
        for group in GROUPS:
            losses = _losses_by_group(result, group)
            by_group[group] = {
                name: losses[name] - loss for name, loss in _losses_by_group(first, group).items()
            }
        return cls(result.loss - first.loss, **by_group)


def evaluate(arguments: list[str]) -> int:
    """Print the held-out losses of models; with --json, also print them as JSON on stdout."""
    parser = make_parser("evaluate", DESCRIPTION)
    add_arguments(parser)
    result = evaluate_models(parser.parse_intermixed_args(arguments))
    if result is not None:
        print(result)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `finetune evaluate`."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="run id, run id@step, model folder, or id of a Hugging Face model in the local cache; "
        "name several to compare them",
    )
    parser.add_argument(
        "--against",
        metavar="MODEL",
        help="model to compare with, on the same packs; base: the model that the run started from",
    )
    parser.add_argument(
        "--corpus", help="name or folder of the corpus (default: the corpus that the run was trained on)"
    )
    add_corpora_dir(parser)
    parser.add_argument(
        "--sequence-length",
        type=int,
        metavar="TOKENS",
        help="tokens per pack (default: the run's data.sequence_length; 512 for a model folder)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def evaluate_models(options: argparse.Namespace) -> str | None:
    """Evaluate the models and print their losses; with --json, return the losses as JSON.

    Raises:
        NotFoundError: a model or the corpus does not exist.
        UserError: a model cannot be evaluated, its tokenizer is not that of the corpus, the corpus
            is damaged, or torch is not installed.
    """
    extras.check("torch", "evaluating a model")
    from data_prep.shards import Corpus
    from finetune.data.rows import LongRows, read_account

    subjects = resolve_subjects(options.models, options.against, options.runs_dir)
    data = choose_data(subjects, options)
    corpus = Corpus(data.corpus_folder)
    corpus.verify()
    check_tokenizers(subjects, corpus)
    results = [_held_out(subject, corpus, data) for subject in subjects]
    names = " and ".join(subject.label for subject in subjects)
    title = f"{names} on {data.corpus_folder}, packs of {data.sequence_length} tokens"
    console().print(title, markup=False, soft_wrap=True)
    if len(subjects) == 1:
        result_tables.print_held_out(before=None, after=results[0])
    else:
        console().print(comparison_table(subjects, results))
    held_out_rows = read_account(corpus, "validation", list(corpus.manifest.sources), LongRows.of(data))
    result_tables.print_losses({"validation": held_out_rows.token_use()})
    if not options.json:
        return None
    if len(subjects) == 1:
        return json.dumps(asdict(results[0]), ensure_ascii=False)
    return _to_json(subjects, results, data)


def resolve_subjects(names: Sequence[str], against: str | None, runs_dir: str) -> list[Subject]:
    """Return the models to evaluate. The first is the one with which the others are compared.

    Args:
        against: the model that becomes the first; "base" for the base of the run `names[0]`; None
            for `names[0]` itself.

    Raises:
        NotFoundError: a model does not exist.
        UserError: a model cannot be evaluated, or `against` is "base" and the base is unknown.
    """
    named = [resolve(name, runs_dir) for name in names]
    if against is None:
        return named
    if against != BASE:
        return [resolve(against, runs_dir), *named]
    run = named[0].run
    if run is None:
        raise UserError(
            f"--against base: {named[0].label} is a model, not a run, so its base is unknown; "
            "give the base's folder or hub id instead, as --against MODEL"
        )
    model = run.config().model
    if model.path is None:
        raise UserError(
            f"--against base: run {run.id} started from random weights and has no base; "
            "give the folder, hub id or run of another model, as --against MODEL"
        )
    base = base_model.resolve(model.path, run.config().runs_dir, model.revision)
    return [Subject(f"base {_label(model.path)}", base), *named]


def resolve(name: str, runs_dir: str) -> Subject:
    """Return the model that a name denotes: a run id, run id@step, model folder or hub id.

    Raises:
        NotFoundError: there is no such model.
        UserError: the name is an adapter folder, or a run without a result.
    """
    folder = Path(name)
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{name} is an adapter folder, which does not contain the base model; "
            "evaluate the run that trained it: `finetune evaluate RUN`"
        )
    if folder.is_dir() and not (folder / layout.CONFIG).is_file():
        return Subject(_label(name), base_model.resolve(name, runs_dir))
    run_name, step = split_step(name.removeprefix(RUN_PREFIX))
    try:
        run = RunFolder.find(run_name, runs_dir)
    except FileNotFoundError:
        if name.startswith(RUN_PREFIX) or "/" not in name:
            raise
        return Subject(name, base_model.resolve(name, runs_dir))
    suffix = "" if step is None else f"@{step}"
    model = base_model.resolve(f"{RUN_PREFIX}{run.path}{suffix}", runs_dir)
    return Subject(f"{run.id}{suffix}", model, run)


def choose_data(subjects: Sequence[Subject], options: argparse.Namespace) -> DataConfig:
    """Return the data settings of the evaluation.

    The options set the corpus, its folder and the sequence length. If the corpus or the sequence
    length is not given, it is that of the first model that a run trained. The treatment of long
    documents is always that of this model. Without such a model, settings have their defaults.

    Raises:
        UserError: the options name no corpus, and no model was trained by a run.
    """
    settings = DataConfig(corpus="")
    run = next((subject.run for subject in subjects if subject.run is not None), None)
    if run is not None:
        settings = run.config().data
    corpus = options.corpus or settings.corpus
    if not corpus:
        raise UserError("--corpus is missing; a model that is not of a run needs it: add --corpus NAME")
    sequence_length = options.sequence_length
    if sequence_length is None:
        sequence_length = settings.sequence_length
    return DataConfig(
        corpus=corpus,
        corpora_dir=options.corpora_dir,
        sequence_length=sequence_length,
        long_documents=settings.long_documents,
        long_conversations=settings.long_conversations,
    )


def check_tokenizers(subjects: Sequence[Subject], corpus: Corpus) -> None:
    """Raise UserError if a model's tokenizer is not that of the corpus."""
    for subject in subjects:
        try:
            run_inputs.check_tokenizer(subject.model, corpus)
        except ValueError as fault:
            if len(subjects) == 1:
                raise
            raise UserError(
                f"{subject.label}: its tokenizer is not that of corpus {corpus.folder}, and losses per "
                "token of different tokenizers cannot be compared; leave this model out"
            ) from fault


def _held_out(subject: Subject, corpus: Corpus, data: DataConfig) -> HeldOut:
    # PEFT imports bitsandbytes, which warns of a missing kernel for 4-bit layers on CPUs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for category in rank_warnings.IGNORED:  # meant for developers of the libraries
            warnings.simplefilter("ignore", category)
        from finetune.evaluation.held_out import evaluate_base

        return evaluate_base(subject.model, corpus, data)


def comparison_table(subjects: Sequence[Subject], results: Sequence[HeldOut]) -> Table:
    """Return a table of all losses, with the differences of each model to the first."""
    headers = [escape(subjects[0].label)]
    for subject in subjects[1:]:
        headers += [escape(subject.label), "difference"]
    table = Table("  held-out loss (nats per token)", "tokens", *headers, box=None)
    table.add_row("  all", f"{results[0].tokens:,}", *_cells([result.loss for result in results]))
    for group in GROUPS:
        losses = [_losses_by_group(result, group) for result in results]
        tokens: dict[str, int] = getattr(results[0], f"tokens_{group}")
        for name in losses[0]:
            cells = _cells([by_name[name] for by_name in losses])
            table.add_row(Text(f"  {name}"), f"{tokens[name]:,}", *cells)
    return table


def _losses_by_group(result: HeldOut, group: str) -> dict[str, float]:
    losses: dict[str, float] = getattr(result, group)
    return losses


def _cells(losses: Sequence[float]) -> list[str]:
    cells = [f"{losses[0]:.3f}"]
    for loss in losses[1:]:
        cells += [f"{loss:.3f}", f"{loss - losses[0]:+.3f}"]
    return cells


def _to_json(subjects: Sequence[Subject], results: Sequence[HeldOut], data: DataConfig) -> str:
    """Return all results, and the difference of each to the first model's result, as JSON."""
    models = []
    for subject, result in zip(subjects, results, strict=True):
        difference = asdict(Difference.between(result, results[0]))
        models.append({"model": subject.label, **asdict(result), "difference": difference})
    body = {"corpus": str(data.corpus_folder), "sequence_length": data.sequence_length, "models": models}
    return json.dumps(body, ensure_ascii=False)


def _label(path: str) -> str:
    """Return a short label for a model: the name of its folder, or else the name as typed."""
    if path.startswith(RUN_PREFIX) or not Path(path).is_dir():
        return path
    return Path(path).resolve().name
