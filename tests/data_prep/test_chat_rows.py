"""Conversations pass through all stages, and become rows of tokens with targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_prep import pipeline
from data_prep.config import CorpusConfig, PrepareConfig, SourceConfig
from data_prep.document import Document, Report, Turn
from data_prep.shards import Corpus
from data_prep.stage_settings import ChatConfig, SplitConfig, TokenizerConfig
from data_prep.stages.normalise import Normalise
from data_prep.tokens.tokeniser import Tokeniser
from data_prep.tokens.tokenizer_files import place_files
from tests.data_prep.chat_templates import CHATML, QWEN3
from tests.data_prep.conversations import (
    ANSWER,
    MESSAGES,
    QUESTION,
    STAGES,
    copy_with_template,
    decode_targets,
    prepare,
    read_drop_reasons,
    train_rows,
)
from tests.data_prep.identity_numbers import valid_numbers
from tests.data_prep.sample import SAMPLE


def test_every_stage_processes_every_turn(tmp_path: Path) -> None:
    number, other = valid_numbers(0, 80)[:2]
    answer = f"  Du heter søker {number[:6]} {number[6:]}, og   fristen er tre uker.\n\n  - Ã¸nske\u00ad\n "
    messages = [
        {"role": "system", "content": f"Sak {other}"},
        MESSAGES[0],
        {"role": "assistant", "content": answer},
    ]
    english = [
        {"role": "user", "content": "When is the deadline for an appeal?"},
        {
            "role": "assistant",
            "content": "The deadline is three weeks after you received the decision.",
        },
    ]
    copy = [
        *messages[:2],
        {"role": "assistant", "content": answer.replace("Du heter", "du\nHETER")},
    ]
    conversations = [{"messages": turns} for turns in (messages, english, messages, copy)]
    prepared = prepare(tmp_path, {"chats": conversations})
    (text,) = decode_targets(prepared)
    expected = "Du heter søker [fødselsnummer], og   fristen er tre uker.\n\n  - ønske\u00ad</s>"
    assert text == expected, "the layout of an answer is kept"
    stages = prepared.folder.with_name(".mine.stages")
    shard = next(stages.glob("*-deidentify/part-00000-000.parquet"))
    assert number[6:].encode() not in shard.read_bytes()
    (deidentify,) = [info for info in prepared.manifest.stages if info.name == "deidentify"]
    assert deidentify.counts == {"masked_synthetic": 2}
    assert sorted(read_drop_reasons(prepared).values()) == [
        "exact_duplicate",
        "exact_duplicate",
        "language_eng",
    ]


def test_white_space_between_a_plain_prompt_and_its_completion_is_kept() -> None:
    turns = [
        Turn(role="", content="Fråga:\u00a0ja?\nSvar: ", target=False),
        Turn(role="", content="\tJa", target=True),
    ]
    document = Document(id="1", text="", source="s", license="CC0-1.0", group="1", turns=turns)
    config = CorpusConfig(name="x", sources={"s": SourceConfig(reader="chat", path="x", license="CC0-1.0")})
    (normalised,) = Normalise().run(iter([document]), config, Report())
    assert [turn.content for turn in normalised.turns] == ["Fråga:\u00a0ja?\nSvar: ", "\tJa"]


def make_config(folder: Path, **settings: Any) -> CorpusConfig:
    sources = {"s": SourceConfig(reader="chat", path="x", license="CC0-1.0")}
    return CorpusConfig(name="x", sources=sources, tokenizer=TokenizerConfig(path=str(folder)), **settings)


def make_tokeniser(config: CorpusConfig, tmp_path: Path) -> Tokeniser:
    place_files(config, [], tmp_path / "tokenizer")
    return Tokeniser(config, tmp_path / "tokenizer")


def make_plain_document(prompt: str, completion: str) -> Document:
    turns = [
        Turn(role="", content=prompt, target=False),
        Turn(role="", content=completion, target=True),
    ]
    return Document(
        id="1",
        text="",
        source="s",
        license="CC0-1.0",
        group="1",
        turns=turns,
        mask="completion_mask",
    )


def test_plain_prompts_are_tokenised_as_at_inference(folder: Path, tmp_path: Path) -> None:
    """The tokenizer adds BOS, which must occur only once. No token spans prompt and completion."""
    tokeniser = make_tokeniser(make_config(folder), tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for prompt, completion in (
        ("Frist", "en er 1. mars."),
        ("Svar: ", " ja"),
        ("assistant\n", "\nFristen</s>"),
    ):
        ((_, (row,)),) = tokeniser.rows([make_plain_document(prompt, completion)], Report())
        prompt_ids = tokenizer.encode(prompt).ids
        assert row.input_ids[: len(prompt_ids)] == prompt_ids
        assert row.input_ids[0] == 0 != row.input_ids[1]
        assert row.mask == [0] * len(prompt_ids) + [1] * (len(row.mask) - len(prompt_ids))
        assert row.input_ids[-1] == 1
        assert row.input_ids.count(1) == 1, "</s> spelled in a completion is text, not a token"
        assert tokenizer.decode(row.input_ids[len(prompt_ids) : -1], skip_special_tokens=False) == completion


def test_no_space_is_inserted_before_a_plain_completion(spaced: Path, tmp_path: Path) -> None:
    tokeniser = make_tokeniser(make_config(spaced), tmp_path)
    tokenizer = Tokenizer.from_file(str(spaced / "tokenizer.json"))
    ((_, (row,)),) = tokeniser.rows([make_plain_document("mars", "erer")], Report())
    assert "".join(tokenizer.id_to_token(t) for t in row.input_ids) == "▁marserer</s>"


def test_a_row_without_a_target_is_dropped_and_counted(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "tokenizer.json").write_text(json.dumps(config))
    (tmp_path / "plain" / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text())
    tokeniser = make_tokeniser(make_config(tmp_path / "plain"), tmp_path)
    report = Report()
    documents = [make_plain_document("", ""), make_plain_document("a", "b")]
    rows = tokeniser.rows(documents, report)
    assert [document.id for document, _ in rows] == ["1"]
    assert report.drop_reasons() == {"no_supervised_tokens": 1}


def test_a_mask_of_ones_alone_marks_running_text(folder: Path, tmp_path: Path) -> None:
    """The mask of an answer without a prompt must contain a zero.

    A mask of ones alone marks running text, which training may cut anywhere. An answer must not be
    cut like this.
    """
    source = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    tokeniser = make_tokeniser(make_config(copy_with_template(folder, tmp_path / "bare", source)), tmp_path)
    text = Document(id="1", text="Fristen er 1. mars.", source="s", license="CC0-1.0", group="1")
    answer = Document(id="2", text="", source="s", license="CC0-1.0", group="2", mask="assistant_masks")
    answer.turns = [Turn(role="assistant", content="Fristen er 1. mars.", target=True)]
    (_, (text_row,)), (_, (answer_row,)) = tokeniser.rows([text, answer], Report())
    assert set(text_row.mask) == {1}
    assert answer_row.mask == [0] + [1] * (len(answer_row.input_ids) - 1)


def test_the_template_is_the_tokenizers_own_unless_one_is_set(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The template that is used is saved with the corpus, and later with the model."""
    records = {"chats": [{"messages": MESSAGES}]}
    own = TokenizerConfig(path=str(copy_with_template(folder, tmp_path / "own", CHATML)))
    assert decode_targets(prepare(tmp_path, records, tokenizer=own)) == [f"{ANSWER}<|im_end|>"]
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    named = TokenizerConfig(path=str(copy_with_template(folder, tmp_path / "named", several)))
    assert decode_targets(prepare(tmp_path, records, tokenizer=named)) == [f"{ANSWER}<|im_end|>"]
    counts = prepare(tmp_path, records, tokenizer=own).manifest.stages[-1].counts
    assert "by_another_template" not in str(counts)
    other = prepare(tmp_path, records, tokenizer=own, chat=ChatConfig(template="default"))
    assert decode_targets(other) == [f"{ANSWER}</s>"]
    assert other.manifest.stages[-1].counts == {"by_another_template_than_the_tokenizers_own": 1}
    assert "replaces the chat template of" in caplog.text
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(other.folder / "tokenizer")
    rendered = loaded.apply_chat_template(MESSAGES, tokenize=False)
    assert rendered == f"<s>user\n{QUESTION}</s>\n<s>assistant\n{ANSWER}</s>\n"
    (tmp_path / "mine.jinja").write_text(CHATML)
    mine = ChatConfig(template=str(tmp_path / "mine.jinja"))
    bare = TokenizerConfig(path=str(folder))
    prepared = prepare(tmp_path, records, tokenizer=bare, chat=mine)
    assert decode_targets(prepared) == [f"{ANSWER}<|im_end|>"]


