"""A user's mistake is reported in one line: the setting or file, the problem, the remedy."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from data_prep.user_error import NotFoundError, UserError
from finetune.cli import main as cli
from finetune.cli.call import Call
from finetune.cli.setting_errors import describe_unknown_key, iter_keys
from finetune.config import suggestions
from finetune.config.cluster import check_log_folder
from finetune.config.train import TrainConfig
from finetune.runs.folder import RunFolder
from tests.corpora import write_corpus

TINY = ["model=llama_tiny", "adapter=none"]
ErrorOf = Callable[..., str]
GLOBAL = "# @package _global_\n"
CORPUS = "name: x\nsources:\n  a: {reader: jsonl, path: x, license: MIT}\n"


@pytest.fixture
def mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> ErrorOf:
    """Return a function that runs a wrong command and returns its error line without `error: `."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def run(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err.removeprefix("error: ").rstrip("\n")

    return run


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("learning_rate=1", "'lr'"),
        ("learningRate=1", "'lr'"),
        ("batch-size=1", "'global_batch_size'"),
        ("epochs=3", "'num_epochs'"),
        ("bf16=true", "write precision=bf16"),
        ("warmup_steps=10", "write warmup_ratio=…"),
        ("per_device_train_batch_size=1", "'micro_batch_size'"),
        ("max_seq_length=2048", "'data.sequence_length'"),
        ("output_dir=x", "'runs_dir'"),
        ("model_name_or_path=x", "write model=FOLDER"),
        ("lora_r=8", "'adapter.r'"),
        ("sequence_length=5", "'data.sequence_length'"),
        ("max_step=1", "'max_steps'"),
        ("data.seq_len=1", "'data.sequence_length'"),
        ("cluster.partion=x", "'cluster.partition'"),
        ("cluster.site.gpu_per_node=1", "'cluster.site.gpus_per_node'"),
        ("model.foo=1", "the settings in model are path, revision, from_scratch"),
        ("recpie=x", "'recipe=NAME'"),
        ("cluster.env.A=b c", "write '+cluster.env.A=b c' to add it"),
        ("nothing_like_it=1", "`finetune train --help` lists all settings"),
    ],
)
def test_an_unknown_setting_gets_a_suggestion(typed: str, meant: str) -> None:
    assert meant in describe_unknown_key(typed.partition("=")[0], Call("train", [typed], TrainConfig))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["learning_rate=1"], "unknown setting 'learning_rate'; did you mean 'lr'?"),
        (["optimizer.lr=1"], "'lr'"),
        (["adapter.dropout=0.1"], "'adapter.lora_dropout'"),
        (["adapter=lokr", "adapter.lora_alpha=2"], "'adapter.alpha'"),
        (["adapter.use_dorra=true"], "'+adapter.use_dora'"),
        (["adapter.layers_to_transform=[1]"], "write '+adapter.layers_to_transform=[1]' to add it"),
        (["zero.overlap_com=true"], "'+zero.overlap_comm'"),
        (["model.from_scratch.hidden_sise=8"], "'model.from_scratch.hidden_size'"),
        (["cluster.env={A: b}"], "write '+cluster.env={A: b}' to add it"),
        (["+lr_=1", "corpus=x", "adapter=none"], "'lr'"),
        (["cluster=olvia"], "'olivia'"),
        (["model=llama_tny"], "'llama_tiny'"),
        (["model=gpt2"], "model=pretrained model.path=gpt2"),
    ],
)
def test_train_reports_the_suggestion(mistake: ErrorOf, typed: list[str], meant: str) -> None:
    base = ["model=llama_tiny"] if not typed[0].startswith("model=") else []
    assert meant in mistake("train", *base, *typed)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["corpus=smaple"], "'sample'"),
        (["corpus=sample", "vocab_size=3"], "'corpus.tokenizer.vocab_size'"),
        (["corpus=sample", "corpus.sources.laws.pth=x"], "'corpus.sources.laws.path'"),
        (["corpus=sample", "corpus.sources.laws.limits.depth=x"], "'corpus.sources.laws.limits.max_depth'"),
        (
            ["corpus=sample", "corpus.sources.laws.fields.text=y"],
            "write +corpus.sources.laws.fields.text=y to add it",
        ),
        (["corpus=sample", "model=x"], "the groups of `finetune prepare` are cluster, corpus"),
        ([], "write corpus=NAME, one of chat, documentation"),
    ],
)
def test_prepare_reports_the_suggestion(mistake: ErrorOf, typed: list[str], meant: str) -> None:
    assert meant in mistake("prepare", *typed)


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["lr=1e–4"], "lr: '1e–4' is not a number ('–' is a typographic character; type -)"),
        (["cluster.nodes=2.5"], "cluster.nodes: '2.5' is not a whole number"),
        (["detach=ja"], "detach: 'ja' is not true or false"),
        (["name=[a]"], "name: '['a']' is not text; for text write \"name='[a]'\""),
        (["data=x"], "data: must be a mapping; write key: value, one per line"),
        (["cluster.srun=x"], "cluster.srun: must be a list; write cluster.srun=[a,b]"),
        (["seed=null"], "seed: must not be null; leave the setting out to use its default"),
        (
            ["name=${oc.env:NOPE}", "corpus=x"],
            "name: the environment variable NOPE is not set; export it, or write ${oc.env:NOPE,DEFAULT}",
        ),
        (
            ["lr=1,2"],
            "lr=1,2: has several values; add -m to sweep over them, write 'lr=[1,2]' for a list, "
            "or \"lr='1,2'\" for one string",
        ),
        (["zero=stage1,stage2"], "zero=stage1,stage2: has several values; add -m to sweep over them"),
        (
            ["experiment=it's å, b"],
            "experiment=it's å, b: has several values; add -m to sweep over them, "
            'write "experiment=[it\'s å, b]" for a list, '
            """or 'experiment="it'"'"'s å, b"' for one string""",
        ),
        (
            ["+cluster.env.A=x,y"],
            "+cluster.env.A=x,y: has several values; add -m to sweep over them, "
            "write '+cluster.env.A=[x,y]' for a list, "
            """or "+cluster.env.A='x,y'" for one string""",
        ),
        (["lr", "=", "1e-3"], "lr: there are spaces around its =; write lr=1e-3"),
        (["lr=", "1e-3"], "lr: there are spaces around its =; write lr=1e-3"),
        (["seed", "=3"], "seed: there are spaces around its =; write seed=3"),
        (
            ["--dry-run", "fast"],
            "'fast' has no value; write fast=VALUE",
        ),
        (["adapter=null"], "null is not the name of a config file; write a name, as in adapter=none"),
        (
            ["-m", "--cfg", "job"],
            "-m and --cfg cannot be combined; leave -m out to print one composed config",
        ),
        (["--config-dir", "nope"], "--config-dir: folder nope does not exist"),
    ],
)
def test_a_wrong_value_is_reported_in_one_line(mistake: ErrorOf, typed: list[str], line: str) -> None:
    assert mistake("train", "model=llama_tiny", *typed) == line


