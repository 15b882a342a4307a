"""The pages of docs/ build without warnings, load nothing external, and list all settings."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from omegaconf import OmegaConf

from data_prep import shards
from data_prep.config import READERS, PrepareConfig, SourceConfig
from data_prep.document import Report
from data_prep.reading import fields_of, options_of
from docs.generate import profiles as docs_profiles
from docs.generate import sites
from finetune.cli import verbs
from finetune.cli.exit_codes import ExitCode
from finetune.config.cluster import ClusterConfig, PrepareJobs
from finetune.config.train import CHANGEABLE, TrainConfig, conf_dir, from_omegaconf
from finetune.launch.environment import profiles
from finetune.runs import layout
from finetune.runs.state import EndingCause, FailureKind, RunState, StopReason
from finetune.tracking.names import FAMILIES, METRICS
from tests.built_docs import ROOT, PageContent, broken_links, build_docs, external_loads, parse_page

pytest.importorskip("sphinx", reason="needs finetune[docs]")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the built pages."""
    folder = tmp_path_factory.mktemp("docs") / "html"
    result = build_docs(ROOT / "docs", folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_pages_build_without_a_warning(built: Path) -> None:
    assert (built / "index.html").is_file()


def test_nothing_is_loaded_from_another_host(built: Path) -> None:
    assert external_loads(built) == []


def test_every_link_within_the_pages_resolves(built: Path) -> None:
    assert broken_links(built) == []


PLANTED_PAGE = """\
<html><head><link rel="stylesheet" href="https://fonts.example/a.css"><link rel="next" href="b.html">
<script src="//cdn.example/x.js"></script></head>
<body><p id="here" style="background: url(https://example.org/a.png)">
<a href="#here">good</a> <a href="#gone">no anchor</a> <a href="gone.html">no page</a>
<a href="https://example.org">left alone</a></p></body></html>
"""


def test_planted_loads_and_dangling_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PLANTED_PAGE, "utf-8")
    (tmp_path / "a.css").write_text(
        "/* url(https://not.example) */ @import 'https://x.example/y.css';", "utf-8"
    )
    assert broken_links(tmp_path) == ["a.html: #gone", "a.html: gone.html"]
    assert external_loads(tmp_path) == [
        "a.html: https://fonts.example/a.css",
        "a.html: //cdn.example/x.js",
        "a.html: https://example.org/a.png",
        "a.css: https://x.example/y.css",
    ]


def test_a_dangling_link_fails_the_build(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "conf.py").write_text('extensions = ["myst_parser"]\n', "utf-8")
    (source / "index.md").write_text("# Page\n\n[gone](gone.md) [anchor](#gone)\n", "utf-8")
    result = build_docs(source, tmp_path / "html")
    assert result.returncode != 0
    assert "gone" in result.stderr


# --- the reference pages ---


def names_on(built: Path, page: str) -> set[str]:
    """Return the text of all inline code on a reference page."""
    return parse_page(built / "reference" / f"{page}.html").codes


def setting_names(schema: Any) -> Iterator[str]:
    """Yield the name of each setting in a dataclass and in the dataclasses nested in it."""
    kinds = get_type_hints(schema)
    for item in dataclasses.fields(schema):
        inner = [
            kind for kind in (kinds[item.name], *get_args(kinds[item.name])) if dataclasses.is_dataclass(kind)
        ]
        if inner:
            yield from setting_names(inner[-1])
        else:
            yield item.name