def test_a_changed_template_rebuilds_the_corpus(tmp_path: Path) -> None:
    records = {"chats": [{"messages": MESSAGES}]}
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    chat = ChatConfig(template=str(tmp_path / "mine.jinja"))
    first = train_rows(prepare(tmp_path, records, chat=chat))
    assert "tokenise" in prepare(tmp_path, records, chat=chat).skipped
    (tmp_path / "mine.jinja").write_text(
        "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
    )
    second = prepare(tmp_path, records, chat=chat)
    assert second.skipped == ["read", *STAGES]
    assert train_rows(second) != first


def test_a_missing_template_is_a_one_line_error(tmp_path: Path, folder: Path) -> None:
    tokenizer = TokenizerConfig(path=str(folder))
    with pytest.raises(
        ValueError,
        match=r"has no chat template.*set corpus.chat.template to a Jinja file or to `default`",
    ):
        prepare(tmp_path, {"chats": [{"messages": MESSAGES}]}, tokenizer=tokenizer)
    assert not (tmp_path / "corpora" / ".mine.tmp").exists()
    strings = {"chats": [{"prompt": QUESTION, "completion": ANSWER}]}
    with pytest.raises(ValueError, match=r"has no chat template.*options.prompt_template"):
        prepare(tmp_path, strings, tokenizer=tokenizer)
    named = prepare(tmp_path, strings, {"prompt_template": "{prompt}\n\n"}, tokenizer=tokenizer)
    assert named.manifest.mask_column == "completion_mask"
    assert named.manifest.tokenizer.end_of_turn is None
    with pytest.raises(FileNotFoundError, match=r"corpus.chat.template /none.jinja does not exist"):
        prepare(tmp_path, {"chats": [{"messages": MESSAGES}]}, chat=ChatConfig(template="/none.jinja"))
    with pytest.raises(ValueError, match="choose one of answers, everything"):
        ChatConfig(targets="all")


