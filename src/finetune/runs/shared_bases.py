"""Shares merged bases between runs. A merged base is a base model with adapters merged into it.

An entry is the folder runs/.bases/<digest>/ with the files of one merged base. The merged_base/ of
each run contains hard links to these files, so a copied or moved run folder keeps them.

The digest covers the merged weights, their settings and the tokenizer, so an entry cannot be out of
date. `prune` may remove an entry if no run links to its files.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from finetune.runs import layout


def link(folder: Path, digest: str) -> bool:
    """Create `folder`, the merged_base/ of a run, with hard links to a shared merged base.

    Args:
        digest: digest of the merged base, which names its folder in runs/.bases.

    Returns:
        False if there is no shared merged base with this digest, or the file system has no hard
        links.
    """
    entry = _entry(folder, digest)
    if not entry.is_dir():
        return False
    temporary = layout.temporary_folder(folder)
    try:
        _link_all(entry, temporary)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        return False
    temporary.rename(folder)
    return True


def publish(folder: Path, digest: str) -> None:
    """Share the merged base in `folder` with other runs, by hard links in runs/.bases/<digest>.

    The files become read-only. Nothing is linked if another run has shared the same merged base, or
    if the file system has no hard links.
    """
    entry = _entry(folder, digest)
    temporary = entry.with_name(f".{digest}.{secrets.token_hex(4)}")
    for path in folder.iterdir():
        path.chmod(0o444)  # an edit in one run would change the file in all
    try:
        _link_all(folder, temporary)
        temporary.rename(entry)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)


def find_unused(runs_dir: Path) -> Iterator[Path]:
    """Yield the folders in runs/.bases that no run uses: their files have no other hard links."""
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
