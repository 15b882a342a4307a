"""Mistakes in the choice of files as one line: adapter=lroa, a recipe's defaults list, several values without
-m."""

from __future__ import annotations

import re

from hydra.errors import MissingConfigException

from finetune.cli.call import Call
from finetune.cli.file_errors import line_of, one_line, shown_path
from finetune.cli.overrides import quote_text, shell_quote
from finetune.config import suggestions
from finetune.config.suggestions import did_you_mean


def describe_missing_file(fault: MissingConfigException, call: Call) -> str:
    """Describe a choice of a file that is not there, as in adapter=lroa."""
    name = str(fault.missing_cfg_file or "")
    group, _, wanted = name.rpartition("/")
    if not group:
        return one_line(fault).partition(" Config search path:")[0]
    names = call.files.names(group) or [str(option) for option in fault.options or ()]
    text = f"{group}={wanted}: there is no {group}/{wanted}.yaml"
    if not wanted:
        text = f"{group}=: the name of a file is missing"
    elif place := _file_that_chooses(group, wanted, call):
        text = f"{place}: there is no {group}/{wanted}.yaml"
    if group == "model" and wanted:
        text += f", nor a folder '{wanted}'"
    text += did_you_mean(wanted, names)
    remedy = f"choose one of {', '.join(names)}" if names else "no file is there; check --config-dir"
    if group == "model":
        remedy += f", or model=FOLDER; a hub id without owner is model=pretrained model.path={wanted}"
    return f"{text}{' ' if text.endswith('?') else '; '}{remedy}"


def _file_that_chooses(group: str, name: str, call: Call) -> str | None:
    """Return the file, with the line, whose defaults list chooses a file of a group."""
    for argument in call.arguments:
        key, _, value = argument.partition("=")
        file = call.files.file(f"{key}/{value}")
        if file and (line := line_of(file, group, name)):
            return f"{shown_path(file)}{line}"
    return None


def describe_composition(fault: BaseException, call: Call) -> str:
    """Describe what Hydra finds wrong with the settings together, or with a file's defaults list."""
    text = one_line(fault)
    within = next(iter(re.findall(r"[Ii]n '([^']+)'", text)), None)
    file = call.files.file(within) if within else None
    no_match = re.search(r"Could not override '([^']+)'. No match in the defaults list", text)
    if no_match and file:
        group = no_match[1].partition("@")[0].rpartition("/")[2]
        meant = (
            group
            if group in call.files.groups()
            else next(iter(suggestions.find_closest(group, call.files.groups())), "GROUP")
        )
        where = f"{shown_path(file)}{line_of(file, group)}"
        return f"{where}: 'override {group}' chooses no group of files; write '- override /{meant}: NAME'"
    if no_match:
        groups = ", ".join(call.files.groups())
        return f"unknown group '{no_match[1]}'; `finetune {call.verb}` chooses files of {groups}"
    several = re.search(r"Multiple values for (\S+?)\. To override a value use 'override (\S+): (.+?)'", text)
    if several:
        return f"{several[1]}: chosen by two files; in the recipe's defaults list write '- override /{several[1]}: {several[3]}'"
    if file and "defaults must be a list" in text:
        return f"{shown_path(file)}{line_of(file, 'defaults')}: defaults must be a list; begin each of its lines with '- '"
    ambiguous = re.search(r"Ambiguous value for argument '(.+?)'\s", f"{str(fault).splitlines()[0]} ")
    if ambiguous:
        return _describe_several_values(ambiguous[1], call)
    missing = re.search(r"You must specify '(\w+)'", text)
    if missing:
        return f"{missing[1]} is missing; write {missing[1]}=NAME, one of {', '.join(call.files.names(missing[1]))}"
    if "Config group override must be a string" in text:
        return _describe_no_name(call)
    return text.partition(" Config search path:")[0].partition(" See https://hydra.cc")[0]


def _describe_no_name(call: Call) -> str:
    """Describe a choice of a file by a number, a list or null, as in zero=3."""
    for argument in call.arguments:
        group, _, value = argument.partition("=")
        names = call.files.names(group) if group in call.files.groups() else []
        wrong = [name for name in value.split(",") if name and name != "null" and name not in names]
        if names and wrong:
            meant = next((name for name in names if name.endswith(wrong[0])), None)
            close = f"; did you mean '{meant}'?" if meant else did_you_mean(wrong[0], names)
            text = f"{group}={wrong[0]}: there is no {group}/{wrong[0]}.yaml{close}"
            return f"{text}{' ' if close else '; '}choose one of {', '.join(names)}"
    return "null chooses no file; a group takes the name of one, as in adapter=none"


def _describe_several_values(setting: str, call: Call) -> str:
    key = setting.partition("=")[0]
    plus = key[: len(key) - len(key.lstrip("+"))]
    setting = plus + call.argument_of(key.lstrip("+"))
    value = setting.partition("=")[2]
    text = f"{setting}: several values; add -m to sweep over them"
    if key in call.files.groups():
        return text
    one_text = shell_quote(f"{key}={quote_text(value)}")
    return f"{text}, write {shell_quote(f'{key}=[{value}]')} for a list, or {one_text} for one text"