def test_conversations_that_a_template_rejects_are_dropped_with_a_reason(
    tmp_path: Path, folder: Path
) -> None:
    strict = CHATML.replace(
        "{%- for",
        "{%- if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{%- for",
        1,
    )
    tokenizer = TokenizerConfig(path=str(copy_with_template(folder, tmp_path / "strict", strict)))
    # an answer like that of MESSAGES would be dropped as a near duplicate
    short = {"role": "assistant", "content": "Tre uker."}
    rejected = {"messages": [{"role": "system", "content": "Svar kort."}, MESSAGES[0], short]}
    prepared = prepare(tmp_path, {"chats": [rejected, {"messages": MESSAGES}]}, tokenizer=tokenizer)
    assert read_drop_reasons(prepared) == {"chats.jsonl:1": "template_refuses"}
    assert prepared.manifest.stages[-1].dropped == {"template_refuses": 1}
    assert prepared.manifest.documents("train") == prepared.manifest.stages[-1].documents_out == 1
    with pytest.raises(ValueError, match=r"corpus mine is empty.*template_refuses 1.*chat.template"):
        prepare(tmp_path, {"chats": [rejected]}, tokenizer=tokenizer)


def test_rows_of_single_turns_are_counted(tmp_path: Path, folder: Path) -> None:
    tokenizer = TokenizerConfig(path=str(copy_with_template(folder, tmp_path / "qwen", QWEN3)))
    repeated = {
        "id": "a",
        "messages": [*MESSAGES, {"role": "user", "content": "Og for klagen på den?"}, MESSAGES[1]],
    }
    prepared = prepare(tmp_path, {"chats": [repeated]}, tokenizer=tokenizer)
    assert [row["id"] for row in train_rows(prepared)] == ["a#1", "a"]
    assert prepared.manifest.stages[-1].counts == {"rows_of_single_turns": 1}


def test_the_targets_of_the_bundled_instructions_are_their_answers(tmp_path: Path) -> None:
    """Decode the labels of the training batches: they are the answers and nothing else."""
    from finetune.data.packs import PackedData
    from finetune.models.loss import IGNORE
    from tests.worlds import IsolatedWorld

    source = SourceConfig(reader="chat", path=str(SAMPLE / "instructions.jsonl"), license="CC0-1.0")
    corpus = CorpusConfig(
        name="mine", sources={"instructions": source}, split=SplitConfig(validation_share=0)
    )
    prepared = pipeline.prepare(PrepareConfig(corpus=corpus, corpora_dir=str(tmp_path)))
    records = [json.loads(line) for line in (SAMPLE / "instructions.jsonl").read_text().splitlines()]
    planted = {r["id"]: r["planted"] for r in records if r["planted"] not in (None, "identity_number")}
    assert sorted(read_drop_reasons(prepared).values()) == sorted(planted.values())

    data = PackedData(
        Corpus(prepared.folder),
        "train",
        sources=["instructions"],
        sequence_length=512,
        long_documents="auto",
        shuffle_seed=None,
        plan_folder=tmp_path / "plan",
        world=IsolatedWorld(0, 1, 0),
    )
    assert data.counts["documents"] == len(records) - len(planted)
    tokenizer = Tokenizer.from_file(str(prepared.folder / "tokenizer" / "tokenizer.json"))
    targets: dict[int, list[int]] = {}
    for batch in data.load_batch(0, data.num_packs, 1).micro_batches:
        for label, document in zip(batch.labels.numpy()[0], batch.documents[0], strict=True):
            if label != IGNORE:
                targets.setdefault(int(document), []).append(int(label))
    ids = list(np.asarray(Corpus(prepared.folder).split("train")["id"]))
    for record in records:
        if record["id"] in planted:
            continue
        messages = record.get("messages", [])
        answers = [m["content"] for m in messages if m["role"] == "assistant"] or [
            record.get("completion") or record["output"]
        ]
        text = tokenizer.decode(targets[ids.index(record["id"])], skip_special_tokens=False)
        if record["planted"] == "identity_number":
            assert "[fødselsnummer]" in text
            continue
        assert text == "".join(f"{answer.strip()}</s>" for answer in answers)
