"""The command line: one verb is one function. Hydra lives here and in the launcher only; heavy imports wait for their verb.

People read stderr; stdout carries only what a script would want, such as the run id.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from finetune.config.points import Sweep
    from finetune.config.train import TrainConfig

USAGE = """\
usage: finetune VERB …

Fine-tune open language models on Norwegian public-sector text.

  prepare corpus=NAME        raw text to a corpus folder of licensed, de-identified token shards
  inspect CORPUS             what was done to its documents and why some were dropped; cuts, tokens, lengths
  train recipe=NAME          train a model; settings follow as key=value, -m sweeps over lists (lr=1e-4,2e-4), --dry-run checks
  resume RUN                 go on with a run that was stopped, killed or failed, from its newest good checkpoint
  evaluate RUN[@STEP]|FOLDER held-out loss by source and written standard; of several, compared (--against base)
  status [RUN …] [--watch]   what the runs are doing, or how they ended
  logs RUN … [-f] [--rank N] what a rank has written
  cancel RUN …               take runs out of the queue; stop running ones, with a checkpoint
  retry RUN …                start again what failed, or was stopped or cancelled
  prune [RUN …]              free what completed runs need no more
  sync [RUN …]               send what runs have said to MLflow (done by itself while a run is followed)
  ui                         open MLflow's user interface on the runs
  completion bash|zsh        print what makes verbs, settings, files and run ids complete in the shell

RUN is the id of a run; where several may stand (RUN …), also of a sweep for all its points.

`finetune VERB --help` says more. `finetune train --help` and `finetune prepare --help` list every setting.
"""

BYTES_A_TASK = 32_000_000  # of raw text, for each task of a preparation on Slurm
RUN_COMMANDS = ("resume", "status", "logs", "cancel", "retry", "prune", "sync")  # of run_commands.py


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit code: 0 done, 1 a run failed, 2 the call was wrong, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbs = _verbs()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        from finetune import __version__

        print(__version__)
        sys.exit(0)
    if arguments[0] not in verbs:
        _fail(_describe_unknown_verb(arguments[0], list(verbs)))
    sys.exit(_guarded(arguments[0], verbs[arguments[0]], arguments[1:]))


def _verbs() -> dict[str, Callable[[list[str]], int]]:
    return {
        "prepare": prepare, "inspect": inspect, "train": train, "evaluate": evaluate, "ui": ui, "completion": completion,
        **{verb: partial(_run_command, verb) for verb in RUN_COMMANDS},
    }  # fmt: skip


def prepare(arguments: list[str]) -> int:
    """finetune prepare corpus=NAME [key=value …]"""
    if _wants_help(arguments):
        from finetune.cli.help import prepare_help

        print(prepare_help(), end="")
        return 0
    return _hydra("prepare", arguments, _prepare)


def inspect(arguments: list[str]) -> int:
    from finetune.cli.overrides import Parser

    parser = Parser(
        prog="finetune inspect",
        description="What was done to a corpus' documents, why some were dropped or cut, which tokens are "
        "targets, how long they are. Without options: an overview. Stages' files hold raw text, and it is shown.",
    )
    parser.add_argument("corpus", help="a corpus' name or folder")
    parser.add_argument("documents", nargs="*", metavar="ID", help="documents to follow through the stages (id, or source/id)")
    parser.add_argument("--sample", type=int, metavar="N", help="follow N documents of the corpus")
    parser.add_argument("--seed", type=int, default=0, help="which are sampled (0)")
    parser.add_argument(
        "--dropped", nargs="?", const="", metavar="REASON", help="some of what was dropped (for a reason, as quarantined)"
    )
    parser.add_argument(
        "--find", metavar="TEXT", help="documents that hold a text at any stage, whatever its case: where, and their fate"
    )
    parser.add_argument(
        "--cut",
        nargs="?",
        const="",
        metavar="WHERE",
        help="lines cut from documents (of a stage, a source, a host): counts, examples",
    )
    parser.add_argument("--tokens", action="store_true", help="of the documents, show tokens and targets instead of stages")
    parser.add_argument("--lengths", action="store_true", help="tokens a row, by source, as bars")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the lengths into a .png or .svg file")
    parser.add_argument("--characters", type=int, default=1500, help="how much of a text is shown (1500; 0: all)")
    parser.add_argument("--corpora-dir", default="corpora", help="where prepared corpora lie (corpora)")
    return _inspect(parser.parse_args(arguments))


def train(arguments: list[str]) -> int:
    """finetune train [recipe=NAME] [key=value …] [-m] [--dry-run] [--after PREPARE_RUN]"""
    if _wants_help(arguments):
        from finetune.cli.help import train_help

        print(train_help(), end="")
        return 0
    arguments = ["dry_run=true" if argument == "--dry-run" else argument for argument in _after(arguments)]
    return _hydra("train", [rewritten for argument in arguments for rewritten in _expand(argument)], _train)


def _run_command(verb: str, arguments: list[str]) -> int:
    from finetune.cli import runs as run_commands

    code: int = getattr(run_commands, verb)(arguments)
    return code


def completion(arguments: list[str]) -> int:
    """finetune completion bash|zsh"""
    from finetune.cli.completion import complete, complete_line, script

    if arguments[:1] == ["words"]:  # zsh's script asks so, and bash's with a line
        print("\n".join(complete(arguments[1:], _verbs(), _schema)))
        return 0
    if arguments[:1] == ["line"] and len(arguments) == 3:
        print("\n".join(complete_line(arguments[1], arguments[2], _verbs(), _schema)))
        return 0
    print(script(arguments[0] if arguments else ""), end="")
    return 0


def evaluate(arguments: list[str]) -> int:
    from finetune.cli import evaluate as evaluate_command
    from finetune.cli import runs as run_commands

    description = (
        "Held-out loss of a run's result, one of its checkpoints, or a model, on a corpus' validation split. "
        "Several models are evaluated on the same rows and compared with the first, or with --against."
    )
    parser = run_commands.parser("evaluate", description)
    evaluate_command.add_arguments(parser)
    result = evaluate_command.evaluate(parser.parse_intermixed_args(arguments))
    if result is not None:
        print(result)
    return 0


def ui(arguments: list[str]) -> int:
    from finetune.cli import runs as run_commands

    parser = run_commands.parser("ui", "Bring MLflow's database up to date and open its user interface.")
    parser.add_argument("--port", type=int, default=5000, help="TCP port (5000)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    options = parser.parse_args(arguments)
    from finetune.tracking.mlflow_sync import default_uri

    run_commands.sync_runs(run_commands.chosen(options))
    uri = default_uri(options.runs_dir)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # its workers are for features we do not use
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        uri,
        "--host",
        options.host,
        "--port",
        str(options.port),
    ]
    print(f"MLflow on http://{options.host}:{options.port} (Ctrl-C ends it); after new runs: finetune sync", file=sys.stderr)
    os.execv(sys.executable, command)


# --- what Hydra calls with a composed config -------------------------------------------------------------------------


def _prepare(node: Any) -> None:
    from data_prep.pipeline import prepare as run_pipeline
    from finetune.cli import report
    from finetune.config.train import from_omegaconf

    _log_to_stderr()
    config = from_omegaconf(node, _prepare_schema())
    if config.cluster.scheduler == "slurm":
        _prepare_on_slurm(config)
        return
    prepared = run_pipeline(config)
    report.print_corpus(prepared)
    print(prepared.folder)


@cache
def _prepare_schema() -> type[Any]:
    """data_prep's own settings, and where it runs, which is no business of data_prep."""
    from data_prep.config import PrepareConfig
    from finetune.config.cluster import ClusterConfig

    fields = [("cluster", ClusterConfig, dataclasses.field(default_factory=ClusterConfig))]
    return dataclasses.make_dataclass("PrepareOnCluster", fields, bases=(PrepareConfig,), kw_only=True)


