"""Arguments reach the config as typed, or are rejected in one line with the correct form."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from omegaconf import OmegaConf

from finetune.cli import main as cli
from finetune.cli import train as train_command
from finetune.cli.overrides import Parser, hydra_arguments, quote_setting, register_json_resolver, to_dotlist
from finetune.config.train import TrainConfig


def read(setting: str) -> Any:
    """Return the value that the config gets from a setting `key=value`."""
    register_json_resolver()
    override = OverridesParser.create().parse_override(quote_setting(setting))
    return OmegaConf.to_object(OmegaConf.create({"value": override.value()}))["value"]  # type: ignore[index]


def points(setting: str) -> list[str]:
    """Return the values of a sweep such as `lr=1,2`, without quotes."""
    override = OverridesParser.create().parse_override(quote_setting(setting))
    assert override.is_sweep_override()
    found = [
        OverridesParser.create().parse_override(f"x={text}").value()
        for text in override.sweep_string_iterator()
    ]
    return [value.text if isinstance(value, QuotedString) else value for value in found]


@pytest.mark.parametrize(
    "text",
    [
        "/path/to/Språk modell",
        "/a/b (1)/c",
        "R&D #1",
        "Ola's",
        "a=b=c",
        "[a b",
        "a]",
        "(1",
        "/x/{y",
        "🚀",
        ".*\\.(q|k)_proj$",
        "^model\\.layers\\.[0-9]+$",
        "http://user@host:80/p?q=1&r=2#top",
        "C:\\Users\\Ola (x)\\",
        '5" disk',
        "it's 5\"",
        "<b>!;^`",
        "a–b",
        "50% (%j)",
        "$HOME/é",
        "x~y",
        "first\nsecond&",
        'export X="a b"; echo $X',
        "'a'b'",
        "d'Été",
    ],
)
def test_a_text_that_hydra_cannot_parse_is_passed_on_literally(text: str) -> None:
    assert read(f"key={text}") == text


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("cluster.srun=[--export=ALL]", ["--export=ALL"]),
        ("cluster.srun=[--export=ALL, -x, --comment=å b]", ["--export=ALL", "-x", "--comment=å b"]),
        ("x=[[a=b,c],{d: é}]", [["a=b", "c"], {"d": "é"}]),
        ("x=[\"b, c\",module load x=y,'d=e']", ["b, c", "module load x=y", "d=e"]),
        (
            "x={a: b=c, d: 'e, f', g: {h: i&j, n: 1e-4, o: null}}",
            {"a": "b=c", "d": "e, f", "g": {"h": "i&j", "n": 1e-4, "o": None}},
        ),
        ("+adapter.rank_pattern={.*q_proj:4}", {".*q_proj": 4}),
        ('+adapter.rank_pattern={"^model.q_proj": 4, "b": [1, å]}', {"^model.q_proj": 4, "b": [1, "å"]}),
        ("+adapter.rank_pattern={^(q|k)_proj$: 4}", {"^(q|k)_proj$": 4}),
        ("x={(q|k)_proj:4, å: é}", {"(q|k)_proj": 4, "å": "é"}),
        ('x={"5": true}', {"5": True}),
        ("x={http://a?b=c: d#e}", {"http://a?b=c": "d#e"}),
    ],
)
def test_lists_and_mappings_are_quoted_element_by_element(setting: str, value: Any) -> None:
    assert read(setting) == value


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("x=é,b c,d&e", ["é", "b c", "d&e"]),
        ("x=[--a=1],[--b=2]", [["--a=1"], ["--b=2"]]),
        ("x=Ola's,Per's", ["Ola's", "Per's"]),
        ("x='a, b',é", ["a, b", "é"]),
        ("x=choice(å,b)", ["å", "b"]),
        ("x=a\\, é,b", ["a, é", "b"]),
    ],
)
def test_each_point_of_a_sweep_is_quoted(setting: str, values: list[Any]) -> None:
    assert points(setting) == values


@pytest.mark.parametrize(
    "setting",
    [
        "lr=1e-4",
        "x=a,b",
        "x=[a,b]",
        "x=my corpus",
        "x='a b'",
        "x=range(1,10)",
        "~x",
        "+x=1",
        "x=",
        "x=a: b",
        "x=${oc.env:USER}",
        "x=-1",
        "recipe@y=a",
        "x={a: 1}",
        "x=a\\=b",
        "x=$HOME",
        "x=%j",
        "x=?",
    ],
)
def test_a_setting_that_hydra_parses_is_unchanged(setting: str) -> None:
    assert quote_setting(setting) == setting


def test_a_home_folder_is_expanded() -> None:
    assert read("x=~/a b") == str(Path("~/a b").expanduser())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lr"], "'lr' has no value"),
        (["lr", "=", "1"], "write lr=1"),
        (["lr:1e-4"], "write lr=1e-4"),
        (["lr =1"], "write lr=1"),
        (["model=/p/Språk", "modell"], "write 'model=/p/Språk modell'"),
        (["model=/p/Språk", "modell/7B"], "write 'model=/p/Språk modell/7B'"),
        (["mine.yaml"], "--config-dir FOLDER recipe=mine"),
        (["x=“a b”"], "typographic quotes"),
        (["“lr=1”"], "typographic"),
        (["–config-dir", "x"], "write --config-dir"),
        (["cluster.env.ÆØÅ=1"], "cannot contain 'Æ'"),
        (["=1"], "has no key"),
        (["x={a}"], "a key of this mapping has no value"),
        (["x=[é,,b]"], "the value cannot be parsed"),
        (["--lr", "1e-4"], "write lr=1e-4"),
        (["--learning-rate=2"], "write lr=2"),
        (["--runs-dir", "x"], "write runs_dir=x"),
        (["--config-dri", "x"], "did you mean '--config-dir'?"),
        (["--config-dir"], "its value is missing"),
    ],
)
def test_an_unreadable_argument_is_reported_with_its_right_form(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        hydra_arguments(arguments)
    assert "\n" not in str(refused.value)


def test_options_are_accepted_anywhere() -> None:
    arguments = ["a=1", "--config-dir", "my", "b=é", "-m", "--cfg=job"]
    assert hydra_arguments(arguments) == ["--config-dir", "my", "-m", "--cfg=job", "a=1", "b='é'"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("cluster.srun=[--export=ALL]", ["--export=ALL"]),
        ("cluster.env={A: b=c}", {"A": "b=c"}),
        ("cluster.python=apptainer exec --bind a:b x: y", "apptainer exec --bind a:b x: y"),
        ("cluster.python=a,b", "a,b"),
        ("cluster.partition=%x", "%x"),
        ("cluster.account=@é", "@é"),
        ("max_steps=30", 30),
        ("max_steps=null", None),
        ("spike_stds=1e-5", 1e-5),
    ],
)
def test_resume_parses_settings_like_train(setting: str, value: Any) -> None:
    read = OmegaConf.from_dotlist(to_dotlist([setting]))
    assert OmegaConf.to_object(
        OmegaConf.create({"x": OmegaConf.select(read, setting.partition("=")[0])})
    ) == {"x": value}


def test_options_and_settings_of_a_verb_are_accepted_in_any_order() -> None:
    parser = Parser(prog="finetune resume")
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("run")
    parser.add_argument("settings", nargs="*")
    for arguments in (
        ["R", "--runs-dir", "D", "a=1", "b=-1"],
        ["--runs-dir", "D", "R", "a=1", "b=-1"],
        ["R", "a=1", "b=-1", "--runs-dir=D"],
    ):
        options = parser.parse_args(arguments)
        assert (options.run, options.runs_dir, options.settings) == ("R", "D", ["a=1", "b=-1"])
    with pytest.raises(ValueError, match=r"unknown option --run-dir; did you mean '--runs-dir'\?"):
        parser.parse_args(["R", "--run-dir", "D"])
    with pytest.raises(ValueError, match=r"RUN is missing; `finetune resume --help`"):
        parser.parse_args([])


@pytest.fixture
def composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[TrainConfig]]:
    """Return a function that runs `finetune train` without submitting; it returns the configs."""
    monkeypatch.chdir(tmp_path)
    found: list[TrainConfig] = []

    def submit(points: list[TrainConfig], *_: object, **__: object) -> list[None]:
        found.extend(points)
        return [None] * len(points)

    monkeypatch.setattr(train_command, "run_points", submit)

    def run(*arguments: str) -> list[TrainConfig]:
        found.clear()
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", *arguments])
        assert ended.value.code == 0
        return list(found)

    return run


def test_values_reach_the_config_of_a_run(composed: Callable[..., list[TrainConfig]]) -> None:
    pattern = '+adapter.rank_pattern={"^model.layers.0.(q|k)_proj": 2}'
    setup = 'cluster.setup=[export X="a b"; echo $X, umask 007 # group]'
    (config,) = composed(
        "model=/data/Språk (7B) & modell", "corpus=mitt korpus #1", pattern, setup, "runs_dir=R&D/kjøringer"
    )
    assert config.model.path == "/data/Språk (7B) & modell"
    assert config.data.corpus == "mitt korpus #1"
    assert config.adapter["rank_pattern"] == {"^model.layers.0.(q|k)_proj": 2}
    assert config.cluster.setup == ['export X="a b"; echo $X', "umask 007 # group"]
    assert config.runs_dir == "R&D/kjøringer"


def test_values_reach_each_point_of_a_sweep(composed: Callable[..., list[TrainConfig]]) -> None:
    sweep = [
        "model=/data/Språk modell,/data/b=c",
        "corpus=choice(høringer,sak#1)",
        'cluster.srun=[--export=ALL],["a b"]',
    ]
    points = composed("-m", *sweep, '+adapter.alpha_pattern={"^q": 1}')
    expected = itertools.product(
        ["/data/Språk modell", "/data/b=c"], ["høringer", "sak#1"], [["--export=ALL"], ["a b"]]
    )
    assert [(p.model.path, p.data.corpus, p.cluster.srun) for p in points] == list(expected)
    assert all(p.adapter["alpha_pattern"] == {"^q": 1} for p in points)
