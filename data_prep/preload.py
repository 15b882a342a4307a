"""What the processes of workers.py need, imported and loaded once in the process that they are forked from.

Nothing here may start a thread: a fork has none of its parent's.
"""

import contextlib
import importlib

import data_prep.execute  # noqa: F401  # and with it all stages
from data_prep.stages.language import identifier

# Where they are installed: pyarrow imports pandas with its first array, the encoder gigatoken, and that
# awkward.
for name in ("pandas", "gigatoken", "awkward"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
identifier()
