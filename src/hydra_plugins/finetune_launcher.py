"""Hands the points of a Hydra sweep to finetune.launch.submit. Hydra finds launchers in this namespace package only.

No `from __future__ import annotations` here: Hydra executes this file without entering it into sys.modules, where a dataclass
would look up its annotations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


@dataclass
class FinetuneLauncherConf:
    _target_: str = "hydra_plugins.finetune_launcher.FinetuneLauncher"


class FinetuneLauncher(Launcher):
    """All points of a batch are checked before any of them is started. On Slurm a batch is one array; a sweeper that learns from
    its results, such as Optuna's, gets them when its batch has ended."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        Path(config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)  # Optuna's sweeper writes there, and does not make it
        self.sweep: str | None = None
        self.learns = not str(config.hydra.sweeper._target_).endswith(".BasicSweeper")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from finetune.cli import run_points, to_train_config
        from finetune.launch.freeze import new_id

        points = []
        for overrides in job_overrides:
            node = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(node):
                del node["hydra"]
            points.append(to_train_config(node))
        if self.sweep is None:
            self.sweep = new_id(points[0].name)
        if self.learns:
            points = [replace(point, wait=True) for point in points]
        losses = run_points(points, self.sweep, go_on=self.learns)
        return [self._told(overrides, loss) for overrides, loss in zip(job_overrides, losses, strict=True)]

    def _told(self, overrides: Sequence[str], loss: float | None) -> JobReturn:
        if loss is None and self.learns:
            fault = ValueError(f"{' '.join(overrides)} gave no held-out loss")
            return JobReturn(overrides=overrides, status=JobStatus.FAILED, _return_value=fault)
        return JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=loss)


ConfigStore.instance().store(group="hydra/launcher", name="finetune", node=FinetuneLauncherConf, provider="finetune")
