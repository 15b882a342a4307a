"""Reader of questions about texts in the format of SQuAD; tested with NorQuAD.

A JSON file is {"data": [{"title", "paragraphs": [{"context", "qas": [{"question", "answers"}]}]}]}.
JSON lines, the format of data sets on the Hub, have one question each:
{"context", "question", "answers": {"text": […]}}. All questions about one text form a group, which
a split keeps together.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.config import SourceConfig
from data_prep.document import Document, Place, Report, Turn, Unreadable
from data_prep.fields import one_of, setting
from data_prep.sources import claims, json_stream, jsonl
from data_prep.sources.files import find_files, id_from_place, iter_members

SUFFIXES = (".json", ".jsonl")
FORMS = ("messages", "prompt_completion")


@dataclass
class Options(jsonl.Options):
    """Options of reader `squad`."""

    form: str = setting("messages", f"form of the documents: {', '.join(FORMS)}")
    unanswerable: str = setting(
        "", "answer to questions without one in the text (is_impossible); empty: these questions are left out"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("options.form", self.form, FORMS)


@dataclass
class Question:
    """A question about a text.

    Attributes:
        context: the text.
        answers: correct answers, any of which may be used.
    """

    place: Place
    id: str
    title: str
    context: str
    question: str
    answers: list[str]


def list_files(source: SourceConfig) -> list[Path]:
    claims.parse_options(source, Options)
    return find_files(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    options = claims.parse_options(source, Options)
    num_seen = Counter[str]()
    for question in _iter_questions(name, source, report, paths):
        num_seen[question.id] += 1
        answer = next(filter(None, question.answers), options.unanswerable)
        if not answer:
            report.counts["unanswerable"] += 1
        elif question.answers and answer not in question.context:
            report.quarantine(question.place, f"the answer does not occur in the text: {answer[:80]!r}")
        else:
            mask = "assistant_masks" if options.form == "messages" else "completion_mask"
            digest = hashlib.blake2b(question.context.encode(), digest_size=8).hexdigest()
            number = num_seen[question.id]
            yield Document(
                id=f"{question.id}:{number}" if number > 1 else question.id,
                text="",
                turns=_build_turns(question, answer, options.form),
                mask=mask,
                title=question.title,
                group=digest,
                source=name,
                license=source.license,
            )


def _build_turns(question: Question, answer: str, form: str) -> list[Turn]:
    prompt = f"{question.context.strip()}\n\nSpørsmål: {question.question.strip()}"
    if form == "messages":
        return [
            Turn(role="user", content=prompt, target=False),
            Turn(role="assistant", content=answer, target=True),
        ]
    return [
        Turn(role="", content=f"{prompt}\nSvar: ", target=False),
        Turn(role="", content=answer, target=True),
    ]


def _iter_questions(
    name: str, source: SourceConfig, report: Report, paths: Sequence[Path]
) -> Iterator[Question]:
    form = jsonl.record_form(source, ("paragraphs", "question", "context"))
    for member in iter_members(name, source, report, paths, SUFFIXES):
        for place, entry in json_stream.iter_values(member, form, report):
            yield from _parse_entry(entry, place, report)


def _parse_entry(entry: Any, place: Place, report: Report) -> Iterator[Question]:
    """Yield the questions of `entry`: an element of `data`, or a record with a single question."""
    if isinstance(entry, dict) and ("question" in entry or "paragraphs" not in entry):
        with report.quarantining(place):
            yield _parse_question(entry, place)
    if not isinstance(entry, dict) or not isinstance(entry.get("paragraphs", []), list):
        report.quarantine(place, "must be an object with a list of paragraphs")
        return
    for paragraph in entry.get("paragraphs", []):
        questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(questions, list):
            report.quarantine(place, "a paragraph has no list of questions (qas)")
            continue
        for question in questions:
            with report.quarantining(place):
                if not isinstance(question, dict):
                    raise Unreadable("a question must be a JSON object")
                shared = {"title": entry.get("title")}
                yield _parse_question({**shared, **question, "context": paragraph.get("context")}, place)


def _parse_question(record: Any, place: Place) -> Question:
    if not isinstance(record, dict):
        raise Unreadable(f"must be a JSON object, but has type {type(record).__name__}")
    for key in ("context", "question"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise Unreadable(f"no text under '{key}'")
    answers = _parse_answers(record.get("answers"))
    identity = record.get("id", place.at.rpartition(" ")[2])
    return Question(
        place=place,
        id=f"{id_from_place(place)}:{jsonl.to_valid_text(identity)}",
        title=jsonl.to_valid_text(record.get("title") or ""),
        context=jsonl.to_valid_text(record["context"]),
        question=jsonl.to_valid_text(record["question"]),
        answers=[] if record.get("is_impossible") else answers,
    )


def _parse_answers(answers: Any) -> list[str]:
    if answers is None:
        return []
    if isinstance(answers, dict):
        answers = answers.get("text", [])
    if not isinstance(answers, list):
        raise Unreadable("answers must be a list of texts")
    texts = []
    for answer in answers:
        text = answer.get("text") if isinstance(answer, dict) else answer
        if not isinstance(text, str):
            raise Unreadable("answers must be a list of texts")
        texts.append(jsonl.to_valid_text(text))
    return texts
