"""Mistakes in settings as one line: unknown keys, and values of a wrong kind, from the command line or from a
file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig
from omegaconf.errors import (
    GrammarParseError,
    InterpolationKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from finetune.cli.call import Call
from finetune.cli.file_errors import GLOBAL_HEADER, locate_key
from finetune.cli.overrides import shell_quote
from finetune.config import suggestions
from finetune.config.train import describe

KINDS = {
    "Float": "a number",
    "Integer": "a whole number",
    "Boolean": "true or false",
    "bool": "true or false",
    "String": "text",
    "NoneType": "null",
}


def describe_setting(fault: OmegaConfBaseException, above: BaseException, call: Call) -> str:
    """Describe what OmegaConf finds wrong with a setting, from the command line or from a file."""
    file_name = next(iter(re.findall(r"^In '([^']+)'", str(above))), None)
    file = call.files.file(file_name) if file_name else None
    key = str(fault.full_key or fault.key or "")
    text = describe(fault)
    unknown = re.search(r"(?:Key '(.+?)' (?:is )?not in|'(.+?)' is not in struct)", text)
    if unknown is None:
        key = key or _key_of_kind(text, call.schema)
        found = _describe_value(key, text, fault, call.argument_of(key))
    else:
        misplaced = _misplaced(file, file_name, key) if file and file_name else None
        found = misplaced or describe_unknown_key(key, call, fault.parent_node)
    if file is None:
        return found
    return f"{locate_key(file, key or found.partition(':')[0])}: {found}"


def _misplaced(file: Path, file_name: str, key: str) -> str | None:
    """Describe keys of a file that Hydra puts where no settings are."""
    group = file_name.split("/")[0]
    if key == group and GLOBAL_HEADER[2:] not in (text := file.read_text(encoding="utf-8")):
        return f"its settings go nowhere without the line '{GLOBAL_HEADER}'; make it the first line"
    if key == group and text.startswith("\ufeff"):
        return f"a byte-order mark hides the line '{GLOBAL_HEADER}'; save the file as UTF-8 without BOM"
    if key.startswith(f"{group}.{group}") or key.split(".")[:2] == [group, group]:
        return f"what this file holds goes below '{group}' already; take the level '{group}:' out"
    return None


def _describe_value(key: str, text: str, fault: OmegaConfBaseException, argument: str) -> str:
    """Describe a value of the wrong kind, or that refers to what is not there.

    Args:
        argument: the argument that gave it, if one did.
    """
    if "missing mandatory value" in text:
        short = "corpus" if key == "data.corpus" else key
        return f"{key} is missing: give {short}=…"
    if isinstance(fault, InterpolationKeyError | InterpolationResolutionError):
        return _describe_interpolation(key, text)
    if isinstance(fault, GrammarParseError):
        return f"{key}: its ${{…}} cannot be read; write \\${{ for the characters themselves"
    wanted = re.search(r"Value '(.*)' of type '.+' could not be converted to (\w+)", text, re.DOTALL)
    wanted = wanted or re.search(r"Value '(.*)' is not a valid (bool)", text, re.DOTALL)
    wanted = wanted or re.search(r"Cannot convert '.+' to (?:string): '(.*)'()", text, re.DOTALL)
    if wanted:
        kind = KINDS.get(wanted[2], wanted[2]) or "text"
        typed = argument.partition("=")[2]
        quoted = (
            "; for text write " + shell_quote(f"{key}='{typed}'")
            if kind == "text" and "'" not in typed
            else ""
        )
        return f"{key}: '{wanted[1]}' is not {kind}{quoted}"
    if "is not a ListConfig, list or tuple" in text:
        return f"{key}: must be a list; write {key}=[a,b]"
    section = re.search(
        r"(?:list|dict|str|int|float|bool|NoneType) is not a subclass of (.+?)(?:\. value|$)", text
    )
    if section or "Cannot merge" in text:
        is_list = section is not None and section[1].startswith("List")
        wanted_kind = "a list; write [a,b]" if is_list else "a mapping; write key: value, one a line"
        return f"{key}: must be {wanted_kind}" if key else f"must be {wanted_kind}"
    if "is not Optional" in text or "Non optional field" in text or "NoneType" in text:
        return f"{key}: null is no value for it; leave the setting out"
    return text if not key or key in text else f"{key}: {text}"


def _key_of_kind(text: str, schema: Any) -> str:
    """Return the key of a section that OmegaConf names by its type alone."""
    named = re.search(r"is not a subclass of (.+?)(?:\. value|$)", text)
    for key, kind in iter_keys(schema) if named else ():
        if (
            named
            and re.sub(
                r"[\w.]+\.(?=\w)", "", getattr(kind, "__name__", "") if isinstance(kind, type) else str(kind)
            ).lower()
            == named[1].lower()
        ):
            return key
    return ""


def _describe_interpolation(key: str, text: str) -> str:
    missing = re.search(r"Interpolation key '(.+?)' not found", text)
    variable = re.search(r"Environment variable '(.+?)' not found", text)
    if variable:
        return f"{key}: the environment variable {variable[1]} is not set; export it, or write ${{oc.env:{variable[1]},DEFAULT}}"
    if missing:
        name = missing[1]
        return (
            f"{key}: ${{{name}}} refers to a setting that does not exist; "
            f"for an environment variable write ${{oc.env:{name}}} (its value now), or ${name} where the job's shell reads it"
        )
    return f"{key}: {' '.join(text.split())}"


def describe_unknown_key(key: str, call: Call, parent: Any = None) -> str:
    """Describe a key that no setting has, with the one that was meant."""
    section = key.rpartition(".")[0]
    argument = call.argument_of(key)
    if section in ("adapter", "zero") or key.startswith("model.from_scratch."):
        return _describe_library_key(key, parent, argument)
    if section and _takes_any_name(call.schema, section):
        return f"{key}: is not there yet; write {shell_quote(f'+{argument}')} to add it"
    alternative = _alternative(key, argument, call)
    if alternative:
        return f"unknown setting '{key}'; {alternative}"
    choices = _names_below(call.schema, section)
    if section and choices:
        return f"unknown setting '{key}'; {section} has {', '.join(choices)}"
    return f"unknown setting '{key}'; `finetune {call.verb} --help` lists all settings"


def _alternative(key: str, argument: str, call: Call) -> str | None:
    """Return what to write instead of a key, as `did you mean 'lr'?`."""
    section, _, name = key.rpartition(".")
    prefix = f"{section}." if section else ""
    if (
        call.verb != "prepare"
        and (theirs := suggestions.find_synonym(name))
        and (ours := suggestions.SYNONYMS[theirs]) != key
    ):
        return (
            f"write {suggestions.REPLACEMENTS[theirs]}"
            if theirs in suggestions.REPLACEMENTS
            else f"did you mean '{ours}'?"
        )
    every = [known for known, _ in iter_keys(call.schema)]
    siblings = _names_below(call.schema, section)
    near = suggestions.find_closest(name, siblings)
    if near:
        return f"did you mean '{prefix}{near[0]}'?"
    if not section and (groups := suggestions.find_closest(name, call.files.groups())):
        return f"did you mean '{groups[0]}=NAME'?"
    if section and siblings:
        return None
    typed = argument.partition("=")[0]  # of `optimizer.lr=1`, `optimizer` is what is unknown
    name = typed.rpartition(".")[2]
    elsewhere = [known for known in every if not key.startswith(known)]
    exact = [known for known in elsewhere if known.rpartition(".")[2] == name]
    found = exact or suggestions.find_closest(typed, elsewhere) or suggestions.find_closest(name, elsewhere)
    return f"did you mean '{found[0]}'?" if found else None


def _describe_library_key(key: str, parent: Any, argument: str) -> str:
    """Describe a key of PEFT's, DeepSpeed's or transformers' config that the chosen file does not have."""
    section, _, name = key.rpartition(".")
    node = parent if isinstance(parent, DictConfig) else {}
    owner, known = "", tuple[str, ...]()
    if section == "adapter":
        owner = str(node.get("peft_type") or "")
        known = suggestions.adapter_keys(owner)
    elif section == "zero":
        owner, known = "DeepSpeed's zero_optimization", suggestions.zero_keys()
    elif section == "model.from_scratch":
        owner = str(node.get("model_type") or "")
        known = suggestions.model_keys(owner)
    if name in known or not known:
        return f"{key}: is not in the chosen file; write {shell_quote(f'+{argument}')} to add it"
    by_synonym = [
        ours for ours in suggestions.ADAPTER_SYNONYMS.get(name, ()) if section == "adapter" and ours in known
    ]
    near = by_synonym or suggestions.find_closest(name, known)
    if near:
        plus = "" if near[0] in node else "+"
        return f"unknown setting '{key}'; did you mean '{plus}{section}.{near[0]}'?"
    return f"unknown setting '{key}': {owner} has no such key; if a newer version has it, write {shell_quote(f'+{argument}')}"


