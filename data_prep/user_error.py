"""Errors that the user can correct, for both packages.

Each has a one-line message that names the setting or file, the problem and the remedy. The command
line prints that line, and a rank records it. Any other exception is a bug in this code and keeps
its traceback. Imports the standard library only.
"""

from __future__ import annotations

import json


class UserError(ValueError):
    """A wrong setting, file or command, or a missing requirement of the machine."""


class NotFoundError(UserError, FileNotFoundError):
    """A run, model, corpus or file that the user named and that does not exist."""


# Errors of the standard library that a malformed or damaged file raises.
DAMAGED_FILE = (json.JSONDecodeError, UnicodeDecodeError)


def is_refused_config(fault: BaseException) -> bool:
    """Return whether an error is one of transformers' own, for a model's config that it rejects."""
    return type(fault).__name__.startswith("StrictDataclass")
