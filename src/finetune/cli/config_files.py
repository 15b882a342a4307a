"""The YAML files that settings are chosen from: the groups in conf/, and those of the user's --config-dir."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune.config.train import conf_dir

PREPARE_GROUPS = ("cluster", "corpus")  # the other groups are of `train`, which has no group `corpus`


@dataclass(frozen=True)
class ConfigFiles:
    """The groups of config files of `finetune train` or `finetune prepare`.

    Attributes:
        own: the user's --config-dir.
    """

    verb: str
    own: Path | None = None

    def folders(self) -> list[Path]:
        """Return the folders that hold groups, the user's first."""
        return [self.own, conf_dir()] if self.own else [conf_dir()]

    def groups(self) -> list[str]:
        """Return the groups that this verb chooses files from."""
        if self.verb == "prepare":
            return list(PREPARE_GROUPS)
        found = {
            path.name
            for folder in self.folders()
            if folder.is_dir()
            for path in folder.iterdir()
            if path.is_dir()
        }
        return sorted(name for name in found if name.isidentifier() and name not in ("__pycache__", "corpus"))

    def names(self, group: str) -> list[str]:
        """Return the names of a group's files."""
        return sorted(
            {
                path.stem
                for folder in self.folders()
                for path in (folder / group).glob("*.yaml")
                if path.is_file()
            }
        )

    def clashes(self) -> list[Path]:
        """Return the user's files that Hydra would ignore: the package has files of the same names."""
        if self.own is None:
            return []
        names = [f"{group}/{name}.yaml" for group in self.groups() for name in self.names(group)]
        clashing = [name for name in names if all((folder / name).is_file() for folder in self.folders())]
        return [self.own / name for name in clashing]

    def file(self, name: str) -> Path | None:
        """Return the file of a config such as recipe/mine."""
        found = [folder / f"{name}.yaml" for folder in self.folders()]
        return next((path for path in found if path.is_file()), None)
