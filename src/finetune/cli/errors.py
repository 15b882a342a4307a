"""A user's mistake as one line: the setting or file, what is wrong with it, what to do. Which kind it is, is
decided here."""

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
from finetune.cli.group_errors import describe_composition, describe_missing_file
from finetune.cli.overrides import shell_quote, straighten
from finetune.cli.setting_errors import describe_setting
from finetune.config.suggestions import did_you_mean

# Mistakes that libraries find: in the composition of settings, in files, and what the file system refuses.
FOREIGN = (HydraException, OmegaConfBaseException, yaml.YAMLError, *DAMAGED_FILE, OSError)
# packages that raise plain ValueErrors for a wrong file or setting, too
COMPOSERS = ("hydra", "omegaconf", "optuna", "hydra_plugins.hydra_optuna_sweeper")


def is_mistake(fault: BaseException) -> bool:
    """Return whether a fault stems from what the user gave or from the machine, so that its traceback would
    help nobody."""
    if isinstance(fault, (UserError, *FOREIGN)):
        return True
    if is_refused_config(fault):
        return True
    return isinstance(fault, ValueError) and _module_that_raised(fault).startswith(
        tuple(f"{name}." for name in COMPOSERS)
    )


def _module_that_raised(fault: BaseException) -> str:
    """Return the module whose code raised, with a dot at its end."""
    name = ""
    for frame, _ in traceback.walk_tb(fault.__traceback__):
        name = str(frame.f_globals.get("__name__", ""))
    return f"{name}."


def describe_fault(fault: BaseException, call: Call) -> str:
    """Return one line on a mistake: what is wrong, and what to do."""
    text = _describe(fault, call)
    if "typographic" in text:
        return text
    unusual = next((character for character in text if straighten(character) not in (character, "'")), None)
    if unusual and any(unusual in argument for argument in call.arguments):
        straight = straighten(unusual)
        text += f" ('{unusual}' is a typographic character" + (
            f"; type {straight})" if straight.strip() else ")"
        )
    return text


def _describe(fault: BaseException, call: Call) -> str:
    if isinstance(fault, yaml.YAMLError):
        return describe_yaml(fault)
    if isinstance(fault, UnicodeDecodeError):
        return describe_encoding(fault, call)
    shards = sys.modules.get("data_prep.shards")  # heavy; a fault of it has imported it
    if shards is not None and isinstance(fault, shards.NoCorpusError):
        return _describe_missing_corpus(fault.folder, call)
    if isinstance(fault, MissingConfigException):
        return describe_missing_file(fault, call)
    below = _omegaconf_fault(fault)
    if below is not None:
        return describe_setting(below, fault, call)
    if isinstance(fault, OSError):
        return one_line(fault)
    return describe_composition(fault, call)


def _omegaconf_fault(fault: BaseException) -> OmegaConfBaseException | None:
    """Return the fault of OmegaConf that another one wraps."""
    seen: BaseException | None = fault
    while seen is not None:
        if isinstance(seen, OmegaConfBaseException):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _describe_missing_corpus(folder: Path, call: Call) -> str:
    """Describe a corpus that is not prepared, with those that are and that could be."""
    name = folder.name
    if name in call.files.names("corpus"):
        is_own = call.own and (Path(call.own) / "corpus" / f"{name}.yaml").is_file()
        config_dir = f" --config-dir {shell_quote(str(call.own))}" if is_own else ""
        return f"no corpus in {shown_path(folder)}; run `finetune prepare corpus={name}{config_dir}` first"
    prepared = [
        path.parent.name for path in folder.parent.glob("*/manifest.json") if path.parent.name[0] != "."
    ]
    text = f"no corpus in {shown_path(folder)}" + did_you_mean(name, [*prepared, *call.files.names("corpus")])
    there = (
        f"prepared are {', '.join(sorted(prepared)[:10])}; others come from" if prepared else "make one with"
    )
    return f"{text}{' ' if text.endswith('?') else '; '}{there} `finetune prepare corpus=NAME`"
