"""What every reader shares: finding files in a fixed order, and decoding bytes without losing a document."""

from __future__ import annotations

from pathlib import Path

from data_prep.config import SourceConfig
from data_prep.document import Place, Report


def find(path: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Files under `path` (or `path` itself) in name order.

    Raises:
        FileNotFoundError: `path` does not exist, or holds no file with one of the suffixes.
    """
    root = Path(path)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise FileNotFoundError(f"source path {path} does not exist: check `path` in the corpus file")
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name.endswith(suffixes))
    if not files:
        raise FileNotFoundError(f"source path {path} holds no {' or '.join(suffixes)} file")
    return files


def place(name: str, source: SourceConfig, path: Path) -> Place:
    """The place of a file, called by its path under the source's, so that it does not depend on where the source lies."""
    root = Path(source.path)
    return Place(name, path.relative_to(root).as_posix() if root.is_dir() else path.name)


def decode(raw: bytes, report: Report) -> str:
    """UTF-8 where it is UTF-8, else Windows-1252, the usual stray in Norwegian archives; the stray is counted."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        report.counts["decoded_as_cp1252"] += 1
        return raw.decode("cp1252", errors="replace")
