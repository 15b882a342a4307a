"""Descriptions of a user's mistakes in one line: the setting or file, the problem, the remedy.

This module classifies an exception and passes it to the module that describes its kind.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from data_prep.user_error import DAMAGED_FILE, UserError, is_refused_config
from finetune.cli.call import Call
from finetune.cli.file_errors import describe_encoding, describe_yaml, one_line, shown_path
from finetune.cli.group_errors import describe_composition, describe_missing_file, with_remedy
from finetune.cli.overrides import shell_quote, straighten
from finetune.cli.setting_errors import describe_setting
from finetune.config.suggestions import did_you_mean

# Exceptions of libraries for mistakes in settings and files, and for errors of the file system.
FOREIGN = (HydraException, OmegaConfBaseException, yaml.YAMLError, *DAMAGED_FILE, OSError)
# Packages that raise plain ValueErrors for a wrong file or setting.
COMPOSERS = ("hydra", "omegaconf", "optuna", "hydra_plugins.hydra_optuna_sweeper")


def is_mistake(fault: BaseException) -> bool:
    """Return whether a fault is due to the user's input or the machine, not to a bug in the code.

    Such a fault is reported as one line, without a traceback.
    """
    if isinstance(fault, (UserError, *FOREIGN)) or is_refused_config(fault):
        return True
    composers = tuple(f"{name}." for name in COMPOSERS)
    return isinstance(fault, ValueError) and _module_that_raised(fault).startswith(composers)


def _module_that_raised(fault: BaseException) -> str:
    """Return the name of the module that raised the exception, with a dot at its end."""
    name = ""
    for frame, _ in traceback.walk_tb(fault.__traceback__):
        name = str(frame.f_globals.get("__name__", ""))
    return f"{name}."


def describe_fault(fault: BaseException, call: Call) -> str:
    """Return the message for a fault that `is_mistake` accepts: problem and remedy, in one line."""
    text = _describe(fault, call)
    if "typographic" in text:
        return text
    replaced = (character for character in text if straighten(character) not in (character, "'"))
    unusual = next(replaced, None)
    if unusual is None or not any(unusual in argument for argument in call.arguments):
        return text
    straight = straighten(unusual)
    remedy = f"; type {straight}" if straight.strip() else ""
    return f"{text} ('{unusual}' is a typographic character{remedy})"


def _describe(fault: BaseException, call: Call) -> str:
    if isinstance(fault, yaml.YAMLError):
        return describe_yaml(fault)
    if isinstance(fault, UnicodeDecodeError):
        return describe_encoding(fault, call)
    # data_prep.shards is slow to import; if one of its exceptions was raised, it is imported already
    shards = sys.modules.get("data_prep.shards")
    if shards is not None and isinstance(fault, shards.NoCorpusError):
        return _describe_missing_corpus(fault.folder, call)
    if isinstance(fault, MissingConfigException):
        return describe_missing_file(fault, call)
    cause = _find_omegaconf_fault(fault)
    if cause is not None:
        return describe_setting(cause, fault, call)
    if isinstance(fault, OSError):
        return one_line(fault)
    return describe_composition(fault, call)


def _find_omegaconf_fault(fault: BaseException) -> OmegaConfBaseException | None:
    """Return the first OmegaConf exception in the chain of a fault and its causes; None if none."""
    seen: BaseException | None = fault
    while seen is not None:
        if isinstance(seen, OmegaConfBaseException):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _describe_missing_corpus(folder: Path, call: Call) -> str:
    """Return the error for a corpus that is not prepared, with the names of prepared corpora."""
    name = folder.name
    if name in call.files.names("corpus"):
        option = ""
        if call.config_dir and (Path(call.config_dir) / "corpus" / f"{name}.yaml").is_file():
            option = f" --config-dir {shell_quote(call.config_dir)}"
        return f"no corpus in {shown_path(folder)}; run `finetune prepare corpus={name}{option}` first"
    folders = [path.parent.name for path in folder.parent.glob("*/manifest.json")]
    prepared = sorted(name for name in folders if not name.startswith("."))
    suggestion = did_you_mean(name, [*prepared, *call.files.names("corpus")])
    remedy = "prepare one with `finetune prepare corpus=NAME`"
    if prepared:
        remedy = f"prepared corpora: {', '.join(prepared[:10])}; {remedy}"
    return with_remedy(f"no corpus in {shown_path(folder)}", suggestion, remedy)
