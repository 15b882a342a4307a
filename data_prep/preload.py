"""Imports and a model that every worker process needs.

The fork server imports this module once. It then starts the worker processes as copies of itself,
so that they need not load anything again.

Nothing here may start a thread, because a forked process has none of its parent's threads.
"""

import contextlib
import importlib

import data_prep.execute  # noqa: F401  # imports all stages
from data_prep.stages.language import identifier

# Optional packages. pyarrow imports pandas for its first array; the encoder imports gigatoken, and
# gigatoken imports awkward.
for name in ("pandas", "gigatoken", "awkward"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
identifier()
