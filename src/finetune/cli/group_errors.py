"""Errors for mistakes in the selection of config files, and for sweeps that lack -m."""

from __future__ import annotations

import re
from pathlib import Path

from hydra.errors import MissingConfigException

from finetune.cli.call import Call
from finetune.cli.file_errors import line_of, one_line, shown_path
from finetune.cli.overrides import quote_text, shell_quote
from finetune.config import suggestions
from finetune.config.suggestions import did_you_mean


def describe_missing_file(fault: MissingConfigException, call: Call) -> str:
    """Return the error for selecting a config file that does not exist, as in adapter=lroa."""
    name = str(fault.missing_cfg_file or "")
    group, _, wanted = name.rpartition("/")
    if not group:
        return one_line(fault).partition(" Config search path:")[0]
    names = call.files.names(group) or [str(option) for option in fault.options or ()]
    place = _locate_selection(group, wanted, call) or f"{group}={wanted}"
    text = f"{place}: there is no {group}/{wanted}.yaml"
    if not wanted:
        text = f"{group}=: the name of a file is missing"
    elif group == "model":
        text += f", nor a folder '{wanted}'"
    remedy = f"choose one of {', '.join(names)}" if names else "it has no files; check --config-dir"
    if group == "model":
        remedy += f", or model=FOLDER; for a hub id without owner, write model=pretrained model.path={wanted}"
    return with_remedy(text, did_you_mean(wanted, names), remedy)


def with_remedy(problem: str, suggestion: str, remedy: str) -> str:
    """Join a problem, a suggestion (`; did you mean …?`, or "") and a remedy to one message."""
    separator = " " if suggestion else "; "
    return f"{problem}{suggestion}{separator}{remedy}"


def _locate_selection(group: str, name: str, call: Call) -> str | None:
    """Return the config file and line that select the file `name` of a group; None if none does."""
    for argument in call.arguments:
        key, _, value = argument.partition("=")
        file = call.files.file(f"{key}/{value}")
        if file is None:
            continue
        line = line_of(file, group, name)
        if line:
            return f"{shown_path(file)}{line}"
    return None


def describe_composition(fault: BaseException, call: Call) -> str:
    """Return the error for settings that Hydra cannot compose.

    The mistake is in an argument, or in the defaults list of a config file.
    """
    text = one_line(fault)
    file_name = next(iter(re.findall(r"[Ii]n '([^']+)'", text)), None)
    file = call.files.file(file_name)
    no_match = re.search(r"Could not override '([^']+)'. No match in the defaults list", text)
    if no_match and file:
        return _describe_unknown_override(no_match[1], file, call)
    if no_match:
        groups = ", ".join(call.files.groups())
        return f"unknown group '{no_match[1]}'; the groups of `finetune {call.verb}` are {groups}"
    several = re.search(r"Multiple values for (\S+?)\. To override a value use 'override (\S+): (.+?)'", text)
    if several:
        line = f"- override /{several[1]}: {several[3]}"
        return f"{several[1]}: selected by two files; in the recipe's defaults list write '{line}'"
    if file and "defaults must be a list" in text:
        place = f"{shown_path(file)}{line_of(file, 'defaults')}"
        return f"{place}: defaults must be a list; begin each of its lines with '- '"
    ambiguous = re.search(r"Ambiguous value for argument '(.+?)'\s", f"{str(fault).splitlines()[0]} ")
    if ambiguous:
        return _describe_several_values(ambiguous[1], call)
    missing = re.search(r"You must specify '(\w+)'", text)
    if missing:
        group = missing[1]
        return f"{group} is missing; write {group}=NAME, one of {', '.join(call.files.names(group))}"
    if "Config group override must be a string" in text:
        return _describe_bad_name(call)
    return text.partition(" Config search path:")[0].partition(" See https://hydra.cc")[0]


def _describe_unknown_override(override: str, file: Path, call: Call) -> str:
    """Return the error for an `override` entry whose name is not a group of config files.

    Args:
        override: the entry, as Hydra's message quotes it.
        file: the config file whose defaults list contains the entry.
    """
    group = override.partition("@")[0].rpartition("/")[2]
    meant = group
    if group not in call.files.groups():
        meant = next(iter(suggestions.find_closest(group, call.files.groups())), "GROUP")
    place = f"{shown_path(file)}{line_of(file, group)}"
    return f"{place}: 'override {group}' does not name a group; write '- override /{meant}: NAME'"


def _describe_bad_name(call: Call) -> str:
    """Return the error for a group of config files that is not set to the name of a file.

    Examples are zero=3 and adapter=null. Hydra refuses them, because it expects a name.
    """
    for argument in call.arguments:
        group, _, value = argument.partition("=")
        if group not in call.files.groups():
            continue
        names = call.files.names(group)
        wrong = [name for name in value.split(",") if name and name != "null" and name not in names]
        if names and wrong:
            meant = next((name for name in names if name.endswith(wrong[0])), None)
            suggestion = f"; did you mean '{meant}'?" if meant else did_you_mean(wrong[0], names)
            text = f"{group}={wrong[0]}: there is no {group}/{wrong[0]}.yaml"
            return with_remedy(text, suggestion, f"choose one of {', '.join(names)}")
    return "null is not the name of a config file; write a name, as in adapter=none"


def _describe_several_values(setting: str, call: Call) -> str:
    key = setting.partition("=")[0]
    plus = key[: len(key) - len(key.lstrip("+"))]
    setting = plus + call.argument_of(key.lstrip("+"))
    value = setting.partition("=")[2]
    text = f"{setting}: has several values; add -m to sweep over them"
    if key in call.files.groups():
        return text
    one_text = shell_quote(f"{key}={quote_text(value)}")
    return f"{text}, write {shell_quote(f'{key}=[{value}]')} for a list, or {one_text} for one string"
