"""The reader of conversations and instructions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from data_prep import pipeline
from data_prep.config import CorpusConfig, PrepareConfig, SourceConfig
from data_prep.document import Place, Report
from data_prep.pipeline import Prepared
from data_prep.sources import chat
from data_prep.stage_settings import ChatConfig, SplitConfig
from tests.data_prep.conversations import (
    ANSWER,
    FIRST_ANSWER,
    MESSAGES,
    QUESTION,
    TWO_EXCHANGES,
    decode_targets,
    make_messages,
    prepare,
    read_documents,
    read_drop_reasons,
    read_quarantine,
    read_turns,
    train_rows,
)

PARTS = [{"type": "text", "text": ANSWER[:9]}, {"type": "text", "text": ANSWER[9:]}]
SHAREGPT = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]


@dataclass(frozen=True)
class Form:
    """A record of one question and its answer, in one of the supported forms.

    Attributes:
        mask: name of the corpus's loss mask column for this form.
    """

    id: str
    mask: str
    record: dict[str, Any]


FORMS = [
    Form("messages", "assistant_masks", {"messages": MESSAGES}),
    Form("turns", "completion_mask", {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}),
    Form(
        "more turns",
        "completion_mask",
        {"prompt": MESSAGES + MESSAGES[:1], "completion": MESSAGES[1:]},
    ),
    Form("texts", "completion_mask", {"prompt": f"{QUESTION}\nSvar:", "completion": f" {ANSWER}"}),
    Form("ShareGPT", "assistant_masks", {"conversations": SHAREGPT}),
    Form(
        "Alpaca",
        "completion_mask",
        {"instruction": "Svar innbyggeren.", "input": QUESTION, "output": ANSWER},
    ),
    Form(
        "Alpaca without input",
        "completion_mask",
        {"instruction": QUESTION, "input": "", "output": ANSWER},
    ),
    Form("parts", "assistant_masks", {"messages": [MESSAGES[0], {**MESSAGES[1], "content": PARTS}]}),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.id)
def test_the_targets_of_each_form_are_the_answer_and_its_end(tmp_path: Path, form: Form) -> None:
    prepared = prepare(tmp_path, {"chats": [form.record]})
    assert prepared.manifest.mask_column == form.mask
    assert decode_targets(prepared) == [f"{ANSWER}</s>"]
    source = prepared.manifest.sources["chats"]
    assert source.supervised_tokens == {"train/nob": sum(train_rows(prepared)[0][form.mask])}
    assert source.supervised_tokens["train/nob"] < source.tokens["train/nob"]


def test_every_token_of_running_text_beside_conversations_is_a_target(tmp_path: Path) -> None:
    text = {"text": "Kommunestyret behandlet saken i møtet i går kveld og vedtok innstillingen."}
    plain = {"prompt": QUESTION, "completion": ANSWER.replace("tre", "seks")}
    prepared = prepare(tmp_path, {"text": [text], "chats": [{"messages": MESSAGES}, plain]})
    assert prepared.manifest.mask_column == "assistant_masks", (
        "conversations decide the name of the mask column"
    )
    by_source = {row["source"]: row for row in train_rows(prepared)}
    assert set(by_source["text"]["assistant_masks"]) == {1}
    assert len(by_source["text"]["assistant_masks"]) == len(by_source["text"]["input_ids"])
    assert 0 in by_source["chats"]["assistant_masks"]
    assert prepare(tmp_path, {"text": [text]}).manifest.mask_column is None


def test_with_targets_everything_there_is_no_mask(tmp_path: Path) -> None:
    thanked = {"messages": [*MESSAGES, {"role": "user", "content": "Takk skal du ha!"}]}
    flagged = {
        "messages": [
            MESSAGES[0],
            {"role": "assistant", "content": "Hei!", "loss": False},
            *thanked["messages"],
        ]
    }
    prepared = prepare(tmp_path, {"chats": [flagged]}, chat=ChatConfig(targets="everything"))
    assert prepared.manifest.stages[-1].counts == {"answers_learned_as_everything": 1}
    prepared = prepare(tmp_path, {"chats": [thanked]}, chat=ChatConfig(targets="everything"))
    assert prepared.manifest.mask_column is None
    (row,) = train_rows(prepared)
    tokenizer = Tokenizer.from_file(str(prepared.folder / "tokenizer" / "tokenizer.json"))
    text = tokenizer.decode(row["input_ids"], skip_special_tokens=False)
    assert text == f"<s>user\n{QUESTION}</s>\n<s>assistant\n{ANSWER}</s>\n<s>user\nTakk skal du ha!</s>\n"


MALFORMED: list[tuple[Any, str]] = [
    ("no object", "unreadable_record"),
    ({"text": "Running text."}, "unreadable_record"),
    ({"messages": "a string"}, "unreadable_record"),
    ({"messages": ["a string"]}, "unreadable_record"),
    ({"messages": []}, "no_answer"),
    ({"messages": MESSAGES[:1]}, "no_answer"),
    ({"messages": [MESSAGES[0], {"role": "assistant"}]}, "unreadable_record"),
    ({"messages": [MESSAGES[0], {"role": "assistant", "content": 5}]}, "unreadable_record"),
    ({"messages": [MESSAGES[0], {"role": "gpt", "content": ANSWER}]}, "unknown_role"),
    ({"messages": [MESSAGES[0], {"role": ["assistant"], "content": ANSWER}]}, "unknown_role"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, MESSAGES[1]]},
        "unsupported_record",
    ),
    (
        {"messages": [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [{}]}]},
        "unsupported_record",
    ),
    (
        {"messages": [MESSAGES[0], {**MESSAGES[1], "reasoning_content": "Hm."}]},
        "unsupported_record",
    ),
    ({"messages": MESSAGES, "tools": [{"name": "kalender"}]}, "unsupported_record"),
    ({"prompt": QUESTION, "completion": MESSAGES[1:]}, "unreadable_record"),
    ({"prompt": QUESTION}, "unreadable_record"),
    ({"prompt": MESSAGES[:1], "completion": MESSAGES[:1]}, "no_answer"),
    ({"instruction": QUESTION, "output": 5}, "unreadable_record"),
    ({"instruction": QUESTION, "output": " \u200b\n"}, "empty_answer"),
]


def test_malformed_records_are_dropped_with_a_reason_and_good_ones_kept(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, {"chats": [*(record for record, _ in MALFORMED), {"messages": MESSAGES}]})
    reasons = read_drop_reasons(prepared) | dict.fromkeys(read_quarantine(prepared), "unreadable_record")
    assert reasons == {
        f"chats.jsonl:{number}": reason for number, (_, reason) in enumerate(MALFORMED, start=1)
    }
    assert decode_targets(prepared) == [f"{ANSWER}</s>"]


@pytest.mark.parametrize("flag", ["loss", "train", "trainable", "training", "weight"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (False, [ANSWER]),
        (0, [ANSWER]),
        (True, [FIRST_ANSWER, ANSWER]),
        (None, [FIRST_ANSWER, ANSWER]),
    ],
)
def test_a_flag_of_a_turn_decides_whether_it_is_a_target(flag: str, value: Any, expected: list[str]) -> None:
    turns = read_turns({"messages": make_messages(*TWO_EXCHANGES, **{flag: value})})
    assert [turn.content for turn in turns if turn.target] == expected
    assert len(turns) == 4


REJECTED: list[tuple[dict[str, Any], str]] = [
    (
        {"messages": make_messages(*TWO_EXCHANGES, weight=0.5)},
        "weight of a message must be true or false, not 0.5",
    ),
    (
        {"messages": make_messages(*TWO_EXCHANGES, train="false")},
        "train of a message must be true or false, not 'false'",
    ),
    (
        {"messages": make_messages(*TWO_EXCHANGES, train=True, loss=False)},
        "loss and train of a message contradict each other",
    ),
    (
        {
            "messages": make_messages(
                *TWO_EXCHANGES, train_detail=[{"begin_offset": 0, "end_offset": 4, "train": False}]
            )
        },
        "train_detail",
    ),
    ({"messages": make_messages(*TWO_EXCHANGES, mask=0)}, "mask"),
    ({"messages": make_messages(*TWO_EXCHANGES, compute_loss=False)}, "compute_loss"),
    ({"messages": make_messages(*TWO_EXCHANGES, Loss="false")}, "Loss"),
    ({"messages": make_messages(*TWO_EXCHANGES, isTrainable=0)}, "isTrainable"),
    ({"messages": make_messages(*TWO_EXCHANGES, no_loss=True)}, "no_loss"),
    ({"messages": MESSAGES, "calculate_loss": "nei"}, "calculate_loss"),
    (
        {"messages": [{"role": "user", "content": QUESTION, "train": True}, MESSAGES[1]]},
        "turn of the user",
    ),
    ({"messages": MESSAGES, "train": False}, "train"),
    ({"messages": MESSAGES, "weight": 2}, "weight"),
    ({"messages": MESSAGES, "history": [["a", "b"]]}, "history"),
    ({"messages": MESSAGES, "rejected": ANSWER}, "rejected"),
    ({"prompt": QUESTION, "completion": ANSWER, "label": False}, "label"),
    (
        {
            "messages": [{"role": "system", "content": "Svar kort."}, *MESSAGES],
            "system": "Svar langt.",
        },
        "system",
    ),
    (
        {
            "conversations": [
                {"from": "human", "value": QUESTION},
                {"from": "function_call", "value": "{}"},
            ]
        },
        "function_call",
    ),
]


def test_keys_that_resemble_flags_but_hold_text_are_unknown_keys() -> None:
    report = Report()
    record = {
        "messages": make_messages(*TWO_EXCHANGES, training_set="våren", lossless=None),
        "weightings": "etter avdeling",
    }
    (document,) = read_documents(record, report=report)
    assert len(document.turns) == 4
    assert report.counts["unknown_key_weightings"] == 1
    assert report.counts["unknown_key_of_a_turn_training_set"] == 1


@pytest.mark.parametrize(("record", "detail"), REJECTED, ids=[detail for _, detail in REJECTED])
def test_unsupported_keys_that_would_change_training_are_rejected(
    record: dict[str, Any], detail: str
) -> None:
    report = Report()
    assert read_documents(record, report=report) == []
    (drop,) = report.drops
    assert drop.reason == "unsupported_record"
    assert detail in drop.detail


def test_the_preferred_answer_can_be_mapped_to_the_completion() -> None:
    record = {"prompt": QUESTION, "chosen": ANSWER, "rejected": "Vet ikke."}
    source = SourceConfig(reader="chat", path="x", license="CC0-1.0", fields={"completion": "chosen"})
    document = chat.ConversationReader(source, chat.Options(), Report()).build_document(
        record, Place("chats", "x.jsonl")
    )
    assert document is not None
    assert [turn.content for turn in document.turns] == [QUESTION, ANSWER]


def test_system_and_history_of_an_instruction_become_turns() -> None:
    """Answers in the history are targets, as in LLaMA-Factory, unless `learn_history` is false."""
    record = {
        "system": "Svar kort.",
        "instruction": QUESTION,
        "input": "",
        "output": ANSWER,
        "history": [["Er det åpent?", FIRST_ANSWER]],
    }
    turns = read_turns(record)
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn.content for turn in turns if turn.target] == [FIRST_ANSWER, ANSWER]
    assert [turn.content for turn in read_turns(record, learn_history=False) if turn.target] == [ANSWER]
    assert read_turns({"messages": MESSAGES, "system": "Svar kort."})[0].content == "Svar kort."


def test_keys_and_roles_of_turns_can_be_mapped() -> None:
    options = {
        "role_key": "fra",
        "content_key": "tekst",
        "roles": {"kunde": "user", "saksbehandler": "assistant"},
    }
    record = {"messages": [{"fra": "kunde", "tekst": QUESTION}, {"fra": "saksbehandler", "tekst": ANSWER}]}
    assert [(turn.role, turn.content, turn.target) for turn in read_turns(record, **options)] == [
        ("user", QUESTION, False),
        ("assistant", ANSWER, True),
    ]
    with pytest.raises(
        ValueError, match=r"options.roles: 'kunde' is mapped to the unknown role 'bruker'; use one of system"
    ):
        read_turns(record, roles={"kunde": "bruker"})
    with pytest.raises(
        ValueError, match=r"options.prompt_template: must contain \{prompt\} exactly once.*not 'Svar:'"
    ):
        read_turns(record, prompt_template="Svar:")


def test_unknown_keys_are_counted_by_name_up_to_a_limit() -> None:
    report = Report()
    messages = [MESSAGES[0], {**MESSAGES[1], "rangering": 3, "navn": None}]
    odd = {f"key{number}": 1 for number in range(30)}
    read_documents(
        {"messages": messages, "saksbehandler": "A"},
        {"messages": MESSAGES, "Kari Nordmann": 1, **odd},
        report=report,
    )
    counts = report.counts
    assert counts["unknown_key_of_a_turn_rangering"] == counts["unknown_key_saksbehandler"] == 1
    assert counts["unknown_key_(no plain name)"] == 1
    other_report = Report()
    read_documents({"messages": MESSAGES, "prompt": QUESTION, "input": "Sak 24/17"}, report=other_report)
    assert +other_report.counts == {"unknown_key_prompt": 1, "unknown_key_input": 1}, (
        "these keys belong to another form"
    )
    assert counts["unknown_keys_of_other_names"] == 30 - (20 - 3)
    assert not any("Nordmann" in name or "navn" in name for name in counts)


def test_an_empty_answer_is_not_a_target_and_its_conversation_is_kept(tmp_path: Path) -> None:
    """An answer of null, "" or white space remains in the conversation as context."""
    turns = [
        ("user", "Er dere der?"),
        ("assistant", "\u200b \n"),
        ("user", "Hallo?"),
        ("assistant", None),
        *TWO_EXCHANGES[2:],
    ]
    prepared = prepare(tmp_path, {"chats": [{"messages": make_messages(*turns)}]})
    assert decode_targets(prepared) == [f"{ANSWER}</s>"]
    assert {"empty_answers": 2}.items() <= prepared.manifest.stages[1].counts.items()
    tokenizer = Tokenizer.from_file(str(prepared.folder / "tokenizer" / "tokenizer.json"))
    text = tokenizer.decode(train_rows(prepared)[0]["input_ids"], skip_special_tokens=False)
    assert text.count("<s>assistant\n</s>") == 2
    with pytest.raises(ValueError, match="empty_answer 1"):
        prepare(tmp_path, {"chats": [{"instruction": QUESTION, "output": None}]})


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            "<p>Fristen er <b>tre uker</b>.</p><p>Lykke&nbsp;til &amp; takk!</p>",
            "Fristen er tre uker.\n\nLykke\xa0til & takk!",
        ),
        (
            "Ta med:<ul>\n<li>pass</li>\n<li>søknad</li></ul>Hilsen oss",
            "Ta med:\n- pass\n- søknad\n\nHilsen oss",
        ),
        ("Ring oss<br/>i morgen<script>alert(1 < 2)</script><!-- intern -->", "Ring oss\ni morgen"),
        (
            "<think>\nHm.\n</think>\n\n2 < 3 og <fødselsnummer>",
            "<think>\nHm.\n</think>\n\n2 < 3 og <fødselsnummer>",
        ),
    ],
)
def test_html_can_be_stripped_from_answers(answer: str, expected: str) -> None:
    messages = [
        {"role": "user", "content": "Hva betyr <b>?"},
        {"role": "assistant", "content": answer},
    ]
    report = Report()
    (document,) = read_documents({"messages": messages}, report=report, strip_html=True)
    assert [turn.content for turn in document.turns] == ["Hva betyr <b>?", expected]
    assert report.counts["answers_with_html_stripped"] == (answer != expected)
    assert read_turns({"messages": messages})[1].content == answer


def test_when_no_record_can_be_read_the_error_gives_the_first_reason(tmp_path: Path) -> None:
    unknown_role = [MESSAGES[0], {"role": "saksbehandler", "content": ANSWER}]
    with pytest.raises(
        ValueError,
        match=r"no document can be read; chats.jsonl:1: unknown_role: role is 'saksbehandler'",
    ):
        prepare(tmp_path, {"chats": [{"messages": unknown_role}, {"messages": MESSAGES[:1]}]})


def test_prompts_and_completions_become_turns_unless_a_template_is_set(tmp_path: Path) -> None:
    record = {
        "prompt": "Hva gjør jeg når søknaden om foreldrepenger",
        "completion": "utbetaling er avvist av banken, og du må ringe.",
    }

    def decode(prepared: Prepared) -> str:
        tokenizer = Tokenizer.from_file(str(prepared.folder / "tokenizer" / "tokenizer.json"))
        return tokenizer.decode(train_rows(prepared)[0]["input_ids"], skip_special_tokens=False)

    prepared = prepare(tmp_path, {"chats": [record]})
    assert decode(prepared) == f"<s>user\n{record['prompt']}</s>\n<s>assistant\n{record['completion']}</s>"
    assert prepared.manifest.tokenizer.end_of_turn == "</s>"
    named = prepare(tmp_path, {"chats": [record]}, {"prompt_template": "Spørsmål: {prompt}\nSvar: "})
    assert decode(named) == f"Spørsmål: {record['prompt']}\nSvar: {record['completion']}</s>"
    assert named.manifest.stages[-1].counts == {"by_prompt_template": 1}
    assert read_turns(record, prompt_template="{prompt}\\n\\n")[0].content == f"{record['prompt']}\n\n"
    assert decode_targets(named) == [f"{record['completion']}</s>"]


def test_a_system_prompt_is_set_by_written_standard(tmp_path: Path) -> None:
    nynorsk = [
        {"role": "user", "content": "Kva er fristen for å klage på vedtaket eg fekk frå kommunen?"},
        {
            "role": "assistant",
            "content": "Fristen er tre veker frå du fekk vedtaket, og klaga sender du til kommunen.",
        },
    ]
    own = [{"role": "system", "content": "Vær høflig."}, *make_messages(*TWO_EXCHANGES)]
    by_standard = ChatConfig(system={"nob": "Svar på bokmål.", "nno": "Svar på nynorsk."})
    records = [
        {"id": "nob", "messages": MESSAGES},
        {"id": "nno", "messages": nynorsk},
        {"id": "own", "messages": own},
    ]
    prepared = prepare(tmp_path, {"chats": records}, chat=by_standard)
    tokenizer = Tokenizer.from_file(str(prepared.folder / "tokenizer" / "tokenizer.json"))
    begins = {
        row["id"]: tokenizer.decode(row["input_ids"], skip_special_tokens=False).split("</s>")[0]
        for row in train_rows(prepared)
    }
    assert begins == {
        "nob": "<s>system\nSvar på bokmål.",
        "nno": "<s>system\nSvar på nynorsk.",
        "own": "<s>system\nVær høflig.",
    }
    assert prepared.manifest.stages[-1].counts == {
        "system_nno": 1,
        "system_nob": 1,
        "system_of_its_own": 1,
    }
    for system, error in (({"nn": "Svar."}, "names 'nn'"), ({"nno": " "}, "nno is empty")):
        with pytest.raises(ValueError, match=f"chat.system.*{error}"):
            ChatConfig(system=system)


def test_a_json_array_with_other_field_names_is_read(tmp_path: Path) -> None:
    record = {"samtale": MESSAGES, "nr": 7, "sak": "24/17"}
    (tmp_path / "chats.json").write_text(json.dumps([record, 5], indent=2))
    fields = {"messages": "samtale", "id": "nr", "group": "sak"}
    source = SourceConfig(reader="chat", path=str(tmp_path / "chats.json"), license="CC0-1.0", fields=fields)
    corpus = CorpusConfig(name="mine", sources={"chats": source}, split=SplitConfig(validation_share=0))
    prepared = pipeline.prepare(PrepareConfig(corpus=corpus, corpora_dir=str(tmp_path)))
    assert [(row["id"], row["group"]) for row in train_rows(prepared)] == [("7", "24/17")]
    assert read_quarantine(prepared) == {"chats.json:record 2": "must be a JSON object, but has type int"}
