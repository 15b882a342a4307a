"""`Call`, a call of a verb, for the modules that describe a user's mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune.cli.config_files import ConfigFiles
from finetune.cli.overrides import option_value


@dataclass(frozen=True)
class Call:
    """A call of a verb.

    Attributes:
        arguments: the arguments after the verb.
        schema: dataclass of the settings that an error may name; None if there are none.
    """

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
        """Return the argument that sets a key, else one that sets its section or a key below it.

        Return `key=…` if there is neither.
        """
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
