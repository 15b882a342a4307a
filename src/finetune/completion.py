"""Completion in the shell: verbs, and ids of runs and sweeps. It only lists folders: people wait for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

TAKES_RUN = ("resume", "evaluate")
TAKES_RUNS = ("status", "logs", "cancel", "retry", "prune", "sync")  # and sweeps

BASH = """\
_finetune() {
    local IFS=$'\\n'
    COMPREPLY=($(finetune completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
# words with = are one word to us, and several to bash
complete -o default -F _finetune finetune
"""


def script(shell: str) -> str:
    """What to put into ~/.bashrc or ~/.zshrc, as eval "$(finetune completion bash)".

    Raises:
        ValueError: another shell.
    """
    if shell not in ("bash", "zsh"):
        raise ValueError(f"completion is for bash and zsh, not '{shell}': eval \"$(finetune completion bash)\"")
    return BASH if shell == "bash" else f"autoload -Uz bashcompinit && bashcompinit\n{BASH}"


def words(typed: list[str], verbs: Iterable[str]) -> list[str]:
    """How the last of the typed words can go on."""
    *before, last = typed or [""]
    if not before:
        return [verb for verb in verbs if verb.startswith(last)]
    if before[0] not in TAKES_RUN + TAKES_RUNS:
        return []
    return [name for name in _ids(_runs_dir(before), sweeps=before[0] in TAKES_RUNS) if name.startswith(last)]


def _runs_dir(before: list[str]) -> Path:
    return Path(before[before.index("--runs-dir") + 1]) if "--runs-dir" in before[:-1] else Path("runs")


def _ids(runs_dir: Path, sweeps: bool) -> list[str]:
    """Newest first would be nicer, but shells sort."""
    runs = [path.parent.name for path in runs_dir.glob("*/config.yaml")]
    arrays = [path.name for path in (runs_dir / "sweeps").glob("*") if sweeps and any(path.glob("*/points"))]
    return sorted(runs) + sorted(arrays)
