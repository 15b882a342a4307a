"""The table of verbs: a row and a module are all that a verb takes, and none that needs no torch imports
it."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.cli import main as cli
from finetune.cli import verbs
from finetune.cli.completion import complete
from finetune.cli.verbs import VERBS, Completes, Verb
from tests.without_torch import call

GREETING = """
from finetune.cli.overrides import Parser


def greet(arguments):
    parser = Parser(prog="finetune greet", description="Greet somebody.")
    parser.add_argument("name", help="who is greeted")
    parser.add_argument("--loud", action="store_true", help="in capitals")
    options = parser.parse_args(arguments)
    print(options.name.upper() if options.loud else options.name)
    return 3
"""


@pytest.fixture
def greet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Verb:
    """A verb that is added as any other: a module, and a row of the table."""
    (tmp_path / "greeting.py").write_text(GREETING)
    monkeypatch.syspath_prepend(str(tmp_path))
    row = Verb(
        "greet",
        "NAME [--loud]",
        "say hello",
        module="greeting",
        completes=Completes.CORPUS,
        synonyms=("hail",),
    )
    monkeypatch.setattr(verbs, "VERBS", (*VERBS, row))
    (tmp_path / "corpora" / "laws").mkdir(parents=True)
    (tmp_path / "corpora" / "laws" / "manifest.json").touch()
    monkeypatch.chdir(tmp_path)
    return row


def finetune(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    return int(str(end.value.code))


def test_a_row_and_a_module_add_a_verb(greet: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("greet", "--loud", "ola") == 3
    assert capsys.readouterr().out == "OLA\n"
    assert finetune("--help") == 0
    assert "  greet NAME [--loud]          say hello\n" in capsys.readouterr().out
    assert complete(["gre"]) == ["greet"]
    assert complete(["greet", "--l"]) == ["--loud"]
    assert complete(["greet", ""]) == ["laws"]
    assert finetune("hail") == 2
    assert "did you mean 'greet'?" in capsys.readouterr().err
    assert finetune("greet") == 2
    assert capsys.readouterr().err == "error: NAME is missing; `finetune greet --help` lists the arguments\n"


def test_names_and_synonyms_mean_one_verb() -> None:
    known = [name for verb in VERBS for name in (verb.name, *verb.synonyms)]
    assert len(known) == len(set(known))
    assert verbs.resolve_synonym("eval") == "evaluate"
    assert verbs.resolve_synonym("evaluate") is None, "a name is no synonym of itself"


def test_no_light_verb_imports_torch(tmp_path: Path) -> None:
    """Help of every verb; and what a person does on a login node, on a run folder and on nothing."""
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("data: {corpus: c}\nmodel: {from_scratch: {model_type: llama}}\n")
    (run / "provenance.json").write_text("{}")
    (run / "jobs").mkdir()
    (run / "jobs" / "7_0_log.out").write_text("rank 0\n")
    helps = [[verb.name, "--help"] for verb in VERBS]
    light = [
        ["--help"],
        ["completion", "line", "=:", "finetune train cluster.no"],
        ["status"],
        ["logs", "mine"],
        ["cancel", "mine"],
        ["prune"],
        ["train", "recipe=sample_lora", "--cfg", "job"],
        ["prepare", "corpus=sample", "--cfg", "job"],
    ]
    mistakes = [
        ["inspect", "nothing"],
        ["retry", "nobody"],
        ["resume", "nobody"],
        ["train", "corpus=x", "lr_=1"],
        ["trian"],
    ]
    ended = call(*helps, *light, *mistakes, folder=tmp_path)
    assert {" ".join(one.arguments): one.imports for one in ended if one.imports} == {}
    assert [one for one in ended[: len(helps + light)] if one.code != 0] == []
    assert [one for one in ended[len(helps + light) :] if one.code != 2] == []
    for verb, one in zip(VERBS, ended, strict=False):
        assert one.output.startswith(f"usage: finetune {verb.name}")


def test_a_verb_whose_module_imports_torch_is_found(tmp_path: Path) -> None:
    (tmp_path / "heavy.py").write_text("import torch.nn\n\n\ndef heavy(arguments):\n    return 0\n")
    (one,) = call(["heavy", "--help"], folder=tmp_path, modules=["heavy"])
    assert one.imports == ["torch"]
    assert one.code == 2
