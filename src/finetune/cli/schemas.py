"""The dataclasses of the verbs' settings; each function imports its dataclass when it is called."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any


def train_schema() -> type[Any]:
    """Return the dataclass of a training run's settings."""
    from finetune.config.train import TrainConfig

    return TrainConfig


@cache
def prepare_schema() -> type[Any]:
    """Return the dataclass of data_prep's settings, extended by `cluster`."""
    from data_prep.config import PrepareConfig
    from finetune.config.cluster import ClusterConfig

    fields = [("cluster", ClusterConfig, dataclasses.field(default_factory=ClusterConfig))]
    return dataclasses.make_dataclass("PrepareOnCluster", fields, bases=(PrepareConfig,), kw_only=True)
