"""Preparation from raw text to a corpus folder. Read `prepare` first, then plan.py and execute.py.

The work is a list of steps, and a step a number of tasks that know nothing of each other: a file to read, a
shard to put through a stage. Here processes of this machine do them. A scheduler may as well, one array a
step, in order, on any machines that see the folder: `plan` says which steps there are and writes down what
they need, and

    python -m data_prep.pipeline corpora/.NAME.stages STEP --task 3 --of 16

does the tasks 3, 19, 35 … of a step (`run_task` is the same as a function). Steps that cannot be cut are
given without --task. The corpus is the same, byte for byte, whoever does what in whatever order; what is
killed is run again, and does what is missing.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from data_prep import evaluation_sets, execute, publish
from data_prep.config import CorpusConfig, PrepareConfig
from data_prep.plan import Preparation, Step
from data_prep.shards import MANIFEST, Manifest
from data_prep.stages.tokenise import Tokenise
from data_prep.tokens.tokeniser import Tokeniser
from data_prep.tokens.tokenizer_files import place_files
from data_prep.user_error import UserError
from data_prep.workers import Workers

logger = logging.getLogger(__name__)


@dataclass
class Prepared:
    """The result of `prepare`: the corpus folder, its manifest, and which stages had nothing to do."""

    folder: Path
    manifest: Manifest
    skipped: list[str]


def prepare(config: PrepareConfig) -> Prepared:
    """Run the whole pipeline for one corpus, with processes of this machine.

    Raises:
        NotFoundError: a source's path does not exist or holds nothing to read.
        OSError: the disk is full, or the folder cannot be written to; what is finished is kept.
        UserError: a setting is wrong, another prepare holds the folder, or no document survived.
    """
    folder, work = _folders(config)
    worked: set[str] = set()
    with _explained(work), _alone(work):
        preparation = Preparation.plan(config, folder, work)
        manifest = publish.current(folder, preparation.fingerprint)
        if manifest is None:
            _try_inputs(config.corpus)
            try:
                steps = preparation.steps()
                names = [step.name for step in steps]
                with Workers(config.workers or preparation.sensible_workers(), names) as workers:
                    for step in steps:
                        if workers.run(step.name, run_step, (str(work), step.name), preparation.sizes(step)):
                            worked.add(step.stage)
            except BaseException:
                preparation.prune()  # what processes were at when they were stopped
                raise
            manifest = Manifest.read(folder)
    return Prepared(folder, manifest, [stage.name for stage in manifest.stages if stage.name not in worked])


def plan(config: PrepareConfig) -> list[Step]:
    """Prepare for a scheduler: write the plan into `corpora/.NAME.stages`, and say what is to be run, in
    order.

    Returns:
        The steps; none if the corpus is there already, as it would become.

    Raises: as `prepare`.
    """
    folder, work = _folders(config)
    with _explained(work), _alone(work):
        preparation = Preparation.plan(config, folder, work)
        if publish.current(folder, preparation.fingerprint) is not None:
            return []
        _try_inputs(config.corpus)
        return preparation.steps()


def run_task(work: str | Path, step: str, task: int = 0, of: int = 1) -> int:
    """Do the share `task` (from 0) of `of` of a step. Any number of them may run at once, on any machines.

    Args:
        work: `corpora/.NAME.stages`.

    Returns:
        How many shards there were to do; 0 if they were done before.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
        UserError: no such step, an earlier step is not finished, or a `prepare` has taken the folder over.
    """
    work = Path(work).absolute()
    with _explained(work), _beside_others(work):
        preparation = Preparation.load(work)
        chosen = next((known for known in preparation.steps() if known.name == step), None)
        if chosen is None or not 0 <= task < of:
            names = ", ".join(known.name for known in preparation.steps())
            raise UserError(
                f"no task {task} of {of} in step '{step}': tasks count from 0, and the steps are {names}"
            )
        os.chdir(preparation.cwd)  # paths of a config are relative to where it was given
        return sum(
            run_step(str(work), step, number) for number in range(task, len(preparation.sizes(chosen)), of)
        )


def run_step(work: str, step: str, number: int) -> bool:
    """Do one task of a step; False if it was done before."""
    return execute.run(Preparation.load(Path(work)), step, number)


def _folders(config: PrepareConfig) -> tuple[Path, Path]:
    """Return the folders of the corpus and of its stages.

    Raises:
        NotFoundError, UserError: something else lies there, or there is nothing to tokenise with.
    """
    Tokenise().settings(config.corpus)
    folder = Path(config.corpora_dir) / config.corpus.name
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} holds something that is not a corpus and would be replaced: choose another corpora_dir or name"
        )
    return folder, folder.with_name(f".{folder.name}.stages")


def _try_inputs(corpus: CorpusConfig) -> None:
    """Refuse now what a later step would refuse at the end of an hour.

    Raises:
        UserError: an evaluation set cannot be read, or the tokenizer cannot be used.
    """
    for name, path in corpus.decontaminate.sets.items():
        logger.info("evaluation set %s: %d texts", name, sum(1 for _ in evaluation_sets.texts(path)))
    if corpus.tokenizer.path is not None:
        with tempfile.TemporaryDirectory() as folder:
            place_files(corpus, [], Path(folder) / "tokenizer")
            Tokeniser(corpus, Path(folder) / "tokenizer")


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Hold the folder's lock, so that no other prepare and no task of a scheduler works there meanwhile."""
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            yield
    except Timeout:
        folder = work.with_name(work.name.removeprefix(".").removesuffix(".stages"))
        raise UserError(
            f"another `finetune prepare` is writing {folder}: wait for it, or choose another corpora_dir"
        ) from None


