"""From the arguments of a verb with settings (those with a schema in verbs.py) to a composed config: what of
Hydra the command line needs."""

from __future__ import annotations

import os
import sys
from typing import Any


def compose(name: str, schema: type[Any], arguments: list[str]) -> Any | None:
    """Return the config of conf/NAME.yaml with the settings in the arguments.

    Returns:
        None after -m, whose points the launcher has started, and after --cfg, which has printed the config.
    """
    _refuse_clashing_files(name, arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come to us, and errors.py describes them
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
    return composed[0] if composed else None


def _refuse_clashing_files(verb: str, arguments: list[str]) -> None:
    """Refuse a --config-dir with a file that would be ignored in silence.

    Raises:
        UserError: one of its files has the name of a file of the package.
    """
    from data_prep.user_error import UserError
    from finetune.cli.call import Call

    clashes = Call(verb, arguments).files.clashes()
    if clashes:
        path = clashes[0]
        raise UserError(
            f"--config-dir: {path} has the name of a file of the package, which would be read in its place; "
            f"rename it, and choose it by its new name ({path.parent.name}=NAME)"
        )


def wants_help(arguments: list[str]) -> bool:
    """Return whether the help of a verb is asked for, which Hydra would answer with its own."""
    return any(argument in ("-h", "--help") for argument in arguments)