def last_parts(names: set[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


@pytest.mark.parametrize(
    ("page", "schema"),
    [
        ("train-settings", TrainConfig),
        ("prepare-settings", PrepareConfig),
        ("prepare-settings", PrepareJobs),
    ],
)
def test_every_setting_is_on_its_page(built: Path, page: str, schema: type[Any]) -> None:
    assert set(setting_names(schema)) - last_parts(names_on(built, page)) == set()


def test_settings_of_the_page_have_their_full_keys(built: Path) -> None:
    assert {"lr", "cluster.nodes", "cluster.site.queues.NAME.max_nodes"} <= names_on(built, "train-settings")
    assert {"corpus.sources.NAME.reader", "corpus.language.keep", "cluster.prepare.tasks"} <= names_on(
        built, "prepare-settings"
    )


def test_allowed_values_are_listed_with_their_setting(built: Path) -> None:
    text = " ".join(parse_page(built / "reference" / "train-settings.html").text.split())
    assert "schedule · text · default cosine · constant, linear, cosine, wsd" in text
    assert "adam_beta1 · float · default 0.9 · from 0 below 1" in text
    assert "cluster.nodes · int · default 1 · at least 1" in text


def test_every_reader_is_on_its_page_with_its_fields_and_options(built: Path) -> None:
    names = names_on(built, "readers")
    for reader in READERS:
        options = options_of(reader)
        assert set(fields_of(reader)) <= names, reader
        assert options is None or set(setting_names(options)) <= names, reader
        assert reader in parse_page(built / "reference" / "readers.html").anchors


def test_every_verb_is_on_its_page_with_its_options(built: Path) -> None:
    page = parse_page(built / "reference" / "verbs.html")
    assert {verb.name for verb in verbs.VERBS} <= page.anchors
    assert page.text.count("usage: finetune") == len(verbs.VERBS)
    assert "--against MODEL" in page.text


def test_every_metric_is_on_its_page_with_its_unit_and_meaning(built: Path) -> None:
    page = parse_page(built / "reference" / "metrics.html")
    text = " ".join(page.text.split())
    assert set(METRICS) | {f"{family.prefix}<name>" for family in FAMILIES} <= page.codes
    for metric in (*METRICS, *FAMILIES):
        assert metric.unit in text
        assert metric.meaning.replace("`", "") in text


def test_every_name_of_the_layout_is_on_its_page(built: Path) -> None:
    names = {name.removesuffix("/") for name in names_on(built, "run-folder")}
    constants = {value for name, value in vars(layout).items() if name.isupper() and isinstance(value, str)}
    assert len(constants) > 40
    assert constants - names == set()
    patterns = [re.compile(re.sub("<[a-z]+>", ".+", re.escape(name).replace("\\<", "<"))) for name in names]
    for name in numbered_names():
        assert any(pattern.fullmatch(name) for pattern in patterns), name


def numbered_names() -> list[str]:
    """Call each function of layout.py that returns a file or folder name; return the names."""
    examples = []
    for function in vars(layout).values():
        if not inspect.isfunction(function) or function.__annotations__.get("return") != "str":
            continue
        kinds = {name: kind for name, kind in function.__annotations__.items() if name != "return"}
        assert set(kinds.values()) <= {"int", "str", "int | str"}
        values = {"int": 7, "str": "x", "int | str": "x"}
        examples.append(function(**{name: values[kind] for name, kind in kinds.items()}))
    assert len(examples) > 8
    return examples


def test_every_column_of_a_shard_and_key_of_the_manifest_is_on_its_page(built: Path) -> None:
    records = (
        shards.Manifest,
        shards.ShardInfo,
        shards.SourceInfo,
        shards.StageInfo,
        shards.Loss,
        shards.TokenizerInfo,
    )
    expected = {*shards.TEXT_COLUMNS, *shards.MASK_COLUMNS, "input_ids"}
    expected |= {item.name for record in records for item in dataclasses.fields(record)}
    assert expected - names_on(built, "corpus-format") == set()


def test_every_state_and_exit_code_is_on_its_page(built: Path) -> None:
    expected = {*map(str, RunState), *map(str, EndingCause), *map(str, FailureKind)}
    expected |= {reason.name for reason in StopReason}
    assert expected - names_on(built, "states") == set()
    page = parse_page(built / "reference" / "exit-codes.html")
    assert {str(int(code)) for code in ExitCode} <= page.codes
    assert all(code.meaning in page.text for code in ExitCode)


# --- the pages of sites ---

NOT_SITES = {"local", "testcluster"}
SITE_PROFILES = sorted({path.stem for path in (conf_dir() / "cluster").glob("*.yaml")} - NOT_SITES)
WALKTHROUGHS = {
    "lumi": "lumi",
    "lumi_small": "lumi",
    "olivia": "olivia",
    "saga": "saga",
    "saga_a100": "saga",
}


def site_page(built: Path, name: str) -> PageContent:
    """Return the page of the cluster profile `name`, with the page's text on one line."""
    page = parse_page(built / "sites" / "profiles" / f"{name}.html")
    return dataclasses.replace(page, text=" ".join(page.text.split()))


def test_every_profile_of_a_site_has_its_page_and_no_other_is_there(built: Path) -> None:
    assert len(SITE_PROFILES) == 14
    assert sorted(path.stem for path in (built / "sites" / "profiles").glob("*.html")) == SITE_PROFILES
    links = parse_page(built / "sites" / "README.html").links
    assert [name for name in SITE_PROFILES if f"profiles/{name}.html" not in links] == []


@pytest.mark.parametrize("name", SITE_PROFILES)
def test_each_source_is_on_the_page_with_its_date_confidence_and_facts(built: Path, name: str) -> None:
    page = site_page(built, name)
    sources = profiles()[name].site.sources
    assert sources
    for number, source in enumerate(sources, start=1):
        plain = " ".join(source.source.replace("`", "").split())
        heading = f"Source {number}: {source.confidence}, {source.date}"
        assert re.search(rf"{re.escape(heading)}\S* {re.escape(plain)}", page.text), heading
        assert set(source.facts) <= page.codes


@pytest.mark.parametrize("name", SITE_PROFILES)
def test_the_page_begins_with_its_use_and_that_it_was_not_run_there(built: Path, name: str) -> None:
    page = site_page(built, name)
    site = profiles()[name].site
    python = f" cluster.python='{site.python_example}'" if site.python_example else ""
    use = f"cluster={name} cluster.account={site.account_example or '…'}{python}"
    warning = "This profile was not run on the machine that it describes."
    assert f"Add {use} to finetune train or finetune prepare. {warning}" in page.text
    assert site.confidence != "tested"
    assert ("Step by step: " in page.text) == (name in WALKTHROUGHS)
    if name in WALKTHROUGHS:
        title = site_page(built, f"../{WALKTHROUGHS[name]}").text.partition(" - finetune")[0]
        assert f"Step by step: {title}, run on the project's test cluster" in page.text


@pytest.mark.parametrize("name", SITE_PROFILES)
def test_the_page_holds_every_setting_of_the_profile(built: Path, name: str) -> None:
    page = site_page(built, name)
    cluster = profiles()[name]
    facts = (cluster.site.accelerator, cluster.site.gpus_per_node, cluster.site.cores_per_node)
    assert all(str(fact) in page.text for fact in facts if fact is not None)
    assert set(cluster.site.queues) <= page.codes
    assert all(limits.note is None or limits.note in page.text for limits in cluster.site.queues.values())
    assert all(note in page.text for note in cluster.site.notes)
    variables = {**cluster.env, **cluster.env_one_node, **cluster.env_many_nodes}
    assert all(f"export {variable}=" in page.text for variable in variables)
    assert all(f"module {command}" in page.text for command in cluster.modules)
    typed = {name for code in page.codes for name in re.findall(r"(?:^| )cluster\.([\w.-]+)=", code)}
    typed |= {name.partition(".")[0] for name in typed}
    values = docs_profiles.read_profiles()[name].values
    prepare = {f"prepare.{key}" for key in values.get("prepare", {})}
    assert (values.keys() - sites.ELSEWHERE | prepare) - typed == set()


def test_the_overview_of_sites_is_written_from_the_profiles() -> None:
    text = sites.README.read_text("utf-8")
    assert sites.with_overview(text) == text, "run `make cluster-env`"


def test_a_setting_has_the_source_that_names_it_most_specifically() -> None:
    profile = docs_profiles.read_profiles()["ex3"]
    assert [number for number, _ in profile.sources_of("site.gpu_architecture")] == [2]
    assert [number for number, _ in profile.sources_of("site.docs")] == [1]
    assert [number for number, _ in profile.sources_of("site")] == [1, 2]
    assert profile.origin("timeout_min") == "choice of the profile"
    assert profile.origin("local_cache") == "default"


# --- examples of the guides ---


def code_blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a language on a page of docs/."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text("utf-8"), re.DOTALL)


CASE = (
    "id: 7\ntitle: Naust\ncase: 12/3\nstatus: {status}\ndate: 13.2.2014\nlanguage: nn\n\nKommunen seier ja."
)


def test_the_reader_of_the_guide_reads_documents_and_quarantines_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = code_blocks("how-to/write-a-source.md", "python")[0]
    (tmp_path / "reader_of_the_guide.py").write_text(block, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    reader = importlib.import_module("reader_of_the_guide")
    folder = tmp_path / "cases"
    folder.mkdir()
    texts = {"a": CASE.format(status="closed"), "b": CASE.format(status="open"), "c": "no head"}
    for name, text in texts.items():
        (folder / f"{name}.case").write_text(text, "utf-8")
    source = SourceConfig(reader="guide", path=str(folder), license="CC0-1.0", options={"closed_only": True})
    report = Report()
    (document,) = reader.read("cases", source, report, reader.list_files(source))
    assert (document.id, document.group, document.title) == ("7", "12/3", "Naust")
    assert (document.date, document.language) == ("2014-02-13", "nno")
    assert document.text == "Kommunen seier ja."
    assert report.counts["open_cases_left_out"] == 1
    assert [broken.file for broken in report.broken] == ["c.case"]


def test_the_profile_of_the_guide_is_a_valid_profile() -> None:
    text = "".join(code_blocks("how-to/write-a-cluster-profile.md", "yaml"))
    cluster = from_omegaconf(OmegaConf.merge(OmegaConf.create(text), {"account": "nn1234k"}), ClusterConfig)
    assert (cluster.name, cluster.world_size, cluster.site.queues["devel"].max_nodes) == ("fjell", 4, 1)


def test_the_guide_names_an_existing_corpus_file_for_each_reader() -> None:
    text = (ROOT / "docs" / "how-to" / "read-sources.md").read_text("utf-8")
    rows = re.findall(r"\| `(\w+)` \| `(\w+\.yaml)` \|", text)
    assert {reader for reader, _ in rows} == set(READERS)
    for reader, file in rows:
        assert f"reader: {reader}\n" in (ROOT / "conf" / "corpus" / file).read_text("utf-8")


def test_the_guide_lists_the_settings_that_a_resumed_run_may_change() -> None:
    page = (ROOT / "docs" / "how-to" / "resume-and-retry.md").read_text("utf-8")
    assert [name for name in CHANGEABLE if f"`{name}`" not in page] == []


def test_files_that_the_pages_name_exist() -> None:
    pages = [page for folder in ("how-to", "concepts") for page in (ROOT / "docs" / folder).glob("*.md")]
    path_in_code = r"`((?:conf|data_prep|src|slurm|tests|benchmarks)/[\w./]+)`"
    named = {name for page in pages for name in re.findall(path_in_code, page.read_text("utf-8"))}
    invented = {"tests/data_prep/test_storvik.py", "slurm/env/fjell.sh", "tests/sbatch/fjell.sh"}
    assert len(named) > 15
    assert [name for name in named - invented if not (ROOT / name).exists()] == []