def _schema_of(schema: Any, section: str) -> Any:
    """Return the type of a section; None if there is none of that name."""
    for name in section.split(".") if section else ():
        if get_origin(schema) is dict:
            schema = get_args(schema)[1]
        else:
            schema = get_type_hints(schema).get(name) if dataclasses.is_dataclass(schema) else None
    return schema


def _takes_any_name(schema: Any, section: str) -> bool:
    """Return whether a section is a mapping whose keys are the user's, as cluster.env."""
    return get_origin(_schema_of(schema, section)) is dict


def _names_below(schema: Any, section: str) -> list[str]:
    """Return the names of the settings directly below a section; none where the names are the user's."""
    found = _schema_of(schema, section)
    return [item.name for item in dataclasses.fields(found)] if dataclasses.is_dataclass(found) else []


def iter_keys(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of all settings below a dataclass, with their types; NAME stands for a key of the
    user's."""
    if get_origin(schema) is dict and dataclasses.is_dataclass(get_args(schema)[1]):
        schema = get_args(schema)[1]
        prefix += "NAME."
    if not (dataclasses.is_dataclass(schema) and isinstance(schema, type)):
        return
    kinds = get_type_hints(schema)
    for item in dataclasses.fields(schema):
        yield f"{prefix}{item.name}", kinds[item.name]
        yield from iter_keys(kinds[item.name], f"{prefix}{item.name}.")
