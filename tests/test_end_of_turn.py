"""Saved models stop at the end of a turn, here ChatML's on a base with another end of sequence."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_config, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from data_prep import pipeline
from data_prep.config import CorpusConfig, PrepareConfig, SourceConfig
from data_prep.pipeline import Prepared
from data_prep.shards import Corpus, TokenizerInfo
from data_prep.stage_settings import ChatConfig, SplitConfig, TokenizerConfig
from data_prep.tokens.tokenizer_files import add_tokens, place_files
from finetune.models import end_of_turn
from finetune.models import load as pretrained
from finetune.models.save import gather_weights, save
from finetune.runs import base_model
from finetune.runs.folder import RunFolder
from tests.end_to_end.commands import command, run_of
from tests.models import LLAMA, LORA

CHATML = """\
{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
ANSWERS = {
    "Når åpner biblioteket på lørdager?": "Biblioteket åpner klokken ti.",
    "Hvor lang er fristen for å klage?": "Fristen er tre uker.",
    "Hvem behandler søknaden om barnehage?": "Kommunen behandler den.",
    "Hva koster det å parkere ved rådhuset?": "Det er gratis om kvelden.",
    "Hvor kan jeg levere hageavfall?": "På gjenvinningsstasjonen.",  # held out
}


def write_base(folder: Path) -> Path:
    """Write a random model that ends sequences with </s>.

    Its vocabulary has ChatML's tokens, but it has no chat template.
    """
    source = SourceConfig(reader="text", path="none", license="CC0-1.0")
    config = CorpusConfig(name="none", sources={"none": source}, tokenizer=TokenizerConfig(vocab_size=400))
    place_files(config, [*ANSWERS, *ANSWERS.values()], folder)
    (folder / "chat_template.jinja").unlink()
    add_tokens(folder / "tokenizer.json", ["<|im_start|>", "<|im_end|>"])
    torch.manual_seed(0)
    settings = {**LLAMA, "hidden_size": 64, "vocab_size": 402, "bos_token_id": 0, "eos_token_id": 1}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings)).save_pretrained(folder)
    return folder


