"""Groups of YAML files that set several settings, in conf/ and in the user's --config-dir."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune.config.train import conf_dir

PREPARE_GROUPS = ("cluster", "corpus")  # `train` has all other groups, and not `corpus`


@dataclass(frozen=True)
class ConfigFiles:
    """The config files of `finetune train` or `finetune prepare`, in groups.

    A group is a folder of alternative files, such as adapter/, from which a setting selects one.

    Attributes:
        config_dir: the user's --config-dir; None without one.
    """

    verb: str
    config_dir: str | None = None

    def folders(self) -> list[Path]:
        """Return the folders that contain groups: the user's, if there is one, then conf/."""
        if not self.config_dir:
            return [conf_dir()]
        return [Path(self.config_dir), conf_dir()]

    def groups(self) -> list[str]:
        """Return the names of the verb's groups."""
        if self.verb == "prepare":
            return list(PREPARE_GROUPS)
        found: set[str] = set()
        for folder in filter(Path.is_dir, self.folders()):
            found.update(path.name for path in folder.iterdir() if path.is_dir())
        return sorted(name for name in found if name.isidentifier() and name not in ("__pycache__", "corpus"))

    def names(self, group: str) -> list[str]:
        """Return the names of a group's files."""
        found: set[str] = set()
        for folder in self.folders():
            found.update(path.stem for path in (folder / group).glob("*.yaml") if path.is_file())
        return sorted(found)

    def hidden_files(self) -> list[Path]:
        """Return the user's files that Hydra ignores, because conf/ has files of the same path."""
        if not self.config_dir:
            return []
        names = [f"{group}/{name}.yaml" for group in self.groups() for name in self.names(group)]
        hidden = [name for name in names if all((folder / name).is_file() for folder in self.folders())]
        return [Path(self.config_dir) / name for name in hidden]

    def file(self, name: str | None) -> Path | None:
        """Return the path of a config file by its name, such as recipe/mine.

        Return None if there is no such file, or the name is None.
        """
        if not name:
            return None
        found = [folder / f"{name}.yaml" for folder in self.folders()]
        return next((path for path in found if path.is_file()), None)
