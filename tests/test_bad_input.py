"""A user's mistake gives one error line and exit code 2, and no data are lost."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import finetune.models
from finetune.cli import main as cli
from finetune.launch import submit
from finetune.runs.folder import RunFolder
from tests.corpora import write_corpus, write_tokenizer
from tests.models import write_base

MODEL = "model=llama_tiny"
FULL = "adapter=none"
TRAIN = [MODEL, FULL, "corpus=mine"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpora" / "mine", num_documents=8, longest=20, seed=0)


@pytest.fixture
def refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return a function that runs a wrong command and returns its error line.

    The function checks that the command leaves no run folder and no unfinished corpus.
    """
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        capsys.readouterr()  # discard the output of earlier commands
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        out, err = capsys.readouterr()
        assert ended.value.code == 2
        assert out == ""
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, err
        assert "Traceback" not in err
        assert not list((tmp_path / "runs").glob("*/config.yaml"))
        assert not list((tmp_path / "corpora").glob(".*.tmp"))
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([*TRAIN, "lrr=1"], ["lrr", "did you mean 'lr'"]),
        ([*TRAIN, "cluster.ranks=2"], ["cluster.ranks"]),
        ([*TRAIN, "+lr_=1"], ["unknown setting 'lr_'"]),
        ([*TRAIN, "+data.packing=1"], ["unknown setting 'data.packing'"]),
        ([*TRAIN, "--lr", "1e-4"], ["unknown option --lr", "lr=1e-4"]),
        ([MODEL, FULL, "corpus=høringer"], ["corpora/høringer"]),
        ([*TRAIN, "data.include_sources=[letters,høring]"], ["unknown source høring"]),
        ([*TRAIN, "lr=1e-4,2e-4", "-m", "detach=true"], ["detach=true: cannot be used for a sweep"]),
        ([*TRAIN, "lr=fast"], ["lr:", "fast", "is not a number"]),
        ([*TRAIN, "lr=-1"], ["lr is -1", "above 0"]),
        ([*TRAIN, "lr=1e-4,2e-4"], ["lr=1e-4,2e-4", "-m"]),
        ([*TRAIN, "zero=stage9"], ["zero/stage9", "stage0, stage1, stage2"]),
        ([*TRAIN, "zero.stage=5"], ["zero.stage is 5"]),
        (
            [*TRAIN, "zero=stage3_nvme"],
            ["add zero.offload_optimizer.nvme_path="],
        ),
        ([*TRAIN, "precision=fp8"], ["precision is 'fp8'", "bf16"]),
        ([*TRAIN, "schedule=step"], ["schedule is 'step'", "cosine, wsd"]),
        ([*TRAIN, "model.attention=flash"], ["model.attention is 'flash'", "documents"]),
        ([*TRAIN, "on_bad_step=ignore"], ["on_bad_step is 'ignore'", "rewind"]),
        ([*TRAIN, "model.quantization=nf4"], ["model.quantization needs a frozen base"]),
        (
            [MODEL, "adapter=qlora", "zero=stage3", "corpus=mine"],
            ["model.quantization needs a frozen base", "stage2"],
        ),
        (
            [MODEL, "corpus=mine", "adapter.peft_type=PREFIX_TUNING"],
            ["PREFIX_TUNING puts virtual tokens before a row"],
        ),
        ([*TRAIN, "global_batch_size=7"], ["global_batch_size is 7", "4 × 1"]),
        (
            [*TRAIN, "data.include_sources=[letters,lettters]"],
            ["lettters", "letters, laws"],
        ),
        (
            [*TRAIN, "data.long_documents=cut"],
            ["data.long_documents is 'cut'", "truncate, drop"],
        ),
        (
            [*TRAIN, "data.long_conversations=split"],
            ["data.long_conversations is 'split'", "cut, drop"],
        ),
        (
            [*TRAIN, "data.sequence_length=4", "data.long_documents=drop"],
            [
                "data.max_lost_share is 0.1",
                "training tokens",
                "data.long_documents=split",
                "data.sequence_length=4",
            ],
        ),
        (
            [*TRAIN, "data.max_lost_share=2"],
            ["data.max_lost_share is 2", "between 0 and 1"],
        ),
        ([*TRAIN, "result=first"], ["result is 'first'", "best, last"]),
        ([*TRAIN, "name=../x"], ["name is '../x'"]),
        ([MODEL, FULL, "corpus=nowhere"], ["corpora/nowhere", "finetune prepare"]),
        ([MODEL, FULL], ["data.corpus is missing"]),
        (["corpus=mine"], ["model.path", "run:"]),
        (["corpus=mine", "model=run:none"], ["no run 'none'", "finetune status"]),
        (["corpus=mine", "model=/none/such"], ["/none/such does not exist"]),
        (["recipe=none"], ["recipe/none", "sample_lora"]),
        ([MODEL, "corpus=mine", "adapter=lora"], ["random weights", "adapter=none"]),
        ([*TRAIN, "zero=stage0", "precision=bf16"], ["zero=stage1"]),
        (["corpus=mine", "model=nobody/such-model"], ["Hugging Face cache", "hf download nobody/such-model"]),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(
    refuse: Callable[..., str], corpus: Path, arguments: list[str], parts: list[str]
) -> None:
    line = refuse("train", *arguments)
    assert all(part in line for part in parts), line


