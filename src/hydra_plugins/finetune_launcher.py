"""Hands the points of a Hydra sweep to finetune.launch.submit. Hydra finds launchers in this namespace package only.

No `from __future__ import annotations` here: Hydra executes this file without entering it into sys.modules, where a dataclass
would look up its annotations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


@dataclass
class FinetuneLauncherConf:
    _target_: str = "hydra_plugins.finetune_launcher.FinetuneLauncher"


class FinetuneLauncher(Launcher):
    """All points of a batch are validated before any of them is started."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from finetune.cli import run_points, to_train_config

        points = []
        for overrides in job_overrides:
            node = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(node):
                del node["hydra"]
            points.append(to_train_config(node))
        return [
            JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=loss)
            for overrides, loss in zip(job_overrides, run_points(points), strict=True)
        ]


ConfigStore.instance().store(group="hydra/launcher", name="finetune", node=FinetuneLauncherConf, provider="finetune")
