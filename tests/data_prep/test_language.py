"""Language and written standard, by stretches of text, with the source's word weighed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.language import accuracy, confusion, nav_pairs, recall, report, table_alone, ud_sentences
from data_prep.config import LanguageConfig
from data_prep.stages import language
from data_prep.written_standard import train
from data_prep.written_standard.table import features, shipped_table, words
from tests.data_prep.documents import config, document, through

NOB = (
    "Kommunen har mottatt søknaden din om barnehageplass, og vi vil behandle den innen tre uker. Hvis du ikke hører fra oss, kan "
    "du ringe sentralbordet. Dette vedtaket kan påklages, og klagen må sendes til oss før fristen går ut."
)
NNO = (
    "Kommunen har fått søknaden din om barnehageplass, og vi vil handsame han innan tre veker. Dersom du ikkje høyrer frå oss, "
    "kan du ringje sentralbordet. Dette vedtaket kan du klage på, og klaga må sendast til oss før fristen går ut."
)
DAN = (
    "Kommunen har modtaget din ansøgning om en plads i børnehaven, og vi behandler den inden for tre uger. Hvis du ikke hører "
    "fra os, kan du ringe til omstillingen. Afgørelsen kan påklages, og klagen skal sendes til os, inden fristen udløber."
)
TABLE = "\n".join(
    f"{3000 + i} | {place} | {i * 7},5 | {i * 3},25" for i, place in enumerate(["Halden", "Moss", "Sarpsborg"] * 20)
)


@pytest.mark.parametrize(("text", "code"), [(NOB, "nob"), (NNO, "nno"), (DAN, "dan")])
def test_a_document_is_in_the_language_of_its_text_whatever_its_source_says(text: str, code: str) -> None:
    for claim in ("", "nob", "nno", "eng"):
        assert language.judge(text).language(claim, LanguageConfig()) == code


def test_a_table_is_in_the_language_its_source_says() -> None:
    for claim in ("nob", "nno"):
        assert language.judge(TABLE).language(claim, LanguageConfig()) == claim
    assert language.judge(f"{NNO}\n\n{TABLE}").language("nob", LanguageConfig()) == "nno", "what clear text there is decides"


def test_said_twice_is_said_the_same_and_both_together_are_mixed() -> None:
    settings = LanguageConfig()
    for text, code in ((NOB, "nob"), (NNO, "nno"), (DAN, "dan")):
        assert language.judge("\n\n".join([text] * 5)).language("", settings) == code
    for text in (f"{NOB}\n\n{NNO}", "\n\n".join([NNO, NOB, NOB])):
        assert language.judge(text).language("nob", settings) == "nor"
    assert language.judge("\n\n".join([NOB] * 12 + [NNO])).language("", settings) == "nob", (
        "one paragraph of thirteen is a quotation"
    )


def test_stretches_hold_all_of_a_text_in_order() -> None:
    for text in (NOB, TABLE, f"{NOB}\n\n{NNO}\n\nKort.", "a\n\n" * 400, "", "x" * 9000):
        assert "".join("".join(language.stretches(text)).split()) == "".join(text.split())
    assert max(map(len, language.stretches(TABLE * 20))) < 2 * language.LONGEST


def test_what_is_kept_and_counted() -> None:
    documents = [document(text, id) for id, text in {"nob": NOB, "nno": NNO, "dan": DAN, "both": f"{NOB}\n\n{NNO}"}.items()]
    kept, said = through(language, documents, config())
    assert [d.language for d in kept] == ["nob", "nno", "nor"]
    assert said.drop_reasons() == {"language_dan": 1}
    assert said.counts["nor"] == 1
    kept, said = through(language, [document(f"{NOB}\n\n{NNO}")], config(language=LanguageConfig(keep=["nno"])))
    assert said.drop_reasons() == {"language_nor": 1}, "half of it is not wanted"
    kept, said = through(language, [document("Hei!", language="nno"), document("Hei!")], config())
    assert [d.language for d in kept] == ["nno"]
    assert said.drop_reasons() == {"language_undecided": 1}


def test_the_table_is_what_its_script_makes_and_holds_no_text(
    real_corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nav = real_corpora / "nav-pensjonsbrev" / "nav-pensjonsbrev-parallell.jsonl"
    monkeypatch.setattr(
        "sys.argv", ["train", "--ton", str(real_corpora / "stortinget-ton"), "--nav", str(nav), "--out", str(tmp_path / "t")]
    )
    train.main()
    shipped = Path(train.__file__).with_name("nob_nno.tsv")
    assert (tmp_path / "t").read_text() == shipped.read_text()
    assert all(re.fullmatch(r"-?[^\W\d_]+-?", feature) for feature in shipped_table().weights)


def test_a_table_learns_what_tells_two_texts_apart() -> None:
    weights = train.fit({"nob": ["ikke hjemme"] * 5, "nno": ["ikkje heime"] * 5})
    assert weights["ikkje"] > 0 > weights["ikke"]
    assert list(features("kommunane")) == ["kommunane", "-ane", "komm-", "-nane"]
    assert shipped_table().score(words(NNO)) > 50 > -50 > shipped_table().score(words(NOB))


def test_unseen_nav_files_and_gold_sentences_reach_the_marks(real_corpora: Path) -> None:
    """98.5% on NAV's files that the table was not trained on, and what facts say of sentences that nothing was tuned on."""
    nav = nav_pairs(real_corpora / "nav-pensjonsbrev" / "nav-pensjonsbrev-parallell.jsonl")
    assert accuracy(confusion(nav, table_alone)) >= 0.985
    ud = [(code, text) for code, text in ud_sentences(real_corpora / "ud") if len(text) >= 30]
    counts = confusion(ud, language.detect)
    assert sum(recall(counts, code) for code in counts) / len(counts) >= 0.979
    assert min(recall(counts, "nob"), recall(counts, "nno")) >= 0.95


def test_the_benchmark_prints_its_tables() -> None:
    body = report([("nob", NOB), ("nno", NNO), ("dan", DAN)], [("nob", NOB), ("nno", NNO)])
    assert "| UD, all | 3 |" in body
    assert "| nno | 0 | 1 |" in body