def prepare(folder: Path) -> Prepared:
    source = SourceConfig(reader="chat", path=str(folder / "chats.jsonl"), license="CC0-1.0", language="nob")
    records = [{"prompt": question, "completion": answer} for question, answer in ANSWERS.items()]
    (folder / "chats.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "chatml.jinja").write_text(CHATML)
    corpus = CorpusConfig(
        name="chats",
        sources={"chats": source},
        split=SplitConfig(validation_share=0.2, seed=9),
        tokenizer=TokenizerConfig(path=str(folder / "base")),
        chat=ChatConfig(template=str(folder / "chatml.jinja")),
    )
    return pipeline.prepare(PrepareConfig(corpus=corpus, corpora_dir=str(folder / "corpora")))


def answer_of(folder: Path, question: str) -> str:
    """Return the answer of a saved model, by plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    return generate(model, tokenizer, question)


def generate(model: Any, tokenizer: Any, question: str, **options: object) -> str:
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**prompt, max_new_tokens=60, do_sample=False, **options)
    answer_ids = ids[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(answer_ids, skip_special_tokens=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stops")
    write_base(folder / "base")
    assert prepare(folder).manifest.tokenizer.end_of_turn == "<|im_end|>"
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> torch.nn.Module:
    """Return the base, trained until it reproduces the conversations."""
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = list(Corpus(folder / "corpora" / "chats").split("train"))
    assert len(rows) == 4
    for _ in range(40):
        for row in rows:
            ids = torch.tensor([row["input_ids"]])
            labels = torch.where(torch.tensor([row["completion_mask"]]) == 1, ids, -100)
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model  # type: ignore[no-any-return]


def test_plain_transformers_stops_at_the_end_of_a_turn(
    folder: Path, trained: torch.nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = Corpus(folder / "corpora" / "chats")
    saved = tmp_path / "model"
    save(trained, gather_weights(trained), saved)  # type: ignore[arg-type]
    shutil.copytree(corpus.folder / "tokenizer", saved, dirs_exist_ok=True)
    question, answer = next(iter(ANSWERS.items()))
    undeclared = answer_of(saved, question)
    assert undeclared.startswith(f"{answer}<|im_end|>")
    assert len(undeclared) > len(f"{answer}<|im_end|>"), "it stops without a declaration"

    with caplog.at_level(logging.INFO):
        end_of_turn.declare(saved, corpus.manifest.tokenizer, trained)
    assert "the end-of-turn token <|im_end|> is an end of sequence" in caplog.text
    for question, answer in list(ANSWERS.items())[:4]:
        assert answer_of(saved, question) == f"{answer}<|im_end|>"
    end = corpus.manifest.tokenizer.end_of_turn_id
    for name in ("generation_config.json", "config.json"):
        assert json.loads((saved / name).read_text())["eos_token_id"] == [1, end]
    assert AutoTokenizer.from_pretrained(saved).eos_token == "<|im_end|>"
    reloaded = AutoModelForCausalLM.from_pretrained(saved)
    assert end_of_turn.find_new_stop(corpus.manifest.tokenizer, reloaded) is None, "it is declared already"


def test_an_adapters_end_of_turn_is_declared_and_inherited_by_a_merged_model(
    folder: Path, tmp_path: Path
) -> None:
    tokenizer = Corpus(folder / "corpora" / "chats").manifest.tokenizer
    end = tokenizer.end_of_turn_id
    adapter = tmp_path / "adapter"
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    adapted = get_peft_model(base, get_peft_config({"task_type": "CAUSAL_LM", **LORA}))
    assert end_of_turn.find_new_stop(tokenizer, adapted) == "<|im_end|>"
    adapted.save_pretrained(str(adapter))
    shutil.copytree(folder / "corpora" / "chats" / "tokenizer", adapter, dirs_exist_ok=True)
    end_of_turn.declare(adapter, tokenizer, adapted)
    assert not (adapter / "config.json").exists()
    generation_config = GenerationConfig.from_pretrained(adapter)
    assert generation_config.eos_token_id == [1, end]
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), str(adapter))
    tokenizer_of_adapter = AutoTokenizer.from_pretrained(adapter)
    assert generate(plain, tokenizer_of_adapter, "Hei", generation_config=generation_config)

    merged = pretrained.load(base_model.Base("mine", folder / "base", (adapter,)), torch.float32)
    assert merged.generation_config.eos_token_id == merged.config.eos_token_id == [1, end]  # type: ignore[union-attr]
    save(merged, gather_weights(merged), tmp_path / "merged")
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == [1, end]


@pytest.mark.parametrize(
    ("template", "eos", "expected"),
    [
        ("{{ messages[0].content }}<|im_end|>", "</s>", "<|im_end|>"),
        # with another eos_token, this template would render differently
        ("{{ bos_token }}{{ messages[0].content + eos_token }}<|im_end|>", "</s>", "</s>"),
        ("", {"content": "</s>", "special": True}, "<|im_end|>"),
    ],
)
def test_the_tokenizers_end_of_sequence_is_changed_unless_its_template_uses_it(
    tmp_path: Path, template: str, eos: object, expected: str
) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA, vocab_size=8, eos_token_id=1))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos, "chat_template": template}))
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 1}}))
    tokenizer = TokenizerInfo(
        sha256="", vocab_size=8, eos_token_id=1, end_of_turn="<|im_end|>", end_of_turn_id=7
    )
    end_of_turn.declare(tmp_path, tokenizer, model)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == expected
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "text_config": {"eos_token_id": [1, 7]},
        "eos_token_id": [1, 7],
    }


def test_without_conversations_nothing_is_declared(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA, vocab_size=8, eos_token_id=1))
    end_of_turn.declare(tmp_path, TokenizerInfo(sha256="", vocab_size=8, eos_token_id=1), model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.end_to_end
def test_a_run_saves_a_model_that_stops_and_reports_it(folder: Path) -> None:
    settings = [
        "data.corpus=chats",
        "model=base",
        "data.sequence_length=128",
        "cluster.ranks_per_node=1",
        "zero=stage0",
    ]
    settings += ["adapter=none", "max_steps=100", "lr=1e-2", "global_batch_size=1", "micro_batch_size=1"]
    done = command(folder, "train", *settings, "check_first_loss=false")
    reported = (
        "<|im_end|> ends a turn and is now an end-of-sequence token in generation_config.json and config.json"
    )
    assert reported in done.stderr
    run: RunFolder = run_of(folder, done.stdout)
    for question, answer in list(ANSWERS.items())[:4]:
        assert answer_of(run.model, question) == f"{answer}<|im_end|>"
    adapter = command(folder, "train", *settings, "adapter=lora", "max_steps=1", "check_first_loss=false")
    assert "PEFT loads that of the base instead, so pass this one to generate()" in adapter.stderr
    assert (run_of(folder, adapter.stdout).adapter / "generation_config.json").is_file()
