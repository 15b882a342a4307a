"""Tests of the reader of conversations and instructions."""

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
    ASKED,
    FIRST,
    MESSAGES,
    TOLD,
    TWO,
    asked_and_told,
    documents_of,
    drops,
    learned,
    prepare,
    quarantined,
    rows,
    turns_of,
)

PARTS = [{"type": "text", "text": TOLD[:9]}, {"type": "text", "text": TOLD[9:]}]
SHAREGPT = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": TOLD}]


@dataclass(frozen=True)
class Form:
    """A record that asks and answers, and the column of its mask."""

    id: str
    mask: str
    record: dict[str, Any]


FORMS = [
    Form("messages", "assistant_masks", {"messages": MESSAGES}),
    Form("turns", "completion_mask", {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}),
    Form("more turns", "completion_mask", {"prompt": MESSAGES + MESSAGES[:1], "completion": MESSAGES[1:]}),
    Form("texts", "completion_mask", {"prompt": f"{ASKED}\nSvar:", "completion": f" {TOLD}"}),
    Form("ShareGPT", "assistant_masks", {"conversations": SHAREGPT}),
    Form("Alpaca", "completion_mask", {"instruction": "Svar innbyggeren.", "input": ASKED, "output": TOLD}),
    Form("Alpaca without input", "completion_mask", {"instruction": ASKED, "input": "", "output": TOLD}),
    Form("parts", "assistant_masks", {"messages": [MESSAGES[0], {**MESSAGES[1], "content": PARTS}]}),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.id)
def test_the_targets_of_each_form_are_the_answer_and_its_end(tmp_path: Path, form: Form) -> None:
    prepared = prepare(tmp_path, {"chats": [form.record]})
    assert prepared.manifest.mask_column == form.mask
    assert learned(prepared) == [f"{TOLD}</s>"]
    source = prepared.manifest.sources["chats"]
    assert source.supervised_tokens == {"train/nob": sum(rows(prepared)[0][form.mask])}
    assert source.supervised_tokens["train/nob"] < source.tokens["train/nob"]


def test_every_token_of_running_text_beside_conversations_is_a_target(tmp_path: Path) -> None:
    text = {"text": "Kommunestyret behandlet saken i møtet i går kveld og vedtok innstillingen."}
    plain = {"prompt": ASKED, "completion": TOLD.replace("tre", "seks")}
    prepared = prepare(tmp_path, {"text": [text], "chats": [{"messages": MESSAGES}, plain]})
    assert prepared.manifest.mask_column == "assistant_masks", (
        "one name for the corpus: that of its conversations"
    )
    by_source = {row["source"]: row for row in rows(prepared)}
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
    (row,) = rows(prepared)
    tokenizer = Tokenizer.from_file(str(prepared.folder / "tokenizer" / "tokenizer.json"))
    text = tokenizer.decode(row["input_ids"], skip_special_tokens=False)
    assert text == f"<s>user\n{ASKED}</s>\n<s>assistant\n{TOLD}</s>\n<s>user\nTakk skal du ha!</s>\n"


MALFORMED: list[tuple[Any, str]] = [
    ("no object", "unreadable_record"),
    ({"text": "Running text."}, "unreadable_record"),
    ({"messages": "a string"}, "unreadable_record"),
    ({"messages": ["a string"]}, "unreadable_record"),
    ({"messages": []}, "no_answer"),
    ({"messages": MESSAGES[:1]}, "no_answer"),
    ({"messages": [MESSAGES[0], {"role": "assistant"}]}, "unreadable_record"),
    ({"messages": [MESSAGES[0], {"role": "assistant", "content": 5}]}, "unreadable_record"),
    ({"messages": [MESSAGES[0], {"role": "gpt", "content": TOLD}]}, "unknown_role"),
    ({"messages": [MESSAGES[0], {"role": ["assistant"], "content": TOLD}]}, "unknown_role"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}, MESSAGES[1]]}, "unsupported_record"),
    (
        {"messages": [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [{}]}]},
        "unsupported_record",
    ),
    ({"messages": [MESSAGES[0], {**MESSAGES[1], "reasoning_content": "Hm."}]}, "unsupported_record"),
    ({"messages": MESSAGES, "tools": [{"name": "kalender"}]}, "unsupported_record"),
    ({"prompt": ASKED, "completion": MESSAGES[1:]}, "unreadable_record"),
    ({"prompt": ASKED}, "unreadable_record"),
    ({"prompt": MESSAGES[:1], "completion": MESSAGES[:1]}, "no_answer"),
    ({"instruction": ASKED, "output": 5}, "unreadable_record"),
    ({"instruction": ASKED, "output": " \u200b\n"}, "empty_answer"),
]


