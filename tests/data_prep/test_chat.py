"""Conversations and instructions from raw records to the targets of a step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from data_prep import pipeline
from data_prep.config import CorpusConfig, PrepareConfig, SourceConfig
from data_prep.document import Document, Place, Report, Turn
from data_prep.pipeline import Prepared
from data_prep.shards import Corpus
from data_prep.sources import chat, claims
from data_prep.stage_settings import ChatConfig, SplitConfig, TokenizerConfig
from data_prep.stages import TEXT_STAGES
from data_prep.stages.normalise import Normalise
from data_prep.tokens.tokeniser import Tokeniser
from data_prep.tokens.tokenizer_files import place_files
from tests.data_prep.chat_templates import CHATML, QWEN3
from tests.data_prep.identity_numbers import numbers
from tests.data_prep.sample import SAMPLE

ASKED = "Hvor lang er fristen for å klage på vedtaket jeg fikk fra kommunen i forrige uke?"
TOLD = "Fristen er tre uker fra du fikk vedtaket, og klagen sender du til kommunen."
MESSAGES = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": TOLD}]
PARTS = [{"type": "text", "text": TOLD[:9]}, {"type": "text", "text": TOLD[9:]}]
SHAREGPT = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": TOLD}]

STAGES = [stage.name for stage in TEXT_STAGES]


def prepare(
    tmp_path: Path, sources: dict[str, list[Any]], options: dict[str, Any] | None = None, **settings: Any
) -> Prepared:
    """Prepare records; source names that begin with `text` are read as running text."""
    configs = {}
    for name, records in sources.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        is_text = name.startswith("text")
        configs[name] = SourceConfig(
            reader="jsonl" if is_text else "chat",
            path=str(path),
            license="CC0-1.0",
            options={} if is_text else options or {},
        )
    settings = {
        "tokenizer": TokenizerConfig(vocab_size=400),
        "split": SplitConfig(validation_share=0),
        **settings,
    }
    corpus = CorpusConfig(name="mine", sources=configs, **settings)
    return pipeline.prepare(PrepareConfig(corpus=corpus, corpora_dir=str(tmp_path / "corpora")))


def rows(prepared: Prepared) -> list[dict[str, Any]]:
    return list(Corpus(prepared.folder).split("train"))


def learned(prepared: Prepared) -> list[str]:
    """What each row teaches, decoded."""
    tokenizer = Tokenizer.from_file(str(prepared.folder / "tokenizer" / "tokenizer.json"))
    mask = prepared.manifest.mask_column
    return [
        tokenizer.decode(
            [t for t, m in zip(row["input_ids"], row[mask], strict=True) if m], skip_special_tokens=False
        )
        for row in rows(prepared)
    ]


def drops(prepared: Prepared) -> dict[str, str]:
    stages = prepared.folder.with_name(".mine.stages")
    return {
        row["id"]: row["reason"]
        for file in stages.glob("*/drops-*.parquet")
        for row in pq.read_table(file).to_pylist()
    }


def quarantined(prepared: Prepared) -> dict[str, str]:
    files = prepared.folder.with_name(".mine.stages").glob("*/quarantine-*.parquet")
    return {
        f"{row['file']}:{row['at'].removeprefix('line ')}": row["error"]
        for f in files
        for row in pq.read_table(f).to_pylist()
    }


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
def test_each_form_teaches_its_answer_and_where_it_ends(tmp_path: Path, form: Form) -> None:
    prepared = prepare(tmp_path, {"chats": [form.record]})
    assert prepared.manifest.mask_column == form.mask
    assert learned(prepared) == [f"{TOLD}</s>"]
    source = prepared.manifest.sources["chats"]
    assert source.supervised_tokens == {"train/nob": sum(rows(prepared)[0][form.mask])}
    assert source.supervised_tokens["train/nob"] < source.tokens["train/nob"]


def test_running_text_beside_conversations_is_all_targets(tmp_path: Path) -> None:
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


def test_a_corpus_may_learn_everything(tmp_path: Path) -> None:
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


def test_malformed_records_are_dropped_with_a_reason_and_the_good_ones_arrive(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, {"chats": [*(record for record, _ in MALFORMED), {"messages": MESSAGES}]})
    refused = drops(prepared) | dict.fromkeys(quarantined(prepared), "unreadable_record")
    assert refused == {
        f"chats.jsonl:{number}": reason for number, (_, reason) in enumerate(MALFORMED, start=1)
    }
    assert learned(prepared) == [f"{TOLD}</s>"]


def asked_and_told(*turns: tuple[str, str], **flags: Any) -> list[dict[str, Any]]:
    """User and assistant in turn; `flags` go to the first answer."""
    messages = [{"role": role, "content": content} for role, content in turns]
    messages[1] |= flags
    return messages


FIRST = "Vi har åpent fra klokken ni til klokken fire alle hverdager."
TWO = (
    ("user", "Når åpner kontoret om morgenen?"),
    ("assistant", FIRST),
    ("user", ASKED),
    ("assistant", TOLD),
)


@pytest.mark.parametrize("flag", ["loss", "train", "trainable", "training", "weight"])
@pytest.mark.parametrize(
    ("value", "expected"), [(False, [TOLD]), (0, [TOLD]), (True, [FIRST, TOLD]), (None, [FIRST, TOLD])]
)
def test_a_flag_of_a_turn_says_whether_it_is_learned(flag: str, value: Any, expected: list[str]) -> None:
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


def test_texts_under_keys_that_sound_like_flags_are_unknown_keys() -> None:
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
def test_keys_that_would_change_training_are_refused_by_name(record: dict[str, Any], word: str) -> None:
    report = Report()
    assert documents_of(record, report=report) == []
    (drop,) = report.drops
    assert drop.reason == "unsupported_record"
    assert word in drop.detail


def test_a_preferred_answer_can_be_named_as_the_completion() -> None:
    record = {"prompt": ASKED, "chosen": TOLD, "rejected": "Vet ikke."}
    source = SourceConfig(reader="chat", path="x", license="CC0-1.0", fields={"completion": "chosen"})
    document = chat.ConversationReader(source, chat.Options(), Report()).build_document(
        record, Place("chats", "x.jsonl")
    )
    assert document is not None
    assert [turn.content for turn in document.turns] == [ASKED, TOLD]


def test_a_system_and_a_history_beside_an_instruction_are_turns() -> None:
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


def test_keys_and_roles_of_turns_can_be_named() -> None:
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
    with pytest.raises(
        ValueError, match=r"options.roles: 'kunde' is mapped to the unknown role 'bruker'; use one of system"
    ):
        turns_of(record, roles={"kunde": "bruker"})
    with pytest.raises(
        ValueError, match=r"options.prompt_template: must contain \{prompt\} exactly once.*not 'Svar:'"
    ):
        turns_of(record, prompt_template="Svar:")


def test_unknown_keys_are_counted_by_name_and_within_bounds() -> None:
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


def test_an_empty_answer_costs_its_turn_and_not_the_conversation(tmp_path: Path) -> None:
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


def test_when_nothing_can_be_read_the_first_reason_is_said(tmp_path: Path) -> None:
    gpt = [MESSAGES[0], {"role": "saksbehandler", "content": TOLD}]
    with pytest.raises(
        ValueError, match=r"no document can be read; chats.jsonl:1: unknown_role: role is 'saksbehandler'"
    ):
        prepare(tmp_path, {"chats": [{"messages": gpt}, {"messages": MESSAGES[:1]}]})


def test_prompts_and_completions_are_turns_unless_a_form_is_named(tmp_path: Path) -> None:
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


def test_a_system_prompt_by_written_standard_is_set_at_prepare(tmp_path: Path) -> None:
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


def documents_of(*records: dict[str, Any], report: Report | None = None, **options: Any) -> list[Document]:
    """The documents that the reader makes of records."""
    source = SourceConfig(reader="chat", path="x", license="CC0-1.0", options=options)
    reader = chat.ConversationReader(source, claims.parse_options(source, chat.Options), report or Report())
    found = [
        reader.build_document(record, Place("chats", "x.jsonl", at=f"line {n}"))
        for n, record in enumerate(records, start=1)
    ]
    return [document for document in found if document is not None]


def turns_of(record: dict[str, Any], **options: Any) -> list[Turn]:
    (document,) = documents_of(record, **options)
    return document.turns


def test_a_json_array_and_other_names_are_read_too(tmp_path: Path) -> None:
    record = {"samtale": MESSAGES, "nr": 7, "sak": "24/17"}
    (tmp_path / "chats.json").write_text(json.dumps([record, 5], indent=2))
    fields = {"messages": "samtale", "id": "nr", "group": "sak"}
    source = SourceConfig(reader="chat", path=str(tmp_path / "chats.json"), license="CC0-1.0", fields=fields)
    corpus = CorpusConfig(name="mine", sources={"chats": source}, split=SplitConfig(validation_share=0))
    prepared = pipeline.prepare(PrepareConfig(corpus=corpus, corpora_dir=str(tmp_path)))
    assert [(row["id"], row["group"]) for row in rows(prepared)] == [("7", "24/17")]
    assert quarantined(prepared) == {"chats.json:record 2": "a JSON int, not an object"}


def test_every_stage_treats_every_turn(tmp_path: Path) -> None:
    number, other = numbers(0, 80)[:2]
    told = f"  Du heter søker {number[:6]} {number[6:]}, og   fristen er tre uker.\n\n  - Ã¸nske\u00ad\n "
    messages = [
        {"role": "system", "content": f"Sak {other}"},
        MESSAGES[0],
        {"role": "assistant", "content": told},
    ]
    english = [
        {"role": "user", "content": "When is the deadline for an appeal?"},
        {"role": "assistant", "content": "The deadline is three weeks after you received the decision."},
    ]
    same = [*messages[:2], {"role": "assistant", "content": told.replace("Du heter", "du\nHETER")}]
    prepared = prepare(tmp_path, {"chats": [{"messages": m} for m in (messages, english, messages, same)]})
    (text,) = learned(prepared)
    assert text == "Du heter søker [fødselsnummer], og   fristen er tre uker.\n\n  - ønske\u00ad</s>", (
        "its layout is its own"
    )
    everything = next(
        prepared.folder.with_name(".mine.stages").glob("*-deidentify/part-00000-000.parquet")
    ).read_bytes()
    assert number[6:].encode() not in everything
    (masked,) = [info for info in prepared.manifest.stages if info.name == "deidentify"]
    assert masked.counts == {"masked_synthetic": 2}
    assert sorted(drops(prepared).values()) == ["exact_duplicate", "exact_duplicate", "language_eng"]


def test_white_space_between_a_plain_prompt_and_its_completion_stays() -> None:
    turns = [
        Turn(role="", content="Fråga:\u00a0ja?\nSvar: ", target=False),
        Turn(role="", content="\tJa", target=True),
    ]
    document = Document(id="1", text="", source="s", license="CC0-1.0", group="1", turns=turns)
    config = CorpusConfig(name="x", sources={"s": SourceConfig(reader="chat", path="x", license="CC0-1.0")})
    (done,) = Normalise().run(iter([document]), config, Report())
    assert [turn.content for turn in done.turns] == ["Fråga:\u00a0ja?\nSvar: ", "\tJa"]


def corpus_config(folder: Path, **settings: Any) -> CorpusConfig:
    sources = {"s": SourceConfig(reader="chat", path="x", license="CC0-1.0")}
    return CorpusConfig(name="x", sources=sources, tokenizer=TokenizerConfig(path=str(folder)), **settings)


def tokeniser_of(config: CorpusConfig, tmp_path: Path) -> Tokeniser:
    place_files(config, [], tmp_path / "tokenizer")
    return Tokeniser(config, tmp_path / "tokenizer")


def plain(prompt: str, completion: str) -> Document:
    turns = [Turn(role="", content=prompt, target=False), Turn(role="", content=completion, target=True)]
    return Document(
        id="1", text="", source="s", license="CC0-1.0", group="1", turns=turns, mask="completion_mask"
    )


def test_plain_prompts_end_where_inference_would_end_them(folder: Path, tmp_path: Path) -> None:
    """BOS as the tokenizer puts it, once; no token spans the border, even where one could."""
    tokeniser = tokeniser_of(corpus_config(folder), tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for prompt, completion in (
        ("Frist", "en er 1. mars."),
        ("Svar: ", " ja"),
        ("assistant\n", "\nFristen</s>"),
    ):
        ((_, (row,)),) = tokeniser.rows([plain(prompt, completion)], Report())
        prompt_ids = tokenizer.encode(prompt).ids
        assert row.input_ids[: len(prompt_ids)] == prompt_ids
        assert row.input_ids[0] == 0 != row.input_ids[1]
        assert row.mask == [0] * len(prompt_ids) + [1] * (len(row.mask) - len(prompt_ids))
        assert row.input_ids[-1] == 1
        assert row.input_ids.count(1) == 1, "</s> spelled in a completion is text"
        assert tokenizer.decode(row.input_ids[len(prompt_ids) : -1], skip_special_tokens=False) == completion


def test_a_plain_completion_gets_no_space_that_is_not_there(spaced: Path, tmp_path: Path) -> None:
    tokeniser = tokeniser_of(corpus_config(spaced), tmp_path)
    tokenizer = Tokenizer.from_file(str(spaced / "tokenizer.json"))
    ((_, (row,)),) = tokeniser.rows([plain("mars", "erer")], Report())
    assert "".join(tokenizer.id_to_token(t) for t in row.input_ids) == "▁marserer</s>"


def test_a_row_without_a_target_is_dropped_and_counted(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "tokenizer.json").write_text(json.dumps(config))
    (tmp_path / "plain" / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text())
    tokeniser, report = tokeniser_of(corpus_config(tmp_path / "plain"), tmp_path), Report()
    assert [document.id for document, _ in tokeniser.rows([plain("", ""), plain("a", "b")], report)] == ["1"]
    assert report.drop_reasons() == {"no_supervised_tokens": 1}


def test_a_mask_of_ones_alone_is_running_text(folder: Path, tmp_path: Path) -> None:
    """Training may cut running text anywhere: an answer to nothing at all must not look like it."""
    source = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    tokeniser = tokeniser_of(corpus_config(with_template(folder, tmp_path / "bare", source)), tmp_path)
    text = Document(id="1", text="Fristen er 1. mars.", source="s", license="CC0-1.0", group="1")
    answer = Document(id="2", text="", source="s", license="CC0-1.0", group="2", mask="assistant_masks")
    answer.turns = [Turn(role="assistant", content="Fristen er 1. mars.", target=True)]
    (_, (running,)), (_, (answered,)) = tokeniser.rows([text, answer], Report())
    assert set(running.mask) == {1}
    assert answered.mask == [0] + [1] * (len(answered.input_ids) - 1)


def with_template(folder: Path, copy: Path, source: Any) -> Path:
    copy.mkdir()
    (copy / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": source}))
    return copy


def test_the_template_is_the_tokenizers_own_unless_one_is_named(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From its config, by name or alone; the one used goes with the corpus, and so with the model."""
    records = {"chats": [{"messages": MESSAGES}]}
    own = TokenizerConfig(path=str(with_template(folder, tmp_path / "own", CHATML)))
    assert learned(prepare(tmp_path, records, tokenizer=own)) == [f"{TOLD}<|im_end|>"]
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    named = TokenizerConfig(path=str(with_template(folder, tmp_path / "named", several)))
    assert learned(prepare(tmp_path, records, tokenizer=named)) == [f"{TOLD}<|im_end|>"]
    assert "by_another_template" not in str(
        prepare(tmp_path, records, tokenizer=own).manifest.stages[-1].counts
    )
    other = prepare(tmp_path, records, tokenizer=own, chat=ChatConfig(template="default"))
    assert learned(other) == [f"{TOLD}</s>"]
    assert other.manifest.stages[-1].counts == {"by_another_template_than_the_tokenizers_own": 1}
    assert "replaces the chat template of" in caplog.text
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(other.folder / "tokenizer")
    assert (
        loaded.apply_chat_template(MESSAGES, tokenize=False)
        == f"<s>user\n{ASKED}</s>\n<s>assistant\n{TOLD}</s>\n"
    )
    (tmp_path / "mine.jinja").write_text(CHATML)
    mine = ChatConfig(template=str(tmp_path / "mine.jinja"))
    assert learned(prepare(tmp_path, records, tokenizer=TokenizerConfig(path=str(folder)), chat=mine)) == [
        f"{TOLD}<|im_end|>"
    ]


