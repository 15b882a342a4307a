"""What a user can mend, in both packages: raised with one line that names the setting or file, what is wrong,
and what to do.

The command line prints that line and a rank records it. Any other exception is a fault of ours and keeps its
traceback. Standard library alone.
"""

from __future__ import annotations

import json


class UserError(ValueError):
    """A wrong setting, file or call, or a machine that lacks something."""


class NotFoundError(UserError, FileNotFoundError):
    """A run, model, corpus or file that was named and is not there."""


# errors of Python's own that a file which the user gave, or which was damaged, raises
DAMAGED_FILE = (json.JSONDecodeError, UnicodeDecodeError)


def is_refused_config(fault: BaseException) -> bool:
    """Return whether transformers refuses a model's config, which it does with an error class of its own."""
    return type(fault).__name__.startswith("StrictDataclass")
