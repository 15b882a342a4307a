"""Running text is encoded by the library gigatoken, or by Hugging Face's tokenizers.

gigatoken is used only if both give the same tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_prep.tokens import encoder
from data_prep.tokens.encoder import TextEncoder, choose

gigatoken = pytest.importorskip("gigatoken", reason="the extra `fast` is not installed")
ak = pytest.importorskip("awkward", reason="a dependency of gigatoken")

TEXTS = [
    "Fristen er 1. mars.",
    "Nei, du må søke på nytt hvert år.",
    "§ 3 første ledd",
    "",
    " \n\n x",
    "«Å» – 5 µm ≥ 3",
    "čállin ŋ",
    "Муниципалитет ёлка, ЊЈЋ",
]
ODD = ["<s>slik</s>", "før <|im_start|> etter", "日本語 🫨", "Ａ\u0301", "x\u2028y", "a\x00b"]


@pytest.fixture
def file(folder: Path) -> Path:
    """Return the file of a byte-level BPE tokenizer that prepends <s>; see conftest.py."""
    return folder / "tokenizer.json"


def test_token_ids_equal_those_of_tokenizers(file: Path) -> None:
    plain = Tokenizer.from_file(str(file))
    plain.encode_special_tokens = True
    mixed = [text for pair in zip(TEXTS, ODD, strict=False) for text in pair] * 3
    for library in ("gigatoken", "tokenizers"):
        encoded = [ids.tolist() for ids in TextEncoder(file, library)(mixed)]
        assert encoded == [plain.encode(text).ids for text in mixed]
        assert TextEncoder(file, library)([]) == []


def test_texts_on_which_the_libraries_may_differ_are_left_to_tokenizers(file: Path) -> None:
    fast = TextEncoder(file, "gigatoken")
    assert all(fast.is_stable(text) for text in TEXTS)
    assert not any(fast.is_stable(text) for text in ODD)


def test_the_choice_of_library_gives_its_reason(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = choose(file, TEXTS)
    assert (chosen["library"], chosen["reason"]) == (
        "gigatoken",
        "the same tokens as tokenizers on a sample of the corpus",
    )
    assert choose(file, [])["library"] == "tokenizers"
    assert choose(file, TEXTS, "tokenizers")["reason"] == "as set"
    other = json.loads(file.read_text()) | {
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}
    }
    (tmp_path / "other.json").write_text(json.dumps(other | {"added_tokens": [], "post_processor": None}))
    assert "cannot read" in choose(tmp_path / "other.json", TEXTS)["reason"]
    monkeypatch.setattr(TextEncoder, "encode_fast", lambda self, texts: [np.array([1, 2]) for _ in texts])
    assert choose(file, TEXTS) | {"version": ""} == {
        "library": "tokenizers",
        "version": "",
        "reason": "gigatoken gave other tokens for a text of the corpus",
    }


def test_a_later_difference_stops_the_preparation(file: Path) -> None:
    class WrongTokens:
        def encode_batch(self, texts: list[str], parallel: bool) -> ak.Array:
            return ak.from_regular(np.full((len(texts), 1), 7, np.uint32))

    fast = TextEncoder(file, "gigatoken")
    original: Any = fast._gigatoken
    assert fast(TEXTS)
    fast._gigatoken = WrongTokens()
    with pytest.raises(ValueError, match="they agreed on the sample; set it to tokenizers"):
        fast(TEXTS)
    fast._gigatoken = original


def test_memory_is_released(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "RELOAD_AFTER", 50)
    fast = TextEncoder(file, "gigatoken")
    first = fast._gigatoken
    before = [ids.tolist() for ids in fast(TEXTS * 5)]
    assert [ids.tolist() for ids in fast(TEXTS * 5)] == before
    assert fast._gigatoken is not first
