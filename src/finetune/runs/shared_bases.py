"""Merged bases that runs share: runs/.bases/<digest of the content>/, with hard links to its files in each
run's merged_base/.

The digest is of the merged weights, their settings and the tokenizer, so an entry cannot be out of date. A
run that is copied or moved takes whole files along; an entry whose files no run links to any more can go.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from finetune.runs import layout


def link(folder: Path, digest: str) -> bool:
    """Make `folder` (in a run's) of an entry's files; False if there is none, or the file system has no hard
    links."""
    entry, temporary = _entry(folder, digest), layout.unfinished(folder)
    if not entry.is_dir():
        return False
    try:
        _link_all(entry, temporary)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        return False
    temporary.rename(folder)
    return True


def publish(folder: Path, digest: str) -> None:
    """Make an entry of a finished folder, unless another run was first, or the file system has no hard
    links."""
    entry = _entry(folder, digest)
    temporary = entry.with_name(f".{digest}.{secrets.token_hex(4)}")
    for path in folder.iterdir():
        path.chmod(0o444)  # an edit in one run would be an edit in all
    try:
        _link_all(folder, temporary)
        temporary.rename(entry)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)


def find_unused(runs_dir: Path) -> Iterator[Path]:
    """Yield the entries whose files belong to no run."""
    for entry in sorted((runs_dir / layout.BASES).glob("*")):
        if all(path.stat().st_nlink == 1 for path in entry.iterdir()):
            yield entry


def _entry(folder: Path, digest: str) -> Path:
    return folder.parent.parent / layout.BASES / digest


def _link_all(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in source.iterdir():
        os.link(path, target / path.name)
