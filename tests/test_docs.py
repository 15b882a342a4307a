"""The pages of docs/ build without a warning, load nothing from outside, and hold what the code declares."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.built_docs import ROOT, broken_links, build_docs, external_loads

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
