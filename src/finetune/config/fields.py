"""What the schemas are written with: a setting with its help text, and the checks that name key, value and remedy."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Any


def setting(default: Any, help: str) -> Any:
    """A dataclass field whose help text `finetune train --help` prints."""
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def at_least(name: str, value: float, minimum: float) -> None:
    """Raises ValueError if `value` is below `minimum`, or no number."""
    if not value >= minimum:
        raise ValueError(f"{name} is {value}: give at least {minimum}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError if `value` is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is '{value}': choose one of {', '.join(choices)}")


# what sbatch replaces in the paths of logs (also with a width, as %4t), and what submitit does
SLURM_PATTERN = r"%\d*[%AaJjNnstuxb]|\\"
SUBMITIT_PATTERN = "%[jtaA]"


def check_log_folder(name: str, folder: str, scheduler: str) -> None:
    """Raise ValueError if Slurm or submitit would read a part of a folder's path, where logs lie, as a pattern."""
    pattern = f"{SLURM_PATTERN}|{SUBMITIT_PATTERN}" if scheduler == "slurm" else SUBMITIT_PATTERN
    found = re.search(pattern, folder)
    if found:
        raise ValueError(
            f"{name}: {folder} contains '{found[0]}', which has a meaning of its own in the paths of a job's logs; "
            f"choose another folder with {name}=…"
        )
