"""In 45 chat templates, the targets are the tokens that the model must generate at inference.

The test renders twelve conversations with each template. It computes the expected targets from the
template's end-of-turn token and two renderings by transformers: the prompt at inference, and the
conversation with the answer. The expected targets are the tokens after the prompt, up to the end of
the turn, where generation stops.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data_prep.document import Turn
from data_prep.tokens.chat_encoder import ChatEncoder
from data_prep.tokens.chat_template import ChatTemplate
from data_prep.tokens.row import Row
from data_prep.tokens.thoughts import UnusableChat

TEMPLATES = Path(__file__).parent / "templates"
# By template: the token that ends an answer; "" if the end-of-sequence token does.
ENDS = {
    "alpaca": "</s>", "apertus": "<|assistant_end|>", "baichuan": "", "chatml": "<|im_end|>",
    "chatml_ended_by_the_next": "<|im_end|>", "chatml_marked": "<|im_end|>",
    "chatml_marked_without_thoughts": "<|im_end|>", "chatml_without_prompt": "<|im_end|>",
    "command_r": "<|END_OF_TURN_TOKEN|>", "command_r7b": "<|END_OF_TURN_TOKEN|>",
    "deepseek_r1": "<｜end▁of▁sentence｜>", "deepseek_r1_unopened": "<｜end▁of▁sentence｜>",
    "deepseek_v2": "</s>", "exaone": "[|endofturn|]", "falcon": "", "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>", "glm4": "", "gpt_oss": "<|return|>", "granite": "<|end_of_text|>",
    "internlm2": "<|im_end|>", "jamba": "<|eom|>", "llama2": "</s>", "llama3": "<|eot_id|>",
    "llama31": "<|eot_id|>", "llama4": "<|eot|>", "mistral_v1": "</s>", "mistral_v3": "</s>",
    "mistral_v3_tekken": "</s>", "mistral_v7": "</s>", "nemotron": "", "norwai": "</s>",
    "olmo2": "</s>", "openchat": "<|end_of_turn|>", "phi3": "<|end|>", "phi4": "<|im_end|>",
    "qwen25": "<|im_end|>", "qwen3": "<|im_end|>", "qwen3_thinking": "<|im_end|>",
    "smollm3": "<|im_end|>", "solar": "", "starchat": "<|end|>", "viking": "<|im_end|>",
    "vicuna": "</s>", "zephyr": "</s>",
}  # fmt: skip
LEAVE_OUT_THOUGHTS = ("deepseek_r1", "deepseek_r1_unopened")
HEADERS = (
    "<|im_start|>", "<|im_sep|>", "<|start_header_id|>", "<|end_header_id|>", "<|header_start|>",
    "<|header_end|>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<start_of_turn>",
    "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<｜User｜>", "<｜Assistant｜>",
    "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>",
    "<|start_of_role|>", "<|end_of_role|>", "<reserved_106>", "<reserved_107>", "[gMASK]", "<sop>",
    "<|observation|>", "<|bom|>", "[|system|]", "[|user|]", "[|assistant|]", "[|tool|]",
    "<|start|>", "<|channel|>", "<|message|>", "<|system_start|>", "<|system_end|>",
    "<|developer_start|>", "<|developer_end|>", "<|user_start|>", "<|user_end|>",
    "<|assistant_start|>", "<extra_id_0>", "<extra_id_1>", "<|START_RESPONSE|>", "<|END_RESPONSE|>",
)  # fmt: skip
# Llama 3's pattern, by which text is split before BPE
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Conversation:
    """A conversation as (role, content) turns.

    Attributes:
        not_learned: indices of the assistant's turns that are not targets.
    """

    id: str
    turns: list[tuple[str, str]]
    not_learned: set[int] = field(default_factory=set)

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in self.turns]

    @property
    def targets(self) -> list[int]:
        answers = [i for i, (role, _) in enumerate(self.turns) if role == "assistant"]
        return [i for i in answers if i not in self.not_learned]

    def as_turns(self) -> list[Turn]:
        return [
            Turn(role=role, content=content, target=i in self.targets)
            for i, (role, content) in enumerate(self.turns)
        ]


Q = "Når må jeg senest søke om barnehageplass?"
A = "Fristen er 1. mars."
Q2 = "Gjelder søknaden neste år også?"
A2 = "Nei, du må søke på nytt hvert år."
SYSTEM = "Du svarer for kommunen, kort og på bokmål."
THOUGHT = "<think>\nBrukeren spør om barnehage. Kommunen har én frist.\n</think>\n\n"
WORDS = "Skriv <|im_end|>, </s>, [/INST], <|eot_id|>\n<end_of_turn> eller <|assistant|> til slutt."
CODE = "Slik:\n\n```python\nif x:\n    print('å')\n```\n\n- ett 🎉\n  - to"
LONG = [
    turn
    for n in range(0, 16, 2)
    for turn in (
        ("user", f"{Q} ({n})"),
        ("assistant", f"Svar nummer {n + 1}: {A} " * 12 + "Slutt."),
    )
]
CONVERSATIONS = [
    Conversation("one turn", [("user", Q), ("assistant", A)]),
    Conversation("several turns", [("user", Q), ("assistant", A), ("user", Q2), ("assistant", A2)]),
    Conversation("system", [("system", SYSTEM), ("user", Q), ("assistant", A)]),
    Conversation(
        "system and several",
        [("system", SYSTEM), ("user", Q), ("assistant", A), ("user", Q2), ("assistant", A2)],
    ),
    Conversation("thoughts", [("user", Q), ("assistant", THOUGHT + A)]),
    Conversation(
        "thoughts and several",
        [("user", Q), ("assistant", THOUGHT + A), ("user", Q2), ("assistant", THOUGHT + A2)],
    ),
    Conversation("empty answer", [("user", Q), ("assistant", ""), ("user", Q2), ("assistant", A2)], {1}),
    Conversation(
        "flags",
        [("user", Q), ("assistant", A), ("user", Q2), ("assistant", A2), ("user", "Takk!")],
        {1},
    ),
    Conversation("long", LONG),
    Conversation(
        "control words",
        [("user", WORDS), ("assistant", WORDS), ("user", Q), ("assistant", f"{WORDS}\n{A}")],
    ),
    Conversation(
        "layout",
        [("user", CODE), ("assistant", CODE), ("user", f"{CODE}\n\nOg nå?"), ("assistant", A)],
    ),
    Conversation(
        "tool",
        [
            ("user", Q),
            ("assistant", "Jeg ser etter."),
            ("tool", '{"frist": "1. mars"}'),
            ("assistant", A),
        ],
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tokenizer with the control tokens of all templates."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", *sorted({end for end in ENDS.values() if end} - {"</s>"}), *HEADERS]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [content for conversation in CONVERSATIONS for _, content in conversation.turns]
    tokenizer.train_from_iterator(
        [f"{text}\n\n\nassistant\nuser\nAssistant: {text}\n\n" for text in texts], trainer
    )
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in ("<think>", "</think>")])
    folder = tmp_path_factory.mktemp("suite")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@dataclass(frozen=True)
class Expected:
    """The input of the model for one turn at inference, and the text that it must generate.

    Attributes:
        prompt: input of the model.
        written: text that the model must generate, including the end of the turn.
    """

    prompt: str
    written: str


class Oracle:
    """The expected targets of conversations in one chat template, from renderings by transformers.

    Args:
        folder: folder of the tokenizer.
        form: name of the chat template.
    """

    def __init__(self, folder: Path, form: str) -> None:
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"),
            bos_token="<s>",
            eos_token="</s>",
            clean_up_tokenization_spaces=False,
        )
        self.form = form
        self.end = ENDS[form]
        self.tokenizer.chat_template = read_template(form)

    def expected(self, conversation: Conversation) -> list[Expected] | None:
        """Return the prompt and the expected text of each turn that has targets.

        Return None if the template rejects the conversation. Also return None if a prompt opens a
        thought with <think>, but the answer does not.
        """
        try:
            return [self._turn(conversation.messages, i) for i in conversation.targets]
        except (jinja2.TemplateError, LookupError):
            return None

    def _turn(self, messages: list[dict[str, str]], i: int) -> Expected:
        prompt = self._render(messages[:i], add_generation_prompt=True)
        answered = self._render(messages[: i + 1])
        content = messages[i]["content"]
        if self.form in LEAVE_OUT_THOUGHTS:
            if prompt.endswith("<think>\n"):
                if not content.startswith("<think>\n"):
                    raise LookupError
                content = content.removeprefix("<think>\n")
            written = content + self.end
        elif answered.startswith(prompt):
            written = answered[len(prompt) :]
        else:
            written = answered.rpartition(messages[i - 1]["content"] + "[/INST]")[2]
        return Expected(prompt, self._until_end(written))

    def _until_end(self, written: str) -> str:
        if not self.end:
            return f"{written}</s>"
        end = re.search(rf"{re.escape(self.end)}\s*(</s>)?\s*$", written)
        if end:
            written = written[: end.start()]
        return written + self.end

    def _render(self, messages: list[dict[str, str]], **options: Any) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


@cache
def read_template(form: str) -> str:
    return (TEMPLATES / f"{form}.jinja").read_text(encoding="utf-8")


def target_spans(row: Row) -> list[tuple[int, int]]:
    """Return the start and the end of each contiguous run of targets."""
    padded = [0, *row.mask, 0]
    edges = [i for i in range(len(row.mask) + 1) if padded[i] != padded[i + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


@pytest.mark.parametrize("form", ENDS)
def test_targets_are_the_tokens_inference_must_generate(folder: Path, form: str) -> None:
    oracle = Oracle(folder, form)
    template = ChatTemplate(
        read_template(form),
        {"bos_token": "<s>", "eos_token": "</s>"},
        ChatEncoder(folder / "tokenizer.json"),
        form,
    )
    stop = oracle.tokenizer.convert_tokens_to_ids(ENDS[form] or "</s>")
    assert (template.end_of_turn or "</s>") == (ENDS[form] or "</s>")
    num_compared = 0
    for conversation in CONVERSATIONS:
        expected = oracle.expected(conversation)
        if expected is None:
            with pytest.raises(UnusableChat):
                template.rows(conversation.as_turns(), oracle.tokenizer.eos_token_id, False)
            continue
        rows = template.rows(conversation.as_turns(), oracle.tokenizer.eos_token_id, False)
        found = []
        for row in rows:
            assert row.input_ids[-1] == stop, conversation.id
            for begin, end in target_spans(row):
                parts = row.input_ids[:begin], row.input_ids[begin:end]
                turn = Expected(*(oracle.tokenizer.decode(part, skip_special_tokens=False) for part in parts))
                found.append(turn)
                # In the conversation "control words", control tokens are spelled in the content;
                # transformers would encode them as tokens.
                if conversation.id != "control words":
                    assert list(parts[1]) == oracle.ids(turn.written)
                    assert begin > target_spans(row)[0][0] or list(parts[0]) == oracle.ids(turn.prompt)
                assert row.input_ids[end - 1] == stop, (
                    f"{conversation.id}: generation continues after the turn"
                )
        assert found == expected, conversation.id
        num_compared += 1
    # deepseek_r1's prompt opens thoughts, and most conversations have none
    assert num_compared >= (2 if form == "deepseek_r1" else 8)


def test_every_template_is_in_the_suite() -> None:
    assert {path.stem for path in TEMPLATES.glob("*.jinja")} == ENDS.keys()
    assert len(ENDS) >= 40
    assert len(CONVERSATIONS) == 12
