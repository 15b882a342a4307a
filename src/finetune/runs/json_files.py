"""JSON files that are always whole: a process that is killed leaves the old file or the new one.

Only the standard library, from Python 3.8 on: the batch script writes these outside of a container (job/batch_script.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path


def write_json(path: Path, body: Mapping[str, object]) -> None:
    """Write a file by renaming a temporary one of this process, as others may write the same file at this moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
