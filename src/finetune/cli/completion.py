"""`finetune completion`: shell completion of verbs, options, settings, config files, corpora, runs.

The shell calls it at each Tab, so it must be fast. It therefore imports neither Hydra nor torch,
but lists folders and reads dataclasses. The shell completes paths itself.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from data_prep.user_error import UserError
from finetune.cli import verbs
from finetune.cli.overrides import Parser, option_value
from finetune.cli.verbs import Completes, Verb
from finetune.runs import layout

if TYPE_CHECKING:
    from finetune.cli.config_files import ConfigFiles

SHELLS = ("bash", "zsh")
EXAMPLE = 'eval "$(finetune completion bash)"'

# bash splits an argument at = and :, and completes the part after the last of them. No space is
# added after a reply that ends in = or a dot, because a value or a further key follows.
BASH = """\
_finetune() {
    local IFS=$'\\n'
    COMPREPLY=($(finetune completion line "$COMP_WORDBREAKS" "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
    case "${COMPREPLY[0]}" in *[=.]) compopt -o nospace 2>/dev/null ;; esac
}
complete -o default -F _finetune finetune
"""
ZSH = """\
_finetune() {
    local -a replies
    replies=(${(f)"$(finetune completion words "${(@Q)words[2,CURRENT]}" 2>/dev/null)"})
    (( $#replies )) || { compset -P '*='; _files; return }
    compadd -Q -S '' -- ${(M)replies:#*[=.]}
    compadd -Q -- ${replies:#*[=.]}
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _finetune finetune
"""


def completion(arguments: list[str]) -> int:
    """Print a shell's completion script or, if that script is the caller, completions of a line."""
    mode = arguments[:1]
    if mode == ["words"]:  # called by the script of zsh
        print("\n".join(complete(arguments[1:])))
    elif mode == ["line"] and len(arguments) == 3:  # called by the script of bash
        print("\n".join(complete_line(arguments[1], arguments[2])))
    else:
        parser = Parser(
            prog="finetune completion",
            description="Print the script that completes `finetune` commands in the shell.",
        )
        parser.add_argument(
            "shell",
            nargs="?",
            default="",
            metavar="bash|zsh",
            help=f"the shell; for bash, add this line to ~/.bashrc: {EXAMPLE}",
        )
        print(script(parser.parse_args(arguments).shell), end="")
    return 0


def script(shell: str) -> str:
    """Return the completion script of a shell, to be evaluated in ~/.bashrc or ~/.zshrc.

    Raises:
        UserError: the shell is not supported.
    """
    if shell not in SHELLS:
        raise UserError(f"completion: shell '{shell}' is not supported; choose bash or zsh, as in {EXAMPLE}")
    return {"bash": BASH, "zsh": ZSH}[shell]


def complete_line(breaks: str, line: str) -> list[str]:
    """Return the completions of a line typed in bash.

    If bash splits a line at `=` or `:`, a completion replaces only the text after the last of them.
    The text before it is then left out of the returned completions.

    Args:
        breaks: the characters at which bash splits a line ($COMP_WORDBREAKS).
    """
    typed = _split_line(line)[1:] or [""]
    last = typed[-1]
    begin = max((last.rfind(character) + 1 for character in "=:" if character in breaks), default=0)
    return [reply[begin:] for reply in complete(typed)]


def _split_line(line: str) -> list[str]:
    """Split a line into arguments, as a shell does.

    The last argument may lack its closing quote. It is empty if the line ends in a space.
    """
    for closing in ("", "'", '"'):
        with contextlib.suppress(ValueError):
            words = shlex.split(line + closing)
            if line[-1:].isspace() and not closing:
                words.append("")
            return words
    return line.split(" ")


def complete(typed: list[str]) -> list[str]:
    """Return the completions of the last typed argument."""
    *before, last = typed or [""]
    if not before:
        return [name for name in verbs.names() if name.startswith(last)]
    verb = verbs.find(before[0])
    if verb is None:
        return []
    replies = _list_options(verb) if last.startswith("-") else _list_arguments(verb, before, last)
    return [reply for reply in replies if reply.startswith(last)]


def _list_arguments(verb: Verb, before: list[str], last: str) -> list[str]:
    """Return the arguments that can stand in the place of `last`.

    They are values of the option before it, or else arguments of the verb.

    Args:
        before: the arguments before the last one, the verb first.
        last: the last argument, as far as it has been typed.
    """
    if verb.completes is Completes.SHELL:
        return list(SHELLS)
    if verb.completes is Completes.SETTINGS and verb.schema is not None:
        return list(_iter_settings(verb.name, verb.schema(), before[1:], last))
    if verb.completes is Completes.CORPUS or before[-1] == "--corpus":
        return _list_corpora(before)
    if verb.completes in (Completes.RUN, Completes.RUN_OR_SWEEP) and not before[-1].startswith("--"):
        runs_dir = Path(option_value(before, "--runs-dir") or "runs")
        return _list_ids(runs_dir, sweeps=verb.completes is Completes.RUN_OR_SWEEP)
    return []


def _list_options(verb: Verb) -> list[str]:
    """Return the options in a verb's help."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        verb.run(["--help"])
    return sorted(set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", text.getvalue())) | {"--help"})


def _iter_settings(verb: str, schema: Any, before: list[str], last: str) -> Iterator[str]:
    """Yield completions of the last argument: keys or, after `key=`, values of the key.

    Args:
        before: the arguments between the verb and the last one.
    """
    from finetune.cli.config_files import ConfigFiles

    if before and before[-1] in ("--config-dir", "-cd", "--after"):
        return
    config_dir = option_value(before, "--config-dir", "-cd")
    files = ConfigFiles(verb, config_dir)
    key, equals, value = last.partition("=")
    if not equals:
        sections = ("corpus", "model", "cluster", "adapter", "zero")  # _iter_keys yields these
        yield from (f"{group}=" for group in files.groups() if group not in sections)
        yield from _iter_keys(schema, files, before, key)
        return
    earlier_values = value[: value.rfind(",") + 1]  # in a sweep, as in lr=1e-4,2e-4
    for choice in _list_values(schema, key, files, before):
        yield f"{key}={earlier_values}{choice}"


def _iter_keys(schema: Any, files: ConfigFiles, before: list[str], typed: str) -> Iterator[str]:
    """Yield the keys in the section of the typed key; sections end in a dot, other keys in =.

    Args:
        before: the arguments before the typed key. They may select the config file of a section.
        typed: the key, as far as it has been typed.
    """
    section, dot, _ = typed.rpartition(".")
    if section in ("adapter", "zero"):
        selected = option_value(before, section) or {"adapter": "lora", "zero": "stage2"}[section]
        file = files.file(f"{section}/{selected}")
        if file is not None:
            names = re.findall(r"^(\w+):", file.read_text(encoding="utf-8"), re.MULTILINE)
            yield from (f"{section}.{name}=" for name in names)
        return
    schema = _schema_of(schema, section)
    if not is_dataclass(schema):
        return
    kinds = get_type_hints(schema)
    for item in fields(schema):
        key = f"{section}{dot}{item.name}"
        if key in files.groups():
            yield f"{key}="
        if is_dataclass(kinds[item.name]) or key in ("adapter", "zero"):
            yield f"{key}."
        elif key not in files.groups():
            yield f"{key}="
    if files.verb == "train" and not section:
        yield "corpus="


def _schema_of(schema: Any, section: str) -> Any:
    """Return the dataclass of a section; None if there is no such section."""
    for name in filter(None, section.split(".")):
        if not is_dataclass(schema):
            return None
        schema = get_type_hints(schema).get(name)
    return schema


def _list_values(schema: Any, key: str, files: ConfigFiles, before: list[str]) -> list[str]:
    """Return the possible values of a key; none if they cannot be listed.

    Args:
        before: the arguments before the last one. They may set the folder of runs or corpora.
    """
    if key in ("corpus", "data.corpus") and files.verb == "train":
        return _list_corpora(before)
    if key == "model":
        runs_dir = Path(option_value(before, "runs_dir") or "runs")
        return [*files.names("model"), *(f"run:{name}" for name in _list_ids(runs_dir, sweeps=False))]
    if key in files.groups():
        return files.names(key)
    section, _, name = key.rpartition(".")
    schema = _schema_of(schema, section)
    if not is_dataclass(schema):
        return []
    if get_type_hints(schema).get(name) is bool:
        return ["true", "false"]
    return list(_list_choices().get(key, ()))


def _list_choices() -> dict[str, tuple[str, ...]]:
    """Return, for each setting that accepts only certain names, these names."""
    from finetune.config import cluster
    from finetune.config import train as config

    return {
        "precision": config.PRECISIONS,
        "schedule": config.SCHEDULES,
        "result": config.RESULTS,
        "on_bad_step": config.ON_BAD_STEP,
        "model.attention": config.ATTENTION_IMPLEMENTATIONS,
        "model.kernels": config.KERNELS,
        "model.quantization": config.QUANTIZATIONS,
        "data.long_documents": config.LONG_DOCUMENTS,
        "data.long_conversations": config.LONG_CONVERSATIONS,
        "cluster.scheduler": cluster.SCHEDULERS,
        "cluster.gpu_request": cluster.GPU_REQUESTS,
        "cluster.on_interrupt": cluster.ON_INTERRUPT,
    }


def _list_corpora(before: list[str]) -> list[str]:
    """Return the names of the prepared corpora.

    Args:
        before: the arguments before the last one. They may set the folder of corpora.
    """
    folder = Path(option_value(before, "--corpora-dir", "data.corpora_dir") or "corpora")
    names = [path.parent.name for path in folder.glob("*/manifest.json")]
    return sorted(name for name in names if not name.startswith("."))


def _list_ids(runs_dir: Path, sweeps: bool) -> list[str]:
    """Return the ids of runs and, if `sweeps`, the ids of sweeps after them."""
    ids = sorted(path.parent.name for path in runs_dir.glob(f"*/{layout.CONFIG}"))
    if sweeps:
        folders = (runs_dir / layout.SWEEPS).glob("*")
        ids += sorted(path.name for path in folders if any(path.glob(f"*/{layout.POINTS}")))
    return ids
