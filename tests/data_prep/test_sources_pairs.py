"""The readers of parallel texts and of SQuAD."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data_prep.reading import broken_places, read, write_lines
from tests.data_prep.source_texts import SQUAD_CONTEXT

# --- parallel texts

LETTER = [
    {"id": "brev-0", "path": "mal/A.kt", "nob": "Du kan få {felt} fra NAV.",
     "nno": "Du kan få {felt} frå NAV.", "eng": "You may get {felt}."},
    {"id": "brev-1", "path": "mal/A.kt", "nob": "AFP-tillegg", "nno": "AFP-tillegg"},
    {"id": "brev-2", "path": "mal/A.kt", "nob": "Vi har {felt} avslått.", "nno": "Vi har avslått."},
    {"id": "brev-3", "path": "mal/B.kt", "nob": "Bare bokmål her."},
    {"id": "brev-4", "path": "mal/B.kt", "nob": "Hva kan du gjøre?", "nno": "Kva kan du gjere?"},
]  # fmt: skip


def test_parallel_texts_become_translations_between_standards(tmp_path: Path) -> None:
    write_lines(tmp_path / "brev.jsonl", LETTER)
    documents, report = read("parallel", tmp_path)
    assert [d.id for d in documents] == [
        "brev-0:nob-nno",
        "brev-0:nno-nob",
        "brev-4:nob-nno",
        "brev-4:nno-nob",
    ]
    prompt, answer = documents[0].turns
    assert (prompt.role, prompt.target) == ("user", False)
    assert (answer.role, answer.target) == ("assistant", True)
    assert prompt.content == "Skriv om teksten til nynorsk:\n\nDu kan få {felt} fra NAV."
    assert answer.content == "Du kan få {felt} frå NAV."
    assert [d.language for d in documents] == ["nno", "nob", "nno", "nob"]
    assert [d.group for d in documents] == ["mal/A.kt"] * 2 + ["mal/B.kt"] * 2
    assert {d.mask for d in documents} == {"assistant_masks"}
    counts = report.counts
    kinds = ("pairs_of_the_same_text", "pairs_with_other_merge_fields", "pairs_with_an_empty_side")
    assert [counts[kind] for kind in kinds] == [2, 2, 2]


def test_parallel_texts_become_translations_as_prompt_and_completion(tmp_path: Path) -> None:
    write_lines(tmp_path / "brev.jsonl", LETTER)
    documents, _ = read(
        "parallel", tmp_path, options={"form": "prompt_completion", "pairs": ["eng-nob", "nob-eng"]}
    )
    assert [[t.content for t in d.turns] for d in documents] == [
        ["Oversett teksten til bokmål:\n\nYou may get {felt}.\n\n", "Du kan få {felt} fra NAV."],
        [
            "Translate the text into English:\n\nDu kan få {felt} fra NAV.\n\n",
            "You may get {felt}.",
        ],
    ]
    assert {d.mask for d in documents} == {"completion_mask"}
    assert {t.role for d in documents for t in d.turns} == {""}


def test_parallel_texts_become_whole_letters_in_one_group(tmp_path: Path) -> None:
    write_lines(tmp_path / "brev.jsonl", LETTER)
    documents, _ = read("parallel", tmp_path, options={"form": "text"})
    assert [(d.group, d.language) for d in documents] == [
        ("mal/A.kt", "nob"),
        ("mal/A.kt", "nno"),
        ("mal/A.kt", "eng"),
        ("mal/B.kt", "nob"),
        ("mal/B.kt", "nno"),
    ]
    assert documents[1].text == "Du kan få {felt} frå NAV.\n\nAFP-tillegg\n\nVi har avslått."


def test_a_malformed_parallel_record_is_quarantined(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "brev.jsonl",
        [{"id": "x", "nob": ["liste"]}, {"id": "y", "fra": "Bonjour"}, LETTER[4]],
    )
    documents, report = read("parallel", tmp_path)
    assert len(documents) == 2
    assert [error for _, error in broken_places(report)] == [
        "'nob' must be a string, not a list",
        "no text under any of nob, nno, eng, sme, dan, swe",
    ]


# --- SQuAD


def make_question(question: str, answer: str | None, number: int) -> dict[str, Any]:
    answers = [] if answer is None else [{"text": answer, "answer_start": SQUAD_CONTEXT.find(answer)}]
    return {"question": question, "id": number, "answers": answers, "is_impossible": answer is None}


def test_squad_becomes_conversations_with_the_answer_as_target(tmp_path: Path) -> None:
    questions = [
        make_question("Når?", "1. januar 2021", 7),
        make_question("Hvem?", None, 8),
        make_question("Hva?", "finnes ikke i teksten", 9),
    ]
    body = {
        "data": [
            {
                "title": "Embete",
                "paragraphs": [
                    {"context": SQUAD_CONTEXT, "qas": questions},
                    {"context": "Uten spørsmål."},
                ],
            },
            5,
        ]
    }
    (tmp_path / "spm.json").write_text(json.dumps(body, indent=1))
    documents, report = read("squad", tmp_path)
    assert [[t.content for t in d.turns] for d in documents] == [
        [f"{SQUAD_CONTEXT}\n\nSpørsmål: Når?", "1. januar 2021"]
    ]
    assert (documents[0].id, documents[0].title, documents[0].mask) == (
        "spm:7",
        "Embete",
        "assistant_masks",
    )
    assert report.counts["unanswerable"] == 1
    assert [error.partition(":")[0] for _, error in broken_places(report)] == [
        "the answer does not occur in the text",
        "a paragraph has no list of questions (qas)",
        "must be an object with a list of paragraphs",
    ]
    documents, _ = read(
        "squad",
        tmp_path,
        options={"form": "prompt_completion", "unanswerable": "Teksten sier det ikke."},
    )
    assert [d.turns[1].content for d in documents] == ["1. januar 2021", "Teksten sier det ikke."]
    assert documents[0].turns[0].content.endswith("Når?\nSvar: ")
    assert len({d.group for d in documents}) == 1


def test_squad_with_one_question_per_line_is_read(tmp_path: Path) -> None:
    line = {
        "id": "a",
        "title": "",
        "context": SQUAD_CONTEXT,
        "question": "Når?",
        "answers": {"text": ["1. januar 2021"], "answer_start": [0]},
    }
    write_lines(
        tmp_path / "spm.jsonl",
        [line, {"context": SQUAD_CONTEXT}, {**line, "id": "b", "answers": {"text": [3]}}, line],
    )
    documents, report = read("squad", tmp_path)
    assert [d.id for d in documents] == ["spm:a", "spm:a:2"]
    assert [error for _, error in broken_places(report)] == [
        "no text under 'question'",
        "answers must be a list of texts",
    ]


@pytest.mark.parametrize(
    "answers", [5, True, "1. januar 2021", [5], {"text": "1. januar 2021"}, {"text": None}]
)
def test_malformed_squad_answers_are_quarantined(tmp_path: Path, answers: object) -> None:
    good = {"context": SQUAD_CONTEXT, "question": "Når?", "answers": ["1. januar 2021"]}
    write_lines(tmp_path / "a.jsonl", [{**good, "answers": answers}, good])
    (tmp_path / "b.json").write_text(
        json.dumps(
            [{"paragraphs": [{"context": SQUAD_CONTEXT, "qas": [{**good, "answers": answers}, good]}]}]
        )
    )
    documents, report = read("squad", tmp_path)
    assert len(documents) == 2
    error = "answers must be a list of texts"
    assert broken_places(report) == [("a.jsonl:line 1", error), ("b.json:record 1", error)]
