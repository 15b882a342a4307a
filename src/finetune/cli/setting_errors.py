"""Descriptions of mistakes in settings (unknown keys, values of the wrong type), in one line.

The settings come from the command line or from a file.
"""

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
    """Return the error for a setting that OmegaConf refuses.

    Args:
        fault: the exception of OmegaConf.
        above: the exception of Hydra that `fault` caused, which may name a config file; `fault`
            itself if there is none.
    """
    file_name = next(iter(re.findall(r"^In '([^']+)'", str(above))), None)
    file = call.files.file(file_name)
    key = str(fault.full_key or fault.key or "")
    text = describe(fault)
    unknown = re.search(r"(?:Key '(.+?)' (?:is )?not in|'(.+?)' is not in struct)", text)
    if unknown is None:
        key = key or _find_section_key(text, call.schema)
        message = _describe_value(key, text, fault, call.argument_of(key))
    else:
        message = describe_unknown_key(key, call, fault.parent_node)
        if file:
            message = _describe_misplaced(file, str(file_name), key) or message
    if file is None:
        return message
    return f"{locate_key(file, key or message.partition(':')[0])}: {message}"


def _describe_misplaced(file: Path, file_name: str, key: str) -> str | None:
    """Return the error for settings of a config file that Hydra has put below the wrong key.

    Return None if they are in the right place.

    Args:
        file_name: the file's name below its config folder, such as recipe/mine.
        key: the unknown key that OmegaConf reports.
    """
    group = file_name.split("/")[0]
    text = file.read_text(encoding="utf-8")
    if key == group and GLOBAL_HEADER[2:] not in text:
        return f"its settings have no effect without the line '{GLOBAL_HEADER}'; make it the first line"
    if key == group and text.startswith("\ufeff"):
        return f"a byte-order mark hides the line '{GLOBAL_HEADER}'; save the file as UTF-8 without BOM"
    if key.startswith(f"{group}.{group}") or key.split(".")[:2] == [group, group]:
        return f"its settings are below '{group}' already; remove the level '{group}:'"
    return None


def _describe_value(key: str, text: str, fault: OmegaConfBaseException, argument: str) -> str:
    """Return the error for a value that is missing, has the wrong type or cannot be resolved.

    Args:
        text: OmegaConf's message.
        argument: the argument that set the key; `key=…` if none did.
    """
    if "missing mandatory value" in text:
        in_source = re.fullmatch(r"corpus\.sources\.([^.]+)\.(\w+)", key)
        if in_source and argument.endswith("=…"):
            return f"{key} is missing; add '{in_source[2]}:' to source {in_source[1]} in the corpus file"
        short = "corpus" if key == "data.corpus" else key
        return f"{key} is missing; write {short}=…"
    if isinstance(fault, InterpolationKeyError | InterpolationResolutionError):
        return _describe_interpolation(key, text)
    if isinstance(fault, GrammarParseError):
        return f"{key}: its ${{…}} cannot be read; write \\${{ for a literal ${{"
    wanted = re.search(r"Value '(.*)' of type '.+' could not be converted to (\w+)", text, re.DOTALL)
    wanted = wanted or re.search(r"Value '(.*)' is not a valid (bool)", text, re.DOTALL)
    wanted = wanted or re.search(r"Cannot convert '.+' to (?:string): '(.*)'()", text, re.DOTALL)
    if wanted:
        kind = KINDS.get(wanted[2], wanted[2]) or "text"
        typed = argument.partition("=")[2]
        message = f"{key}: '{wanted[1]}' is not {kind}"
        if kind == "text" and "'" not in typed:
            typed_as_text = f"{key}='{typed}'"
            message += f"; for text write {shell_quote(typed_as_text)}"
        return message
    if "is not a ListConfig, list or tuple" in text:
        return f"{key}: must be a list; write {key}=[a,b]"
    section = re.search(
        r"(?:list|dict|str|int|float|bool|NoneType) is not a subclass of (.+?)(?:\. value|$)", text
    )
    if section or "Cannot merge" in text:
        is_list = section is not None and section[1].startswith("List")
        kind = "a list; write [a,b]" if is_list else "a mapping; write key: value, one per line"
        prefix = f"{key}: " if key else ""
        return f"{prefix}must be {kind}"
    if "is not Optional" in text or "Non optional field" in text or "NoneType" in text:
        return f"{key}: must not be null; leave the setting out to use its default"
    if not key or key in text:
        return text
    return f"{key}: {text}"


def _find_section_key(text: str, schema: Any) -> str:
    """Return the key of the section whose type OmegaConf's message names; "" if it names none."""
    named = re.search(r"is not a subclass of (.+?)(?:\. value|$)", text)
    if named is None:
        return ""
    for key, kind in iter_keys(schema):
        name = kind.__name__ if isinstance(kind, type) else str(kind)
        if re.sub(r"[\w.]+\.(?=\w)", "", name).lower() == named[1].lower():
            return key
    return ""


def _describe_interpolation(key: str, text: str) -> str:
    missing = re.search(r"Interpolation key '(.+?)' not found", text)
    variable = re.search(r"Environment variable '(.+?)' not found", text)
    if variable:
        name = variable[1]
        remedy = f"export it, or write ${{oc.env:{name},DEFAULT}}"
        return f"{key}: the environment variable {name} is not set; {remedy}"
    if missing:
        name = missing[1]
        return (
            f"{key}: ${{{name}}} refers to a setting that does not exist; for an environment "
            f"variable write ${{oc.env:{name}}} (its value now), or ${name} if the job's shell "
            "is to expand it"
        )
    return f"{key}: {' '.join(text.split())}"