@dataclass(frozen=True)
class BadRecipe:
    """A faulty recipe (a config file of training settings).

    Attributes:
        content: the file's content after its first line.
        error: part of the error message.
    """

    id: str
    content: str | bytes
    error: str


BAD_RECIPES = [
    BadRecipe("tab", "lr: 1\n\tname: x\n", ", line 3, column 1: tab in the indentation; indent with spaces"),
    BadRecipe("indent", "lr: 1\n  name: x\n", ", line 3, column 7: unexpected colon or indentation"),
    BadRecipe("twice", "lr: 1\nlr: 2\n", ", line 3, column 1: key 'lr' is set twice"),
    BadRecipe("quote", 'name: "abc\nlr: 1\n', ", line 2, column 7: the quote opened here is not closed"),
    BadRecipe(
        "bracket",
        "data:\n  include_sources: [a, b\nlr: 1\n",
        ", line 3, column 20: the bracket opened here is not closed",
    ),
    BadRecipe("at", "name: @x\n", ", line 2, column 7: text that begins with @ must be in quotes"),
    BadRecipe("two", "lr: 1\n---\nlr: 2\n", ", line 3, column 1: a second YAML document begins"),
    BadRecipe("list", "- lr\n", ", line 2, column 1: must be a mapping"),
    BadRecipe("section", "data: [a]\n", ", line 2, column 1: data: must be a mapping"),
    BadRecipe("value", "lr: [1]\n", ", line 2, column 1: lr: '[1]' is not a number"),
    BadRecipe(
        "key",
        "data:\n  seq_len: 1\n",
        ", line 3, column 3: unknown setting 'data.seq_len'; did you mean 'data.sequence_length'?",
    ),
    BadRecipe(
        "default", "defaults:\n  - override /model: llama_tny\n", ", line 3: there is no model/llama_tny.yaml"
    ),
    BadRecipe(
        "group",
        "defaults:\n  - override /modell: llama_tiny\n",
        ", line 3: 'override modell' does not name a group",
    ),
    BadRecipe("slash", "defaults:\n  - override model: llama_tiny\n", "write '- override /model: NAME'"),
    BadRecipe(
        "mapping",
        "defaults:\n  model: llama_tiny\n",
        ", line 2: defaults must be a list; begin each of its lines with '- '",
    ),
    BadRecipe("latin", b"name: bl\xe5\n", ", line 2: not UTF-8"),
    BadRecipe("zero", b"name: a\x00b\n", ": character 28 is not allowed in YAML"),
]


