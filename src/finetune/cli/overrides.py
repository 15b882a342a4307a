"""From what a person types to what Hydra reads: options in any order, and settings whose values Hydra's
grammar does not know.

Hydra's grammar has no letters beyond ASCII, no `& # ( ) = !` and no quotes inside a word. What it reads is
left as it is. In what it does not read, each element that fails is quoted: the elements of a sweep (a,b), of
a list, of a mapping and of functions such as choice(a,b) apart.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from data_prep.user_error import UserError
from finetune.config.suggestions import SYNONYMS, did_you_mean

FLAGS = ("-m", "--multirun", "--resolve")
WITH_VALUE = ("--config-dir", "-cd", "--cfg", "-c", "--package", "-p", "--info", "-i")
EXAMPLE = "settings are written key=value without spaces, as in lr=1e-4"
# what word processors and web pages put in the place of what was typed
TYPOGRAPHIC = {
    "“": '"', "”": '"', "„": '"', "‟": '"', "‘": "'", "’": "'", "‚": "'", "′": "'", "″": '"',
    "–": "-", "—": "-", "−": "-", "‐": "-", "‑": "-", "\u00a0": " ", "\u202f": " ", "\u200b": "", "\ufeff": "", "＝": "=",
}  # fmt: skip
_OPENING = {"[": "]", "{": "}", "(": ")"}
_FUNCTIONS = "choice|range|interval|shuffle|sort|tag|glob|int|float|str|bool"
_KEY = re.compile(r"(~|\+\+?)?[\w$@/:.-]*")


class Parser(argparse.ArgumentParser):
    """A parser that takes options and positional arguments in any order, and reports a wrong call in one
    line."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        arguments = [_straighten_option(argument) for argument in args or ()]
        return self.parse_intermixed_args(arguments, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise UserError with what is wrong and where help is."""
        if message.startswith("the following arguments are required"):
            # argparse also names those that may be left out
            needed = [action for action in self._actions if action.required and action.nargs != "*"]
            message = f"{' and '.join(_shown_name(action) for action in needed)} is missing"
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            name = unknown.split()[0]
            known = [option for action in self._actions for option in action.option_strings]
            message = f"unknown option {name}" if name.startswith("-") else f"unexpected argument '{name}'"
            message += did_you_mean(name.partition("=")[0], known if name.startswith("-") else ())
        raise UserError(f"{message}; `{self.prog} --help` lists what it takes")


def _shown_name(action: argparse.Action) -> str:
    if action.option_strings:
        return action.option_strings[0]
    return "RUN" if action.dest == "runs" else str(action.metavar or action.dest).upper()


def hydra_arguments(arguments: list[str]) -> list[str]:
    """Return the arguments as Hydra reads them: options first, then settings, quoted where its grammar fails.

    Raises:
        UserError: an unknown option, or a word that cannot be read as a setting.
    """
    options, settings = split_options([_straighten_option(argument) for argument in arguments])
    _refuse_spaces(settings)
    return options + [quote_setting(setting, settings[:index]) for index, setting in enumerate(settings)]


def split_options(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Part options, with their values, from settings: Hydra's parser reads options only if they stand
    together.

    Raises:
        UserError: an option that does not exist, or lacks its value.
    """
    options: list[str] = []
    settings: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name = argument.partition("=")[0]
        if not argument.startswith("-"):
            settings.append(argument)
        elif name not in FLAGS + WITH_VALUE:
            raise UserError(_describe_unknown_option(argument, next(rest, None)))
        elif name in WITH_VALUE and "=" not in argument:
            value = next(rest, None)
            if value is None:
                raise UserError(f"{name}: its value is missing")
            options += [argument, value]
        else:
            options.append(argument)
    return options, settings


def option_value(arguments: list[str], *names: str) -> str | None:
    """Return the last value of an option or a setting, whether given as --name VALUE or NAME=VALUE."""
    found = None
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            found = value if equals else next(iter(arguments[index + 1 :]), None)
    return found


def quote_setting(setting: str, before: Sequence[str] = ()) -> str:
    """Return a setting that Hydra's grammar reads; unchanged if it reads it as it is.

    Args:
        before: settings to the left of it, of one of which it may be the rest.

    Raises:
        UserError: it is no key=value, or its key or value cannot be read in quotes either.
    """
    key, equals, value = setting.partition("=")
    if key and _reads(setting):
        return setting
    if not equals:
        raise UserError(_describe_no_setting(setting, before))
    if not key or not _reads(f"{key}=1"):
        raise UserError(_describe_bad_key(key, value))
    if inner := _in_typographic_quotes(value):
        typed = shell_quote(f"{key}={inner}")
        raise UserError(
            f"{key}: {value} stands in typographic quotes, which are part of the value; write {typed}"
        )
    if value.startswith("~/"):
        value = str(Path(value).expanduser())
    quoted = key + equals + _quote_value(value)
    if not _reads(quoted):
        wanted = f"{key}={quote_text(value)}"
        raise UserError(f"{key}: its value cannot be read; write {shell_quote(wanted)} if it is one text")
    return quoted


def to_dotlist(settings: list[str]) -> list[str]:
    """Return settings of `resume` as OmegaConf reads them: the same grammar as for `train`, and values as
    JSON.

    Raises:
        UserError: a word that is no setting.
    """
    _refuse_spaces(settings)
    read = []
    for index, setting in enumerate(settings):
        override = _parse(quote_setting(setting, settings[:index]))
        if override.is_delete() or override.is_add() or override.is_force_add():
            raise UserError(f"{setting}: a run goes on with its own settings; write key=value without + or ~")
        key, _, value = setting.partition("=")
        if not override.is_sweep_override():
            value = override.value()
        read.append(f"{key}={json.dumps(value, ensure_ascii=False)}")
    return read


def register_json_resolver() -> None:
    """Let `${json:'…'}` stand for a list or mapping that Hydra's grammar cannot express: see _as_json."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("json", json.loads, replace=True)


# --- quoting
# ----------------------------------------------------------------------------------------------------------


@cache
def _grammar() -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _parse(setting: str) -> Any:
    return _grammar().parse_override(setting)


def _reads(setting: str) -> bool:
    from hydra.errors import HydraException

    try:
        _parse(setting)
    except HydraException:
        return False
    return True


def _quote_value(value: str) -> str:
    """Quote what Hydra does not read of a value, which may be several for a sweep."""
    return ",".join(_quote_element(element) for element in _split(value))


def _quote_element(element: str) -> str:
    element = element.strip()
    if _reads(f"key={element}"):
        return element
    if _encloses(element, "["):
        return f"[{','.join(_quote_element(part) for part in _split(element[1:-1]))}]"
    if _encloses(element, "{"):
        return _quote_mapping(element)
    function = re.fullmatch(rf"({_FUNCTIONS})(\(.*\))", element, re.DOTALL)
    if function and _encloses(function[2], "("):
        arguments = ",".join(_quote_argument(part) for part in _split(function[2][1:-1]))
        # Hydra takes the quotes off what choice(…) holds, and then fails to read it; a,b is the same sweep
        return arguments if function[1] == "choice" else f"{function[1]}({arguments})"
    return quote_text(element)


def _quote_argument(part: str) -> str:
    """Quote an argument of one of Hydra's functions, which may be named: sort(å,ø,reverse=true)."""
    named = re.fullmatch(r"\s*([A-Za-z_]\w*=)(.*)", part, re.DOTALL)
    return named[1] + _quote_element(named[2]) if named else _quote_element(part)


def _quote_mapping(element: str) -> str:
    """Quote the values of a mapping. Hydra has no quotes for its keys: they are escaped, or else the mapping
    becomes JSON."""
    pairs = []
    for part in _split(element[1:-1]):
        key, value = _split_pair(part)
        pairs.append((_unquoted(key), _quote_element(value)))
    escaped = "{" + ",".join(f"{_escape_key(key)}: {value}" for key, value in pairs) + "}"
    if _reads(f"key={escaped}") and list(_parse(f"key={escaped}").value()) == [key for key, _ in pairs]:
        return escaped
    return _as_json({key: _parse(f"key={value}").value() for key, value in pairs})


def _as_json(value: Any) -> str:
    """Return a value as a quoted `${json:'…'}`, which register_json_resolver's resolver turns back."""
    from hydra.core.override_parser.types import Quote, QuotedString

    inner = QuotedString(json.dumps(value, ensure_ascii=False), Quote.single).with_quotes()
    quoted: str = QuotedString("${json:" + inner + "}", Quote.double).with_quotes()
    return quoted


def quote_text(text: str) -> str:
    """Return a text in quotes of Hydra's grammar."""
    from hydra.core.override_parser.types import Quote, QuotedString

    text = text.replace("\\,", ",")  # a comma that Hydra would have taken for a separator
    quote = Quote.double if "'" in text and '"' not in text else Quote.single
    quoted: str = QuotedString(text, quote).with_quotes()
    return quoted


def _unquoted(key: str) -> str:
    key = key.strip()
    return key[1:-1] if len(key) > 1 and key[0] == key[-1] and key[0] in "'\"" else key


def _escape_key(key: str) -> str:
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", key)


def _split(text: str, separator: str = ",") -> list[str]:
    """Split at separators outside of brackets and quotes. Where brackets do not fit together they are text
    like the rest."""
    parts: list[str] = []
    begin = 0
    open_brackets: list[str] = []
    for index, character in _outside_quotes(text):
        if character in _OPENING:
            open_brackets.append(_OPENING[character])
        elif open_brackets and character == open_brackets[-1]:
            open_brackets.pop()
        elif character == separator and not open_brackets and not text[:index].endswith("\\"):
            parts.append(text[begin:index])
            begin = index + 1
    if open_brackets:
        return text.split(separator)
    return [*parts, text[begin:]]


def _split_pair(text: str) -> tuple[str, str]:
    """Part `key: value` at the first colon outside of quotes that whitespace follows, or else at the first
    colon."""
    colons = [index for index, character in _outside_quotes(text) if character == ":"]
    spaced = [index for index in colons if text[index + 1 : index + 2].isspace()]
    at = next(iter(spaced or colons), None)
    if at is None:
        raise UserError(f"{{{text}}}: a mapping has a value for each key; write {{key: value}}")
    return text[:at], text[at + 1 :]


def _encloses(text: str, opening: str) -> bool:
    """Return whether the bracket that opens the text is closed by its last character."""
    if not (text.startswith(opening) and text.endswith(_OPENING[opening])):
        return False
    depth = 0
    for index, character in _outside_quotes(text):
        depth += (character == opening) - (character == _OPENING[opening])
        if depth == 0:
            return index == len(text) - 1
    return False


def _outside_quotes(text: str) -> Iterator[tuple[int, str]]:
    """Yield the characters outside of quoted elements. A quote amid a word, as in Ola's, is a character like
    others."""
    index = 0
    at_start = True
    while index < len(text):
        character = text[index]
        closed = _closing_quote(text, index) if at_start and character in "'\"" else None
        if closed is not None:
            index = closed + 1
            at_start = False
            continue
        yield index, character
        at_start = character in ",[{(:=" or (at_start and character.isspace())
        index += 1


def _closing_quote(text: str, begin: int) -> int | None:
    """Return where the element that a quote opens is closed, which an end of the element must follow."""
    for found in re.finditer(re.escape(text[begin]), text[begin + 1 :]):
        index = begin + 1 + found.start()
        backslashes = len(text[:index]) - len(text[:index].rstrip("\\"))
        if backslashes % 2 == 0 and re.match(r"\s*([,\]}):]|$)", text[index + 1 :]):
            return index
    return None


# --- what cannot be read
# ----------------------------------------------------------------------------------------------


def _straighten_option(argument: str) -> str:
    """Return an option whose dashes a word processor has changed as it was typed: –config-dir, —cfg."""
    found = re.fullmatch(r"([–—−‐‑-]+)([A-Za-z][\w-]*(?:=.*)?)", argument, re.DOTALL)
    if found is None or argument.startswith("-"):
        return argument
    option = "-" if len(found[2].partition("=")[0]) <= 2 else "--"
    raise UserError(f"{argument}: begins with a typographic dash; write {option}{found[2]}")


def _refuse_spaces(settings: list[str]) -> None:
    """Refuse a setting with spaces around its =, of which the shell makes several words.

    Raises:
        UserError: one was typed so.
    """
    for index, word in enumerate(settings):
        before = settings[index - 1] if index else ""
        after = settings[index + 1] if index + 1 < len(settings) else ""
        if word.startswith("=") and before and "=" not in before:
            key, value = before, word[1:] or after
        elif re.fullmatch(r"[\w.+~]+=", word) and after and "=" not in after:
            key, value = word[:-1], after
        elif word == "=":
            raise UserError("'=' stands alone; write key=value without spaces around =")
        else:
            continue
        raise UserError(f"{key}: spaces stand around its =; write {shell_quote(f'{key}={value}')}")


def _describe_unknown_option(argument: str, following: str | None) -> str:
    name, equals, value = argument.partition("=")
    if close := did_you_mean(
        name, [option for option in (*FLAGS, *WITH_VALUE, "--after", "--help") if len(option) > 2]
    ):
        return f"unknown option {name}{close}"
    key = name.lstrip("-").replace("-", "_")
    key = SYNONYMS.get(key, key)
    if not equals and following and not following.startswith("-") and "=" not in following:
        equals, value = "=", following
    written = f"; write {key}={value}" if equals and key else ""
    return f"unknown option {name}: {EXAMPLE}{written}"


def _describe_no_setting(setting: str, before: Sequence[str]) -> str:
    straight = straighten(setting)
    if straight != setting and "=" in straight:
        return f"'{setting}' contains typographic characters; write {shell_quote(straight)}"
    if Path(setting).suffix in (".yaml", ".yml"):
        name = Path(setting).stem
        return f"{setting} is no setting; save it as FOLDER/recipe/{name}.yaml and give --config-dir FOLDER recipe={name}"
    found = re.fullmatch(r"([A-Za-z_][\w.]*):\s*(\S.*)", setting)
    if found:
        return f"'{setting}' is no setting; write {shell_quote(f'{found[1]}={found[2]}')}"
    has_text = bool(before) and re.search(r"=(?!(true|false|null|[\d.e+-]+)$).", before[-1]) is not None
    rest = (
        f"; if it belongs to the value before it, write {shell_quote(f'{before[-1]} {setting}')}"
        if has_text
        else ""
    )
    return f"'{setting}' has no value: {EXAMPLE}{rest}"


def _describe_bad_key(key: str, value: str) -> str:
    straight = straighten(key)
    if straight != key:
        return f"'{key}' contains typographic characters; write {shell_quote(f'{straight}={value}')}"
    if key != key.strip():
        return f"'{key}=': spaces around the key; write {shell_quote(f'{key.strip()}={value.strip()}')}"
    if not key:
        return f"'={value}' has no key; write key=value without spaces around ="
    wrong = next(
        (character for character in key if not (character.isascii() and _KEY.fullmatch(character))), key
    )
    return (
        f"'{key}': keys on the command line cannot contain '{wrong}'; "
        f"put the setting into a YAML file and give its folder with --config-dir"
    )


def shell_quote(text: str) -> str:
    """Return a word as a person would type it in a shell: double quotes around single ones, where that is
    safe."""
    if "'" in text and not set(text) & set('"$`\\!'):
        return f'"{text}"'
    return shlex.quote(text)


def straighten(text: str) -> str:
    """Return the text with typographic quotes, dashes and spaces as they are typed."""
    return "".join(TYPOGRAPHIC.get(character, character) for character in text)


def _in_typographic_quotes(value: str) -> str | None:
    """Return what stands in the typographic quotes around a value, as pasted from a document."""
    found = re.fullmatch(r"[“”„‟‘’‚]([^“”„‟‘’‚]*)[“”‟‘’]", value.strip())
    return found[1] if found else None
