"""The command line: one verb is one function. Hydra lives here and in the launcher only; heavy imports wait for their verb.

People read stderr; stdout carries only what a script would want, such as the run id.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from finetune.config import TrainConfig
    from finetune.run_folder import RunFolder

USAGE = """\
usage: finetune VERB …

Fine-tune open language models on Norwegian public-sector text.

  prepare corpus=NAME        raw text to a corpus folder of licensed, de-identified token shards
  train recipe=NAME          train a model; any setting follows as key=value, -m sweeps over lists (lr=1e-4,2e-4)
  resume RUN                 go on with a run that was stopped, killed or failed, from its newest good checkpoint
  evaluate RUN|FOLDER        held-out loss of a run's result or of a model folder, per source and written standard
  status [RUN …]             what the runs are doing, or how they ended
  sync [RUN …]               send what runs have said to MLflow (done by itself while a run is followed)
  ui                         open MLflow's user interface on the runs

`finetune VERB --help` says more. `finetune train --help` lists every setting.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit code: 0 done, 1 a run failed, 2 the call was wrong, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbs: dict[str, Callable[[list[str]], int]] = {
        "prepare": prepare, "train": train, "resume": resume, "evaluate": evaluate, "status": status, "sync": sync, "ui": ui,
    }  # fmt: skip
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        from finetune import __version__

        print(__version__)
        sys.exit(0)
    if arguments[0] not in verbs:
        _fail(f"unknown verb '{arguments[0]}': choose one of {', '.join(verbs)}")
    sys.exit(_guarded(verbs[arguments[0]], arguments[1:]))


def prepare(arguments: list[str]) -> int:
    """finetune prepare corpus=NAME [key=value …]"""
    if _wants_help(arguments):
        from finetune import report

        print(report.prepare_help(), end="")
        return 0
    return _hydra("prepare", arguments, _prepare)


def train(arguments: list[str]) -> int:
    """finetune train [recipe=NAME] [key=value …] [-m]"""
    if _wants_help(arguments):
        from finetune import report

        print(report.train_help(), end="")
        return 0
    return _hydra("train", [rewritten for argument in arguments for rewritten in _expand(argument)], _train)


def resume(arguments: list[str]) -> int:
    parser = _parser("resume", "Go on with a run, from its newest checkpoint that verifies.")
    parser.add_argument("run", help="run id")
    parser.add_argument("settings", nargs="*", help="what changes from now on, as cluster.ranks_per_node=2")
    options = parser.parse_args(arguments)
    from finetune.launch import submit
    from finetune.run_folder import RunFolder

    run = RunFolder.find(options.run, options.runs_dir)
    submit.resume(run, options.settings)
    return _report([run])


