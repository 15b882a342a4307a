"""The benchmark of letters that a source loses (benchmarks/letters.py), on invented texts.

Letters are counted in the files of the source and after each stage. Missing pieces of text are
listed by kind.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import bodies, letters
from benchmarks.bodies import Piece

BODY = [Piece("p", "Kommunen gir løyve."), Piece("note", "Se § 4 i lova."), Piece("p", "Kommunen gir løyve.")]


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("Kommunen gir løyve. Se § 4 i lova. Kommunen gir løyve.", {}),
        ("Kommunen gir løyve.\n\nKommunen gir løyve.", {"note": 7}),
        ("Kommunen gir løyve. Se i lova", {"p": 16}),
        ("Kommunen gir  løyve Kommunengirløyve Se i lova", {}),
        ("Se i lova. Kommunen gir … Kommunen gir løyve", {"p": 5}),
        ("", {"p": 32, "note": 7}),
    ],
)
def test_missing_letters_are_counted_by_their_place_in_the_file(text: str, missing: dict[str, int]) -> None:
    assert letters.count_missing(BODY, text) == missing


def test_the_letters_of_a_source_are_counted_in_its_files_and_after_each_stage(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    same = (
        "Kommunen har behandla søknaden og gir løyve etter plan- og bygningslova til det som det er søkt om."
    )
    for name, text in {"a": same, "b": same, "c": "Ja."}.items():
        (folder / f"{name}.txt").write_text(text)
    found = letters.measure(letters.Source("text", "raw"), folder, tmp_path / "work")
    once = letters.count_letters(same)
    assert (found.files, found.documents, found.body, found.read) == (3, 3, 2 * once + 2, 2 * once + 2)
    assert not found.missing
    assert found.stages["normalise"][0] == found.read
    lost = {name: dict(reasons) for name, (_, reasons) in found.stages.items() if reasons}
    assert sum(sum(reasons.values()) for reasons in lost.values()) == once + 2
    assert lost["deduplicate"] == {"exact_duplicate": once}
    assert [line for line in letters.table([found]) if "exact_duplicate" in line]


def test_pieces_of_markdown_and_html_are_named_by_their_kind(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "---\ntitle: Tittel\n---\nLes [meir](http://a.no/b) <b>no</b>. {% include x %}\n"
    )
    pieces = bodies.read_pieces("markdown", tmp_path / "a.md")
    names = {piece.name for piece in pieces if letters.count_letters(piece.text)}
    assert names == {"front matter", "text", "address", "tag", "template"}
    (tmp_path / "a.html").write_text(
        "<body><nav>Meny</nav><main><p>Tekst<script>x()</script></p></main></body>"
    )
    assert [p.text for p in bodies.read_pieces("webpage", tmp_path / "a.html") if p.text.strip()] == ["Tekst"]
