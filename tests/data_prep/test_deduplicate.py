"""Deduplication: copies are found, and the best one is kept.

Paragraphs that several documents share are kept and counted.
"""

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
from tests.data_prep.stages import run_corpus_stage

STARTS = ["kom", "søk", "ved", "for", "be", "ut", "å"]
MIDDLES = ["mun", "nad", "tak", "skrift", "hand", "ling", "ær"]
WORDS = [
    a + b + c
    for a in STARTS
    for b in MIDDLES
    for c in ["", "en", "er", "ene", "et", "ing", "sk", "lig", "som", "het"]
]


def make_config(**settings: Any) -> CorpusConfig:
    sources = {"s": SourceConfig(reader="text", path="x", license="CC0-1.0")}
    return CorpusConfig(name="x", sources=sources, deduplicate=DeduplicateConfig(**settings))


def make_document(name: str, text: str, **fields: Any) -> Document:
    return Document(id=name, text=text, source="s", license="CC0-1.0", group=name, **fields)


def draw_words(rng: random.Random, length: int) -> list[str]:
    return [rng.choice(WORDS) for _ in range(length)]


def edit_words(rng: random.Random, words: list[str], share: float) -> list[str]:
    """Return the words after random edits. `share` is the probability that a word is edited.

    An edit replaces or removes the word, or inserts another one after it.
    """
    out: list[str] = []
    for word in words:
        if rng.random() >= share:
            out.append(word)
        else:
            out += rng.choice(([rng.choice(WORDS)], [], [word, rng.choice(WORDS)]))
    return out


