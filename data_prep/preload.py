"""Imports and models for the worker processes.

The fork server, which starts these processes, loads the imports and models once.

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
