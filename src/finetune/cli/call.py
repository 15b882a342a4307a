"""A call of a verb, as the modules that describe a user's mistakes need it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune.cli.config_files import ConfigFiles
from finetune.cli.overrides import option_value


@dataclass(frozen=True)
class Call:
    """A verb with its arguments, and the dataclass of its settings (None if it has none)."""

    verb: str
    arguments: list[str]
    schema: type[Any] | None = None

    @property
    def config_dir(self) -> str | None:
        """The folder given with --config-dir."""
        return option_value(self.arguments, "--config-dir", "-cd")

    @property
    def files(self) -> ConfigFiles:
        """The config files that the verb's arguments can select."""
        return ConfigFiles(self.verb, self.config_dir)

    def argument_of(self, key: str) -> str:
        """Return the argument that sets a key, or `key=…` if no argument does."""
        typed = {
            argument.partition("=")[0].lstrip("+"): argument.lstrip("+")
            for argument in self.arguments
            if "=" in argument
        }
        if key in typed:
            return typed[key]
        if key == "data.corpus" and "corpus" in typed:
            return typed["corpus"]
        related = [name for name in typed if key.startswith(f"{name}.") or name.startswith(f"{key}.")]
        if not related:
            return f"{key}=…"
        return typed[max(related, key=len)]
