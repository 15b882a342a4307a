"""A document's language and written standard are found from its text and its source's claim."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from benchmarks.language import (
    accuracy,
    count_confusion,
    describe_languages,
    detect_by_table,
    read_nav_pairs,
    read_ud_sentences,
    read_unambiguous_nav,
    recall,
)
from data_prep.document import Document, Turn
from data_prep.passages import MAX_STRETCH, split_into_stretches
from data_prep.stage_settings import LanguageConfig
from data_prep.stages import language
from data_prep.stages.language import Language
from data_prep.written_standard import train
from data_prep.written_standard.table import (
    NEIGHBOURS,
    STANDARDS_TABLE,
    iter_features,
    load_shipped_table,
    words,
)
from tests.data_prep.documents import make_config, make_document, run_shard_stage
from tests.data_prep.paragraphs import DAN, NNO, NOB

TABLE = "\n".join(
    f"{3000 + i} | {place} | {i * 7},5 | {i * 3},25"
    for i, place in enumerate(["Halden", "Moss", "Sarpsborg"] * 20)
)


@pytest.mark.parametrize(("text", "code"), [(NOB, "nob"), (NNO, "nno"), (DAN, "dan")])
def test_the_text_overrules_the_language_that_its_source_claims(text: str, code: str) -> None:
    for claim in ("", "nob", "nno", "eng"):
        assert language.judge(text).language(claim, LanguageConfig()) == code


def test_a_table_has_the_language_that_its_source_claims() -> None:
    for claim in ("nob", "nno"):
        assert language.judge(TABLE).language(claim, LanguageConfig()) == claim
    judgement = language.judge(f"{NNO}\n\n{TABLE}")
    assert judgement.language("nob", LanguageConfig()) == "nno", "the clear part of the text decides"


def test_repetition_changes_no_language_and_two_standards_are_mixed() -> None:
    settings = LanguageConfig()
    for text, code in ((NOB, "nob"), (NNO, "nno"), (DAN, "dan")):
        assert language.judge("\n\n".join([text] * 5)).language("", settings) == code
    for text in (f"{NOB}\n\n{NNO}", "\n\n".join([NNO, NOB, NOB])):
        assert language.judge(text).language("nob", settings) == "nor"
    judgement = language.judge("\n\n".join([NOB] * 12 + [NNO]))
    assert judgement.language("", settings) == "nob", "one paragraph of thirteen is a quotation"


def test_stretches_hold_the_whole_text_in_order() -> None:
    for text in (NOB, TABLE, f"{NOB}\n\n{NNO}\n\nKort.", "a\n\n" * 400, "", "x" * 9000):
        assert "".join("".join(split_into_stretches(text)).split()) == "".join(text.split())
    assert max(map(len, split_into_stretches(TABLE * 20))) < 2 * MAX_STRETCH


def test_unwanted_languages_are_dropped_and_counted() -> None:
    texts = {"nob": NOB, "nno": NNO, "dan": DAN, "both": f"{NOB}\n\n{NNO}"}
    documents = [make_document(text, id) for id, text in texts.items()]
    kept, report = run_shard_stage(Language(), documents, make_config())
    assert [d.language for d in kept] == ["nob", "nno", "nor"]
    assert report.drop_reasons() == {"language_dan": 1}
    assert report.counts["nor"] == 1
    kept, report = run_shard_stage(
        Language(),
        [make_document(f"{NOB}\n\n{NNO}")],
        make_config(language=LanguageConfig(keep=["nno"])),
    )
    assert report.drop_reasons() == {"language_nor": 1}, "half of the text is in an unwanted standard"
    kept, report = run_shard_stage(
        Language(), [make_document("Hei!", language="nno"), make_document("Hei!")], make_config()
    )
    assert [d.language for d in kept] == ["nno"]
    assert report.drop_reasons() == {"language_undecided": 1}


def test_a_conversation_has_the_language_of_its_answers() -> None:
    def make_pair(question: str, answer: str, claim: str = "") -> Document:
        turns = [
            Turn(role="user", content=question, target=False),
            Turn(role="assistant", content=answer, target=True),
        ]
        return make_document("", turns=turns, language=claim)

    settings = make_config(language=LanguageConfig(keep=["nob", "nno", "dan"]))
    conversations = [
        make_pair(NOB, NNO),
        make_pair(NOB, NNO, "nno"),
        make_pair(NNO, NOB),
        make_pair(NNO * 4, DAN),
        make_pair(NOB, "Berre ein fjerdedel", "nno"),
    ]
    kept, report = run_shard_stage(Language(), conversations, settings)
    assert [d.language for d in kept] == ["nno", "nno", "nob", "dan", "nno"]
    assert report.counts["nor"] == 0
    names = "Flora, Eunomia, Koronis, Eos, Themis, Vesta, Hungaria og Phocaea-familiene"
    kept, _ = run_shard_stage(Language(), [make_pair(NNO, "17. mai"), make_pair(NOB, names)], settings)
    assert [d.language for d in kept] == ["nno", "nob"], "a short answer has the language of its question"


def test_the_claim_decides_a_sentence_that_could_be_norwegian_or_danish() -> None:
    sentence = "Norske barn har god demokratiforståelse, og de trives i skolen."
    for claim in ("nob", "dan"):
        assert language.judge(sentence).language(claim, LanguageConfig()) == claim
    assert language.judge(DAN).language("nob", LanguageConfig()) == "dan"


def test_the_shipped_table_equals_the_output_of_its_script_and_holds_no_text(
    real_corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nav = real_corpora / "nav-pensjonsbrev" / "nav-pensjonsbrev-parallell.jsonl"
    monkeypatch.setattr(
        "sys.argv",
        [
            "train",
            "--ton",
            str(real_corpora / "stortinget-ton"),
            "--nav",
            str(nav),
            "--out",
            str(tmp_path),
        ],
    )
    train.main()
    shipped = Path(train.__file__).with_name(STANDARDS_TABLE)
    assert (tmp_path / STANDARDS_TABLE).read_text() == shipped.read_text()
    for name in (STANDARDS_TABLE, *NEIGHBOURS.values()):
        assert all(re.fullmatch(r"-?[^\W\d_]+-?", feature) for feature in load_shipped_table(name).weights)


def test_weights_separate_two_standards() -> None:
    weights = train.compute_log_odds(
        train.count_features(["ikkje heime"] * 5), [train.count_features(["ikke hjemme"] * 5)]
    )
    assert weights["ikkje"] > 0 > weights["ikke"]
    weights = train.compute_log_odds(train.count_features(["heime"]), [train.count_features(["hjemme"])])
    assert weights == {}, "a word that occurs once may be a name"
    assert list(iter_features("kommunane")) == ["kommunane", "-ane", "komm-", "-nane"]
    assert load_shipped_table().score(words(NNO)) > 50 > -50 > load_shipped_table().score(words(NOB))


def test_topics_of_norwegian_texts_are_not_evidence_of_norwegian() -> None:
    parallel = [
        train.count_features(["åpne filen av deg"] * 5),
        train.count_features(["opne fila av deg"] * 5),
    ]
    danish = train.count_features(["åbne filen af dig"] * 5)
    parliament = train.count_features(["ministeren svarte dig"] * 5)
    weights = train.compute_neighbour_log_odds(danish, parallel, [parliament])
    assert weights["af"] > 0 > weights["av"]
    assert "ministeren" not in weights
    assert weights["dig"] < train.compute_log_odds(danish, parallel)["dig"], (
        "the word occurs in parliament too"
    )


def test_neighbour_tables_are_trained_on_messages_translated_in_all_languages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = {
        "nb": ["Åpne <b>~filen</b> %1 av deg", "Bare bokmål"],
        "nn": ["Opne <b>~fila</b> %1 av deg", "only"],
        "da": ["Åbne <b>~filen</b> %1 af dig"],
        "sv": ["Öppna <b>~filen</b> %1 av dig"],
    }
    for locale, texts in messages.items():
        folder = tmp_path / train.MESSAGES.format(locale)
        folder.mkdir(parents=True)
        write_messages(folder / "a.mo", dict(zip(["open", "only"], texts, strict=False)))
    found = train.read_messages(tmp_path)
    assert {language: [text.split() for text in texts] for language, texts in found.items()} == {
        "nob": [["Åpne", "filen", "av", "deg"]],
        "nno": [["Opne", "fila", "av", "deg"]],
        "dan": [["Åbne", "filen", "af", "dig"]],
        "swe": [["Öppna", "filen", "av", "dig"]],
    }
    for standard in train.STANDARDS:
        (tmp_path / train.SENTENCES.format(standard)).write_text("Her er vi.\n", encoding="utf-8")
    (tmp_path / "nav").write_text('{"path": "a", "nob": "ikke", "nno": "ikkje"}\n', encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(train, "MIN_COUNT", 1)
    corpora = ["--ton", str(tmp_path), "--nav", str(tmp_path / "nav"), "--messages", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["train", *corpora, "--out", str(out)])
    train.main()
    assert "\naf\t" in (out / NEIGHBOURS["dan"]).read_text(encoding="utf-8")
    assert "\növ" not in (out / NEIGHBOURS["swe"]).read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="contains no messages"):
        train.read_messages(out)


def write_messages(file: Path, translations: dict[str, str]) -> None:
    """Write a message catalogue in the format of GNU gettext's msgfmt.

    Args:
        translations: the translation of each original message.
    """
    entries = {"": "Content-Type: text/plain; charset=UTF-8\n", **translations}
    pairs = sorted((source.encode(), text.encode()) for source, text in entries.items())
    tables = [b"", b""]
    body = b""
    start = 28 + 16 * len(pairs)
    for column in (0, 1):
        for make_pair in pairs:
            tables[column] += struct.pack("<II", len(make_pair[column]), start + len(body))
            body += make_pair[column] + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    file.write_bytes(head + b"".join(tables) + body)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("samboer", "nob"),
        ("Til sammen er", "nob"),
        ("Utbetaling før skatt", "nob"),
        ("Vi har fått brevet", "nob"),
        ("Opplysningar om utrekninga", "nno"),
        ("Du skal bruge en ny nøgle", "dan"),
        ("Du måste använda en ny nyckel", "swe"),
        ("You need a new key", "eng"),
        ("Rk", "nob"),
    ],
)
def test_a_few_words_are_norwegian_unless_the_evidence_is_clear(text: str, code: str) -> None:
    assert language.detect(text) == code


def test_accuracy_on_unseen_nav_files_and_gold_sentences(real_corpora: Path) -> None:
    """The texts of this test were not used to build the language detection.

    The word table for Bokmål and Nynorsk was not trained on the NAV files. No limit of the
    detection was tuned on the gold sentences, which are from treebanks.
    """
    file = real_corpora / "nav-pensjonsbrev" / "nav-pensjonsbrev-parallell.jsonl"
    assert accuracy(count_confusion(read_nav_pairs(file), detect_by_table)) >= 0.985
    assert accuracy(count_confusion(read_unambiguous_nav(file), language.detect)) >= 0.985
    ud = [(code, text) for code, text in read_ud_sentences(real_corpora / "ud") if len(text) >= 30]
    counts = count_confusion(ud, language.detect)
    assert sum(recall(counts, code) for code in counts) / len(counts) >= 0.979
    assert recall(counts, "nob") >= 0.957
    assert recall(counts, "nno") >= 0.962


def test_the_benchmark_prints_its_tables() -> None:
    pairs = [("nob", NOB), ("nno", NNO)]
    body = describe_languages([*pairs, ("dan", DAN)], pairs, pairs)
    assert "| UD, all | 3 |" in body
    assert "| nno | 0 | 1 |" in body
