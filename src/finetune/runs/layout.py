"""File names of a run folder and of the runs folder around it, and functions to read and atomically
write these files.

    runs/<run id>/
      config.yaml       the resolved config, frozen at submission
      provenance.json   versions, git revision, git diff
      inputs.json       digests of the corpus and the base
      submission.json   the job that executes the run
      attempts.jsonl    each start of the job, and its end
      outcome.json      the state in which the run ended
      plan/             the packs (training sequences), one file per epoch
      checkpoints/      see training/checkpoint.py
      metrics.jsonl     every metric of every step, append-only
      summary.json      the result in figures: see summary.py
      model/ | adapter/ the result, for transformers and PEFT
      merged_base/      the base with earlier adapters merged into it, if it has any
      exports/          checkpoints that were used as run:ID@STEP, as models or adapters
      jobs/             submitit's files, and the ranks' logs

Standard library only, Python 3.8 or newer: not only commands and ranks use this module, but also
the batch script's helper, which runs outside of a container.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Json = dict[str, Any]  # the content of a JSON file before it is converted to a Record

# --- files of a run folder ------------------------------------------------------------------------

CONFIG = "config.yaml"
PROVENANCE = "provenance.json"
INPUTS = "inputs.json"

PLAN = "plan"
CHECKPOINTS = "checkpoints"
EXPORTS = "exports"
MODEL = "model"
ADAPTER = "adapter"
MERGED_BASE = "merged_base"
METRICS = "metrics.jsonl"
BEFORE = "before.json"  # the held-out loss before the first step
SKIPPED = "skipped.json"  # batches that rewinds left out
SUMMARY = "summary.json"

SUBMISSION = "submission.json"
EARLIER_SUBMISSION = "attempt.json"  # the name of submission.json until November 2026
STARTED = "started.json"
OUTCOME = "outcome.json"
FAILURE = "failure.json"  # the batch script's diagnosis
ATTEMPTS = "attempts.jsonl"
STAGED = "staged.json"  # the folder on the nodes' own disks with copies of the corpus
TURN = "turn.json"  # the process that follows the run, or waits to start it after other runs
STOP = "stop"  # its presence asks the run to stop
SENT = ".sent.json"  # how much of the metrics was sent to MLflow
LOCK = ".lock"
SUBMIT_LOCK = ".submit.lock"
EXPORT_LOCK = ".export.lock"

JOBS = "jobs"
EXITS = "exits.json"  # exit statuses of a local run's ranks
ATTACHED = "attached.sh"  # the script of a run that was started within an allocation
CONTROLLER_LOG = "controller.log"
PRESENT = "present"  # a folder with a file for each node whose ranks can write to the run folder
PREFLIGHT_TOKEN = "preflight-token"
SCRIPT = "submit.sh"  # the batch script
WAITING_PICKLE = "waiting.pkl"  # renamed to <job id>_submitted.pkl at submission

# --- files of a checkpoint ------------------------------------------------------------------------

STATE = "state.json"
MANIFEST = "manifest.json"
HELD_OUT = "held_out.json"  # a held-out loss measured after the checkpoint was published

# --- the runs folder ------------------------------------------------------------------------------

BASES = ".bases"  # merged bases that runs share
CODE = ".code"  # the code that jobs import
MLFLOW_DATABASE = "mlflow.db"
MLFLOW_ARTIFACTS = "mlartifacts"
MLFLOW_LOCK = ".mlflow.lock"
SWEEPS = "sweeps"
POINTS_TABLE = "points.tsv"  # of a sweep

# files of one submission of a sweep, sweeps/<id>/<n>/: see job/wave_files.py
POINTS = "points"
WAVES = "waves.json"
PAUSED = "paused.json"
PROBLEM = "problem.txt"
WAITING = "waiting"
CLAIMED = "claimed"
SUBMITTED = "submitted"
WAVES_LOCK = ".waves.lock"  # in sweeps/
ENDING = ".ending"  # in sweeps/: jobs that have submitted their next wave

TAIL_BYTES = 65536  # read from the end of a file of JSON lines if only the newest lines are needed


# --- names with a number --------------------------------------------------------------------------


def failure_of(rank: int | str) -> str:
    """Return the name of the file with a rank's failure.

    Args:
        rank: the rank's number, or "*" for a glob pattern that matches the files of all ranks.
    """
    return f"failure-rank-{rank}.json"


def warnings_of(rank: int | str) -> str:
    """Return the name of the file in jobs/ with a rank's warnings.

    Args:
        rank: the rank's number, or "*" for a glob pattern that matches the files of all ranks.
    """
    return f"warnings-rank-{rank}.jsonl"


def stacks_of(rank: int | str) -> str:
    """Return the name of the file in jobs/ for the stack traces that a rank writes if it hangs.

    Args:
        rank: the rank's number, or "*" for a glob pattern that matches the files of all ranks.
    """
    return f"stacks-rank-{rank}.txt"


def rendezvous_of(job: str, restart: int | str) -> str:
    """Return the name of the file in jobs/ through which the ranks of an attempt find each other.

    Args:
        job: the job's id, or "*" for a glob pattern that matches all jobs.
        restart: number of earlier starts of the job, or "*" for a pattern that matches all starts.
    """
    return f"rendezvous-{job}-{restart}"


def next_of(job: str) -> str:
    """Return the name of a lock file in jobs/.

    A process holds this lock while it submits the job that continues the run after `job`.
    """
    return f"next-of-{job}"


def pickle_of(job: str) -> str:
    """Return the name of the file in jobs/ with the function of a job, pickled by submitit."""
    return f"{job}_submitted.pkl"


def log_of(job: str, rank: int | str) -> str:
    """Return the name of a rank's log in jobs/; submitit chooses this name.

    Args:
        job: the job's id, or "*" for a glob pattern that matches all jobs.
        rank: the rank's number, or "*" for a glob pattern that matches all ranks.
    """
    return f"{job}_{rank}_log.out"


def pack_plan(split: str, key: str, epoch: int) -> str:
    """Return the name of the file in plan/ with the packs of an epoch.

    A pack is a training sequence that is filled with documents.

    Args:
        key: digest of the corpus and of the settings that determine the packs; "*" gives a
            glob pattern.
    """
    return f"{split}-{key}-epoch-{epoch:03d}.npy"


def pack_rows(split: str, key: str) -> str:
    """Return the name of the file in plan/ with the corpus rows that go into packs.

    Args:
        key: as in `pack_plan`.
    """
    return f"{split}-{key}-rows.npy"


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint after an optimizer step."""
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps in a checkpoint."""
    return int(checkpoint.name.partition("-")[2])


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, newest first.

    A checkpoint gets the name `step-…` only when all its files are written.
    """
    found = (path for path in checkpoints.glob("step-*") if path.name.partition("-")[2].isdigit())
    return sorted(found, reverse=True)


