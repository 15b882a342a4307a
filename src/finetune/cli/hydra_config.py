"""Composes the config of a verb from its arguments, with Hydra."""

from __future__ import annotations

import os
import sys
from typing import Any


def compose(name: str, schema: type[Any], arguments: list[str]) -> Any | None:
    """Return the config of conf/NAME.yaml, changed by the settings in the arguments.

    Returns:
        the config; None if the launcher has started the points of a sweep (-m), or the config has
        been printed (--cfg).
    """
    _check_config_dir(name, arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises exceptions; errors.py describes them
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from finetune.cli import overrides
    from finetune.config.train import conf_dir, package_dir

    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    OmegaConf.register_new_resolver("package_dir", package_dir, replace=True)
    overrides.register_json_resolver()
    sys.argv = [f"finetune {name}", *overrides.hydra_arguments(arguments)]
    composed: list[Any] = []
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(composed.append)()
    return next(iter(composed), None)


def _check_config_dir(verb: str, arguments: list[str]) -> None:
    """Raise UserError if a file in --config-dir has the group and name of a file of the package."""
    from data_prep.user_error import UserError
    from finetune.cli.call import Call

    path = next(iter(Call(verb, arguments).files.hidden_files()), None)
    if path is not None:
        raise UserError(
            f"--config-dir: {path} would be ignored, because the package has a file of the same name; "
            f"rename yours, and select it by the new name ({path.parent.name}=NAME)"
        )


def wants_help(arguments: list[str]) -> bool:
    """Return whether the arguments ask for help.

    A verb checks this before it calls `compose`, because Hydra would print its own help.
    """
    return any(argument in ("-h", "--help") for argument in arguments)
