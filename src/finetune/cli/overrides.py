"""Conversion of typed arguments to arguments that Hydra can parse.

Options may be typed in any order, and values may contain characters that Hydra's grammar does not
accept unquoted: letters beyond ASCII, `& # ( ) = !`, and quotes inside a word. A setting that Hydra
parses is passed on unchanged. In any other setting, each element that Hydra cannot parse is quoted:
an element of a sweep (a,b), of a list, of a mapping, or of a function such as choice(a,b).
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
# Characters that word processors and web pages substitute for the typed ones.
TYPOGRAPHIC = {
    "“": '"', "”": '"', "„": '"', "‟": '"', "‘": "'", "’": "'", "‚": "'", "′": "'", "″": '"',
    "–": "-", "—": "-", "−": "-", "‐": "-", "‑": "-", "＝": "=",
    "\u00a0": " ", "\u202f": " ", "\u200b": "", "\ufeff": "",
}  # fmt: skip
_OPENING = {"[": "]", "{": "}", "(": ")"}
_FUNCTIONS = "choice|range|interval|shuffle|sort|tag|glob|int|float|str|bool"
_KEY = re.compile(r"(~|\+\+?)?[\w$@/:.-]*")


class Parser(argparse.ArgumentParser):
    """Argument parser that accepts arguments in any order, and reports a wrong call in one line."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        arguments = [_straighten_option(argument) for argument in args or ()]
        return self.parse_intermixed_args(arguments, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the mistake and the command that prints help."""
        if message.startswith("the following arguments are required"):
            # argparse's message also names optional arguments
            required = [action for action in self._actions if action.required and action.nargs != "*"]
            message = f"{' and '.join(map(_display_name, required))} is missing"
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            message = self._describe_unknown(unknown.split()[0])
        raise UserError(f"{message}; `{self.prog} --help` lists the arguments")

    def _describe_unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"unexpected argument '{argument}'"
        known = [option for action in self._actions for option in action.option_strings]
        return f"unknown option {argument}{did_you_mean(argument.partition('=')[0], known)}"


def _display_name(action: argparse.Action) -> str:
    if action.option_strings:
        return action.option_strings[0]
    return str(action.metavar or action.dest).upper()


def hydra_arguments(arguments: list[str]) -> list[str]:
    """Return the arguments in Hydra's form: options first, then settings, quoted where needed.

    Raises:
        UserError: an option is unknown, or an argument cannot be read as a setting.
    """
    options, settings = split_options([_straighten_option(argument) for argument in arguments])
    _check_spaces(settings)
    return options + [quote_setting(setting, settings[:index]) for index, setting in enumerate(settings)]


def split_options(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate options, with their values, from settings. Hydra needs all options together.

    Raises:
        UserError: an option does not exist, or lacks its value.
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
    """Return the last value of an option or a setting, given as --name VALUE or NAME=VALUE."""
    found = None
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name not in names:
            continue
        found = value if equals else next(iter(arguments[index + 1 :]), None)
    return found


def quote_setting(setting: str, before: Sequence[str] = ()) -> str:
    """Return a setting in a form that Hydra parses; unchanged if Hydra parses it as it is.

    Args:
        before: the arguments to the left of the setting. If the setting has no value, it may be the
            end of the last of them, split off by the shell at a space. The error then proposes to
            join the two.

    Raises:
        UserError: it is not key=value, or its key or value cannot be parsed even in quotes.
    """
    key, equals, value = setting.partition("=")
    if key and _is_readable(setting):
        return setting
    if not equals:
        raise UserError(_describe_no_setting(setting, before))
    if not key or not _is_readable(f"{key}=1"):
        raise UserError(_describe_bad_key(key, value))
    inner = _strip_typographic_quotes(value)
    if inner:
        typed = shell_quote(f"{key}={inner}")
        raise UserError(
            f"{key}: {value} is in typographic quotes, which would be part of the value; write {typed}"
        )
    if value.startswith("~/"):
        value = str(Path(value).expanduser())
    quoted = key + equals + _quote_value(value)
    if not _is_readable(quoted):
        wanted = f"{key}={quote_text(value)}"
        raise UserError(
            f"{key}: the value cannot be parsed; to pass it as one string, write {shell_quote(wanted)}"
        )
    return quoted


def to_dotlist(settings: list[str]) -> list[str]:
    """Return the settings of `resume` as key=JSON, the form that OmegaConf reads.

    Args:
        settings: written as for `train`.

    Raises:
        UserError: an argument is not a setting, or adds or removes one.
    """
    _check_spaces(settings)
    dotlist = []
    for index, setting in enumerate(settings):
        override = _parse(quote_setting(setting, settings[:index]))
        if override.is_delete() or override.is_add() or override.is_force_add():
            raise UserError(
                f"{setting}: a resumed run can change settings, but not add or remove them; "
                "write key=value without + or ~"
            )
        key, _, value = setting.partition("=")
        if not override.is_sweep_override():
            value = override.value()
        dotlist.append(f"{key}={json.dumps(value, ensure_ascii=False)}")
    return dotlist


def register_json_resolver() -> None:
    """Let OmegaConf resolve `${json:'…'}` to the value of the JSON text.

    _to_json_text writes values in this form if Hydra's grammar cannot express them.
    """
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("json", json.loads, replace=True)


# --- quoting


@cache
def _grammar() -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _parse(setting: str) -> Any:
    return _grammar().parse_override(setting)


def _is_readable(setting: str) -> bool:
    """Return whether Hydra parses a setting."""
    from hydra.errors import HydraException

    try:
        _parse(setting)
    except HydraException:
        return False
    return True


def _quote_value(value: str) -> str:
    """Quote the parts of a value, or of a sweep's values, that Hydra cannot parse."""
    return ",".join(_quote_element(element) for element in _split(value))


def _quote_element(element: str) -> str:
    element = element.strip()
    if _is_readable(f"key={element}"):
        return element
    if _is_enclosed(element, "["):
        return f"[{','.join(_quote_element(part) for part in _split(element[1:-1]))}]"
    if _is_enclosed(element, "{"):
        return _quote_mapping(element)
    function = re.fullmatch(rf"({_FUNCTIONS})(\(.*\))", element, re.DOTALL)
    if function is None or not _is_enclosed(function[2], "("):
        return quote_text(element)
    arguments = ",".join(_quote_argument(part) for part in _split(function[2][1:-1]))
    if function[1] == "choice":
        # Hydra strips quotes inside choice(…), then cannot parse the result; a,b is the same sweep
        return arguments
    return f"{function[1]}({arguments})"


def _quote_argument(part: str) -> str:
    """Quote an argument of a Hydra function; it may have a name, as in sort(å,ø,reverse=true)."""
    named = re.fullmatch(r"\s*([A-Za-z_]\w*=)(.*)", part, re.DOTALL)
    if named is None:
        return _quote_element(part)
    return named[1] + _quote_element(named[2])


def _quote_mapping(element: str) -> str:
    """Quote the values of a mapping.

    Hydra's grammar does not allow quoted keys, so keys are escaped. If that fails, the mapping is
    written as JSON.
    """
    pairs = []
    for part in _split(element[1:-1]):
        key, value = _split_pair(part)
        pairs.append((_remove_quotes(key), _quote_element(value)))
    escaped = "{" + ",".join(f"{_escape_key(key)}: {value}" for key, value in pairs) + "}"
    keys = [key for key, _ in pairs]
    if _is_readable(f"key={escaped}") and list(_parse(f"key={escaped}").value()) == keys:
        return escaped
    return _to_json_text({key: _parse(f"key={value}").value() for key, value in pairs})


def _to_json_text(value: Any) -> str:
    """Return a value as `${json:'…'}` in quotes, which Hydra's grammar accepts.

    OmegaConf resolves it to the value (register_json_resolver).
    """
    from hydra.core.override_parser.types import Quote, QuotedString

    inner = QuotedString(json.dumps(value, ensure_ascii=False), Quote.single).with_quotes()
    quoted: str = QuotedString("${json:" + inner + "}", Quote.double).with_quotes()
    return quoted


def quote_text(text: str) -> str:
    """Return a string in quotes that Hydra's grammar accepts."""
    from hydra.core.override_parser.types import Quote, QuotedString

    text = text.replace("\\,", ",")  # the user escaped a comma so that Hydra does not split there
    quote = Quote.double if "'" in text and '"' not in text else Quote.single
    quoted: str = QuotedString(text, quote).with_quotes()
    return quoted


def _remove_quotes(key: str) -> str:
    key = key.strip()
    if len(key) > 1 and key[0] == key[-1] and key[0] in "'\"":
        return key[1:-1]
    return key


def _escape_key(key: str) -> str:
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", key)


def _split(text: str, separator: str = ",") -> list[str]:
    """Split a string at separators outside brackets and quotes.

    If a bracket is not closed, split at all separators.
    """
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
    """Split `key: value` at the first colon that is followed by a space, or else at the first colon.

    Raises:
        UserError: there is no colon.
    """
    colons = [index for index, character in _outside_quotes(text) if character == ":"]
    spaced = [index for index in colons if text[index + 1 : index + 2].isspace()]
    position = next(iter(spaced or colons), None)
    if position is None:
        raise UserError(f"{{{text}}}: a key of this mapping has no value; write {{key: value}}")
    return text[:position], text[position + 1 :]


def _is_enclosed(text: str, opening: str) -> bool:
    """Return whether one pair of brackets encloses the whole text: true of [a,b], not of [a],[b].

    Args:
        opening: the opening bracket: [, { or (.
    """
    if not (text.startswith(opening) and text.endswith(_OPENING[opening])):
        return False
    depth = 0
    for index, character in _outside_quotes(text):
        depth += (character == opening) - (character == _OPENING[opening])
        if depth == 0:
            return index == len(text) - 1
    return False


def _outside_quotes(text: str) -> Iterator[tuple[int, str]]:
    """Yield the characters outside quoted elements, with their positions.

    A quote inside a word, as in Ola's, is an ordinary character.
    """
    index = 0
    at_start = True
    while index < len(text):
        character = text[index]
        if at_start and character in "'\"":
            closing = _find_closing_quote(text, index)
            if closing is not None:
                index = closing + 1
                at_start = False
                continue
        yield index, character
        at_start = character in ",[{(:=" or (at_start and character.isspace())
        index += 1


def _find_closing_quote(text: str, begin: int) -> int | None:
    """Return the position of the quote that closes the one at `begin`; None if there is none.

    It is the same character, without a backslash before it. After it and any spaces comes a comma,
    a colon, a closing bracket or the end of the text.
    """
    for found in re.finditer(re.escape(text[begin]), text[begin + 1 :]):
        index = begin + 1 + found.start()
        backslashes = len(text[:index]) - len(text[:index].rstrip("\\"))
        if backslashes % 2 == 0 and re.match(r"\s*([,\]}):]|$)", text[index + 1 :]):
            return index
    return None


# --- descriptions of mistakes


def _straighten_option(argument: str) -> str:
    """Check that an argument does not begin with a typographic dash, and return it unchanged.

    Raises:
        UserError: it is an option whose dashes a word processor has replaced, as in –config-dir.
    """
    found = re.fullmatch(r"([–—−‐‑-]+)([A-Za-z][\w-]*(?:=.*)?)", argument, re.DOTALL)
    if found is None or argument.startswith("-"):
        return argument
    dashes = "-" if len(found[2].partition("=")[0]) <= 2 else "--"
    raise UserError(f"{argument}: begins with a typographic dash; write {dashes}{found[2]}")


def _check_spaces(settings: list[str]) -> None:
    """Raise UserError if spaces around the = of a setting have made the shell split it."""
    padded = ["", *settings, ""]
    for before, word, after in zip(padded, settings, padded[2:], strict=False):
        if word.startswith("=") and before and "=" not in before:
            meant = f"{before}={word[1:] or after}"
        elif re.fullmatch(r"[\w.+~]+=", word) and after and "=" not in after:
            meant = f"{word}{after}"
        elif word == "=":
            raise UserError("'=' has no key; write key=value without spaces around =")
        else:
            continue
        key = meant.partition("=")[0]
        raise UserError(f"{key}: there are spaces around its =; write {shell_quote(meant)}")


def _describe_unknown_option(argument: str, following: str | None) -> str:
    name, equals, value = argument.partition("=")
    long_options = [
        option for option in (*FLAGS, *WITH_VALUE, "--after", "--dry-run", "--help") if len(option) > 2
    ]
    suggestion = did_you_mean(name, long_options)
    if suggestion:
        return f"unknown option {name}{suggestion}"
    key = name.lstrip("-").replace("-", "_")
    key = SYNONYMS.get(key, key)
    if not equals and following and not following.startswith("-") and "=" not in following:
        equals = "="
        value = following
    if equals and key:
        return f"unknown option {name}: {EXAMPLE}; write {key}={value}"
    return f"unknown option {name}; `finetune train --help` lists options and settings"


def _describe_no_setting(setting: str, before: Sequence[str]) -> str:
    straight = straighten(setting)
    if straight != setting and "=" in straight:
        return f"'{setting}' contains typographic characters; write {shell_quote(straight)}"
    if Path(setting).suffix in (".yaml", ".yml"):
        name = Path(setting).stem
        return (
            f"{setting} is not a setting; save the file as FOLDER/recipe/{name}.yaml "
            f"and write --config-dir FOLDER recipe={name}"
        )
    found = re.fullmatch(r"([A-Za-z_][\w.]*):\s*(\S.*)", setting)
    if found:
        return f"'{setting}' is not a setting; write {shell_quote(f'{found[1]}={found[2]}')}"
    message = f"'{setting}' has no value; write {setting}=VALUE"
    if before and re.search(r"=(?!(true|false|null|[\d.e+-]+)$).", before[-1]):  # a string
        joined = shell_quote(f"{before[-1]} {setting}")
        message += f"; if it belongs to the value before it, write {joined}"
    return message


def _describe_bad_key(key: str, value: str) -> str:
    straight = straighten(key)
    if straight != key:
        return f"'{key}' contains typographic characters; write {shell_quote(f'{straight}={value}')}"
    if key != key.strip():
        return f"'{key}=': spaces around the key; write {shell_quote(f'{key.strip()}={value.strip()}')}"
    if not key:
        return f"'={value}' has no key; write key=value without spaces around ="
    refused = (character for character in key if not (character.isascii() and _KEY.fullmatch(character)))
    wrong = next(refused, key)
    return (
        f"'{key}': keys on the command line cannot contain '{wrong}'; "
        "put the setting into a YAML file and name its folder with --config-dir"
    )


def shell_quote(text: str) -> str:
    """Return a string quoted for a shell.

    Double quotes are used if it contains a single quote and nothing that a shell expands.
    """
    if "'" in text and not set(text) & set('"$`\\!'):
        return f'"{text}"'
    return shlex.quote(text)


def straighten(text: str) -> str:
    """Return the text with typographic quotes, dashes and spaces replaced by plain ones."""
    return "".join(TYPOGRAPHIC.get(character, character) for character in text)


def _strip_typographic_quotes(value: str) -> str | None:
    """Return a value without the typographic quotes around it; None if there are none."""
    found = re.fullmatch(r"[“”„‟‘’‚]([^“”„‟‘’‚]*)[“”‟‘’]", value.strip())
    return found[1] if found else None
