"""Hydra's sweeper and launcher for `finetune train -m`.

Hydra looks for plugins only in this namespace package. `from __future__ import annotations` does
not work here. It makes a dataclass look up its module in sys.modules, and Hydra executes this file
without registering it there.
"""

import contextlib
import copy
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from data_prep.user_error import UserError
from finetune.runs.layout import POINTS_TABLE, SWEEPS


@dataclass
class FinetuneLauncherConf:
    _target_: str = "hydra_plugins.finetune_launcher.FinetuneLauncher"


@dataclass
class GridSweeperConf:
    _target_: str = "hydra_plugins.finetune_launcher.GridSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


class GridSweeper(BasicSweeper):
    """Hydra's grid sweeper without its check of the points: the launcher checks them."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        pass

    def sweep(self, arguments: list[str]) -> Any:
        try:
            return super().sweep(arguments)
        finally:
            self.launcher.remove_if_unused()


class Composer:
    """Composes the configs of a sweep's points.

    Hydra takes 0.1 s to compose a config from all its files. Points that select the same files
    differ only in values. Their files are therefore composed once, and the values are set in
    copies. Hydra, too, sets values last.
    """

    def __init__(self, context: HydraContext, config: DictConfig) -> None:
        self._loader = context.config_loader
        self._config = config
        self._parser = OverridesParser.create(config_loader=self._loader)
        self._parsed: dict[str, Override] = {}
        self._groups: dict[str, bool] = {}
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def parse(self, override: str) -> Override:
        if override not in self._parsed:
            self._parsed[override] = self._parser.parse_override(override)
        return self._parsed[override]

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return the config of a point.

        Raises:
            HydraException: a config file or a setting does not exist.
        """
        values = [override for override in overrides if self._sets_value(self.parse(override))]
        files = tuple(override for override in overrides if override not in values)
        if files not in self._composed:
            self._composed[files] = self._load(files)
        node = copy.deepcopy(self._composed[files])
        try:
            for override in map(self.parse, values):
                OmegaConf.update(node, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException:
            return self._load(overrides)  # Hydra describes the mistake
        return node

    def _load(self, overrides: Sequence[str]) -> DictConfig:
        node = self._loader.load_sweep_config(self._config, list(overrides))
        with open_dict(node):
            del node["hydra"]
        return node

    def _sets_value(self, override: Override) -> bool:
        """Return whether an override sets an existing setting; False if it selects a config file."""
        key = override.key_or_group
        if override.type != OverrideType.CHANGE or override.is_hydra_override():
            return False
        if override.package is not None or "/" in key:
            return False
        if key not in self._groups:
            self._groups[key] = bool(self._loader.get_group_options(key))
        return not self._groups[key]


class FinetuneLauncher(Launcher):
    """Launcher for the points of a sweep; each point is a run.

    It checks all points of a batch, then starts them; on Slurm, as one job array. If the sweeper
    learns from results, as Optuna's does, `launch` waits until the batch has ended.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from finetune.launch.freeze import claim_folder, new_id, unwritable_error

        self.composer = Composer(hydra_context, config)
        self.typed = {}
        # resolve=False: a value may contain an interpolation
        for text in OmegaConf.to_container(config.hydra.overrides.task, resolve=False):
            override = self.composer.parse(text)
            self.typed[override.get_key_element()] = override
        self.learns = not str(config.hydra.sweeper._target_).endswith((".BasicSweeper", ".GridSweeper"))
        sweeps = Path(config.runs_dir) / SWEEPS
        self.name = re.sub(r"[^\w.-]", "-", str(config.name))  # each point's check rejects a bad name
        try:
            if config.dry_run:
                self.folder = Path(tempfile.mkdtemp()) / new_id(self.name)
                self.folder.mkdir()
            else:
                self.folder = claim_folder(sweeps, new_id(self.name))
        except OSError as fault:
            raise unwritable_error(sweeps, fault) from None
        config.hydra.sweep.dir = str(self.folder)  # sweepers write their files there

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from finetune.cli.train import run_points
        from finetune.config.points import Sweep, find_varying_keys
        from finetune.config.train import from_omegaconf
        from finetune.terminal import track_progress

        configs = []
        swept = []
        try:
            for overrides in track_progress(job_overrides, len(job_overrides), "composing"):
                configs.append(from_omegaconf(self.composer.compose(overrides)))
                swept.append(self._swept_values(overrides))
            if self.learns:
                configs = [replace(config, wait=True) for config in configs]
            else:
                keys = find_varying_keys(swept)
                swept = [{key: point[key] for key in keys if key in point} for point in swept]
            sweep = Sweep(self.folder.name, self.name, swept, initial_job_idx)
            losses = run_points(configs, sweep, ignore_failures=self.learns)
        finally:
            self.remove_if_unused()
        results = zip(job_overrides, losses, strict=True)
        return [self._make_job_return(overrides, loss) for overrides, loss in results]

    def _swept_values(self, overrides: Sequence[str]) -> dict[str, str]:
        """Return a point's values of the settings that are swept over, as they were typed."""
        from finetune.config.points import restore_typed_number

        point = {}
        for text in overrides:
            override = self.composer.parse(text)
            typed = self.typed.get(override.get_key_element())
            if typed is not None and not typed.is_sweep_override():
                continue
            value = override.value()
            shown = str(value) if isinstance(value, str) else override.get_value_element_as_str()
            if typed is not None:
                shown = restore_typed_number(shown, typed.input_line)
            point[override.get_key_element().lstrip("+~")] = shown
        return point

    def remove_if_unused(self) -> None:
        """Remove the folder of a sweep from which no run was submitted.

        Its points were rejected, or only checked (dry run).
        """
        if self.folder.parent.name != SWEEPS:
            shutil.rmtree(self.folder.parent, ignore_errors=True)
        elif not (self.folder / POINTS_TABLE).exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # the folders contain other sweeps or runs
                self.folder.parent.rmdir()
                self.folder.parent.parent.rmdir()

    def _make_job_return(self, overrides: Sequence[str], loss: float | None) -> JobReturn:
        if loss is None and self.learns:
            fault = UserError(
                f"{' '.join(overrides)}: the run has no held-out loss, which the sweeper needs; check "
                "that the run completed and that the corpus has validation documents"
            )
            return JobReturn(overrides=overrides, status=JobStatus.FAILED, _return_value=fault)
        return JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=loss)


store = ConfigStore.instance()
store.store(group="hydra/launcher", name="finetune", node=FinetuneLauncherConf, provider="finetune")
store.store(group="hydra/sweeper", name="finetune", node=GridSweeperConf, provider="finetune")