def describe_unknown_key(key: str, call: Call, parent: Any = None) -> str:
    """Return the error for an unknown key, with the setting that was probably meant.

    Args:
        parent: the config node in which OmegaConf did not find the key.
    """
    section = key.rpartition(".")[0]
    argument = call.argument_of(key)
    if section in ("adapter", "zero") or key.startswith("model.from_scratch."):
        return _describe_library_key(key, parent, argument)
    if section and _takes_any_name(call.schema, section):
        return f"{key}: is not set yet; write {shell_quote(f'+{argument}')} to add it"
    suggestion = _suggest_setting(key, argument, call)
    if suggestion:
        return f"unknown setting '{key}'; {suggestion}"
    choices = _names_below(call.schema, section)
    if section and choices:
        return f"unknown setting '{key}'; the settings in {section} are {', '.join(choices)}"
    return f"unknown setting '{key}'; `finetune {call.verb} --help` lists all settings"


def _suggest_setting(key: str, argument: str, call: Call) -> str | None:
    """Return a suggestion for an unknown key, as `did you mean 'lr'?`; None if there is none."""
    section, _, name = key.rpartition(".")
    prefix = f"{section}." if section else ""
    if call.verb != "prepare":
        by_synonym = _suggest_by_synonym(key, name)
        if by_synonym:
            return by_synonym
    siblings = _names_below(call.schema, section)
    near = suggestions.find_closest(name, siblings)
    if near:
        return f"did you mean '{prefix}{near[0]}'?"
    if not section:
        groups = suggestions.find_closest(name, call.files.groups())
        if groups:
            return f"did you mean '{groups[0]}=NAME'?"
    if section and siblings:
        return None
    typed = argument.partition("=")[0]  # in `optimizer.lr=1` the unknown key is `optimizer`
    name = typed.rpartition(".")[2]
    elsewhere = [known for known, _ in iter_keys(call.schema) if not key.startswith(known)]
    exact = [known for known in elsewhere if known.rpartition(".")[2] == name]
    found = exact or suggestions.find_closest(typed, elsewhere) or suggestions.find_closest(name, elsewhere)
    if not found:
        return None
    return f"did you mean '{found[0]}'?"


def _suggest_by_synonym(key: str, name: str) -> str | None:
    """Return a suggestion if the key is another trainer's name for a setting; None if not."""
    theirs = suggestions.find_synonym(name)
    if not theirs or suggestions.SYNONYMS[theirs] == key:
        return None
    if theirs in suggestions.REPLACEMENTS:
        return f"write {suggestions.REPLACEMENTS[theirs]}"
    return f"did you mean '{suggestions.SYNONYMS[theirs]}'?"


def _describe_library_key(key: str, parent: Any, argument: str) -> str:
    """Return the error for an unknown key in the settings of PEFT, DeepSpeed or transformers.

    Args:
        parent: the config node in which OmegaConf did not find the key.
        argument: the argument that set the key; `key=…` if none did.
    """
    section, _, name = key.rpartition(".")
    node = parent if isinstance(parent, DictConfig) else {}
    owner = ""
    known: tuple[str, ...] = ()
    if section == "adapter" and not node:
        return f"{key}: adapter=none has no settings; choose an adapter, e.g. adapter=lora"
    if section == "adapter":
        owner = str(node.get("peft_type") or "")
        known = suggestions.adapter_keys(owner)
    elif section == "zero":
        owner = "DeepSpeed's zero_optimization"
        known = suggestions.zero_keys()
    elif section == "model.from_scratch":
        owner = str(node.get("model_type") or "")
        known = suggestions.model_keys(owner)
    if name in known or not known:
        return f"{key}: is not in the selected file; write {shell_quote(f'+{argument}')} to add it"
    synonyms = suggestions.ADAPTER_SYNONYMS.get(name, ()) if section == "adapter" else ()
    by_synonym = [ours for ours in synonyms if ours in known]
    near = by_synonym or suggestions.find_closest(name, known)
    if near:
        plus = "" if near[0] in node else "+"
        return f"unknown setting '{key}'; did you mean '{plus}{section}.{near[0]}'?"
    remedy = f"if a newer version has it, write {shell_quote(f'+{argument}')}"
    return f"unknown setting '{key}': {owner} has no such key; {remedy}"


def _schema_of(schema: Any, section: str) -> Any:
    """Return the type of a section; None if there is no such section."""
    for name in filter(None, section.split(".")):
        if get_origin(schema) is dict:
            schema = get_args(schema)[1]
        elif dataclasses.is_dataclass(schema):
            schema = get_type_hints(schema).get(name)
        else:
            return None
    return schema


def _takes_any_name(schema: Any, section: str) -> bool:
    """Return whether a section is a mapping with keys of the user's choice, as cluster.env is."""
    return get_origin(_schema_of(schema, section)) is dict


def _names_below(schema: Any, section: str) -> list[str]:
    """Return the names of the settings of a section; none if the user chooses the names."""
    found = _schema_of(schema, section)
    if not dataclasses.is_dataclass(found):
        return []
    return [item.name for item in dataclasses.fields(found)]


def iter_keys(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of all settings of a dataclass, with their types.

    A key of the user's choice appears as NAME.
    """
    if get_origin(schema) is dict and dataclasses.is_dataclass(get_args(schema)[1]):
        schema = get_args(schema)[1]
        prefix += "NAME."
    if not (dataclasses.is_dataclass(schema) and isinstance(schema, type)):
        return
    kinds = get_type_hints(schema)
    for item in dataclasses.fields(schema):
        yield f"{prefix}{item.name}", kinds[item.name]
        yield from iter_keys(kinds[item.name], f"{prefix}{item.name}.")
