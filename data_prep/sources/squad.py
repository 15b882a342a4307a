"""Questions on texts in SQuAD's form: {"data": [{"title", "paragraphs": [{"context", "qas": [{"question",
"answers"}]}]}]} in a JSON file, or one question a line, {"context", "question", "answers": {"text": […]}}, as
the Hub has it. Made for NorQuAD.

All questions to one text are a group.
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
from data_prep.sources.files import find, members, stem

SUFFIXES = (".json", ".jsonl")
FORMS = ("messages", "prompt_completion")


@dataclass
class Options(jsonl.Options):
    """Options of questions on texts."""

    form: str = setting("messages", f"form of the documents: {', '.join(FORMS)}")
    unanswerable: str = setting(
        "", "answer to questions without one in the text (is_impossible); empty: these questions are left out"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("options.form", self.form, FORMS)


@dataclass
class Question:
    """One question and where it stands; `answers` are alternatives."""

    place: Place
    id: str
    title: str
    context: str
    question: str
    answers: list[str]


def files(source: SourceConfig) -> list[Path]:
    claims.options(source, Options)
    return find(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    options = claims.options(source, Options)
    seen = Counter[str]()
    for question in _questions(name, source, report, paths):
        seen[question.id] += 1
        answer = next((a for a in question.answers if a), options.unanswerable)
        if not answer:
            report.counts["unanswerable"] += 1
        elif question.answers and answer not in question.context:
            report.quarantine(question.place, f"the answer is not in the text: {answer[:80]!r}")
        else:
            mask = "assistant_masks" if options.form == "messages" else "completion_mask"
            digest = hashlib.blake2b(question.context.encode(), digest_size=8).hexdigest()
            again = seen[question.id]
            yield Document(
                id=f"{question.id}:{again}" if again > 1 else question.id,
                text="",
                turns=_turns(question, answer, options.form),
                mask=mask,
                title=question.title,
                group=digest,
                source=name,
                license=source.license,
            )


def _turns(question: Question, answer: str, form: str) -> list[Turn]:
    asked = f"{question.context.strip()}\n\nSpørsmål: {question.question.strip()}"
    if form == "messages":
        return [
            Turn(role="user", content=asked, target=False),
            Turn(role="assistant", content=answer, target=True),
        ]
    return [
        Turn(role="", content=f"{asked}\nSvar: ", target=False),
        Turn(role="", content=answer, target=True),
    ]


def _questions(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Question]:
    form = jsonl.record_form(source, ("paragraphs", "question", "context"))
    for member in members(name, source, report, paths, SUFFIXES):
        for where, entry in json_stream.values(member, form, report):
            yield from _of_entry(entry, where, report)


def _of_entry(entry: Any, where: Place, report: Report) -> Iterator[Question]:
    if isinstance(entry, dict) and ("question" in entry or "paragraphs" not in entry):
        with report.quarantining(where):
            yield _flat(entry, where)
    if not isinstance(entry, dict) or not isinstance(entry.get("paragraphs", []), list):
        report.quarantine(where, "not an object with paragraphs")
        return
    for paragraph in entry.get("paragraphs", []):
        asked = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(asked, list):
            report.quarantine(where, "a paragraph without questions (qas)")
            continue
        for question in asked:
            with report.quarantining(where):
                if not isinstance(question, dict):
                    raise Unreadable("a question that is no object")
                yield _flat(
                    {"title": entry.get("title"), **question, "context": paragraph.get("context")}, where
                )


def _flat(record: Any, where: Place) -> Question:
    if not isinstance(record, dict):
        raise Unreadable(f"a JSON {type(record).__name__}, not an object")
    if missing := [
        key
        for key in ("context", "question")
        if not isinstance(record.get(key), str) or not record[key].strip()
    ]:
        raise Unreadable(f"no text under '{missing[0]}'")
    answers = [] if record.get("answers") is None else record["answers"]
    if isinstance(answers, dict):
        answers = answers.get("text", [])
    found = (
        [a.get("text") if isinstance(a, dict) else a for a in answers] if isinstance(answers, list) else None
    )
    if found is None or not all(isinstance(answer, str) for answer in found):
        raise Unreadable("answers that are no list of texts")
    identity = record.get("id", where.at.rpartition(" ")[2])
    return Question(
        place=where,
        id=f"{stem(where)}:{jsonl.clean(identity)}",
        title=jsonl.clean(record.get("title") or ""),
        context=jsonl.clean(record["context"]),
        question=jsonl.clean(record["question"]),
        answers=[] if record.get("is_impossible") else [jsonl.clean(answer) for answer in found],
    )
