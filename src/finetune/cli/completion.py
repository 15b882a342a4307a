"""`finetune completion`, which a shell calls at each tab: verbs, options, config files, settings, corpora and
runs.

People wait for it: it lists folders and reads dataclasses, and imports neither Hydra nor torch. Paths are
left to the shell.
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

# bash parts words at = and :, and completes what stands behind the last of them. A reply that ends in = or .
# goes on.
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
    """Print a shell's script; or, as that script asks for it, how a line can go on."""
    asked = arguments[:1]
    if asked == ["words"]:  # zsh's script asks so, and bash's with a line
        print("\n".join(complete(arguments[1:])))
    elif asked == ["line"] and len(arguments) == 3:
        print("\n".join(complete_line(arguments[1], arguments[2])))
    else:
        parser = Parser(
            prog="finetune completion", description="Print what makes the command line complete in the shell."
        )
        parser.add_argument(
            "shell",
            nargs="?",
            default="",
            metavar="bash|zsh",
            help=f"the shell: {EXAMPLE} in its startup file",
        )
        print(script(parser.parse_args(arguments).shell), end="")
    return 0


def script(shell: str) -> str:
    """Return what to put into ~/.bashrc or ~/.zshrc, as eval "$(finetune completion bash)".

    Raises:
        UserError: another shell.
    """
    if shell not in SHELLS:
        raise UserError(f"completion: '{shell}' is not supported; choose bash or zsh: {EXAMPLE}")
    return BASH if shell == "bash" else ZSH


def complete_line(breaks: str, line: str) -> list[str]:
    """Return how a typed line of bash can go on: what replaces the text behind the last of its word
    breaks."""
    typed = _parse_line(line)[1:]
    last = typed[-1] if typed else ""
    begin = max((last.rfind(character) + 1 for character in "=:" if character in breaks), default=0)
    return [reply[begin:] for reply in complete(typed)]


def _parse_line(line: str) -> list[str]:
    """Part a line into words; the last one is empty behind a space, and may lack its closing quote."""
    for closing in ("", "'", '"'):
        with contextlib.suppress(ValueError):
            words = shlex.split(line + closing)
            return [*words, ""] if line[-1:].isspace() and not closing else words
    return line.split(" ")


def complete(typed: list[str]) -> list[str]:
    """Return how the last of the typed words can go on."""
    *before, last = typed or [""]
    if not before:
        return [name for name in verbs.names() if name.startswith(last)]
    verb = verbs.find(before[0])
    if verb is None:
        return []
    replies = _options(verb) if last.startswith("-") else _arguments(verb, before, last)
    return [reply for reply in replies if reply.startswith(last)]


def _arguments(verb: Verb, before: list[str], last: str) -> list[str]:
    """Return what can stand as an argument of a verb, or as the value of the option before it."""
    if verb.completes is Completes.SHELL:
        return list(SHELLS)
    if verb.completes is Completes.SETTINGS and verb.schema is not None:
        return list(_settings(verb.name, verb.schema(), before[1:], last))
    if verb.completes is Completes.CORPUS or before[-1] == "--corpus":
        return _prepared(before)
    if verb.completes in (Completes.RUN, Completes.RUN_OR_SWEEP) and not before[-1].startswith("--"):
        runs_dir = Path(option_value(before, "--runs-dir") or "runs")
        return _ids(runs_dir, sweeps=verb.completes is Completes.RUN_OR_SWEEP)
    return []


def _options(verb: Verb) -> list[str]:
    """Return the options that a verb's help names."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        verb.run(["--help"])
    return sorted(set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", text.getvalue())) | {"--help"})


def _settings(verb: str, schema: Any, before: list[str], last: str) -> Iterator[str]:
    """Yield keys that begin as the last word, or values for its key."""
    from finetune.cli.config_files import ConfigFiles

    own = option_value(before, "--config-dir", "-cd")
    if before and before[-1] in ("--config-dir", "-cd", "--after"):
        return
    files = ConfigFiles(verb, Path(own) if own else None)
    key, equals, value = last.partition("=")
    if not equals:
        yield from (
            f"{group}="
            for group in files.groups()
            if group not in ("corpus", "model", "cluster", "adapter", "zero")
        )
        yield from _keys(schema, files, before, key)
        return
    done = value[: value.rfind(",") + 1]  # earlier values of a sweep
    for choice in _values(schema, key, files, before):
        yield f"{key}={done}{choice}"


def _keys(schema: Any, files: ConfigFiles, before: list[str], typed: str) -> Iterator[str]:
    """Yield the keys of the section that is typed: groups and plain settings with =, sections with a dot."""
    section, dot, _ = typed.rpartition(".")
    if section in ("adapter", "zero"):
        chosen = option_value(before, section) or {"adapter": "lora", "zero": "stage2"}[section]
        file = files.file(f"{section}/{chosen}")
        text = file.read_text(encoding="utf-8") if file else ""
        yield from (f"{section}.{name}=" for name in re.findall(r"^(\w+):", text, re.MULTILINE))
        return
    for name in section.split(".") if section else ():
        schema = get_type_hints(schema).get(name) if is_dataclass(schema) else None
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


def _values(schema: Any, key: str, files: ConfigFiles, before: list[str]) -> list[str]:
    """Return the values that a key can take, where they can be listed."""
    if key in ("corpus", "data.corpus") and files.verb == "train":
        return _prepared(before)
    if key == "model":
        runs_dir = Path(option_value(before, "runs_dir") or "runs")
        return [*files.names("model"), *(f"run:{name}" for name in _ids(runs_dir, sweeps=False))]
    if key in files.groups():
        return files.names(key)
    for name in key.split(".")[:-1]:
        schema = get_type_hints(schema).get(name) if is_dataclass(schema) else None
    if not is_dataclass(schema):
        return []
    if get_type_hints(schema).get(key.rpartition(".")[2]) is bool:
        return ["true", "false"]
    return list(_choices().get(key, ()))


def _choices() -> dict[str, tuple[str, ...]]:
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


def _prepared(before: list[str]) -> list[str]:
    """Return the names of the corpora that are prepared."""
    folder = Path(option_value(before, "--corpora-dir", "data.corpora_dir") or "corpora")
    return sorted(
        path.parent.name for path in folder.glob("*/manifest.json") if not path.parent.name.startswith(".")
    )


def _ids(runs_dir: Path, sweeps: bool) -> list[str]:
    """Return the ids of runs, and of sweeps; shells sort them."""
    runs = [path.parent.name for path in runs_dir.glob(f"*/{layout.CONFIG}")]
    arrays = []
    if sweeps:
        folders = (runs_dir / layout.SWEEPS).glob("*")
        arrays = [path.name for path in folders if any(path.glob(f"*/{layout.POINTS}"))]
    return sorted(runs) + sorted(arrays)
