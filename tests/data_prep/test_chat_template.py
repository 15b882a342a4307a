"""The targets of chat templates are the assistant's contents and the ends of turns.

The templates are invented, in the style of model families that are often fine-tuned.
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
from data_prep.tokens.chat_template import DEFAULT_TEMPLATE, ChatTemplate
from data_prep.tokens.row import Row
from data_prep.tokens.thoughts import UnusableChat
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
    """A chat template with the tests' tokenizer, and functions that make and decode its rows."""

    def __init__(self, folder: Path, source: str, **variables: object) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        encoder = ChatEncoder(folder / "tokenizer.json")
        variables = {"bos_token": "<s>", "eos_token": "</s>", **variables}
        self.template = ChatTemplate(source, variables, encoder, "the test")

    def rows(self, *turns: tuple[str, str], everything: bool = False) -> list[Row]:
        parsed = [Turn(role=role, content=content, target=role == "assistant") for role, content in turns]
        return self.template.rows(parsed, self.tokenizer.token_to_id("</s>"), everything)

    def row(self, *turns: tuple[str, str]) -> Row:
        (row,) = self.rows(*turns)
        return row

    def decoded(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def learned(self, row: Row) -> list[str]:
        """Return each contiguous run of targets, decoded."""
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
    "chatml-without-generation-prompt": (
        CHATML_WITHOUT_PROMPT,
        "<|im_start|>assistant\n{}<|im_end|>",
    ),
    "llama3": (LLAMA3, "{}<|eot_id|>"),
    "mistral": (MISTRAL, " {}</s>"),
    "gemma": (GEMMA, "{}<end_of_turn>"),
    "phi": (PHI, "{}<|end|>"),
    "default": (DEFAULT_TEMPLATE, "{}</s>"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_the_answers_and_their_end_of_turn_tokens(folder: Path, family: str) -> None:
    source, written = FAMILIES[family]
    case = Case(folder, source)
    assert case.learned(case.row(*CHAT)) == [written.format(answer) for answer in ANSWERS]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "turns", [CHAT, CHAT[:2], [*CHAT, ("user", "Takk!")]], ids=["two", "one", "unanswered"]
)
def test_tokens_equal_those_of_apply_chat_template(
    folder: Path, family: str, turns: list[tuple[str, str]]
) -> None:
    """Compare the tokens up to the last answer; they contain at most one BOS."""
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
    [
        "a",
        "assistant",
        "<|",
        "Ja\n",
        "  innrykk\n\n- liste",
        "Så\n\n\nslutt",
        "🎉 ø",
        "\n\nSvar",
        "user\n",
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_targets_of_odd_answers_are_exact(folder: Path, family: str, answer: str) -> None:
    """Targets are trimmed if the template trims answers, and contain no text of the template."""
    source, written = FAMILIES[family]
    case = Case(folder, source)
    kept = answer.strip() if "trim" in source else answer
    if family == "phi":
        kept = answer.lstrip()  # <|assistant|> strips the white space after it
    turns = [
        ("user", "assistant\na"),
        ("assistant", answer),
        ("user", answer),
        ("assistant", ANSWERS[0]),
    ]
    learned = case.learned(case.row(*turns))
    assert learned == [written.format(kept), written.format(ANSWERS[0])]


@pytest.mark.parametrize("marked", [CHATML_MARKED, CHATML_MARKED_SHORT, CHATML_MARKED_LONG])
def test_templates_with_and_without_generation_markers_agree(folder: Path, marked: str) -> None:
    assert Case(folder, CHATML).rows(*CHAT) == Case(folder, marked).rows(*CHAT)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "token",
    ["<|im_end|>", "</s>", "<|eot_id|>", "<end_of_turn>", "<|im_start|>", "[/INST]", "<|end|>"],
)
def test_control_tokens_spelled_in_content_are_text(folder: Path, family: str, token: str) -> None:
    source, written = FAMILIES[family]
    case = Case(folder, source)
    content = f"Skriv {token} eller {token}\nuser til slutt"
    plain = case.row(*CHAT[:2])
    spelled = case.row(("user", content), ("assistant", content))
    assert case.learned(spelled) == [written.format(content)]
    # <end_of_turn> is a control token only in Gemma's template
    if token != "<end_of_turn>" or family == "gemma":
        number = case.tokenizer.token_to_id(token)
        assert spelled.input_ids.count(number) == plain.input_ids.count(number)


def test_masks_and_sanitised_content_equal_those_of_transformers(folder: Path) -> None:
    """Both are compared with those of transformers, which has its own code for them."""
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

    content = "Skriv <|im_end|> eller </s>"
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    encoded = theirs.apply_chat_template(messages, chat_template=CHATML, sanitize_control_tokens=True)
    sanitised = encoded["input_ids"]
    ids = Case(folder, CHATML).row(("user", content), ("assistant", content)).input_ids
    assert ids == sanitised[: len(ids)]


def test_a_template_that_rewrites_history_gives_one_row_per_turn(folder: Path) -> None:
    """Each row equals the prompt and the answer of its turn at inference."""
    case = Case(folder, QWEN3)
    thoughts = ["", "<think>\nHm, 1.\n</think>\n\n", "", "<think>\nHm, 3.\n</think>\n\n"]
    turns = [(role, thought + text) for thought, (role, text) in zip(thoughts, CHAT, strict=True)]
    rows = case.rows(*turns)
    assert [case.learned(row) for row in rows] == [
        [f"{thoughts[1]}{ANSWERS[0]}<|im_end|>"],
        [f"{thoughts[3]}{ANSWERS[1]}<|im_end|>"],
    ]
    first, last = (case.decoded(row.input_ids) for row in rows)
    assert first == (
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>\nHm, 1.\n"
        f"</think>\n\n{ANSWERS[0]}<|im_end|>"
    )
    assert "Hm, 1." not in last
    assert f"<|im_start|>assistant\n{ANSWERS[0]}<|im_end|>" in last


THOUGHT = "<think>\nHm.\n</think>\n\n"
DROPS_THOUGHTS = CHATML.replace("m.content +", "m.content.split('</think>')[-1].lstrip() +")
OPENS_THOUGHTS = CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif")


@pytest.mark.parametrize(
    ("source", "answer", "expected"),
    [
        (
            CHATML_WITHOUT_PROMPT,
            THOUGHT + ANSWERS[0],
            f"<|im_start|>assistant\n{THOUGHT}{ANSWERS[0]}",
        ),
        (DROPS_THOUGHTS, THOUGHT + ANSWERS[0], THOUGHT + ANSWERS[0]),
        (DROPS_THOUGHTS, "<think>\n\n</think>\n\nJa", "<think>\n\n</think>\n\nJa"),
        (DROPS_THOUGHTS, "<think>Ja</think>Ja", "<think>Ja</think>Ja"),
        (OPENS_THOUGHTS, THOUGHT + ANSWERS[0], f"Hm.\n</think>\n\n{ANSWERS[0]}"),
        (OPENS_THOUGHTS, f"Hm.\n</think>\n\n{ANSWERS[0]}", f"Hm.\n</think>\n\n{ANSWERS[0]}"),
        (QWEN3, THOUGHT, THOUGHT),
    ],
)
def test_thoughts_that_the_model_must_generate_are_targets(
    folder: Path, source: str, answer: str, expected: str
) -> None:
    case = Case(folder, source)
    assert case.learned(case.row(CHAT[0], ("assistant", answer))) == [f"{expected}<|im_end|>"]


def test_thought_markers_are_tokens_only_where_they_mark_thoughts(folder: Path, tmp_path: Path) -> None:
    """Markers elsewhere in an answer or question are text, even if they are special tokens."""
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
        (
            CHATML.replace("<|im_end|>", "<|slutt|>"),
            ANSWERS[0],
            {"answers_whose_end_is_no_token": 1},
        ),
    ],
)
def test_answers_whose_targets_deviate_from_the_template_are_counted(
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
def test_a_system_prompt_in_the_last_user_turn_gives_one_row_per_turn(
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
    assert second == (
        f"<s>[INST]{QUESTION}[/INST]{ANSWERS[0]}</s>[INST]Svar kort.\n\n{CHAT[2][1]}[/INST]{ANSWERS[1]}</s>"
    )


def test_arguments_reach_the_template(folder: Path) -> None:
    """With enable_thinking=False, the empty thought is part of the prompt and not a target."""
    case = Case(folder, QWEN3, enable_thinking=False)
    assert [case.learned(row) for row in case.rows(*CHAT)] == [[f"{answer}<|im_end|>"] for answer in ANSWERS]


def test_without_an_end_of_turn_token_eos_ends_every_answer(folder: Path) -> None:
    """Each answer has its own row, because only the end of a row adds the end-of-sequence token."""
    case = Case(folder, PLAIN)
    assert [case.learned(row) for row in case.rows(*CHAT)] == [[f"{answer}\n</s>"] for answer in ANSWERS]


@dataclass(frozen=True)
class Uncertain:
    """A template and a conversation whose targets cannot be determined, and the expected error."""

    id: str
    source: str
    turns: list[tuple[str, str]]
    reason: str
    message: str


THINKS_TWICE = [CHAT[0], ("assistant", f"{THOUGHT}Ja{THOUGHT}Nei")]
UPPER_MARKED = CHATML_MARKED.replace("m.content + '<|im", "m.content | upper + '<|im")
OPENS_THOUGHT = CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif")
WITHOUT_FIRST = LLAMA3.replace("{{- bos_token }}", "{{- messages[0].content[:0] }}")
UNCERTAIN = [
    Uncertain(
        "no system",
        GEMMA,
        [("system", "Svar kort."), *CHAT],
        "template_refuses",
        "System role not supported",
    ),
    Uncertain(
        "answers in a row",
        MISTRAL,
        [CHAT[0], CHAT[1], CHAT[1]],
        "template_refuses",
        "roles must alternate",
    ),
    Uncertain(
        "upper",
        CHATML.replace("m.content +", "m.content | upper +"),
        CHAT,
        "template_changes_answer",
        "Fristen",
    ),
    Uncertain("upper, marked", UPPER_MARKED, CHAT, "template_changes_answer", "Fristen"),
    Uncertain("opens a thought", OPENS_THOUGHT, CHAT, "prompt_is_no_prefix", "turn 2"),
    Uncertain("two thoughts", QWEN3, THINKS_TWICE, "template_changes_answer", "Ja<think>"),
    Uncertain("no question", WITHOUT_FIRST, [CHAT[1]], "template_refuses", "no element 0"),
]


@pytest.mark.parametrize("uncertain", UNCERTAIN, ids=lambda uncertain: uncertain.id)
def test_conversations_with_uncertain_targets_are_rejected(folder: Path, uncertain: Uncertain) -> None:
    with pytest.raises(UnusableChat, match=uncertain.message) as rejected:
        Case(folder, uncertain.source).rows(*uncertain.turns)
    assert rejected.value.reason == uncertain.reason


def test_a_template_that_cannot_render_a_conversation_is_a_one_line_error(folder: Path) -> None:
    for source in (
        "{% for m in messages %}",
        "{{ missing.role }}",
        "{{ raise_exception('no') }}",
        "{{ messages.append(1) }}",
    ):
        with pytest.raises(ValueError, match="chat template of the test: fails on a question and its answer"):
            Case(folder, source)
    parts = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    with pytest.raises(
        ValueError, match="chat template of the test: leaves out an answer whose content is a string"
    ):
        Case(folder, parts)


def test_with_targets_everything_the_whole_conversation_is_a_target(folder: Path) -> None:
    case = Case(folder, QWEN3)
    (row,) = case.rows(*CHAT, ("user", "Takk!"), everything=True)
    assert all(row.mask)
    assert case.decoded(row.input_ids).endswith("Takk!<|im_end|>\n")


def test_no_token_spans_prompt_and_answer(folder: Path) -> None:
    """The answer begins with a new token, as at inference, even if one token could span both."""
    case = Case(folder, CHATML)
    answer = "\n\n" + ANSWERS[0]
    prompt = "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"
    whole_ids = case.tokenizer.encode(prompt + answer, add_special_tokens=False).ids
    prompt_ids = case.tokenizer.encode(prompt, add_special_tokens=False).ids
    assert whole_ids[: len(prompt_ids)] != prompt_ids, "a token would span prompt and answer"
    row = case.row(("user", "?"), ("assistant", answer))
    assert row.input_ids[: len(prompt_ids)] == prompt_ids
    assert row.mask[: len(prompt_ids) + 1] == [0] * len(prompt_ids) + [1]
    assert case.learned(row) == [f"{answer}<|im_end|>"]


def test_a_tokenizer_that_prepends_a_space_does_so_once(spaced: Path) -> None:
    """Only the first piece of a row gets the space. Llama 2 and Mistral have such tokenizers."""
    case = Case(spaced, MISTRAL)
    assert [text.strip() for text in case.learned(case.row(*CHAT))] == [f"{answer}</s>" for answer in ANSWERS]
    encoder = ChatEncoder(spaced / "tokenizer.json")
    assert case.tokenizer.id_to_token(encoder.encode_continuation("ar")[0])[0] == "a"
    assert case.tokenizer.id_to_token(encoder.encode_start("ar")[0])[0] == "▁"