def newest_step(run: Path) -> int:
    """Return the number of optimizer steps in the newest checkpoint of a run; 0 without one."""
    return max(map(step_of, list_checkpoints(run / CHECKPOINTS)), default=0)


def list_attempt_files(run: Path) -> list[Path]:
    """Return the files of the newest attempt that must be removed before the next one starts.

    These are the outcome, the failures of ranks, the files through which the ranks found each
    other, and the stack traces of hung ranks.
    """
    failures = run.glob("failure*.json")
    rendezvous = (run / JOBS).glob(rendezvous_of("*", "*"))
    stacks = (run / JOBS).glob(stacks_of("*"))
    return [run / OUTCOME, *failures, *rendezvous, *stacks]


# --- files that are replaced atomically -----------------------------------------------------------


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, which is renamed to `path` at the end.

    Readers see the old file or the new one, never a part of it. Several processes may write at the
    same time.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, body: Mapping[str, object]) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def temporary_folder(folder: Path) -> Path:
    """Return the temporary folder in which the files of `folder` are written.

    The caller renames it to `folder` when it is complete.
    """
    return folder.with_name(f".{folder.name}.tmp")


def read_json(path: Path) -> Json | None:
    """Return the content of a JSON file; None if there is no such file.

    Raises:
        ValueError: the file is not valid JSON.
    """
    try:
        body: Json = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return body


def read_json_or_none(path: Path) -> Json | None:
    """Return the content of a JSON file; None if it is missing or not valid JSON."""
    try:
        return read_json(path)
    except ValueError:
        return None


# --- files of JSON lines --------------------------------------------------------------------------


def append_json_line(path: Path, record: Mapping[str, object]) -> None:
    """Append a record on a line of its own, even if a kill has left the last line incomplete."""
    start = "\n" if has_incomplete_last_line(path) else ""
    with path.open("a", encoding="utf-8") as file:
        file.write(start + json.dumps(record, ensure_ascii=False) + "\n")


def has_incomplete_last_line(path: Path) -> bool:
    """Return True if the last line of a file has no line end, as after a kill during a write."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            if file.tell() == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except FileNotFoundError:
        return False


def read_json_lines(path: Path, tail: int | None = None) -> list[Json]:
    """Return the records of a file of JSON lines, without incomplete ones; [] if there is no file.

    Args:
        tail: number of bytes to read from the end of the file; None: the whole file.
    """
    try:
        with path.open("rb") as file:
            if tail is not None:
                file.seek(max(0, path.stat().st_size - tail))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    return [record for record in map(parse_json_line, lines) if record is not None]


def parse_json_line(line: bytes) -> Json | None:
    """Return the record in a line; None if the line is incomplete.

    The last line of a file is incomplete after a kill during a write. The first is incomplete if
    reading began in the middle of a line.
    """
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
