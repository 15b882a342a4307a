"""Near duplicates, on invented text: found, and nothing else; the best is kept; what documents share is
counted."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest

from data_prep import shingles
from data_prep.config import CorpusConfig, SourceConfig
from data_prep.document import Document, Report, Turn
from data_prep.stage_settings import DeduplicateConfig
from data_prep.stages import deduplicate
from data_prep.stages.deduplicate import Deduplicate
from tests.data_prep.stages import run_stage

STARTS, MIDDLES = (
    ["kom", "søk", "ved", "for", "be", "ut", "å"],
    ["mun", "nad", "tak", "skrift", "hand", "ling", "ær"],
)
WORDS = [
    a + b + c
    for a in STARTS
    for b in MIDDLES
    for c in ["", *["en", "er", "ene", "et", "ing", "sk", "lig", "som", "het"]]
]


def config(**settings: Any) -> CorpusConfig:
    sources = {"s": SourceConfig(reader="text", path="x", license="CC0-1.0")}
    return CorpusConfig(name="x", sources=sources, deduplicate=DeduplicateConfig(**settings))


def document(name: str, text: str, **fields: Any) -> Document:
    return Document(id=name, text=text, source="s", license="CC0-1.0", group=name, **fields)


def prose(rng: random.Random, length: int) -> list[str]:
    return [rng.choice(WORDS) for _ in range(length)]


def edited(rng: random.Random, words: list[str], share: float) -> list[str]:
    """Each word, with this probability, replaced, left out, or followed by another."""
    out: list[str] = []
    for word in words:
        if rng.random() >= share:
            out.append(word)
        else:
            out += rng.choice(([rng.choice(WORDS)], [], [word, rng.choice(WORDS)]))
    return out


def kept(documents: list[Document], cuts: int = 2, **settings: Any) -> tuple[set[str], Report]:
    size = -(-len(documents) // cuts)
    out, report = run_stage(
        Deduplicate(), [documents[i : i + size] for i in range(0, len(documents), size)], config(**settings)
    )
    return {document.id for document in out}, report


def test_copies_with_edited_words_are_found_and_nothing_else_is() -> None:
    rng = random.Random(0)
    originals = [prose(rng, rng.randrange(60, 400)) for _ in range(600)]
    planted = [
        document(f"copy-{i}", " ".join(edited(rng, words, 0.03))) for i, words in enumerate(originals[:300])
    ]
    documents = [document(f"original-{i}", " ".join(words)) for i, words in enumerate(originals)] + planted
    rng.shuffle(documents)
    _, report = kept(documents, cuts=5)
    lost = [(drop.id.split("-")[1], drop.detail.split("-")[1]) for drop in report.drops]
    right = {one for one, other in lost if one == other and int(one) < 300}
    assert len(right) >= 0.93 * len(planted)
    assert len(right) >= 0.98 * len(lost)
    assert {drop.reason for drop in report.drops} >= {"near_duplicate"}
    assert set(kept(documents, near=False)[1].drop_reasons()) == {"exact_duplicate"}, (
        "some copies have no edit"
    )


def test_how_shards_are_cut_decides_nothing() -> None:
    rng = random.Random(1)
    originals = [prose(rng, 120) for _ in range(40)]
    documents = [
        document(f"{i}-{n}", " ".join(edited(rng, words, 0.02 * n)))
        for i, words in enumerate(originals)
        for n in range(3)
    ]
    rng.shuffle(documents)
    whole, report = kept(documents, cuts=1)
    assert 40 <= len(whole) < 60
    for cuts in (2, 7, 50):
        again, other = kept(documents, cuts=cuts)
        assert again == whole
        assert [(drop.id, drop.detail) for drop in other.drops] == [
            (drop.id, drop.detail) for drop in report.drops
        ]
        assert other.counts == report.counts


@pytest.mark.parametrize("turned", [False, True])
def test_the_best_is_kept_wherever_it_stands(turned: bool) -> None:
    rng = random.Random(2)
    words = prose(rng, 300)
    longer, newer, fuller = (edited(rng, words, 0.01) for _ in range(3))
    pairs = [
        (document("short", " ".join(words[:240])), document("long", " ".join(words))),
        (
            document("old", " ".join(longer), date="2019-05-01"),
            document("new", " ".join(longer[:-2]), date="2024-01-15"),
        ),
        (
            document("bare", " ".join(newer)),
            document("described", " ".join(newer).upper(), title="Vedtak", date="2020"),
        ),
        (document("cut", " ".join(fuller[:-5])), document("whole", " ".join(fuller))),
    ]
    for worse, better in pairs:
        both = [better, worse] if turned else [worse, better]
        assert kept(both)[0] == {better.id}


def test_the_first_is_kept_of_those_that_are_equally_good() -> None:
    text = " ".join(prose(random.Random(3), 50))
    names, report = kept([document(name, text) for name in ("b", "a", "c")])
    assert names == {"b"}
    assert {(drop.id, drop.reason, drop.detail) for drop in report.drops} == {
        ("a", "exact_duplicate", "same text as s/b"),
        ("c", "exact_duplicate", "same text as s/b"),
    }


def test_a_paragraph_that_many_share_stays_in_each_and_is_counted() -> None:
    rng = random.Random(4)
    shared = "Loven gjelder fra den tid Kongen bestemmer og de enkelte bestemmelser kan settes i kraft til ulik tid."
    acts = [document(str(i), "\n".join([" ".join(prose(rng, 90)), shared, "Kort."])) for i in range(6)]
    acts.append(document("copy", acts[0].text))
    names, report = kept(acts, cuts=3)
    assert names == {str(i) for i in range(6)}
    assert report.counts == {"shared_paragraphs": 1, "shared_paragraph_copies": 5}, (
        "the dropped copy shares nothing"
    )


def test_a_chain_of_small_changes_does_not_take_what_nothing_kept_resembles() -> None:
    rng = random.Random(5)
    words = prose(rng, 400)
    chain = [words]
    for step in range(1, 6):
        chain.append(prose(rng, 40 * step) + words[40 * step :])
        chain[-1][: 40 * (step - 1)] = chain[-2][: 40 * (step - 1)]
    documents = [document(str(i), " ".join(words)) for i, words in enumerate(chain)]
    names, report = kept(documents)
    assert 1 < len(names) < 6
    sets = {d.id: set(zip(*(d.text.split()[i:] for i in range(5)), strict=False)) for d in documents}
    for drop in report.drops:
        other = sets[drop.detail.rpartition("/")[2]]
        assert len(sets[drop.id] & other) / len(sets[drop.id] | other) >= 0.6


def test_questions_on_one_text_are_no_duplicates_though_they_have_one_answer() -> None:
    text = " ".join(prose(random.Random(4), 200))

    def asked(name: str, question: str) -> Document:
        prompt = Turn(role="user", content=f"{text}\n\nSpørsmål: {question}", target=False)
        return document(name, "", turns=[prompt, Turn(role="assistant", content="Skien", target=True)])

    made = [
        asked("a", "Hvor er Ibsen født?"),
        asked("b", "Hvilken by var sete for fylket?"),
        asked("c", "Hvor er ibsen, født ?"),
    ]
    names, _ = kept(made)
    assert len(names) == 2
    assert "b" in names


def test_answers_tell_conversations_apart() -> None:
    rng = random.Random(6)

    def conversation(name: str, asked: list[str], answer: list[str]) -> Document:
        turns = [
            Turn(role="user", content=" ".join(asked), target=False),
            Turn(role="assistant", content=" ".join(answer), target=True),
        ]
        return Document(id=name, text="", source="s", license="CC0-1.0", group=name, turns=turns)

    asked, answer = prose(rng, 200), prose(rng, 3)
    made = [
        conversation("a", asked, answer),
        conversation("b", asked, prose(rng, 3)),
        conversation("c", asked[:-2], answer),
    ]
    names, report = kept(made)
    assert names == {"a", "b"}, "another answer is another lesson, however long what both are asked about"
    assert report.drops[0].id == "c"


def test_documents_without_words_and_empty_shards() -> None:
    names, report = kept(
        [document("a", "…"), document("b", "– –"), document("c", "Ja."), document("d", "ja")], cuts=4
    )
    assert names == {"a", "b", "c"}
    assert report.drop_reasons() == {"near_duplicate": 1}
    out, report = run_stage(Deduplicate(), [[], [document("a", "Ja.")], []], config())
    assert [d.id for d in out] == ["a"]
    assert run_stage(Deduplicate(), [[], []], config())[0] == []


def test_the_last_date_counts_however_it_is_written() -> None:
    assert [
        deduplicate._date_number(date)
        for date in ("2024-01-31", "2024", "", "ukjent", "2024-01-31T10:00:00Z")
    ] == [
        20240131,
        20240000,
        0,
        0,
        20240131,
    ]


def test_ngrams_are_the_sets_of_word_ngrams() -> None:
    """Against plain Python, on texts of every length, over the borders of batches and chunks."""
    rng = random.Random(7)
    texts = [" ".join(prose(rng, n)) for n in [*range(12), 300, 5000]]
    texts += [
        "«Ærlig» – talt, 2 % av §12",
        "a" * 100,
        "én\u00a0to\ntre—fire",
        "x " * 50,
        " ",
        "A B c D e",
        "a,b;c.d!e",
    ]
    expected = []
    for text in texts:
        words = re.findall(r"[^\W_]+", text.casefold())
        expected.append({tuple(words[i : i + 5]) for i in range(max(len(words) - 4, 1))} if words else set())
    for chunk in (2**20, 64):
        shingles.CHUNK = chunk
        values, begins, num_words = shingles.ngrams(texts, 5)
        sets = [values[begins[i] : begins[i + 1]] for i in range(len(texts))]
        assert [len(s) for s in sets] == [len(s) for s in expected]
        assert all((np.diff(s.astype(np.int64)) > 0).all() for s in sets)
        assert num_words.tolist() == [len(re.findall(r"[^\W_]+", text)) for text in texts]
        a, b = shingles.ngrams([texts[12] + " " + texts[13], texts[13]], 5)[:2]
        assert shingles.jaccard(a[b[0] : b[1]], a[b[1] : b[2]]) == pytest.approx(4996 / 5296, abs=2e-3)
    shingles.CHUNK = 2**20