@pytest.mark.parametrize("recipe", BAD_RECIPES, ids=lambda recipe: recipe.id)
def test_a_mistake_in_a_recipe_is_reported_with_its_line(
    mistake: ErrorOf, tmp_path: Path, recipe: BadRecipe
) -> None:
    file = tmp_path / "my" / "recipe" / f"{recipe.id}.yaml"
    file.parent.mkdir(parents=True)
    content = recipe.content if isinstance(recipe.content, bytes) else recipe.content.encode()
    file.write_bytes(GLOBAL.encode() + content)
    error = mistake("train", "--config-dir", "my", f"recipe={recipe.id}", "corpus=x")
    assert recipe.error in error
    assert f"my/recipe/{recipe.id}.yaml" in error or recipe.id == "slash"


@pytest.mark.parametrize("content", ["lr: 1\n", "", "only text\n", "\ufeff# @package _global_\nlr: 1\n"])
def test_a_recipe_without_its_package_line_is_rejected(
    mistake: ErrorOf, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "my" / "recipe" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    error = mistake("train", "--config-dir=my", "recipe=mine", "corpus=x")
    assert error.startswith("my/recipe/mine.yaml")
    assert "'# @package _global_'" in error


def test_a_mistake_in_another_config_file_is_reported_with_its_line(mistake: ErrorOf, tmp_path: Path) -> None:
    for name, content in {
        "cluster/nested": "cluster:\n  nodes: 2\n",
        "corpus/brace": "name: x\nsources:\n  a: {reader: jsonl\n",
        "corpus/key": CORPUS.replace("path", "pth"),
        "corpus/list": "name: x\nsources: [a]\n",
    }.items():
        file = tmp_path / "my" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert "remove the level 'cluster:'" in mistake("train", "--config-dir", "my", "cluster=nested")
    assert mistake("prepare", "--config-dir", "my", "corpus=brace").startswith(
        "my/corpus/brace.yaml, line 3, column 6: the bracket"
    )
    assert mistake("prepare", "--config-dir", "my", "corpus=key") == (
        "my/corpus/key.yaml, line 3, column 22: unknown setting 'corpus.sources.a.pth'; "
        "did you mean 'corpus.sources.a.path'?"
    )
    assert mistake("prepare", "--config-dir", "my", "corpus=list").startswith(
        "my/corpus/list.yaml, line 2, column 1: corpus.sources"
    )
    run = tmp_path / "runs" / "broken-1"
    run.mkdir(parents=True)
    (run / "provenance.json").write_text("{}")
    (run / "config.yaml").write_text("data: {corpus: c}\nmodel: {from_scratch: {model_type: llama}\n")
    assert mistake("logs", "broken-1").startswith("runs/broken-1/config.yaml, line 2, column 8: the bracket")


def test_unknown_corpora_runs_verbs_and_model_folders_get_a_suggestion(
    mistake: ErrorOf, tmp_path: Path
) -> None:
    write_corpus(tmp_path / "corpora" / "letters", num_documents=8, longest=20, seed=0)
    own = tmp_path / "my" / "corpus" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(CORPUS)
    assert "did you mean 'letters'? prepared corpora: letters" in mistake("train", *TINY, "corpus=leters")
    assert "run `finetune prepare corpus=sample` first" in mistake("train", *TINY, "corpus=sample")
    assert "run `finetune prepare corpus=mine --config-dir my` first" in mistake(
        "train", *TINY, "corpus=mine", "--config-dir", "my"
    )
    assert "did you mean 'mine'?" in mistake("train", *TINY, "corpus=mien", "--config-dir", "my")
    assert "did you mean 'letters'?" in mistake("inspect", "leters")
    (tmp_path / "models" / "norsk-7b").mkdir(parents=True)
    assert f"did you mean '{tmp_path}/models/norsk-7b'?" in mistake(
        "train", f"model={tmp_path}/models/norks-7b", "corpus=letters"
    )
    assert "did you mean 'models/norsk-7b'?" in mistake("train", "model=models/norsk7b", "corpus=letters")
    assert f"{tmp_path} has no folder 'modles'" in mistake(
        "train", f"model={tmp_path}/modles/a/b", "corpus=letters"
    )
    (tmp_path / "runs" / "lr-sweep-1").mkdir(parents=True)
    for name in ("config.yaml", "provenance.json"):
        (tmp_path / "runs" / "lr-sweep-1" / name).write_text("{}")
    for arguments in (
        ["status", "lr-swep-1"],
        ["resume", "lr-swep-1", "max_steps=3"],
        ["train", "model=run:lr-swep-1", "corpus=letters"],
    ):
        assert "did you mean 'lr-sweep-1'?" in mistake(*arguments)
    for typed, meant in {
        "trian": "train",
        "finetune": "train",
        "ls": "status",
        "Evaluate": "evaluate",
    }.items():
        assert f"unknown verb '{typed}'; did you mean '{meant}'?" in mistake(typed)
    assert "a verb comes first" in mistake("lr=1")


@pytest.mark.parametrize("folder", ["p%aq", "50%jobs", "%A", "%t"])
def test_a_runs_dir_with_a_pattern_of_submitit_is_rejected(mistake: ErrorOf, folder: str) -> None:
    assert mistake("train", *TINY, "corpus=x", f"runs_dir={folder}").startswith("runs_dir: ")


@pytest.mark.parametrize("folder", ["/a/%x", "/a/100%job", "/a/%4t", "/a/50%%", "/a/back\\slash"])
def test_a_folder_with_a_pattern_of_slurm_is_rejected_on_slurm(folder: str) -> None:
    with pytest.raises(ValueError, match=r"is replaced in the paths of a job.s logs"):
        check_log_folder("corpora_dir", folder, "slurm")


@pytest.mark.parametrize(
    "folder", ["/a b/100%", "/it's/R&D #1", "/c$HOME/[x]/(1)", '/æøå/q"q/semi;x', "/50% done"]
)
def test_other_special_characters_in_a_folder_are_accepted(folder: str) -> None:
    for scheduler in ("local", "slurm"):
        check_log_folder("runs_dir", folder, scheduler)


@pytest.mark.parametrize(
    "arguments",
    [
        ["resume"],
        ["resume", "--foo"],
        ["resume", "x", "max_steps"],
        ["status", "x", "--runs-dir"],
        ["logs"],
        ["logs", "x", "--rank", "a"],
        ["logs", "--rnk", "2", "x"],
        ["cancel"],
        ["cancel", "x", "--nwo"],
        ["retry"],
        ["retry", "x", "--all"],
        ["prune", "x", "--yess"],
        ["sync", "x", "--quiet"],
        ["ui", "--port", "x"],
        ["ui", "x"],
        ["completion", "fish"],
        ["completion"],
        ["inspect"],
        ["inspect", "x", "--sample", "a"],
        ["inspect", "x", "--colour"],
        ["evaluate"],
        ["evaluate", "x", "--corpus"],
        ["evaluate", "x", "y"],
        ["train", "--after"],
        ["train", "x=1", "--help-me"],
    ],
    ids=" ".join,
)
def test_a_wrong_call_of_any_verb_is_reported_in_one_line(mistake: ErrorOf, arguments: list[str]) -> None:
    assert mistake(*arguments)


def test_every_synonym_leads_to_an_existing_setting() -> None:
    known = {key for key, _ in iter_keys(TrainConfig)} | {
        "adapter.r",
        "adapter.lora_alpha",
        "adapter.lora_dropout",
    }
    known |= {"adapter.target_modules", "adapter.modules_to_save", "adapter.peft_type"}
    assert set(suggestions.SYNONYMS.values()) <= known
    assert set(suggestions.REPLACEMENTS) <= set(suggestions.SYNONYMS)
    assert not set(suggestions.SYNONYMS) & known


def test_settings_of_libraries_are_listed_without_importing_them() -> None:
    assert {"r", "lora_alpha", "use_dora", "peft_type"} <= set(suggestions.adapter_keys("LORA"))
    assert "target_r" in suggestions.adapter_keys("ADALORA")
    assert {"stage", "overlap_comm", "stage3_max_live_parameters"} <= set(suggestions.zero_keys())
    assert "num_key_value_heads" in suggestions.model_keys("llama")
    assert suggestions.adapter_keys("NONE") == ()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("zero=3", "did you mean 'stage3'?"), ("zero=12", "there is no zero/12.yaml; choose one of")],
)
def test_a_number_instead_of_a_files_name_is_reported_with_the_names(
    mistake: ErrorOf, typed: str, meant: str
) -> None:
    line = mistake("train", "model=llama_tiny", "corpus=sample", typed)
    assert line.startswith(f"{typed}: there is no zero/")
    assert meant in line