def test_a_flipped_bit_in_a_shard_is_detected(refuse: Callable[..., str], corpus: Path) -> None:
    shard = corpus / "train" / "shard-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert "shard-00000.arrow is corrupted" in refuse("train", MODEL, FULL, "corpus=mine")


def test_a_truncated_shard_is_named_with_its_size(refuse: Callable[..., str], corpus: Path) -> None:
    shard = corpus / "train" / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-8])
    line = refuse("train", MODEL, FULL, "corpus=mine")
    assert "shard-00000.arrow has" in line
    assert "in the manifest" in line


def test_an_edited_manifest_is_refused(refuse: Callable[..., str], corpus: Path) -> None:
    manifest = json.loads((corpus / "manifest.json").read_text())
    manifest["sources"]["letters"]["license"] = "CC0-2.0"
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    assert "edited after `prepare` wrote it" in refuse("train", MODEL, FULL, "corpus=mine")


def test_a_base_with_another_tokenizer_is_refused(
    refuse: Callable[..., str], corpus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    write_tokenizer(folder, words=77)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    line = refuse("train", "corpus=mine", f"model={folder}")
    assert "tokenizer" in line
    assert f"corpus.tokenizer.path={folder}" in line


def test_a_model_folder_without_config_or_weights_is_refused(
    refuse: Callable[..., str], corpus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(corpus / "tokenizer", folder)
    assert "has no config.json" in refuse("train", "corpus=mine", f"model={folder}")
    (folder / "config.json").write_text("{}")
    assert "has no weights (*.safetensors)" in refuse("train", "corpus=mine", f"model={folder}")


@pytest.mark.parametrize(
    ("changes", "arguments", "parts"),
    [
        ({}, ["adapter.r=0"], ["adapter: PEFT rejects", "`r` should be a positive integer"]),
        ({}, ["+adapter.rank=8"], ["adapter: PEFT rejects", "unexpected keyword argument 'rank'"]),
        ({}, ["adapter.target_modules=[q_projection]"], ["q_projection", "not found in the base model"]),
        (
            {},
            ["data.sequence_length=512"],
            ["data.sequence_length: 512 is more than the model's 256 positions"],
        ),
        ({"vocab_size": 200}, [], ["has 300 tokens, and the model embeds 200"]),
    ],
)
def test_base_and_adapter_are_checked_before_a_run_starts(
    refuse: Callable[..., str],
    corpus: Path,
    tmp_path: Path,
    changes: dict[str, int],
    arguments: list[str],
    parts: list[str],
) -> None:
    base = write_base(tmp_path / "base", **changes)
    line = refuse("train", "corpus=mine", f"model={base}", "data.sequence_length=128", *arguments)
    assert all(part in line for part in parts), line


def test_a_model_type_whose_tokenizer_changes_ids_is_rejected(
    refuse: Callable[..., str], corpus: Path
) -> None:
    line = refuse("train", "corpus=mine", MODEL, FULL, "model.from_scratch.model_type=qwen2")
    assert all(
        part in line
        for part in ("would load another tokenizer", "Qwen2Tokenizer", "model.from_scratch.model_type")
    ), line


def test_without_torch_the_check_of_the_base_is_left_to_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A login node may have no torch because the compute nodes have another architecture."""
    monkeypatch.delattr(finetune.models, "build", raising=False)
    monkeypatch.setitem(sys.modules, "finetune.models.build", None)
    submit._check_on_bases([object()])  # type: ignore[list-item]


def test_a_truncated_base_is_refused(refuse: Callable[..., str], corpus: Path, tmp_path: Path) -> None:
    file = write_base(tmp_path / "base") / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    line = refuse("train", "corpus=mine", f"model={tmp_path / 'base'}", "data.sequence_length=128")
    assert (
        f"the weights in {file} cannot be read (the file is truncated); download or copy the model again"
        in line
    )


def jsonl(path: Path) -> dict[str, str]:
    """Return the settings of a source that is a file of JSON lines."""
    return {"reader": "jsonl", "path": str(path), "license": "CC0-1.0"}


def corpus_yaml(tmp_path: Path, **sources: dict[str, str]) -> list[str]:
    folder = tmp_path / "my" / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.yaml").write_text(
        json.dumps({"name": "mine", "sources": sources, "tokenizer": {"vocab_size": 400}})
    )
    return ["prepare", "corpus=mine", "--config-dir", str(tmp_path / "my")]


def test_an_empty_corpus_is_reported_with_the_reasons_of_the_drops(
    refuse: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "This is a letter in English about the municipality and its water supply, '
        'and nothing else."}\n'
    )
    line = refuse(*corpus_yaml(tmp_path, letters=jsonl(tmp_path / "a.jsonl")))
    assert "is empty: none of 1 documents read is left" in line
    assert "language_eng 1" in line
    assert not (tmp_path / "corpora" / "mine").exists()


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ({"reader": "jsonl", "path": "/none", "license": "CC0-1.0"}, ["source path /none: does not exist"]),
        (
            {"reader": "docx", "path": "/none", "license": "CC0-1.0"},
            ["sources.letters.reader is 'docx'", "lovdata"],
        ),
        ({"reader": "jsonl", "path": "/none"}, ["corpus.sources.letters.license is missing"]),
        ({"reader": "jsonl", "path": "/none", "license": " "}, ["license is empty", "SPDX"]),
    ],
)
def test_a_wrong_source_is_named_in_one_line(
    refuse: Callable[..., str], tmp_path: Path, source: dict[str, str], parts: list[str]
) -> None:
    line = refuse(*corpus_yaml(tmp_path, letters=source))
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["corpus.tokenizer.path corpora/sample/tokenizer does not exist"]),
        (
            ["corpus.tokenizer.path=null", "corpus.chat.template=mine.jinja"],
            ["corpus.chat.template mine.jinja does not exist"],
        ),
        (
            ["corpus.tokenizer.path=null", "corpus.chat.targets=all"],
            ["chat.targets is 'all'", "answers, everything"],
        ),
    ],
)
def test_wrong_chat_settings_are_rejected_before_anything_is_written(
    refuse: Callable[..., str], tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    line = refuse("prepare", "corpus=sample_chat", *arguments)
    assert all(part in line for part in parts), line
    assert not (tmp_path / "corpora").exists()


def test_broken_records_are_counted_and_the_others_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    good = [
        {
            "id": str(i),
            "text": f"Kommunen har behandlet søknad nummer {i} og gir tillatelse til tiltaket etter loven.",
        }
        for i in range(20)
    ]
    lines = ["not json", "[1, 2]", '{"id": "x"}', '{"text": 5}', *map(json.dumps, good)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(SystemExit) as ended:
        cli.main(corpus_yaml(tmp_path, letters=jsonl(tmp_path / "a.jsonl")))
    assert ended.value.code == 0
    manifest = json.loads((tmp_path / "corpora" / "mine" / "manifest.json").read_text())
    assert manifest["stages"][0]["counts"]["quarantined_letters"] == 4
    assert manifest["stages"][0]["documents_out"] == 20


def test_a_truncated_archive_is_named(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "laws.tar.bz2").write_bytes(b"BZh91AY&SY" + b"\0" * 50)
    line = refuse(
        *corpus_yaml(
            tmp_path,
            laws={"reader": "lovdata", "path": str(tmp_path / "laws.tar.bz2"), "license": "NLOD-2.0"},
        )
    )
    assert "source laws: no document can be read; laws.tar.bz2: bzip2 data is truncated or corrupt" in line


def test_a_folder_that_is_not_a_corpus_is_not_replaced(refuse: Callable[..., str], tmp_path: Path) -> None:
    """A user's downloads are in the folder that the corpus would get; they must not be lost."""
    raw = tmp_path / "corpora" / "mine" / "raw.jsonl"
    raw.parent.mkdir(parents=True)
    raw.write_text('{"text": "x"}\n')
    line = refuse(*corpus_yaml(tmp_path, letters=jsonl(raw)))
    assert "holds files that are not a corpus" in line
    assert raw.exists()


def test_a_truncated_gzip_file_is_named(refuse: Callable[..., str], tmp_path: Path) -> None:
    import gzip

    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n')[:14])
    line = refuse(*corpus_yaml(tmp_path, letters=jsonl(tmp_path / "a.jsonl.gz")))
    assert (
        "source letters: no document can be read; a.jsonl.gz:line 1: gzip data is truncated or corrupt"
        in line
    )


def test_two_preparations_do_not_share_a_folder(refuse: Callable[..., str], tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "corpora" / ".mine.stages").mkdir(parents=True)
    with FileLock(tmp_path / "corpora" / ".mine.stages" / "lock"):
        line = refuse(*corpus_yaml(tmp_path, letters=jsonl(tmp_path / "a.jsonl")))
    assert "another `finetune prepare` is writing" in line


def test_a_run_folder_in_use_is_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from finetune.config import train as configuration
    from finetune.config.train import DataConfig, ModelConfig, TrainConfig

    monkeypatch.chdir(tmp_path)
    run = RunFolder(tmp_path / "runs" / "mine")
    run.path.mkdir(parents=True)
    configuration.save(
        TrainConfig(
            data=DataConfig(corpus=str(corpus)), model=ModelConfig(from_scratch={"model_type": "llama"})
        ),
        run.config_file,
    )
    with run.lock, pytest.raises(SystemExit) as ended:
        cli.main(["resume", "mine"])
    assert ended.value.code == 2
    assert "run mine: is in use by another process" in capsys.readouterr().err
