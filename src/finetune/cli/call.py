"""What a person typed, as the modules that describe mistakes need it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.cli.config_files import ConfigFiles
from finetune.cli.overrides import option_value


@dataclass(frozen=True)
class Call:
    """What was called: the verb, its arguments, and the dataclass behind its settings (None: it takes no
    settings)."""

    verb: str
    arguments: list[str]
    schema: type[Any] | None = None

    @property
    def own(self) -> str | None:
        """The folder of the user's own config files."""
        return option_value(self.arguments, "--config-dir", "-cd")

    @property
    def files(self) -> ConfigFiles:
        """The config files that the verb chooses from."""
        return ConfigFiles(self.verb, Path(self.own) if self.own else None)

    def argument_of(self, key: str) -> str:
        """Return the argument that sets a key, or else the key with a value to be given."""
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
        return typed[max(related, key=len)] if related else f"{key}=…"