def test_malformed_records_are_dropped_with_a_reason_and_good_ones_kept(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, {"chats": [*(record for record, _ in MALFORMED), {"messages": MESSAGES}]})
    refused = drops(prepared) | dict.fromkeys(quarantined(prepared), "unreadable_record")
    assert refused == {
        f"chats.jsonl:{number}": reason for number, (_, reason) in enumerate(MALFORMED, start=1)
    }
    assert learned(prepared) == [f"{TOLD}</s>"]


@pytest.mark.parametrize("flag", ["loss", "train", "trainable", "training", "weight"])
@pytest.mark.parametrize(
    ("value", "expected"), [(False, [TOLD]), (0, [TOLD]), (True, [FIRST, TOLD]), (None, [FIRST, TOLD])]
)
def test_a_flag_of_a_turn_decides_whether_it_is_a_target(flag: str, value: Any, expected: list[str]) -> None:
    turns = turns_of({"messages": asked_and_told(*TWO, **{flag: value})})
    assert [turn.content for turn in turns if turn.target] == expected
    assert len(turns) == 4


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": asked_and_told(*TWO, weight=0.5)}, "weight 0.5"),
    ({"messages": asked_and_told(*TWO, train="false")}, "train 'false'"),
    ({"messages": asked_and_told(*TWO, train=True, loss=False)}, "loss and train disagree"),
    (
        {
            "messages": asked_and_told(
                *TWO, train_detail=[{"begin_offset": 0, "end_offset": 4, "train": False}]
            )
        },
        "train_detail",
    ),
    ({"messages": asked_and_told(*TWO, mask=0)}, "mask"),
    ({"messages": asked_and_told(*TWO, compute_loss=False)}, "compute_loss"),
    ({"messages": asked_and_told(*TWO, Loss="false")}, "Loss"),
    ({"messages": asked_and_told(*TWO, isTrainable=0)}, "isTrainable"),
    ({"messages": asked_and_told(*TWO, no_loss=True)}, "no_loss"),
    ({"messages": MESSAGES, "calculate_loss": "nei"}, "calculate_loss"),
    ({"messages": [{"role": "user", "content": ASKED, "train": True}, MESSAGES[1]]}, "turn of the user"),
    ({"messages": MESSAGES, "train": False}, "train"),
    ({"messages": MESSAGES, "weight": 2}, "weight"),
    ({"messages": MESSAGES, "history": [["a", "b"]]}, "history"),
    ({"messages": MESSAGES, "rejected": TOLD}, "rejected"),
    ({"prompt": ASKED, "completion": TOLD, "label": False}, "label"),
    (
        {"messages": [{"role": "system", "content": "Svar kort."}, *MESSAGES], "system": "Svar langt."},
        "system",
    ),
    (
        {"conversations": [{"from": "human", "value": ASKED}, {"from": "function_call", "value": "{}"}]},
        "function_call",
    ),
]


def test_keys_that_resemble_flags_but_hold_text_are_unknown_keys() -> None:
    report = Report()
    record = {
        "messages": asked_and_told(*TWO, training_set="våren", lossless=None),
        "weightings": "etter avdeling",
    }
    (document,) = documents_of(record, report=report)
    assert len(document.turns) == 4
    assert report.counts["unknown_key_weightings"] == 1
    assert report.counts["unknown_key_of_a_turn_training_set"] == 1


@pytest.mark.parametrize(("record", "word"), REFUSED, ids=[word for _, word in REFUSED])
def test_unsupported_keys_that_would_change_training_are_rejected(record: dict[str, Any], word: str) -> None:
    report = Report()
    assert documents_of(record, report=report) == []
    (drop,) = report.drops
    assert drop.reason == "unsupported_record"
    assert word in drop.detail