def _prepare_on_slurm(config: Any) -> None:
    from data_prep.pipeline import plan
    from data_prep.plan import Preparation, Step
    from finetune.launch import prepare_jobs as chain
    from finetune.launch.freeze import check_no_secrets

    cluster = config.cluster
    check_no_secrets(cluster, "cluster")
    for unchecked in chain.check(cluster):
        print(f"not checked: {unchecked}", file=sys.stderr)
    folder = Path(config.corpora_dir) / config.corpus.name
    planned = plan(config)
    if not planned:
        print(f"corpus {folder} is there already, as it would become", file=sys.stderr)
        print(folder)
        return
    work = folder.with_name(f".{folder.name}.stages")
    steps = [(step.name, step.cut) for step in planned]
    size = sum(Preparation.load(work).sizes(Step("read")))
    num_tasks = min(cluster.prepare.tasks, 1 + size // BYTES_A_TASK)
    run = chain.submit(config.corpus.name, work, steps, num_tasks, cluster)
    assert run.layout is not None
    fewer = f" (there is work for {num_tasks}: the queue takes no more)" if run.layout.num_tasks < num_tasks else ""
    print(
        f"submitted {run.id}: {run.layout.describe(steps)}{fewer}\n"
        f"  finetune status {run.id}    finetune train … corpus={config.corpus.name} --after {run.id}    logs: {run.folder}",
        file=sys.stderr,
    )
    print(run.id)


def _train(node: Any) -> None:
    run_points([to_train_config(node)])


def to_train_config(node: Any) -> TrainConfig:
    """The typed config of a composed node; past here there is no OmegaConf."""
    from finetune.config.train import from_omegaconf

    config: TrainConfig = from_omegaconf(node)
    return config


def run_points(points: list[TrainConfig], sweep: Sweep | None = None, go_on: bool = False) -> list[float | None]:
    """Submit the points, print what comes of each, and give their held-out losses (None where there is none, or not yet).

    Args:
        sweep: whose points they are.
        go_on: a failed run is for the sweeper to judge.

    Raises:
        SystemExit: a run failed, and all of them have been tried; or nothing was to be started (--dry-run).
    """
    from finetune.cli import runs as run_commands
    from finetune.launch.submit import dry_run, submit

    if points[0].dry_run:
        print(dry_run(points, sweep), end="")
        run_commands.report_dry_run(points, sweep)
        raise SystemExit(0)
    runs = submit(points, sweep)
    code = run_commands.report_runs(runs)
    if code and not go_on:
        raise SystemExit(code)
    summaries = [run.summary() for run in runs]
    return [summary.after.loss if summary and summary.after else None for summary in summaries]


# --- plumbing --------------------------------------------------------------------------------------------------------


def _hydra(config_name: str, arguments: list[str], task: Callable[[Any], None]) -> int:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come to us, and _guarded words them
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from finetune.cli import overrides
    from finetune.config.train import TrainConfig, conf_dir, package_dir

    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="prepare_schema", node=_prepare_schema())
    OmegaConf.register_new_resolver("package_dir", package_dir, replace=True)
    overrides.register_json_resolver()
    sys.argv = [f"finetune {config_name}", *overrides.hydra_arguments(arguments)]
    composed: list[Any] = []  # stays empty for -m, which goes through the launcher, and for --cfg, which prints
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(composed.append)()
    for node in composed:
        task(node)
    return 0


