"""`Call`: a verb and its arguments, for the modules that describe mistakes in the arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune.cli.config_files import ConfigFiles
from finetune.cli.overrides import option_value


@dataclass(frozen=True)
class Call:
    """A call of a verb, such as `finetune train lr=1e-4`.

    Attributes:
        verb: the verb's name.
        arguments: the arguments after the verb.
        schema: dataclass of settings, in which errors look up keys, types and suggestions; None if
            they do not need it.
    """

    verb: str
    arguments: list[str]
    schema: type[Any] | None = None

    @property
    def config_dir(self) -> str | None:
        """The folder given with --config-dir; None without one."""
        return option_value(self.arguments, "--config-dir", "-cd")

    @property
    def files(self) -> ConfigFiles:
        """The config files that the verb's arguments can select."""
        return ConfigFiles(self.verb, self.config_dir)

    def argument_of(self, key: str) -> str:
        """Return the argument that sets a key.

        If there is none, return an argument that sets the key's section, or a key below it. If
        there is none of these either, return `key=…`.
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