def test_the_preferred_answer_can_be_mapped_to_the_completion() -> None:
    record = {"prompt": ASKED, "chosen": TOLD, "rejected": "Vet ikke."}
    source = SourceConfig(reader="chat", path="x", license="CC0-1.0", fields={"completion": "chosen"})
    document = chat.ConversationReader(source, chat.Options(), Report()).document(
        record, Place("chats", "x.jsonl")
    )
    assert document is not None
    assert [turn.content for turn in document.turns] == [ASKED, TOLD]


def test_system_and_history_of_an_instruction_become_turns() -> None:
    """As LLaMA-Factory means them: answers in the history are learned too, unless they are to be context."""
    record = {
        "system": "Svar kort.",
        "instruction": ASKED,
        "input": "",
        "output": TOLD,
        "history": [["Er det åpent?", FIRST]],
    }
    turns = turns_of(record)
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn.content for turn in turns if turn.target] == [FIRST, TOLD]
    assert [turn.content for turn in turns_of(record, learn_history=False) if turn.target] == [TOLD]
    assert turns_of({"messages": MESSAGES, "system": "Svar kort."})[0].content == "Svar kort."


def test_keys_and_roles_of_turns_can_be_mapped() -> None:
    options = {
        "role_key": "fra",
        "content_key": "tekst",
        "roles": {"kunde": "user", "saksbehandler": "assistant"},
    }
    record = {"messages": [{"fra": "kunde", "tekst": ASKED}, {"fra": "saksbehandler", "tekst": TOLD}]}
    assert [(turn.role, turn.content, turn.target) for turn in turns_of(record, **options)] == [
        ("user", ASKED, False),
        ("assistant", TOLD, True),
    ]
    with pytest.raises(ValueError, match=r"options.roles maps 'kunde' to 'bruker': choose one of system"):
        turns_of(record, roles={"kunde": "bruker"})
    with pytest.raises(ValueError, match=r"options.prompt_template is 'Svar:': it must hold \{prompt\} once"):
        turns_of(record, prompt_template="Svar:")


def test_unknown_keys_are_counted_by_name_up_to_a_limit() -> None:
    report = Report()
    messages = [MESSAGES[0], {**MESSAGES[1], "rangering": 3, "navn": None}]
    odd = {f"key{number}": 1 for number in range(30)}
    documents_of(
        {"messages": messages, "saksbehandler": "A"},
        {"messages": MESSAGES, "Kari Nordmann": 1, **odd},
        report=report,
    )
    counts = report.counts
    assert counts["unknown_key_of_a_turn_rangering"] == counts["unknown_key_saksbehandler"] == 1
    assert counts["unknown_key_(no plain name)"] == 1
    beside = Report()
    documents_of({"messages": MESSAGES, "prompt": ASKED, "input": "Sak 24/17"}, report=beside)
    assert +beside.counts == {"unknown_key_prompt": 1, "unknown_key_input": 1}, (
        "of another form: not used here"
    )
    assert counts["unknown_keys_of_other_names"] == 30 - (20 - 3)
    assert not any("Nordmann" in name or "navn" in name for name in counts)


def test_an_empty_answer_is_not_a_target_and_its_conversation_is_kept(tmp_path: Path) -> None:
    """null, "" and white space alike. What is empty stays where it stands, as context."""
    turns = [
        ("user", "Er dere der?"),
        ("assistant", "\u200b \n"),
        ("user", "Hallo?"),
        ("assistant", None),
        *TWO[2:],
    ]
    prepared = prepare(tmp_path, {"chats": [{"messages": asked_and_told(*turns)}]})
    assert learned(prepared) == [f"{TOLD}</s>"]
    assert {"empty_answers": 2}.items() <= prepared.manifest.stages[1].counts.items()
    tokenizer = Tokenizer.from_file(str(prepared.folder / "tokenizer" / "tokenizer.json"))
    text = tokenizer.decode(rows(prepared)[0]["input_ids"], skip_special_tokens=False)
    assert text.count("<s>assistant\n</s>") == 2
    with pytest.raises(ValueError, match="empty_answer 1"):
        prepare(tmp_path, {"chats": [{"instruction": ASKED, "output": None}]})


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
    messages = [{"role": "user", "content": "Hva betyr <b>?"}, {"role": "assistant", "content": answer}]
    report = Report()
    (document,) = documents_of({"messages": messages}, report=report, strip_html=True)
    assert [turn.content for turn in document.turns] == ["Hva betyr <b>?", expected]
    assert report.counts["answers_with_html_stripped"] == (answer != expected)
    assert turns_of({"messages": messages})[1].content == answer


