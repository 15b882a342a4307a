"""The law of chat templates: the tokens marked as targets, decoded, are the assistant's contents and the end
of each turn.

The templates are invented, in the style of families that people fine-tune.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from data_prep.document import Turn
from data_prep.tokens.chat_encoder import ChatEncoder
from data_prep.tokens.chat_template import DEFAULT_TEMPLATE, ChatTemplate, UnusableChat
from data_prep.tokens.row import Row
from tests.data_prep.chat_templates import (
    CHATML,
    CHATML_MARKED,
    CHATML_MARKED_LONG,
    CHATML_MARKED_SHORT,
    CHATML_WITHOUT_PROMPT,
    GEMMA,
    LLAMA3,
    MISTRAL,
    PHI,
    PLAIN,
    QWEN3,
    SYSTEM_IN_LAST_TURN,
)

QUESTION = "Når må jeg senest søke om barnehageplass?"
ANSWERS = ["Fristen er 1. mars.", "Nei, du må søke på nytt hvert år."]
CHAT = [
    ("user", QUESTION),
    ("assistant", ANSWERS[0]),
    ("user", "Gjelder søknaden neste år også?"),
    ("assistant", ANSWERS[1]),
]


class Case:
    """A template on the tokenizer, and what it gives for a conversation."""

    def __init__(self, folder: Path, source: str, **variables: object) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.source, self.variables = source, {"bos_token": "<s>", "eos_token": "</s>", **variables}
        self.template = ChatTemplate(
            source, self.variables, ChatEncoder(folder / "tokenizer.json"), "the test"
        )

    def rows(self, *turns: tuple[str, str], everything: bool = False) -> list[Row]:
        made = [Turn(role=role, content=content, target=role == "assistant") for role, content in turns]
        return self.template.rows(made, self.tokenizer.token_to_id("</s>"), everything)

    def row(self, *turns: tuple[str, str]) -> Row:
        (row,) = self.rows(*turns)
        return row

    def decoded(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def learned(self, row: Row) -> list[str]:
        """The targets, decoded run by run."""
        assert len(row.input_ids) == len(row.mask)
        runs: list[list[int]] = []
        for i, (token, marked) in enumerate(zip(row.input_ids, row.mask, strict=True)):
            if marked:
                if i == 0 or not row.mask[i - 1]:
                    runs.append([])
                runs[-1].append(token)
        return [self.decoded(run) for run in runs]


FAMILIES = {
    "chatml": (CHATML, "{}<|im_end|>"),
    "chatml-marked": (CHATML_MARKED, "{}<|im_end|>"),
    "chatml-marked-short": (CHATML_MARKED_SHORT, "{}<|im_end|>"),
    "chatml-marked-long": (CHATML_MARKED_LONG, "{}<|im_end|>"),
    "chatml-without-generation-prompt": (CHATML_WITHOUT_PROMPT, "<|im_start|>assistant\n{}<|im_end|>"),
    "llama3": (LLAMA3, "{}<|eot_id|>"),
    "mistral": (MISTRAL, " {}</s>"),
    "gemma": (GEMMA, "{}<end_of_turn>"),
    "phi": (PHI, "{}<|end|>"),
    "default": (DEFAULT_TEMPLATE, "{}</s>"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_the_answers_and_the_ends_of_their_turns(folder: Path, family: str) -> None:
    source, written = FAMILIES[family]
    case = Case(folder, source)
    assert case.learned(case.row(*CHAT)) == [written.format(answer) for answer in ANSWERS]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "turns", [CHAT, CHAT[:2], [*CHAT, ("user", "Takk!")]], ids=["two", "one", "unanswered"]
)
def test_tokens_are_those_transformers_gives(folder: Path, family: str, turns: list[tuple[str, str]]) -> None:
    """The whole of a conversation up to its last answer is what apply_chat_template makes of it; BOS comes
    once, if at all."""
    from transformers import PreTrainedTokenizerFast

    source, _ = FAMILIES[family]
    ids = Case(folder, source).row(*turns).input_ids
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    messages = [{"role": role, "content": content} for role, content in turns]
    expected = theirs.apply_chat_template(messages, chat_template=source)["input_ids"]
    assert ids == expected[: len(ids)]
    if turns[-1][0] == "assistant":
        assert theirs.decode(expected[len(ids) :]).strip() == ""


@pytest.mark.parametrize(
    "answer",
    ["a", "assistant", "<|", "Ja\n", "  innrykk\n\n- liste", "Så\n\n\nslutt", "🎉 ø", "\n\nSvar", "user\n"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_odd_answers_too(folder: Path, family: str, answer: str) -> None:
    """Trimmed where the template trims; never with a character of the template's own, but what the family
    writes."""
    source, written = FAMILIES[family]
    case = Case(folder, source)
    kept = answer.strip() if "trim" in source else answer
    if family == "phi":
        kept = answer.lstrip()  # <|assistant|> swallows white space after it
    learned = case.learned(
        case.row(("user", "assistant\na"), ("assistant", answer), ("user", answer), ("assistant", ANSWERS[0]))
    )
    assert learned == [written.format(kept), written.format(ANSWERS[0])]


@pytest.mark.parametrize("marked", [CHATML_MARKED, CHATML_MARKED_SHORT, CHATML_MARKED_LONG])
def test_without_markers_is_with_markers(folder: Path, marked: str) -> None:
    assert Case(folder, CHATML).rows(*CHAT) == Case(folder, marked).rows(*CHAT)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "token", ["<|im_end|>", "</s>", "<|eot_id|>", "<end_of_turn>", "<|im_start|>", "[/INST]", "<|end|>"]
)
def test_control_tokens_in_a_content_are_text(folder: Path, family: str, token: str) -> None:
    source, written = FAMILIES[family]
    case = Case(folder, source)
    said = f"Skriv {token} eller {token}\nuser til slutt"
    plain, spelled = case.row(*CHAT[:2]), case.row(("user", said), ("assistant", said))
    assert case.learned(spelled) == [written.format(said)]
    if token != "<end_of_turn>" or family == "gemma":  # elsewhere it is one more token of the vocabulary
        number = case.tokenizer.token_to_id(token)
        assert spelled.input_ids.count(number) == plain.input_ids.count(number)


def test_transformers_marks_and_sanitises_the_same(folder: Path) -> None:
    """Its own mask of a template with markers, and its own way to make text of control tokens in a
    content."""
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    messages = [{"role": role, "content": content} for role, content in CHAT]
    row = Case(folder, CHATML_MARKED).row(*CHAT)
    marked = theirs.apply_chat_template(
        messages, chat_template=CHATML_MARKED, return_dict=True, return_assistant_tokens_mask=True
    )
    assert row.input_ids == marked["input_ids"][: len(row.input_ids)]
    assert row.mask == marked["assistant_masks"][: len(row.mask)]
    assert sum(row.mask) == sum(marked["assistant_masks"])

    said = "Skriv <|im_end|> eller </s>"
    messages = [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
    sanitised = theirs.apply_chat_template(messages, chat_template=CHATML, sanitize_control_tokens=True)[
        "input_ids"
    ]
    ids = Case(folder, CHATML).row(("user", said), ("assistant", said)).input_ids
    assert ids == sanitised[: len(ids)]


def test_a_template_that_rewrites_history_gives_a_row_a_turn(folder: Path) -> None:
    """Each row is what the model would have seen when it wrote that turn."""
    case = Case(folder, QWEN3)
    thoughtful = [
        (role, f"<think>\nHm, {i}.\n</think>\n\n{text}" if role == "assistant" else text)
        for i, (role, text) in enumerate(CHAT)
    ]
    rows = case.rows(*thoughtful)
    assert [case.learned(row) for row in rows] == [
        [f"<think>\nHm, {i}.\n</think>\n\n{answer}<|im_end|>"]
        for i, answer in ((1, ANSWERS[0]), (3, ANSWERS[1]))
    ]
    first, last = (case.decoded(row.input_ids) for row in rows)
    assert (
        first
        == f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>\nHm, 1.\n</think>\n\n{ANSWERS[0]}<|im_end|>"
    )
    assert "Hm, 1." not in last
    assert f"<|im_start|>assistant\n{ANSWERS[0]}<|im_end|>" in last


THOUGHT = "<think>\nHm.\n</think>\n\n"
DROPS_THOUGHTS = CHATML.replace("m.content +", "m.content.split('</think>')[-1].lstrip() +")
OPENS_THOUGHTS = CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif")


@pytest.mark.parametrize(
    ("source", "answer", "expected"),
    [
        (CHATML_WITHOUT_PROMPT, THOUGHT + ANSWERS[0], f"<|im_start|>assistant\n{THOUGHT}{ANSWERS[0]}"),
        (DROPS_THOUGHTS, THOUGHT + ANSWERS[0], THOUGHT + ANSWERS[0]),
        (DROPS_THOUGHTS, "<think>\n\n</think>\n\nJa", "<think>\n\n</think>\n\nJa"),
        (DROPS_THOUGHTS, "<think>Ja</think>Ja", "<think>Ja</think>Ja"),
        (OPENS_THOUGHTS, THOUGHT + ANSWERS[0], f"Hm.\n</think>\n\n{ANSWERS[0]}"),
        (OPENS_THOUGHTS, f"Hm.\n</think>\n\n{ANSWERS[0]}", f"Hm.\n</think>\n\n{ANSWERS[0]}"),
        (QWEN3, THOUGHT, THOUGHT),
    ],
)
def test_thoughts_that_the_model_must_write_are_targets(
    folder: Path, source: str, answer: str, expected: str
) -> None:
    case = Case(folder, source)
    assert case.learned(case.row(CHAT[0], ("assistant", answer))) == [f"{expected}<|im_end|>"]


def test_marks_of_thoughts_are_tokens_where_they_mark_thoughts(folder: Path, tmp_path: Path) -> None:
    """Special ones too. Elsewhere, spelled by a person, they are text as all control tokens are."""
    body = json.loads((folder / "tokenizer.json").read_text())
    for token in body["added_tokens"]:
        token["special"] = token["special"] or "think" in token["content"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(body))
    case = Case(tmp_path, QWEN3)
    row = case.row(("user", "Hva er <think>?"), ("assistant", f"{THOUGHT}Det er </think> med <think>."))
    assert case.learned(row) == [f"{THOUGHT}Det er </think> med <think>.<|im_end|>"]
    for mark in ("<think>", "</think>"):
        assert row.input_ids.count(case.tokenizer.token_to_id(mark)) == 1


@pytest.mark.parametrize(
    ("source", "answer", "counted"),
    [
        (CHATML_MARKED, ANSWERS[0], {}),
        (CHATML_MARKED_SHORT, ANSWERS[0], {}),
        (
            CHATML_MARKED.replace("{% generation %}{{ m", "{{ m.content[:3] }}{% generation %}{{ m").replace(
                "t + '", "t[3:] + '"
            ),
            ANSWERS[0],
            {"answers_that_the_template_marks_otherwise": 1},
        ),
        (DROPS_THOUGHTS, THOUGHT + ANSWERS[0], {"thoughts_that_the_template_leaves_out": 1}),
        (CHATML.replace("<|im_end|>", "<|slutt|>"), ANSWERS[0], {"answers_whose_end_is_no_token": 1}),
    ],
)
def test_answers_that_are_learned_otherwise_than_the_template_has_them_are_counted(
    folder: Path, source: str, answer: str, counted: dict[str, int]
) -> None:
    counts = Counter[str]()
    turns = [
        Turn(role="user", content=QUESTION, target=False),
        Turn(role="assistant", content=answer, target=True),
    ]
    Case(folder, source).template.rows(turns, 1, False, counts)
    assert +counts == counted


@pytest.mark.parametrize("turns", [CHAT, [("system", "Svar kort."), *CHAT]], ids=["plain", "system"])
def test_a_system_prompt_in_the_last_user_turn_gives_a_row_a_turn(
    folder: Path, turns: list[tuple[str, str]]
) -> None:
    case = Case(folder, SYSTEM_IN_LAST_TURN)
    rows = case.rows(*turns)
    learned = [text for row in rows for text in case.learned(row)]
    assert learned == [f"{answer}</s>" for answer in ANSWERS]
    if turns is CHAT:
        assert len(rows) == 1
        return
    first, second = (case.decoded(row.input_ids) for row in rows)
    assert first == f"<s>[INST]Svar kort.\n\n{QUESTION}[/INST]{ANSWERS[0]}</s>"
    assert (
        second
        == f"<s>[INST]{QUESTION}[/INST]{ANSWERS[0]}</s>[INST]Svar kort.\n\n{CHAT[2][1]}[/INST]{ANSWERS[1]}</s>"
    )


def test_arguments_reach_the_template(folder: Path) -> None:
    """Without thinking, the empty thought is part of the prompt and no target."""
    case = Case(folder, QWEN3, enable_thinking=False)
    assert [case.learned(row) for row in case.rows(*CHAT)] == [[f"{answer}<|im_end|>"] for answer in ANSWERS]


def test_no_control_token_ends_a_turn_then_the_end_of_the_sequence_does(folder: Path) -> None:
    """After every answer: in a row that went on, nothing would end the first."""
    case = Case(folder, PLAIN)
    assert [case.learned(row) for row in case.rows(*CHAT)] == [[f"{answer}\n</s>"] for answer in ANSWERS]


@dataclass(frozen=True)
class Unclear:
    """A template and a conversation whose targets cannot be told for certain, and why."""

    id: str
    source: str
    turns: list[tuple[str, str]]
    reason: str
    words: str


THINKS_TWICE = [CHAT[0], ("assistant", f"{THOUGHT}Ja{THOUGHT}Nei")]
UPPER_MARKED = CHATML_MARKED.replace("m.content + '<|im", "m.content | upper + '<|im")
OPENS_THOUGHT = CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif")
WITHOUT_FIRST = LLAMA3.replace("{{- bos_token }}", "{{- messages[0].content[:0] }}")
UNCLEAR = [
    Unclear(
        "no system", GEMMA, [("system", "Svar kort."), *CHAT], "template_refuses", "System role not supported"
    ),
    Unclear(
        "answers in a row", MISTRAL, [CHAT[0], CHAT[1], CHAT[1]], "template_refuses", "roles must alternate"
    ),
    Unclear(
        "upper",
        CHATML.replace("m.content +", "m.content | upper +"),
        CHAT,
        "template_changes_answer",
        "Fristen",
    ),
    Unclear("upper, marked", UPPER_MARKED, CHAT, "template_changes_answer", "Fristen"),
    Unclear("opens a thought", OPENS_THOUGHT, CHAT, "prompt_is_no_prefix", "turn 2"),
    Unclear("two thoughts", QWEN3, THINKS_TWICE, "template_changes_answer", "Ja<think>"),
    Unclear("no question", WITHOUT_FIRST, [CHAT[1]], "template_refuses", "no element 0"),
]


@pytest.mark.parametrize("unclear", UNCLEAR, ids=lambda unclear: unclear.id)
def test_what_cannot_be_told_for_certain_is_refused(folder: Path, unclear: Unclear) -> None:
    with pytest.raises(UnusableChat, match=unclear.words) as refused:
        Case(folder, unclear.source).rows(*unclear.turns)
    assert refused.value.reason == unclear.reason


def test_a_template_that_cannot_render_a_question_and_its_answer_is_one_line(folder: Path) -> None:
    for source in (
        "{% for m in messages %}",
        "{{ missing.role }}",
        "{{ raise_exception('no') }}",
        "{{ messages.append(1) }}",
    ):
        with pytest.raises(ValueError, match="chat template of the test fails on a question and its answer"):
            Case(folder, source)
    parts = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    with pytest.raises(
        ValueError, match="chat template of the test does not show an answer that is a string"
    ):
        Case(folder, parts)


def test_everything_is_the_whole_conversation(folder: Path) -> None:
    case = Case(folder, QWEN3)
    (row,) = case.rows(*CHAT, ("user", "Takk!"), everything=True)
    assert all(row.mask)
    assert case.decoded(row.input_ids).endswith("Takk!<|im_end|>\n")


def test_no_token_spans_the_border_of_an_answer(folder: Path) -> None:
    """The model is given the prompt's tokens, so the answer begins with a token of its own, though one could
    span both."""
    case = Case(folder, CHATML)
    answer = "\n\n" + ANSWERS[0]
    prompt = "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"
    whole, alone = (
        case.tokenizer.encode(text, add_special_tokens=False).ids for text in (prompt + answer, prompt)
    )
    assert whole[: len(alone)] != alone, "a token does span them"
    row = case.row(("user", "?"), ("assistant", answer))
    assert row.input_ids[: len(alone)] == alone
    assert row.mask[: len(alone) + 1] == [0] * len(alone) + [1]
    assert case.learned(row) == [f"{answer}<|im_end|>"]


def test_a_tokenizer_that_puts_a_space_first_does_so_once(spaced: Path) -> None:
    """SentencePiece's kin (Llama 2, Mistral): pieces in the middle get no space of their own."""
    case = Case(spaced, MISTRAL)
    assert [text.strip() for text in case.learned(case.row(*CHAT))] == [f"{answer}</s>" for answer in ANSWERS]
    encoder = ChatEncoder(spaced / "tokenizer.json")
    assert case.tokenizer.id_to_token(encoder.encode_continuation("ar")[0])[0] == "a"
    assert case.tokenizer.id_to_token(encoder.encode_start("ar")[0])[0] == "▁"