def _after(arguments: list[str]) -> list[str]:
    """`--after ID` as the setting that it stands for."""
    joined = re.sub(r"(^|\0)--after[=\0]", r"\1after=", "\0".join(arguments))
    return joined.split("\0") if arguments else []


def _expand(argument: str) -> list[str]:
    """What `train` takes shorter than Hydra would: model=run:<id>, model=<folder or hub id> (names in conf/model stay as they
    are), and corpus=<name or folder>, which Hydra would take for a file of conf/corpus."""
    key, _, value = argument.partition("=")
    if key == "corpus":
        return [f"data.corpus={value}"]
    if key == "model" and value and ("/" in value or value.startswith("run:") or Path(value).is_dir()):
        return ["model=pretrained", f"model.path={value}"]
    return [argument]


def _guarded(name: str, verb: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a verb; a user's mistake becomes one line. FINETUNE_TRACEBACK=1 shows where it came from."""
    if os.environ.get("FINETUNE_TRACEBACK"):
        return verb(arguments)
    try:
        return verb(arguments)
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as fault:
        from finetune.config import extras

        if message := extras.explain(fault):
            _fail(message)
        raise
    except Exception as fault:
        from finetune.cli import errors

        if not errors.is_mistake(fault):
            raise
        _fail(errors.describe_fault(fault, errors.Call(name, arguments, _schema(name))))


def _schema(verb: str) -> type[Any]:
    from finetune.config.train import TrainConfig

    schema: type[Any] = _prepare_schema() if verb == "prepare" else TrainConfig
    return schema


def _describe_unknown_verb(verb: str, verbs: list[str]) -> str:
    """Describe a verb that does not exist, with the one that was meant."""
    from finetune.config import suggestions

    meant = suggestions.VERBS.get(verb.lstrip("-")) or next(iter(suggestions.closest(verb, verbs)), None)
    if "=" in verb or verb.startswith("-"):
        return f"'{verb}': a verb comes first, as in `finetune train {verb}`"
    question = f"did you mean '{meant}'? " if meant else ""
    return f"unknown verb '{verb}'; {question}verbs are {', '.join(verbs)}"


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _inspect(options: argparse.Namespace) -> int:
    from data_prep.inspection import Inspection, bins, draw_lengths
    from finetune.cli import inspect as inspect_report
    from finetune.cli import report

    folder = Path(options.corpus)
    inspection = Inspection(folder if folder.is_dir() else Path(options.corpora_dir) / options.corpus)
    names = [name for wanted in options.documents for name in inspection.find(wanted)]
    if options.dropped is None and options.cut is None and options.find is None:
        names += inspection.sample(options.sample or (3 if options.tokens and not names else 0), options.seed)
    for name in names:
        if options.tokens:
            report.print_tokens(inspection.tokens(*name), name, options.characters)
        else:
            report.print_trace(inspection.trace(*name), name, options.characters)
    if options.dropped is not None:
        inspect_report.print_dropped(inspection, options.dropped or None, options.sample or 5, options.seed, options.characters)
    if options.find is not None:
        inspect_report.print_found(inspection.search(options.find, options.sample or 20), options.find, options.characters)
    if options.cut is not None:
        report.print_cuts(inspection.cuts(options.cut or None), options.sample or 0, options.characters)
    if options.lengths:
        report.print_lengths({source: bins(values) for source, values in inspection.lengths().items()})
    if options.picture:
        print(draw_lengths(inspection.lengths(), options.picture))
    listed = [options.dropped, options.cut, options.find]
    asked = names or any(value is not None for value in listed) or options.lengths or options.picture
    if not asked:
        report.print_corpus_overview(inspection.corpus)
    return 0


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)


def _wants_help(arguments: list[str]) -> bool:
    return any(argument in ("-h", "--help") for argument in arguments)


if __name__ == "__main__":
    main()
