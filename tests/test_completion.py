"""Completion of commands in bash and zsh, with keys typed into an interactive shell."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune.cli.completion import complete, complete_line
from finetune.cli.verbs import VERBS, Completes, Verb


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a working directory with a run, a sweep, a corpus and a user's config files."""
    (tmp_path / "runs" / "first-1").mkdir(parents=True)
    (tmp_path / "runs" / "first-1" / "config.yaml").touch()
    (tmp_path / "runs" / "sweeps" / "grid-2" / "0" / "points").mkdir(parents=True)
    (tmp_path / "corpora" / "høringer").mkdir(parents=True)
    (tmp_path / "corpora" / "høringer" / "manifest.json").touch()
    for name in ("corpus/mine", "adapter/mine", "recipe/ours"):
        file = tmp_path / "my" / f"{name}.yaml"
        file.parent.mkdir(parents=True)
        file.write_text("peft_type: LORA\nr: 4\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("finetune tr", ["train"]),
        ("finetune resume ", ["first-1"]),
        ("finetune status fi", ["first-1"]),
        ("finetune status --wa", ["--watch"]),
        ("finetune train --config", ["--config-dir"]),
        ("finetune train adapter=", ["lora", "none", "qlora"]),
        ("finetune train adapter=lora,no", ["lora,none"]),
        ("finetune train --config-dir my adapter=mi", ["mine"]),
        ("finetune train rec", ["recipe="]),
        ("finetune train --config-dir=my recipe=", ["ours", "sample_lora"]),
        ("finetune train cluster.no", ["cluster.nodes=", "cluster.node_local="]),
        ("finetune train cluster.site.max_n", ["cluster.site.max_nodes="]),
        ("finetune train adapter.lora_", ["adapter.lora_alpha=", "adapter.lora_dropout="]),
        ("finetune train schedule=", ["constant", "linear", "cosine", "wsd"]),
        ("finetune train detach=", ["true", "false"]),
        ("finetune train model=run:", ["first-1"]),
        ("finetune train corpus=", ["høringer"]),
        ("finetune inspect h", ["høringer"]),
        ("finetune prepare --config-dir my corpus=mi", ["mine", "mixture"]),
        ("finetune prepare corpus.tokenizer.v", ["corpus.tokenizer.vocab_size="]),
        ("finetune completion z", ["zsh"]),
        ("finetune evaluate first-1 --corpus ", ["høringer"]),
    ],
)
def test_a_line_of_bash_is_completed(folder: Path, line: str, some: list[str]) -> None:
    replies = complete_line("=:", line)
    assert set(some) <= set(replies)
    assert all(not reply.startswith(("adapter=", "corpus=")) or "=" not in line for reply in replies)


@pytest.mark.parametrize(
    "line",
    ["finetune train lr=", "finetune train model=/", "finetune nothing x", "finetune train --config-dir "],
)
def test_unknown_arguments_are_left_to_the_shell(folder: Path, line: str) -> None:
    assert complete_line("=:", line) == []


def test_a_shell_without_word_breaks_gets_whole_words(folder: Path) -> None:
    assert complete(["train", "adapter=qlo"]) == ["adapter=qlora"]


def test_a_verb_completes_only_ids_that_it_accepts(folder: Path) -> None:
    assert complete(["logs", ""]) == ["first-1", "grid-2"]
    assert complete(["resume", ""]) == ["first-1"], "resume does not accept sweeps"
    assert complete(["logs", "--runs-dir", "nowhere", ""]) == []


# by kind of argument: completions in the working directory; each verb with settings has `cluster=`
FOUND = {
    Completes.SETTINGS: {"cluster="},
    Completes.CORPUS: {"høringer"},
    Completes.RUN: {"first-1"},
    Completes.RUN_OR_SWEEP: {"first-1", "grid-2"},
    Completes.SHELL: {"bash", "zsh"},
}


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_completes_its_kind_of_argument(folder: Path, verb: Verb) -> None:
    assert verb.name in complete([verb.name[:-1]])
    assert "--help" in complete([verb.name, "--he"])
    replies = complete([verb.name, ""])
    if verb.completes is Completes.NOTHING:
        assert replies == []
    else:
        assert FOUND[verb.completes] <= set(replies)


def test_completion_imports_neither_hydra_nor_torch(folder: Path) -> None:
    script = (
        "import sys\nfrom finetune.cli.main import main\n"
        "try: main(['completion', 'line', '=:', 'finetune train cluster.no'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'hydra', 'mlflow', 'transformers', 'numpy', 'rich', 'psutil'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cluster.nodes=" in done.stdout


@dataclass
class Terminal:
    """An interactive shell, and its output since keys were last typed."""

    descriptor: int
    output: str = ""

    def type(self, keys: str, pattern: str, seconds: float = 60) -> None:
        """Type keys, and wait until the shell's output matches the pattern."""
        os.write(self.descriptor, keys.encode())
        self.output = ""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.output):
            assert time.monotonic() < end, f"no output matches {pattern}: {self.output!r}"
            if select.select([self.descriptor], [], [], 0.2)[0]:
                self.output += os.read(self.descriptor, 4096).decode(errors="replace")


@pytest.mark.parametrize("shell", [("bash", "--norc", "-i"), ("zsh", "-f", "-i")], ids=["bash", "zsh"])
def test_a_tab_in_an_interactive_shell_completes(folder: Path, shell: tuple[str, ...]) -> None:
    program = shutil.which(shell[0])
    if program is None:
        pytest.skip(f"{shell[0]} is not installed")
    process, descriptor = pty.fork()
    if process == 0:
        os.execve(
            program,
            shell,
            {**os.environ, "TERM": "dumb", "PS1": "$ ", "HOME": str(folder), "INPUTRC": "/dev/null"},
        )
    terminal = Terminal(descriptor)
    try:
        terminal.type(f'finetune() {{ {shlex.quote(sys.executable)} -m finetune.cli.main "$@"; }}\n', r"\$ ")
        terminal.type(f"eval \"$(finetune completion {shell[0]})\"; echo rea''dy\n", "ready")
        terminal.type("finetune train adapter=qlo\t", "adapter=qlora ")
        terminal.type("corpus=h\t", "høringer ")
        terminal.type("cluster.nodes\t", "=$")  # no space after =, since a value follows
        terminal.type("\x15finetune status gri\t", "grid-2 ")
        # the shell itself completes paths
        terminal.type("\x15finetune train --config-dir m\t", "my/")
    finally:
        os.kill(process, signal.SIGKILL)
        os.close(descriptor)
        os.waitpid(process, 0)