def evaluate(arguments: list[str]) -> int:
    parser = _parser("evaluate", "Held-out loss of a run's result, or of a model folder, on a corpus' validation split.")
    parser.add_argument("model", help="run id, or model folder")
    parser.add_argument("--corpus", help="a corpus' name or folder (of a run: its own corpus)")
    parser.add_argument("--corpora-dir", default="corpora", help="where prepared corpora lie (corpora)")
    parser.add_argument("--sequence-length", type=int, help="tokens a pack (of a run: its own; else 512)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    options = parser.parse_args(arguments)
    return _evaluate(options)


def status(arguments: list[str]) -> int:
    parser = _parser("status", "What the runs are doing, or how they ended; read from disk, from any shell.")
    parser.add_argument("runs", nargs="*", help="run ids (all)")
    options = parser.parse_args(arguments)
    from finetune import report

    report.print_status(_runs(options))
    return 0


def sync(arguments: list[str]) -> int:
    parser = _parser("sync", "Send what runs have said since the last time to MLflow. Safe to repeat.")
    parser.add_argument("runs", nargs="*", help="run ids (all)")
    options = parser.parse_args(arguments)
    return _sync(_runs(options))


def ui(arguments: list[str]) -> int:
    parser = _parser("ui", "Bring MLflow's database up to date and open its user interface.")
    parser.add_argument("--port", type=int, default=5000, help="TCP port (5000)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    options = parser.parse_args(arguments)
    from finetune.tracking.sender import default_uri

    _sync(_runs(options))
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
    from data_prep.config import PrepareConfig
    from data_prep.pipeline import prepare as run_pipeline
    from finetune import report
    from finetune.config import from_omegaconf

    _log_to_stderr()
    prepared = run_pipeline(from_omegaconf(node, PrepareConfig))
    report.print_corpus(prepared)
    print(prepared.folder)


def _train(node: Any) -> None:
    run_points([to_train_config(node)])


def to_train_config(node: Any) -> TrainConfig:
    """The typed config of a composed node; past here there is no OmegaConf."""
    from finetune.config import from_omegaconf

    config: TrainConfig = from_omegaconf(node)
    return config


def run_points(points: list[TrainConfig]) -> list[float | None]:
    """Submit the points, print what came of each, and give their held-out losses (None where there is none).

    Raises:
        SystemExit: a run failed; all of them have been tried.
    """
    from finetune.launch.submit import submit

    runs = submit(points)
    if code := _report(runs):
        raise SystemExit(code)
    return [((run.summary() or {}).get("after") or {}).get("loss") for run in runs]


def _report(runs: list[RunFolder]) -> int:
    """Say how runs ended, or that they go on by themselves; the exit code that says it."""
    from finetune import report

    failed = 0
    for run in runs:
        state = run.state()
        if run.config().detach and state == "running":
            print(f"started {run.id}: `finetune status {run.id}`, and `finetune sync` when it has ended", file=sys.stderr)
        elif state == "queued" and run.scheduler() == "slurm":
            print(f"submitted {run.id}: `finetune status {run.id}`", file=sys.stderr)
        elif state == "completed":
            report.print_summary(run)
        else:
            failed += 1
            reason = run.failure() or "its processes are gone; the logs are in jobs/"
            detail = {"stopped": "stopped as asked", "failed": reason, "queued": "not started"}.get(state, f"{state}: {reason}")
            print(f"error: run {run.id}: {detail}\n  go on: finetune resume {run.id}   logs: {run.jobs}", file=sys.stderr)
        print(run.id, flush=True)
    if failed and len(runs) > 1:
        print(f"error: {failed} of {len(runs)} runs did not complete", file=sys.stderr)
    return 1 if failed else 0


# --- plumbing --------------------------------------------------------------------------------------------------------


def _hydra(config_name: str, arguments: list[str], task: Callable[[Any], None]) -> int:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come to us, and _guarded words them
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from data_prep.config import PrepareConfig
    from finetune.config import TrainConfig, conf_dir, package_dir

    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="prepare_schema", node=PrepareConfig)
    OmegaConf.register_new_resolver("package_dir", package_dir, replace=True)
    sys.argv = [f"finetune {config_name}", *map(_quote, _options_first(arguments))]
    composed: list[Any] = []  # stays empty for -m, which goes through the launcher, and for --cfg, which prints
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(composed.append)()
    for node in composed:
        task(node)
    return 0


def _options_first(arguments: list[str]) -> list[str]:
    """Hydra's parser wants its options together: `corpus=x --config-dir my lr=1` would end in its own usage text.

    Raises:
        ValueError: an option that is none.
    """
    flags, with_value = (
        {"-m", "--multirun", "--resolve"},
        {"--config-dir", "-cd", "--cfg", "-c", "--package", "-p", "--info", "-i"},
    )
    options: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name = argument.partition("=")[0]
        if not argument.startswith("-"):
            overrides.append(argument)
        elif name not in flags | with_value:
            raise ValueError(f"unknown option {name}: settings are written key=value, as in lr=1e-4")
        else:
            options.append(argument)
            if name in with_value and "=" not in argument:
                options += [value] if (value := next(rest, None)) is not None else []
    return options + overrides


def _quote(argument: str) -> str:
    """Hydra's grammar knows no å, ø or æ outside quotes."""
    key, equals, value = argument.partition("=")
    if not equals or argument.isascii() or any(quote in value for quote in "'\""):
        return argument
    delimiters = r",\[\](){}\s"
    return key + equals + re.sub(rf"[^{delimiters}]*[^\x00-\x7f{delimiters}][^{delimiters}]*", lambda word: f"'{word[0]}'", value)


def _expand(argument: str) -> list[str]:
    """What `train` takes shorter than Hydra would: model=run:<id>, model=<folder or hub id> (names in conf/model stay as they
    are), and corpus=<name or folder>, which Hydra would take for a file of conf/corpus."""
    key, _, value = argument.partition("=")
    if key == "corpus":
        return [f"data.corpus={value}"]
    if key == "model" and value and ("/" in value or value.startswith("run:") or Path(value).is_dir()):
        return ["model=pretrained", f"model.path={value}"]
    return [argument]


def _guarded(verb: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a verb; a user's mistake becomes one line. FINETUNE_TRACEBACK=1 shows where it came from."""
    if os.environ.get("FINETUNE_TRACEBACK"):
        return verb(arguments)
    try:
        return verb(arguments)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as fault:
        _fail(_words(fault))
    except Exception as fault:
        # hydra and omegaconf are imported by now if the fault is theirs
        if type(fault).__module__.split(".")[0] in ("hydra", "omegaconf"):
            _fail(_words(fault))
        raise


def _words(fault: Exception) -> str:
    """One line: what, where, what to do."""
    from omegaconf.errors import OmegaConfBaseException

    from finetune.config import describe

    cause = fault.__cause__ if isinstance(fault.__cause__, OmegaConfBaseException) else fault
    if isinstance(cause, OmegaConfBaseException):
        text = describe(cause)
        if "is not in struct" in text:
            return f"{text}: write +{cause.full_key}=… to add it"
        if "missing mandatory value" in text:
            key = "corpus" if cause.full_key == "data.corpus" else cause.full_key
            return f"{cause.full_key} is missing: give {key}=…"
        return f"{text} (`finetune VERB --help` lists the keys)" if "not in" in text else text
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    text = " ".join(lines).partition(" Config search path:")[0] or type(fault).__name__
    if text.startswith("Ambiguous value"):
        return f"{lines[0]}: add -m to sweep over the values, or write [a,b] for one list"
    if type(fault).__name__ == "OverrideParseException":
        return f"cannot read '{getattr(fault, 'override', text)}': write settings as key=value"
    return text


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _parser(verb: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"finetune {verb}", description=description)
    parser.add_argument("--runs-dir", default="runs", help="where the runs lie (runs)")
    return parser


def _runs(options: argparse.Namespace) -> list[RunFolder]:
    from finetune.run_folder import RunFolder

    if options.runs_dir != "runs" and not Path(options.runs_dir).is_dir():
        raise FileNotFoundError(f"--runs-dir {options.runs_dir} does not exist")
    wanted = getattr(options, "runs", [])
    return [RunFolder.find(run_id, options.runs_dir) for run_id in wanted] or RunFolder.all(options.runs_dir)


def _sync(runs: list[RunFolder]) -> int:
    from finetune.tracking import sender

    failed = 0
    for run in runs:
        try:
            sender.sync(run)
        except Exception as fault:  # one run, or one server, must not keep the others from theirs
            failed += 1
            print(
                f"error: run {run.id} is not in MLflow: {type(fault).__name__}: {' '.join(str(fault).split())[:300]}",
                file=sys.stderr,
            )
    print(f"{len(runs) - failed} of {len(runs)} runs are in MLflow", file=sys.stderr)
    return 1 if failed else 0


def _evaluate(options: argparse.Namespace) -> int:
    import json

    from finetune import report
    from finetune.config import DataConfig
    from finetune.evaluate import evaluate_on_corpus
    from finetune.run_folder import RunFolder

    path, corpus, length, long_documents = options.model, options.corpus, options.sequence_length, "auto"
    if (Path(path) / "adapter_config.json").is_file():
        raise ValueError(f"{path} is an adapter, which needs its base: evaluate the run that made it, finetune evaluate RUN")
    if not Path(path).is_dir() or (Path(path) / "config.yaml").is_file():  # not a model folder: a run
        run = RunFolder.find(path, options.runs_dir)
        path = f"run:{run.path}"
        corpus = corpus or run.config().data.corpus
        length = length if length is not None else run.config().data.sequence_length
        long_documents = run.config().data.long_documents
    if corpus is None:
        raise ValueError("--corpus is missing: name the corpus to evaluate a model folder on")
    data = DataConfig(
        corpus=corpus, corpora_dir=options.corpora_dir, long_documents=long_documents,
        sequence_length=512 if length is None else length,
    )  # fmt: skip
    held_out = evaluate_on_corpus(path, data, options.runs_dir)
    print(f"{path} on {data.corpus_folder}, packs of {data.sequence_length} tokens", file=sys.stderr)
    report.print_held_out({"after": held_out.as_dict()})
    if options.json:
        print(json.dumps(held_out.as_dict(), ensure_ascii=False))
    return 0


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)


def _wants_help(arguments: list[str]) -> bool:
    return any(argument in ("-h", "--help") for argument in arguments)


if __name__ == "__main__":
    main()