@pytest.mark.parametrize(
    ("typed", "missing"),
    [
        (["resume"], "RUN"),
        (["resume", "max_steps=3"], "RUN"),
        (["cancel"], "RUN"),
        (["evaluate"], "MODEL"),
        (["inspect"], "CORPUS"),
    ],
)
def test_a_missing_argument_is_named(mistake: ErrorOf, typed: list[str], missing: str) -> None:
    assert mistake(*typed) == f"{missing} is missing; `finetune {typed[0]} --help` lists the arguments"


@pytest.mark.parametrize(
    "fault",
    [ValueError("a library's own"), KeyError("ours"), RuntimeError("ours")],
    ids=lambda fault: type(fault).__name__,
)
def test_a_fault_of_the_program_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    monkeypatch.setattr(RunFolder, "all", lambda runs_dir: raise_(fault))
    with pytest.raises(type(fault)):
        cli.main(["status"])


@pytest.mark.parametrize("kind", [UserError, NotFoundError])
def test_a_user_error_is_printed_as_it_is(
    mistake: ErrorOf, monkeypatch: pytest.MonkeyPatch, kind: type[UserError]
) -> None:
    monkeypatch.setattr(RunFolder, "all", lambda runs_dir: raise_(kind("lr is 7: lower it")))
    assert mistake("status") == "lr is 7: lower it"
    assert isinstance(pickle.loads(pickle.dumps(kind("x"))), kind), "worker processes pickle the error"


def raise_(fault: Exception) -> NoReturn:
    raise fault


def test_a_file_that_the_package_would_hide_is_rejected(mistake: ErrorOf, tmp_path: Path) -> None:
    for file, arguments in (
        ("cluster/olivia.yaml", ["train", *TINY, "cluster=olivia"]),
        ("corpus/sample.yaml", ["prepare", "corpus=sample"]),
    ):
        own = tmp_path / "my" / file
        own.parent.mkdir(parents=True)
        own.write_text(CORPUS, "utf-8")
        error = mistake(*arguments, "--config-dir", "my")
        assert error.startswith(
            f"--config-dir: my/{file} would be ignored, because the package has a file of the same name"
        )
        assert f"rename yours, and select it by the new name ({own.parent.name}=NAME)" in error
        own.unlink()
