"""Write to files everything that a run depends on: config, code, versions, digests of its inputs.

Secrets are not written. The code is copied into runs/.code/<digest>/, from which the jobs import
it. So a later edit of the checkout does not affect queued runs. Runs with the same code share a
copy: a sweep of a thousand points needs only one. All other files are in the run folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import data_prep
import finetune
from data_prep.user_error import UserError
from finetune.config import train as configuration
from finetune.config.cluster import ClusterConfig
from finetune.config.points import Sweep
from finetune.config.train import TrainConfig
from finetune.runs import base_model, layout
from finetune.runs import inputs as run_inputs
from finetune.runs.folder import RunFolder
from finetune.runs.records import Provenance
from finetune.terminal import track_progress

PACKAGES = (
    "torch", "deepspeed", "transformers", "accelerate", "peft", "datasets", "tokenizers", "mlflow",
    "hydra-core", "submitit", "numpy",
)  # fmt: skip
NOT_CODE = ("__pycache__", "sample")  # the sample corpus is data

# Patterns of secrets: tokens with a known issuer's prefix, long values with digits after a name
# such as token or api_key, values after a name such as password, and passwords in URLs.
_TOKEN = (
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[opsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[\w-]{20,}"
    r"|AKIA[A-Z0-9]{16})"
)
_NAMED_TOKEN = (
    r"(?i)((?:token|api_?key|access_?key|credentials?)[\"']?\s*[:=]\s*[\"']?)(?=[^\s\"']*\d)([\w./+=-]{16,})"
)
_PASSWORD = (
    r"(?i)((?:password|passwd|secret)[\"']?\s*[:=]\s*)(\"[^\"]{4,}\"|'[^']{4,}'|[^\s\"'(){}\[\]]{6,}(?=\s|$))"
)
_IN_URL = r"(://[^/\s:@]*:)([^/\s@]+)(@)"
_SECRET_VARIABLE = r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|PASS|API_?KEY|ACCESS_KEY|CREDENTIALS?)(?:$|_)"


@dataclass(frozen=True)
class Pinned:
    """Configs with the exact revision of the base model, and the digests of the runs' inputs.

    Attributes:
        points: the configs.
        inputs: for each config, the digests of its corpus and base model.
    """

    points: list[TrainConfig]
    inputs: list[dict[str, str | None]]


def pin(points: list[TrainConfig]) -> Pinned:
    """Return the points with the exact revision of their base models, and digests of their inputs.

    The inputs are the corpus and the base model. Nothing is written.

    Raises:
        NotFoundError: a base model cannot be read.
    """
    points = [base_model.pin_revision(point) for point in points]
    # Most points of a sweep have the same corpus and base, so each pair is read only once.
    distinct = {_input_key(point): point for point in points}
    inputs = {}
    for key, point in distinct.items():
        corpus = None if point.after else run_inputs.open_corpus(point.data)
        inputs[key] = run_inputs.compute_digests(base_model.resolve_for_run(point), corpus)
    return Pinned(points, [inputs[_input_key(point)] for point in points])


def freeze(points: list[TrainConfig], sweep: Sweep | None) -> list[RunFolder]:
    """Write a new run folder for each point, and return the folders.

    Args:
        sweep: the sweep that the points belong to; None for a single run.

    Raises:
        UserError, NotFoundError: a folder cannot be written, or a base model cannot be read. No
            folder is left then.
    """
    pinned = pin(points)
    origin = provenance(sweep.id if sweep else None)
    runs: list[RunFolder] = []
    try:
        for index, config in enumerate(track_progress(pinned.points, len(points), "writing")):
            run_id = sweep.run_id(index, config.name) if sweep else new_id(config.name)
            run = RunFolder(claim_folder(Path(config.runs_dir), run_id))
            runs.append(run)
            point = sweep.points[index] if sweep else None
            origin_of_run = replace(origin, point=point, scheduler=config.cluster.scheduler)
            origin_of_run.write(run.path / layout.PROVENANCE)
            configuration.save(config, run.config_file)
            run_inputs.record_inputs(run, pinned.inputs[index])
    except BaseException as fault:
        discard(runs)
        if isinstance(fault, OSError):
            raise unwritable_error(Path(points[0].runs_dir), fault) from None
        raise
    return runs


def _input_key(point: TrainConfig) -> str:
    return repr((point.data.corpus, point.model))


def discard(runs: list[RunFolder]) -> None:
    """Remove the folders of a failed submission."""
    for run in runs:
        shutil.rmtree(run.path, ignore_errors=True)


def unwritable_error(folder: Path, fault: OSError, key: str = "runs_dir") -> UserError:
    """Return the error for a folder that cannot be written, such as one on a full file system.

    Args:
        key: the setting that names the folder.
    """
    return UserError(
        f"{folder}: cannot be written ({fault.strerror}); free space or correct the permissions, or choose "
        f"another folder with {key}=…"
    )


def check_writable(folder: Path) -> None:
    """Raise UserError if a folder cannot be written or created."""
    nearest = folder
    while not nearest.exists():
        nearest = nearest.parent
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        number = errno.EACCES if nearest.is_dir() else errno.ENOTDIR
        raise unwritable_error(folder, OSError(number, os.strerror(number)))
    if os.statvfs(nearest).f_bavail == 0:
        raise unwritable_error(folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def new_id(name: str) -> str:
    """Return a new id, `<name>-<date>-<time>-<hex>`. It may be taken already: see claim_folder."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def claim_folder(parent: Path, name: str) -> Path:
    """Create and return `<parent>/<name>`, or `<parent>/<name>-<hex>` if the first exists."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / name
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            folder = parent / f"{name}-{secrets.token_hex(4)}"


def provenance(sweep: str | None = None) -> Provenance:
    """Return the record of a submission's command, time and versions. All its runs get this record.

    Args:
        sweep: id of the sweep; None for a single run.
    """
    source = Path(finetune.__file__).parent
    return Provenance(
        command=[without_secrets(argument) for argument in ("finetune", *sys.argv[1:])],
        submitted=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        python=sys.version.split()[0],
        packages=_versions(),
        git_revision=_git(source, "rev-parse", "HEAD"),
        git_diff=without_secrets(_git(source, "diff", "HEAD") or ""),
        sweep=sweep,
    )


def _versions() -> dict[str, str | None]:
    """Return the versions of PACKAGES by name; None for a package that is not installed."""
    found: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of a git command; None if it fails, or git is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode == 0:
        return done.stdout.strip()
    return None


# --- code ---------------------------------------------------------------------------------------


def snapshot_code(runs_dir: Path) -> Path:
    """Copy the current code into runs/.code, unless an intact copy of it exists already.

    Returns:
        the folder of the copy, for PYTHONPATH.

    Raises:
        UserError: the code seems to contain a token, or the folder cannot be written.
    """
    files = _read_code()
    digest = _digest(files)
    folder = runs_dir / layout.CODE / digest
    if folder.is_dir() and _digest({p.relative_to(folder): p.read_bytes() for p in _walk(folder)}) == digest:
        return folder
    temporary = folder.with_name(f".{digest}.{secrets.token_hex(4)}")
    try:
        for path, content in files.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_bytes(content)
        if folder.is_dir():  # its files were edited
            folder.rename(temporary.with_suffix(".changed"))
        os.replace(temporary, folder)
    except OSError as fault:
        if not folder.is_dir():  # otherwise another process has just written the same copy
            raise unwritable_error(runs_dir, fault) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def name_snapshot(runs_dir: Path) -> Path:
    """Return the folder that snapshot_code would return, without writing it.

    Raises:
        UserError: the code seems to contain a token.
    """
    return runs_dir / layout.CODE / _digest(_read_code())


def _read_code() -> dict[Path, bytes]:
    files = {path: content for root in _sources() for path, content in _files(root)}
    for path, content in files.items():
        match = re.search(_TOKEN, content.decode(errors="replace"))
        if match:
            raise UserError(
                f"{path}: seems to contain a token ({match[0][:6]}…), but the code is copied into the runs "
                f"folder; remove the token"
            )
    return files


def _sources() -> list[Path]:
    return [Path(package.__file__).parent for package in (finetune, data_prep) if package.__file__]


def _files(root: Path) -> Iterator[tuple[Path, bytes]]:
    for path in _walk(root):
        yield Path(root.name) / path.relative_to(root), path.read_bytes()


def _walk(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        if path.is_file() and not set(path.relative_to(root).parts) & set(NOT_CODE):
            yield path


def _digest(files: dict[Path, bytes]) -> str:
    hasher = hashlib.sha256()
    for path in sorted(files):
        hasher.update(f"{path}\0{len(files[path])}\0".encode())
        hasher.update(files[path])
    return hasher.hexdigest()[:16]


# --- secrets ------------------------------------------------------------------------------------


def without_secrets(text: str) -> str:
    """Return a text in which `[secret]` replaces tokens, passwords and the like."""
    text = re.sub(_TOKEN, "[secret]", text)
    for pattern in (_NAMED_TOKEN, _PASSWORD):
        text = re.sub(pattern, r"\1[secret]", text)
    return re.sub(_IN_URL, r"\1[secret]\3", text)


def check_no_secrets(config: TrainConfig | ClusterConfig, key: str = "") -> None:
    """Check that a config contains no secret.

    Configs are written to disk, MLflow and batch scripts, where others may read them.

    Args:
        key: key under which `config` is part of another config; "" if it is not part of one.

    Raises:
        UserError: a value seems to contain a secret; the message names its key, not the value.
    """

    def walk(key: str, value: Any) -> None:
        if isinstance(value, dict):
            for inner, item in value.items():
                walk(f"{key}.{inner}" if key else str(inner), item)
        elif isinstance(value, list):
            for item in value:
                walk(key, item)
        elif isinstance(value, str) and value:
            is_variable = re.match(r"cluster\.(prepare\.)?env", key)
            name = key.rpartition(".")[2].upper()
            is_named_secret = is_variable and re.search(_SECRET_VARIABLE, name)
            if is_named_secret or re.search(_TOKEN, value) or re.search(_IN_URL, value):
                raise UserError(
                    f"{key}: seems to contain a secret, but configs are written to disk; remove it, and "
                    f"export it in your shell, whose environment variables jobs inherit"
                )

    walk(key, asdict(config))
