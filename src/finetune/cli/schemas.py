"""The dataclasses behind a verb's settings, by the schema named in verbs.py; imported when they are asked
for."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any


def train_schema() -> type[Any]:
    """Return the settings of a training run."""
    from finetune.config.train import TrainConfig

    return TrainConfig


@cache
def prepare_schema() -> type[Any]:
    """Return data_prep's own settings, and where it runs, which is no business of data_prep."""
    from data_prep.config import PrepareConfig
    from finetune.config.cluster import ClusterConfig

    fields = [("cluster", ClusterConfig, dataclasses.field(default_factory=ClusterConfig))]
    return dataclasses.make_dataclass("PrepareOnCluster", fields, bases=(PrepareConfig,), kw_only=True)