def test_a_changed_template_makes_the_corpus_again(tmp_path: Path) -> None:
    records = {"chats": [{"messages": MESSAGES}]}
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    chat = ChatConfig(template=str(tmp_path / "mine.jinja"))
    first = rows(prepare(tmp_path, records, chat=chat))
    assert "tokenise" in prepare(tmp_path, records, chat=chat).skipped
    (tmp_path / "mine.jinja").write_text(
        "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
    )
    again = prepare(tmp_path, records, chat=chat)
    assert again.skipped == ["read", *STAGES]
    assert rows(again) != first


def test_a_tokenizer_without_a_template_and_a_missing_file_are_one_line(tmp_path: Path, folder: Path) -> None:
    given = TokenizerConfig(path=str(folder))
    with pytest.raises(
        ValueError, match=r"has no chat template.*set corpus.chat.template to a Jinja file or to `default`"
    ):
        prepare(tmp_path, {"chats": [{"messages": MESSAGES}]}, tokenizer=given)
    assert not (tmp_path / "corpora" / ".mine.tmp").exists()
    strings = {"chats": [{"prompt": ASKED, "completion": TOLD}]}
    with pytest.raises(ValueError, match=r"has no chat template.*options.prompt_template"):
        prepare(tmp_path, strings, tokenizer=given)
    named = prepare(tmp_path, strings, {"prompt_template": "{prompt}\n\n"}, tokenizer=given)
    assert named.manifest.mask_column == "completion_mask"
    assert named.manifest.tokenizer.end_of_turn is None
    with pytest.raises(FileNotFoundError, match=r"corpus.chat.template /none.jinja does not exist"):
        prepare(tmp_path, {"chats": [{"messages": MESSAGES}]}, chat=ChatConfig(template="/none.jinja"))
    with pytest.raises(ValueError, match="choose one of answers, everything"):
        ChatConfig(targets="all")


