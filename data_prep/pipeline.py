"""Preparation from raw text to a corpus folder. Read `prepare` first, then plan.py and execute.py.

The work is a list of steps. A step consists of independent tasks, such as reading some files or
running a stage on a shard. `prepare` runs the tasks in processes of this machine. A scheduler can
run them instead, on any machines that share the folder, with a job array for each step, one step
after the other. `plan` writes the plan and returns the steps, and

    python -m data_prep.pipeline corpora/.NAME.stages STEP --task 3 --of 16

runs the tasks 3, 19, 35 … of a step. The function `run_task` does the same. A step with a single
task is run without --task. The corpus is the same, byte for byte, however the tasks of a step are
distributed and ordered. A task that was killed must be run again. It then does only the work that
is missing.
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
    """The result of `prepare`.

    Attributes:
        skipped: names of the stages whose work was done before.
    """

    folder: Path
    manifest: Manifest
    skipped: list[str]


def prepare(config: PrepareConfig) -> Prepared:
    """Run the whole pipeline for one corpus, in processes of this machine.

    Raises:
        NotFoundError: a source's path does not exist or holds no file for its reader.
        OSError: the disk is full, or the folder is not writable; finished shards are kept.
        UserError: a setting or source is wrong, no document is left, a worker process was killed,
            or another prepare is using the folder.
    """
    folder, work = _folders(config)
    worked: set[str] = set()
    with _explain_disk_errors(work), _exclusive_lock(work):
        preparation = Preparation.plan(config, folder, work)
        manifest = publish.load_if_current(folder, preparation.fingerprint)
        if manifest is None:
            _check_inputs(config.corpus)
            try:
                steps = preparation.steps()
                names = [step.name for step in steps]
                with Workers(config.workers or preparation.default_workers(), names) as workers:
                    for step in steps:
                        if workers.run(step.name, run_step, (str(work), step.name), preparation.sizes(step)):
                            worked.add(step.stage)
            except BaseException:
                preparation.prune()  # deletes the temporary files of interrupted tasks
                raise
            manifest = Manifest.read(folder)
    return Prepared(folder, manifest, [stage.name for stage in manifest.stages if stage.name not in worked])


def plan(config: PrepareConfig) -> list[Step]:
    """Write the plan for a scheduler into `corpora/.NAME.stages`, and return the steps in order.

    Returns:
        The steps; an empty list if the corpus already exists with these inputs and settings.

    Raises:
        NotFoundError: a source's path does not exist or holds no file for its reader.
        OSError: the disk is full, or the folder is not writable.
        UserError: a setting or source is wrong, or another prepare is using the folder.
    """
    folder, work = _folders(config)
    with _explain_disk_errors(work), _exclusive_lock(work):
        preparation = Preparation.plan(config, folder, work)
        if publish.load_if_current(folder, preparation.fingerprint) is not None:
            return []
        _check_inputs(config.corpus)
        return preparation.steps()


def run_task(work: str | Path, step: str, task: int = 0, of: int = 1) -> int:
    """Run the tasks `task`, `task + of`, `task + 2 * of` … of a step.

    Task numbers start at 0. By default, all tasks are run. Processes that call this with different
    values of `task` may run at the same time.

    Args:
        work: `corpora/.NAME.stages`.

    Returns:
        The number of tasks that had work to do; 0 if all were done before.

    Raises:
        OSError: the disk is full, or the folder is not writable.
        UserError: the step does not exist, `task` is not between 0 and `of` - 1, an earlier step is
            not finished, or a `prepare` is running.
    """
    work = Path(work).absolute()
    with _explain_disk_errors(work), _shared_lock(work):
        preparation = Preparation.load(work)
        chosen = next((known for known in preparation.steps() if known.name == step), None)
        if chosen is None or not 0 <= task < of:
            names = ", ".join(known.name for known in preparation.steps())
            raise UserError(
                f"no task {task} of {of} in step '{step}'; --task must be at least 0 and below --of, and "
                f"the step one of {names}"
            )
        os.chdir(preparation.cwd)  # paths in the config are relative to this directory
        tasks = range(task, len(preparation.sizes(chosen)), of)
        return sum(run_step(str(work), step, number) for number in tasks)


def run_step(work: str, step: str, number: int) -> bool:
    """Do the task with this number (from 0) of a step. Return False if it was done before.

    Args:
        work: the folder of the stages.
    """
    return execute.run(Preparation.load(Path(work)), step, number)


def _folders(config: PrepareConfig) -> tuple[Path, Path]:
    """Return the corpus folder and the folder of its stages. Neither needs to exist.

    Raises:
        NotFoundError: the tokenizer or the chat template does not exist.
        UserError: the corpus folder holds other files, or the tokenizer cannot be used.
    """
    Tokenise().settings(config.corpus)
    folder = Path(config.corpora_dir) / config.corpus.name
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} holds files that are not a corpus, and prepare would replace them; "
            "choose another corpora_dir or name"
        )
    return folder, folder.with_name(f".{folder.name}.stages")


def _check_inputs(corpus: CorpusConfig) -> None:
    """Check the evaluation sets and the tokenizer before the first step.

    Without this check, an error would be found only by the step that uses them, hours later.

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
def _exclusive_lock(work: Path) -> Iterator[None]:
    """Hold the exclusive lock of the stages' folder during the `with` block.

    Meanwhile, no other `prepare` and no task of a scheduler can use the folder.

    Raises:
        UserError: another process holds the lock.
    """
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            yield
    except Timeout:
        folder = work.with_name(work.name.removeprefix(".").removesuffix(".stages"))
        raise UserError(
            f"another `finetune prepare` is writing {folder}; wait until it ends, or choose another "
            "corpora_dir"
        ) from None