@contextmanager
def _beside_others(work: Path) -> Iterator[None]:
    """Share the folder's lock with other tasks, but not with a `prepare`: FileLock and this take the same
    flock."""
    import fcntl

    if not (work / "plan.json").is_file():
        raise UserError(f"{work} holds no plan.json: it is made by `finetune prepare`")
    with (work / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"a `finetune prepare` is at work in {work}, and does the tasks itself") from None
        yield


_FULL = "free some space and run it again: it goes on where it stopped"
_CLOSED = "choose a corpora_dir that can be written to"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: _CLOSED,
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
}


@contextmanager
def _explained(work: Path) -> Iterator[None]:
    """Raise the fault of a disk that is full, or cannot be written to, in one line. Arrow's errors have no
    number."""
    try:
        yield
    except OSError as fault:
        code = next(
            (code for code in _REMEDIES if fault.errno == code or os.strerror(code) in str(fault)), None
        )
        if code is None or (
            fault.filename and work.parent.absolute() not in Path(fault.filename).absolute().parents
        ):
            raise
        raise OSError(f"{work.parent}: {os.strerror(code)}: {_REMEDIES[code]}") from fault


def main() -> None:
    """Run `python -m data_prep.pipeline FOLDER [STEP [--task I --of N]]`; without a step, list the steps."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.pipeline", description="Do a share of a step of a preparation."
    )
    parser.add_argument("folder", help="corpora/.NAME.stages, where a plan lies")
    parser.add_argument("step", nargs="?", help="one of its steps; without, they are listed")
    parser.add_argument("--task", type=int, default=0, help="which share of the step, from 0 (0)")
    parser.add_argument("--of", type=int, default=1, help="into how many shares the step is cut (1)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if options.step is None:
            for step in Preparation.load(Path(options.folder)).steps():
                logger.info("%s %s", step.name, "in shares" if step.cut else "as one")
        else:
            done = run_task(options.folder, options.step, options.task, options.of)
            logger.info("%s, share %d of %d: %d done", options.step, options.task, options.of, done)
    except (ValueError, OSError) as fault:
        parser.exit(2, f"error: {' '.join(str(fault).split())}\n")


if __name__ == "__main__":
    main()