def test_when_no_record_can_be_read_the_error_gives_the_first_reason(tmp_path: Path) -> None:
    gpt = [MESSAGES[0], {"role": "saksbehandler", "content": TOLD}]
    with pytest.raises(
        ValueError, match=r"nothing of it can be read; chats.jsonl:1: unknown_role: role is 'saksbehandler'"
    ):
        prepare(tmp_path, {"chats": [{"messages": gpt}, {"messages": MESSAGES[:1]}]})


def test_prompts_and_completions_become_turns_unless_a_template_is_set(tmp_path: Path) -> None:
    record = {
        "prompt": "Hva gjør jeg når søknaden om foreldrepenger",
        "completion": "utbetaling er avvist av banken, og du må ringe.",
    }

    def text(prepared: Prepared) -> str:
        tokenizer = Tokenizer.from_file(str(prepared.folder / "tokenizer" / "tokenizer.json"))
        return tokenizer.decode(rows(prepared)[0]["input_ids"], skip_special_tokens=False)

    prepared = prepare(tmp_path, {"chats": [record]})
    assert text(prepared) == f"<s>user\n{record['prompt']}</s>\n<s>assistant\n{record['completion']}</s>"
    assert prepared.manifest.tokenizer.end_of_turn == "</s>"
    named = prepare(tmp_path, {"chats": [record]}, {"prompt_template": "Spørsmål: {prompt}\nSvar: "})
    assert text(named) == f"Spørsmål: {record['prompt']}\nSvar: {record['completion']}</s>"
    assert named.manifest.stages[-1].counts == {"by_prompt_template": 1}
    assert turns_of(record, prompt_template="{prompt}\\n\\n")[0].content == f"{record['prompt']}\n\n"
    assert learned(named) == [f"{record['completion']}</s>"]


def test_a_system_prompt_is_set_by_written_standard(tmp_path: Path) -> None:
    nynorsk = [
        {"role": "user", "content": "Kva er fristen for å klage på vedtaket eg fekk frå kommunen?"},
        {
            "role": "assistant",
            "content": "Fristen er tre veker frå du fekk vedtaket, og klaga sender du til kommunen.",
        },
    ]
    own = [{"role": "system", "content": "Vær høflig."}, *asked_and_told(*TWO)]
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
        for row in rows(prepared)
    }
    assert begins == {
        "nob": "<s>system\nSvar på bokmål.",
        "nno": "<s>system\nSvar på nynorsk.",
        "own": "<s>system\nVær høflig.",
    }
    assert prepared.manifest.stages[-1].counts == {"system_nno": 1, "system_nob": 1, "system_of_its_own": 1}
    for system, fault in (({"nn": "Svar."}, "names 'nn'"), ({"nno": " "}, "nno is empty")):
        with pytest.raises(ValueError, match=f"chat.system.*{fault}"):
            ChatConfig(system=system)


def test_a_json_array_with_other_field_names_is_read(tmp_path: Path) -> None:
    record = {"samtale": MESSAGES, "nr": 7, "sak": "24/17"}
    (tmp_path / "chats.json").write_text(json.dumps([record, 5], indent=2))
    fields = {"messages": "samtale", "id": "nr", "group": "sak"}
    source = SourceConfig(reader="chat", path=str(tmp_path / "chats.json"), license="CC0-1.0", fields=fields)
    corpus = CorpusConfig(name="mine", sources={"chats": source}, split=SplitConfig(validation_share=0))
    prepared = pipeline.prepare(PrepareConfig(corpus=corpus, corpora_dir=str(tmp_path)))
    assert [(row["id"], row["group"]) for row in rows(prepared)] == [("7", "24/17")]
    assert quarantined(prepared) == {"chats.json:record 2": "a JSON int, not an object"}