@contextmanager
def _shared_lock(work: Path) -> Iterator[None]:
    """Hold a shared lock of the stages' folder during the `with` block.

    Meanwhile, no `prepare` can use the folder. Other tasks can, because they share the lock.

    Raises:
        UserError: a `prepare` holds the lock, or the folder has no plan.
    """
    import fcntl

    if not (work / "plan.json").is_file():
        raise UserError(
            f"{work} has no plan.json; give the folder .NAME.stages of a corpus, or run "
            "`finetune prepare`, which writes the plan"
        )
    with (work / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{work}: a `finetune prepare` is running and does these tasks itself; wait until it ends"
            ) from None
        yield


_FREE_SPACE = "free some space and run the same command again, which resumes"
_CHOOSE_WRITABLE = "choose a corpora_dir that is writable"
_REMEDIES = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: _FREE_SPACE,
    errno.EROFS: _CHOOSE_WRITABLE,
    errno.EACCES: _CHOOSE_WRITABLE,
    errno.EPERM: _CHOOSE_WRITABLE,
}


@contextmanager
def _explain_disk_errors(work: Path) -> Iterator[None]:
    """Add a remedy to errors of a full or read-only disk, in a message of one line.

    Errors are recognised by their errno or their text, because Arrow's errors have no errno.

    Args:
        work: the folder of the stages. Errors on files outside its parent folder are not changed.
    """
    try:
        yield
    except OSError as fault:
        code = next(
            (code for code in _REMEDIES if fault.errno == code or os.strerror(code) in str(fault)), None
        )
        is_elsewhere = bool(
            fault.filename and work.parent.absolute() not in Path(fault.filename).absolute().parents
        )
        if code is None or is_elsewhere:
            raise
        raise OSError(f"{work.parent}: {os.strerror(code)}; {_REMEDIES[code]}") from fault


def main() -> None:
    """Run `python -m data_prep.pipeline FOLDER [STEP [--task I --of N]]`."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.pipeline",
        description="Run the tasks of one step of a preparation, or a share of them.",
    )
    parser.add_argument("folder", help="folder with the plan: corpora/.NAME.stages")
    parser.add_argument("step", nargs="?", help="name of the step; without it, the steps are listed")
    parser.add_argument("--task", type=int, default=0, help="number of the share, from 0 (default: 0)")
    parser.add_argument("--of", type=int, default=1, help="number of shares of the step (default: 1)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if options.step is None:
            for step in Preparation.load(Path(options.folder)).steps():
                logger.info("%s %s", step.name, "in shares" if step.parallel else "as one task")
        else:
            done = run_task(options.folder, options.step, options.task, options.of)
            logger.info("%s, share %d of %d: %d tasks done", options.step, options.task, options.of, done)
    except (ValueError, OSError) as fault:
        parser.exit(2, f"error: {' '.join(str(fault).split())}\n")


if __name__ == "__main__":
    main()
