"""A user's mistake as one line: the setting or file, what is wrong with it, what to do."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import GrammarParseError, InterpolationKeyError, InterpolationResolutionError, OmegaConfBaseException

from finetune.cli.config_files import ConfigFiles
from finetune.cli.overrides import option_value, quote_text, shell_quote, straighten
from finetune.config import suggestions
from finetune.config.suggestions import did_you_mean
from finetune.config.train import describe

GLOBAL_HEADER = "# @package _global_"
KINDS = {
    "Float": "a number",
    "Integer": "a whole number",
    "Boolean": "true or false",
    "bool": "true or false",
    "String": "text",
    "NoneType": "null",
}


@dataclass(frozen=True)
class Call:
    """What was called: the verb, its arguments, and the dataclass behind its settings (None: it takes no settings)."""

    verb: str
    arguments: list[str]
    schema: type[Any] | None = None

    @property
    def own(self) -> str | None:
        return option_value(self.arguments, "--config-dir", "-cd")

    @property
    def files(self) -> ConfigFiles:
        return ConfigFiles(self.verb, Path(self.own) if self.own else None)


def is_mistake(fault: BaseException) -> bool:
    """Return whether a fault stems from what the user gave, so that its traceback would help nobody."""
    return isinstance(fault, ValueError | OSError | HydraException | OmegaConfBaseException | yaml.YAMLError)


def describe_fault(fault: BaseException, call: Call) -> str:
    """Return one line on a mistake: what is wrong, and what to do."""
    text = _describe(fault, call)
    if "typographic" in text:
        return text
    unusual = next((character for character in text if straighten(character) not in (character, "'")), None)
    if unusual and any(unusual in argument for argument in call.arguments):
        straight = straighten(unusual)
        text += f" ('{unusual}' is a typographic character" + (f"; type {straight})" if straight.strip() else ")")
    return text


def _describe(fault: BaseException, call: Call) -> str:
    if isinstance(fault, yaml.YAMLError):
        return describe_yaml(fault)
    if isinstance(fault, UnicodeDecodeError):
        return _describe_encoding(fault, call)
    shards = sys.modules.get("data_prep.shards")  # heavy; a fault of it has imported it
    if shards is not None and isinstance(fault, shards.NoCorpusError):
        return _describe_missing_corpus(fault.folder, call)
    if isinstance(fault, MissingConfigException):
        return _describe_missing_file(fault, call)
    below = _omegaconf_fault(fault)
    if below is not None:
        return _describe_setting(below, fault, call)
    if isinstance(fault, OSError):
        return _one_line(fault)
    return _describe_composition(fault, call)


def _one_line(fault: BaseException) -> str:
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    text = " ".join(lines)
    if isinstance(fault, OSError) and fault.filename is not None and fault.strerror:
        text = f"{fault.filename}: {fault.strerror[0].lower()}{fault.strerror[1:]}"
    if "Only one of --run, --multirun" in text:
        return "-m and --cfg exclude each other; leave -m out to print one composed config"
    no_folder = re.search(r"Additional config directory '(.+)' not found", text)
    if no_folder:
        return f"--config-dir: folder {_shown(Path(no_folder[1]))} does not exist"
    return text or type(fault).__name__


def _omegaconf_fault(fault: BaseException) -> OmegaConfBaseException | None:
    """Return the fault of OmegaConf that another one wraps."""
    seen: BaseException | None = fault
    while seen is not None:
        if isinstance(seen, OmegaConfBaseException):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


# --- files ------------------------------------------------------------------------------------------------------------


def describe_yaml(fault: yaml.YAMLError) -> str:
    """Return the file, line and column of a mistake in a YAML file, and what it is."""
    if isinstance(fault, yaml.reader.ReaderError):
        file = _shown(Path(str(fault.name)))
        return f"{file}: character {fault.position + 1} cannot stand in YAML; save the file as plain UTF-8 text"
    if not isinstance(fault, yaml.MarkedYAMLError):
        return _one_line(fault)
    problem = " ".join((fault.problem or fault.context or "is not YAML").split())
    mark = fault.problem_mark or fault.context_mark
    problem = re.sub(r"^found duplicate key (.*)", r"key '\1' stands twice; take one of them out", problem)
    for words, (meaning, at_context) in _YAML_PROBLEMS.items():
        if words in f"{fault.context} {problem}":
            problem = meaning
            mark = fault.context_mark if at_context and fault.context_mark else mark
            break
    if mark is None:
        return problem
    return f"{_shown(Path(mark.name))}, line {mark.line + 1}, column {mark.column + 1}: {problem}"


# messages of PyYAML -> ours, and whether the mistake is where the element began that it was reading
_YAML_PROBLEMS = {
    "found character '\\t'": ("a tab; indent with spaces", False),
    "while scanning a quoted scalar": ("a quote that is opened here is not closed", True),
    "while parsing a flow": ("a bracket that is opened here is not closed, or a comma is missing in it", True),
    "mapping values are not allowed here": (
        "a colon or an indentation that does not fit; indent keys of one mapping alike, and quote a text that holds ': '",
        False,
    ),
    "could not find expected ':'": ("a key without a colon; write key: value", True),
    "while scanning an alias": ("a text that begins with * or & stands in quotes", True),
    "found character '@'": ("a text that begins with @ stands in quotes", False),
    "found character '`'": ("a text that begins with ` stands in quotes", False),
    "found character '%'": ("a text that begins with % stands in quotes", False),
    "expected a single document": ("a second document begins; a file holds one, without --- lines", False),
    "while parsing a block": ("does not fit the lines above; indent keys of one mapping alike", False),
    "could not determine a constructor": ("an unknown tag; a text that begins with ! stands in quotes", False),
}


def _describe_encoding(fault: UnicodeDecodeError, call: Call) -> str:
    for folder in call.files.folders():
        for path in sorted(folder.rglob("*.yaml")):
            if path.is_file() and fault.object in (content := path.read_bytes()):
                line = content[: content.index(fault.object) + fault.start].count(b"\n") + 1
                return f"{_shown(path)}, line {line}: is not UTF-8; save the file in that encoding"
    return f"a file is not UTF-8 ({_one_line(fault)}); save it in that encoding"


def _shown(path: Path) -> str:
    """Return a path relative to the working directory where it lies below it."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _locate(file: Path, key: str) -> str:
    """Return the file with the line and column of a key, as far as the key is there."""
    try:
        text = file.read_text(encoding="utf-8")
        node = yaml.compose(text)
    except (OSError, ValueError, yaml.YAMLError):
        return _shown(file)
    parts = key.split(".")
    if GLOBAL_HEADER[2:] not in text and parts[:1] == [file.parent.name]:
        parts = parts[1:]  # what the file holds goes below the name of its group
    mark = node.start_mark if node else None
    for part in parts:
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((name, value) for name, value in entries if name.value == part), None)
        if found is None:
            break
        mark, node = found[0].start_mark, found[1]
    return f"{_shown(file)}, line {mark.line + 1}, column {mark.column + 1}" if mark else _shown(file)