def deduplicate_documents(
    documents: list[Document], num_shards: int = 2, **settings: Any
) -> tuple[set[str], Report]:
    """Deduplicate documents in `num_shards` shards; return the ids of those kept and the report."""
    size = -(-len(documents) // num_shards)
    shards = [documents[i : i + size] for i in range(0, len(documents), size)]
    kept, report = run_corpus_stage(Deduplicate(), shards, make_config(**settings))
    return {document.id for document in kept}, report


def test_copies_with_edited_words_are_found_and_nothing_else() -> None:
    rng = random.Random(0)
    originals = [draw_words(rng, rng.randrange(60, 400)) for _ in range(600)]
    planted = [
        make_document(f"copy-{i}", " ".join(edit_words(rng, words, 0.03)))
        for i, words in enumerate(originals[:300])
    ]
    documents = [
        make_document(f"original-{i}", " ".join(words)) for i, words in enumerate(originals)
    ] + planted
    rng.shuffle(documents)
    _, report = deduplicate_documents(documents, num_shards=5)
    dropped = [(drop.id.split("-")[1], drop.detail.split("-")[1]) for drop in report.drops]
    correct = {one for one, other in dropped if one == other and int(one) < 300}
    assert len(correct) >= 0.93 * len(planted)
    assert len(correct) >= 0.98 * len(dropped)
    assert {drop.reason for drop in report.drops} >= {"near_duplicate"}
    assert set(deduplicate_documents(documents, near=False)[1].drop_reasons()) == {"exact_duplicate"}, (
        "some copies have no edit"
    )


def test_shard_boundaries_change_no_decision() -> None:
    rng = random.Random(1)
    originals = [draw_words(rng, 120) for _ in range(40)]
    documents = [
        make_document(f"{i}-{n}", " ".join(edit_words(rng, words, 0.02 * n)))
        for i, words in enumerate(originals)
        for n in range(3)
    ]
    rng.shuffle(documents)
    expected, report = deduplicate_documents(documents, num_shards=1)
    assert 40 <= len(expected) < 60
    for num_shards in (2, 7, 50):
        names, other = deduplicate_documents(documents, num_shards=num_shards)
        assert names == expected
        assert [(d.id, d.detail) for d in other.drops] == [(d.id, d.detail) for d in report.drops]
        assert other.counts == report.counts


@pytest.mark.parametrize("reverse", [False, True])
def test_the_best_copy_is_kept_in_either_order(reverse: bool) -> None:
    rng = random.Random(2)
    words = draw_words(rng, 300)
    longer, newer, fuller = (edit_words(rng, words, 0.01) for _ in range(3))
    pairs = [
        (make_document("short", " ".join(words[:240])), make_document("long", " ".join(words))),
        (
            make_document("old", " ".join(longer), date="2019-05-01"),
            make_document("new", " ".join(longer[:-2]), date="2024-01-15"),
        ),
        (
            make_document("bare", " ".join(newer)),
            make_document("described", " ".join(newer).upper(), title="Vedtak", date="2020"),
        ),
        (make_document("cut", " ".join(fuller[:-5])), make_document("whole", " ".join(fuller))),
    ]
    for worse, better in pairs:
        both = [worse, better]
        if reverse:
            both.reverse()
        assert deduplicate_documents(both)[0] == {better.id}


def test_the_first_of_equally_good_copies_is_kept() -> None:
    text = " ".join(draw_words(random.Random(3), 50))
    names, report = deduplicate_documents([make_document(name, text) for name in ("b", "a", "c")])
    assert names == {"b"}
    assert {(drop.id, drop.reason, drop.detail) for drop in report.drops} == {
        ("a", "exact_duplicate", "same text as s/b"),
        ("c", "exact_duplicate", "same text as s/b"),
    }


def test_shared_paragraphs_are_kept_and_counted() -> None:
    rng = random.Random(4)
    shared = (
        "Loven gjelder fra den tid Kongen bestemmer og de enkelte bestemmelser kan settes i kraft "
        "til ulik tid."
    )
    acts = [
        make_document(str(i), "\n".join([" ".join(draw_words(rng, 90)), shared, "Kort."])) for i in range(6)
    ]
    acts.append(make_document("copy", acts[0].text))
    names, report = deduplicate_documents(acts, num_shards=3)
    assert names == {str(i) for i in range(6)}
    assert report.counts == {"shared_paragraphs": 1, "shared_paragraph_copies": 5}, (
        "paragraphs of the dropped copy are not counted"
    )


def test_in_a_chain_of_edits_every_drop_resembles_a_kept_document() -> None:
    rng = random.Random(5)
    words = draw_words(rng, 400)
    chain = [words]
    for step in range(1, 6):
        chain.append(draw_words(rng, 40 * step) + words[40 * step :])
        chain[-1][: 40 * (step - 1)] = chain[-2][: 40 * (step - 1)]
    documents = [make_document(str(i), " ".join(words)) for i, words in enumerate(chain)]
    names, report = deduplicate_documents(documents)
    assert 1 < len(names) < 6
    sets = {d.id: set(zip(*(d.text.split()[i:] for i in range(5)), strict=False)) for d in documents}
    for drop in report.drops:
        other = sets[drop.detail.rpartition("/")[2]]
        assert len(sets[drop.id] & other) / len(sets[drop.id] | other) >= 0.6


def test_questions_on_one_text_are_not_duplicates() -> None:
    text = " ".join(draw_words(random.Random(4), 200))

    def make_question(name: str, question: str) -> Document:
        prompt = Turn(role="user", content=f"{text}\n\nSpørsmål: {question}", target=False)
        return make_document(name, "", turns=[prompt, Turn(role="assistant", content="Skien", target=True)])

    documents = [
        make_question("a", "Hvor er Ibsen født?"),
        make_question("b", "Hvilken by var sete for fylket?"),
        make_question("c", "Hvor er ibsen, født ?"),
    ]
    names, _ = deduplicate_documents(documents)
    assert len(names) == 2
    assert "b" in names


def test_conversations_are_distinguished_by_their_answers() -> None:
    rng = random.Random(6)

    def make_conversation(name: str, question: list[str], answer: list[str]) -> Document:
        turns = [
            Turn(role="user", content=" ".join(question), target=False),
            Turn(role="assistant", content=" ".join(answer), target=True),
        ]
        return Document(id=name, text="", source="s", license="CC0-1.0", group=name, turns=turns)

    question = draw_words(rng, 200)
    answer = draw_words(rng, 3)
    documents = [
        make_conversation("a", question, answer),
        make_conversation("b", question, draw_words(rng, 3)),
        make_conversation("c", question[:-2], answer),
    ]
    names, report = deduplicate_documents(documents)
    assert names == {"a", "b"}, "another answer makes another document, however long the shared question"
    assert report.drops[0].id == "c"


def test_documents_without_words_and_empty_shards_are_handled() -> None:
    names, report = deduplicate_documents(
        [
            make_document("a", "…"),
            make_document("b", "– –"),
            make_document("c", "Ja."),
            make_document("d", "ja"),
        ],
        num_shards=4,
    )
    assert names == {"a", "b", "c"}
    assert report.drop_reasons() == {"near_duplicate": 1}
    out, report = run_corpus_stage(Deduplicate(), [[], [make_document("a", "Ja.")], []], make_config())
    assert [d.id for d in out] == ["a"]
    assert run_corpus_stage(Deduplicate(), [[], []], make_config())[0] == []


def test_dates_are_compared_in_every_notation() -> None:
    dates = ("2024-01-31", "2024", "", "ukjent", "2024-01-31T10:00:00Z")
    assert [deduplicate._date_number(date) for date in dates] == [20240131, 20240000, 0, 0, 20240131]


def test_ngrams_equal_plain_python_sets() -> None:
    """Compare `shingles.ngrams` with sets of n-grams that plain Python makes.

    Texts have many lengths; some are longer than the CHUNK bytes that are hashed at a time.
    """
    rng = random.Random(7)
    texts = [" ".join(draw_words(rng, n)) for n in [*range(12), 300, 5000]]
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
        starts = range(max(len(words) - 4, 1)) if words else range(0)
        expected.append({tuple(words[i : i + 5]) for i in starts})
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
