"""Hands the points of a Hydra sweep to finetune.launch.submit. Hydra finds plugins in this namespace package
only.

No `from __future__ import annotations` here: Hydra executes this file without entering it into sys.modules,
where a dataclass would look up its annotations.
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
    """Hydra's own sweeper, which composes no point itself: the launcher composes all of them before any is
    started."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        pass

    def sweep(self, arguments: list[str]) -> Any:
        try:
            return super().sweep(arguments)
        finally:
            self.launcher.remove_if_unused()


class Composer:
    """Composes the config of each point of a sweep.

    Hydra composes one from all its files in 0.1 s. Points that choose the same files differ in values alone:
        their files are
    composed once, and the values set in copies, as Hydra itself does it last of all.
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
            HydraException: there is no such file, or no such setting.
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
            return self._load(overrides)  # Hydra words what is wrong
        return node

    def _load(self, overrides: Sequence[str]) -> DictConfig:
        node = self._loader.load_sweep_config(self._config, list(overrides))
        with open_dict(node):
            del node["hydra"]
        return node

    def _sets_value(self, override: Override) -> bool:
        """Whether it sets a value that is there already, and chooses no file of a group."""
        key = override.key_or_group
        if (
            override.type != OverrideType.CHANGE
            or override.package is not None
            or "/" in key
            or override.is_hydra_override()
        ):
            return False
        if key not in self._groups:
            self._groups[key] = bool(self._loader.get_group_options(key))
        return not self._groups[key]


class FinetuneLauncher(Launcher):
    """All points of a batch are checked before any of them is started. On Slurm a batch is one array; a
    sweeper that learns from its results, such as Optuna's, gets them when its batch has ended."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from finetune.launch.freeze import claim_folder, new_id, unwritable

        self.composer = Composer(hydra_context, config)
        self.typed = {}
        for text in OmegaConf.to_container(
            config.hydra.overrides.task, resolve=False
        ):  # a value may hold an interpolation
            override = self.composer.parse(text)
            self.typed[override.get_key_element()] = override
        self.learns = not str(config.hydra.sweeper._target_).endswith((".BasicSweeper", ".GridSweeper"))
        sweeps = Path(config.runs_dir) / SWEEPS
        self.name = re.sub(
            r"[^\w.-]", "-", str(config.name)
        )  # whether it is a good name is checked with each point
        try:
            if config.dry_run:
                self.folder = Path(tempfile.mkdtemp()) / new_id(self.name)
                self.folder.mkdir()
            else:
                self.folder = claim_folder(sweeps, new_id(self.name))
        except OSError as fault:
            raise unwritable(sweeps, fault) from None
        config.hydra.sweep.dir = str(self.folder)  # sweepers write there

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from finetune.cli.train import run_points
        from finetune.config.points import Sweep, find_varying_keys
        from finetune.config.train import from_omegaconf
        from finetune.terminal import counted

        configs = []
        swept = []
        try:
            for overrides in counted(job_overrides, len(job_overrides), "composing"):
                configs.append(from_omegaconf(self.composer.compose(overrides)))
                swept.append(self._swept(overrides))
            if not self.learns:
                keys = find_varying_keys(swept)
                swept = [{key: point[key] for key in keys if key in point} for point in swept]
            if self.learns:
                configs = [replace(config, wait=True) for config in configs]
            sweep = Sweep(self.folder.name, self.name, swept, initial_job_idx)
            losses = run_points(configs, sweep, go_on=self.learns)
        finally:
            self.remove_if_unused()
        return [self._told(overrides, loss) for overrides, loss in zip(job_overrides, losses, strict=True)]

    def _swept(self, overrides: Sequence[str]) -> dict[str, str]:
        """Return the values of the settings that were given several, as they were typed."""
        from finetune.config.points import restore_typed_number

        point = {}
        for text in overrides:
            override = self.composer.parse(text)
            typed = self.typed.get(override.get_key_element())
            if typed is not None and not typed.is_sweep_override():
                continue
            value = override.value()
            shown = str(value) if isinstance(value, str) else override.get_value_element_as_str()
            point[override.get_key_element().lstrip("+~")] = (
                restore_typed_number(shown, typed.input_line) if typed else shown
            )
        return point

    def remove_if_unused(self) -> None:
        """Leave no folder of a sweep that was refused, or only tried."""
        if self.folder.parent.name != SWEEPS:
            shutil.rmtree(self.folder.parent, ignore_errors=True)
        elif not (self.folder / POINTS_TABLE).exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # other sweeps, or runs, are in there
                self.folder.parent.rmdir()
                self.folder.parent.parent.rmdir()

    def _told(self, overrides: Sequence[str], loss: float | None) -> JobReturn:
        if loss is None and self.learns:
            fault = UserError(f"{' '.join(overrides)} gave no held-out loss")
            return JobReturn(overrides=overrides, status=JobStatus.FAILED, _return_value=fault)
        return JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=loss)


store = ConfigStore.instance()
store.store(group="hydra/launcher", name="finetune", node=FinetuneLauncherConf, provider="finetune")
store.store(group="hydra/sweeper", name="finetune", node=GridSweeperConf, provider="finetune")
