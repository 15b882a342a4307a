"""A verb (a subcommand of `finetune`) is added by a module and a row in the table of verbs.

No verb imports torch unless it needs it.
"""

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
    """Add a verb `greet` to the table, and write its module."""
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


def test_a_name_or_synonym_belongs_to_one_verb() -> None:
    known = [name for verb in VERBS for name in (verb.name, *verb.synonyms)]
    assert len(known) == len(set(known))
    assert verbs.resolve_synonym("eval") == "evaluate"
    assert verbs.resolve_synonym("evaluate") is None, "a name is not its own synonym"


def test_help_and_verbs_of_a_login_node_do_not_import_torch(tmp_path: Path) -> None:
    """Call each verb's help, verbs that read a run folder, and verbs with wrong arguments."""
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
    results = call(*helps, *light, *mistakes, folder=tmp_path)
    assert {" ".join(result.arguments): result.imports for result in results if result.imports} == {}
    num_valid = len(helps + light)
    assert [result for result in results[:num_valid] if result.code != 0] == []
    assert [result for result in results[num_valid:] if result.code != 2] == []
    for verb, result in zip(VERBS, results, strict=False):
        assert result.output.startswith(f"usage: finetune {verb.name}")


def test_the_check_detects_a_verb_whose_module_imports_torch(tmp_path: Path) -> None:
    (tmp_path / "heavy.py").write_text("import torch.nn\n\n\ndef heavy(arguments):\n    return 0\n")
    (result,) = call(["heavy", "--help"], folder=tmp_path, modules=["heavy"])
    assert result.imports == ["torch"]
    assert result.code == 2