def test_conversations_that_a_template_refuses_are_dropped_with_its_words(
    tmp_path: Path, folder: Path
) -> None:
    strict = CHATML.replace(
        "{%- for",
        "{%- if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{%- for",
        1,
    )
    given = TokenizerConfig(path=str(with_template(folder, tmp_path / "strict", strict)))
    short = {"role": "assistant", "content": "Tre uker."}  # with the same answer it would be a near duplicate
    refused = {"messages": [{"role": "system", "content": "Svar kort."}, MESSAGES[0], short]}
    prepared = prepare(tmp_path, {"chats": [refused, {"messages": MESSAGES}]}, tokenizer=given)
    assert drops(prepared) == {"chats.jsonl:1": "template_refuses"}
    assert prepared.manifest.stages[-1].dropped == {"template_refuses": 1}
    assert prepared.manifest.documents("train") == prepared.manifest.stages[-1].documents_out == 1
    with pytest.raises(ValueError, match=r"corpus mine is empty.*template_refuses 1.*chat.template"):
        prepare(tmp_path, {"chats": [refused]}, tokenizer=given)


def test_a_template_that_rewrites_history_gives_a_row_a_turn_and_says_so(
    tmp_path: Path, folder: Path
) -> None:
    given = TokenizerConfig(path=str(with_template(folder, tmp_path / "qwen", QWEN3)))
    twice = {
        "id": "a",
        "messages": [*MESSAGES, {"role": "user", "content": "Og for klagen på den?"}, MESSAGES[1]],
    }
    prepared = prepare(tmp_path, {"chats": [twice]}, tokenizer=given)
    assert [row["id"] for row in rows(prepared)] == ["a#1", "a"]
    assert prepared.manifest.stages[-1].counts == {"rows_of_single_turns": 1}


