"""Errors that the user can correct, for the packages data_prep and finetune.

The message is one line, which names the setting or file, the problem and the remedy. The command
line prints that line, and a rank of a training records it. Any other exception is a bug in this
code, and its traceback is printed. This module imports the standard library only.
"""

from __future__ import annotations

import json


class UserError(ValueError):
    """A wrong setting, file or command, or a missing requirement of the machine."""


class NotFoundError(UserError, FileNotFoundError):
    """A run, model, corpus or file that the user named does not exist, or is incomplete."""


# Errors that the standard library raises for a malformed or damaged file.
DAMAGED_FILE = (json.JSONDecodeError, UnicodeDecodeError)


def is_refused_config(fault: BaseException) -> bool:
    """Return whether an error means that transformers rejects a model's config."""
    return type(fault).__name__.startswith("StrictDataclass")