# --- settings ---------------------------------------------------------------------------------------------------------


def _describe_setting(fault: OmegaConfBaseException, above: BaseException, call: Call) -> str:
    """Describe what OmegaConf finds wrong with a setting, from the command line or from a file."""
    file_name = next(iter(re.findall(r"^In '([^']+)'", str(above))), None)
    file = call.files.file(file_name) if file_name else None
    key = str(fault.full_key or fault.key or "")
    text = describe(fault)
    unknown = re.search(r"(?:Key '(.+?)' (?:is )?not in|'(.+?)' is not in struct)", text)
    if unknown is None:
        key = key or _key_of_kind(text, call.schema)
        found = _describe_value(key, text, fault, _argument_of(key, call))
    else:
        misplaced = _misplaced(file, file_name, key) if file and file_name else None
        found = misplaced or describe_unknown_key(key, call, fault.parent_node)
    if file is None:
        return found
    return f"{_locate(file, key or found.partition(':')[0])}: {found}"


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
        quoted = "; for text write " + shell_quote(f"{key}='{typed}'") if kind == "text" and "'" not in typed else ""
        return f"{key}: '{wanted[1]}' is not {kind}{quoted}"
    if "is not a ListConfig, list or tuple" in text:
        return f"{key}: must be a list; write {key}=[a,b]"
    section = re.search(r"(?:list|dict|str|int|float|bool|NoneType) is not a subclass of (.+?)(?:\. value|$)", text)
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
    for key, kind in _keys(schema) if named else ():
        if (
            named
            and re.sub(r"[\w.]+\.(?=\w)", "", getattr(kind, "__name__", "") if isinstance(kind, type) else str(kind)).lower()
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
    argument = _argument_of(key, call)
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


def _argument_of(key: str, call: Call) -> str:
    """Return the argument that sets a key, or else the key with a value to be given."""
    typed = {argument.partition("=")[0].lstrip("+"): argument.lstrip("+") for argument in call.arguments if "=" in argument}
    if key in typed:
        return typed[key]
    if key == "data.corpus" and "corpus" in typed:
        return typed["corpus"]
    related = [name for name in typed if key.startswith(f"{name}.") or name.startswith(f"{key}.")]
    return typed[max(related, key=len)] if related else f"{key}=…"


def _alternative(key: str, argument: str, call: Call) -> str | None:
    """Return what to write instead of a key, as `did you mean 'lr'?`."""
    section, _, name = key.rpartition(".")
    prefix = f"{section}." if section else ""
    if call.verb != "prepare" and (theirs := suggestions.synonym(name)) and (ours := suggestions.SYNONYMS[theirs]) != key:
        return f"write {suggestions.INSTEAD[theirs]}" if theirs in suggestions.INSTEAD else f"did you mean '{ours}'?"
    every = [known for known, _ in _keys(call.schema)]
    siblings = _names_below(call.schema, section)
    near = suggestions.closest(name, siblings)
    if near:
        return f"did you mean '{prefix}{near[0]}'?"
    if not section and (groups := suggestions.closest(name, call.files.groups())):
        return f"did you mean '{groups[0]}=NAME'?"
    if section and siblings:
        return None
    typed = argument.partition("=")[0]  # of `optimizer.lr=1`, `optimizer` is what is unknown
    name = typed.rpartition(".")[2]
    elsewhere = [known for known in every if not key.startswith(known)]
    exact = [known for known in elsewhere if known.rpartition(".")[2] == name]
    found = exact or suggestions.closest(typed, elsewhere) or suggestions.closest(name, elsewhere)
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
    by_synonym = [ours for ours in suggestions.ADAPTER_SYNONYMS.get(name, ()) if section == "adapter" and ours in known]
    near = by_synonym or suggestions.closest(name, known)
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


def _keys(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of all settings below a dataclass, with their types; NAME stands for a key of the user's."""
    if get_origin(schema) is dict and dataclasses.is_dataclass(get_args(schema)[1]):
        schema = get_args(schema)[1]
        prefix += "NAME."
    if not (dataclasses.is_dataclass(schema) and isinstance(schema, type)):
        return
    kinds = get_type_hints(schema)
    for item in dataclasses.fields(schema):
        yield f"{prefix}{item.name}", kinds[item.name]
        yield from _keys(kinds[item.name], f"{prefix}{item.name}.")


# --- groups of files ----------------------------------------------------------------------------------------------------


def _describe_missing_file(fault: MissingConfigException, call: Call) -> str:
    """Describe a choice of a file that is not there, as in adapter=lroa."""
    name = str(fault.missing_cfg_file or "")
    group, _, wanted = name.rpartition("/")
    if not group:
        return _one_line(fault).partition(" Config search path:")[0]
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
        if file and (line := _line_of(file, group, name)):
            return f"{_shown(file)}{line}"
    return None


def _line_of(file: Path, *words: str) -> str:
    """Return `, line N` of the first line of a file that holds the words, comments left out; nothing if none does."""
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        text = line.partition("#")[0]
        if all(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) for word in words):
            return f", line {number}"
    return ""


def _describe_composition(fault: BaseException, call: Call) -> str:
    """Describe what Hydra finds wrong with the settings together, or with a file's defaults list."""
    text = _one_line(fault)
    within = next(iter(re.findall(r"[Ii]n '([^']+)'", text)), None)
    file = call.files.file(within) if within else None
    no_match = re.search(r"Could not override '([^']+)'. No match in the defaults list", text)
    if no_match and file:
        group = no_match[1].partition("@")[0].rpartition("/")[2]
        meant = group if group in call.files.groups() else next(iter(suggestions.closest(group, call.files.groups())), "GROUP")
        where = f"{_shown(file)}{_line_of(file, group)}"
        return f"{where}: 'override {group}' chooses no group of files; write '- override /{meant}: NAME'"
    if no_match:
        groups = ", ".join(call.files.groups())
        return f"unknown group '{no_match[1]}'; `finetune {call.verb}` chooses files of {groups}"
    several = re.search(r"Multiple values for (\S+?)\. To override a value use 'override (\S+): (.+?)'", text)
    if several:
        return f"{several[1]}: chosen by two files; in the recipe's defaults list write '- override /{several[1]}: {several[3]}'"
    if file and "defaults must be a list" in text:
        return f"{_shown(file)}{_line_of(file, 'defaults')}: defaults must be a list; begin each of its lines with '- '"
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
    setting = plus + _argument_of(key.lstrip("+"), call)
    value = setting.partition("=")[2]
    text = f"{setting}: several values; add -m to sweep over them"
    if key in call.files.groups():
        return text
    one_text = shell_quote(f"{key}={quote_text(value)}")
    return f"{text}, write {shell_quote(f'{key}=[{value}]')} for a list, or {one_text} for one text"


# --- corpora ------------------------------------------------------------------------------------------------------------


def _describe_missing_corpus(folder: Path, call: Call) -> str:
    """Describe a corpus that is not prepared, with those that are and that could be."""
    name = folder.name
    if name in call.files.names("corpus"):
        is_own = call.own and (Path(call.own) / "corpus" / f"{name}.yaml").is_file()
        config_dir = f" --config-dir {shell_quote(str(call.own))}" if is_own else ""
        return f"no corpus in {_shown(folder)}; run `finetune prepare corpus={name}{config_dir}` first"
    prepared = [path.parent.name for path in folder.parent.glob("*/manifest.json") if path.parent.name[0] != "."]
    text = f"no corpus in {_shown(folder)}" + did_you_mean(name, [*prepared, *call.files.names("corpus")])
    there = f"prepared are {', '.join(sorted(prepared)[:10])}; others come from" if prepared else "make one with"
    return f"{text}{' ' if text.endswith('?') else '; '}{there} `finetune prepare corpus=NAME`"