def test_the_bundled_instructions_teach_their_answers_and_what_was_planted_is_dropped(tmp_path: Path) -> None:
    """Through to training: what a step's labels hold is the answers, and nothing else."""
    from finetune.data.packs import PackedData
    from finetune.models.loss import IGNORE
    from tests.worlds import Alone

    source = SourceConfig(reader="chat", path=str(SAMPLE / "instructions.jsonl"), license="CC0-1.0")
    corpus = CorpusConfig(
        name="mine", sources={"instructions": source}, split=SplitConfig(validation_share=0)
    )
    prepared = pipeline.prepare(PrepareConfig(corpus=corpus, corpora_dir=str(tmp_path)))
    records = [json.loads(line) for line in (SAMPLE / "instructions.jsonl").read_text().splitlines()]
    bad = {r["id"]: r["planted"] for r in records if r["planted"] not in (None, "identity_number")}
    assert sorted(drops(prepared).values()) == sorted(bad.values())

    data = PackedData(
        Corpus(prepared.folder),
        "train",
        sources=["instructions"],
        sequence_length=512,
        long_documents="auto",
        shuffle_seed=None,
        plan_folder=tmp_path / "plan",
        world=Alone(0, 1, 0),
    )
    assert data.counts["documents"] == len(records) - len(bad)
    tokenizer = Tokenizer.from_file(str(prepared.folder / "tokenizer" / "tokenizer.json"))
    taught: dict[int, list[int]] = {}
    for batch in data.step(0, data.num_packs, 1).micro_batches:
        for label, document in zip(batch.labels.numpy()[0], batch.documents[0], strict=True):
            if label != IGNORE:
                taught.setdefault(int(document), []).append(int(label))
    ids = list(np.asarray(Corpus(prepared.folder).split("train")["id"]))
    for record in records:
        if record["id"] in bad:
            continue
        messages = record.get("messages", [])
        answers = [m["content"] for m in messages if m["role"] == "assistant"] or [
            record.get("completion") or record["output"]
        ]
        text = tokenizer.decode(taught[ids.index(record["id"])], skip_special_tokens=False)
        if record["planted"] == "identity_number":
            assert "[fødselsnummer]" in text
            continue
        assert text == "".join(f"{answer.strip()}</s>" for answer in answers)
