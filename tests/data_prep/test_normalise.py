"""Normalising: what it mends, what it leaves, and that twice is once."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from data_prep.stages import normalise as stage
from data_prep.stages.normalise import normalise, repair

NASTY = ["Ã¸", "Ã¥", "&amp;", "&lt;", "a", "-", "\n", " ", "\u00ad", "\ufffe", "é", "e\u0301", "\x00", "\t", "§", "1", "«", "â€™",
         "å", "»", "–", "\u200b", "\r", "ﬁ", "og", "A", "Â", "\x85", "&#229;", "\ufeff", "|", "\f", "\u2028"]  # fmt: skip


@pytest.mark.parametrize("clean", [normalise, repair])
def test_twice_is_once(clean: object) -> None:
    """Of 5,000 texts put together from all that is nasty."""
    assert callable(clean)
    rng = random.Random(1)
    for _ in range(5000):
        once = clean("".join(rng.choices(NASTY, k=rng.randint(1, 14))))
        assert clean(once) == once


def test_plain_text_is_what_ftfy_would_not_change() -> None:
    """The short cut past ftfy gives what ftfy gives: of every text it takes for plain, drawn from the letters it knows."""
    known = [chr(code) for code in range(9, 0x2100) if stage._PLAIN.fullmatch(chr(code))]
    odd = [letter for letter in known if ord(letter) > 126] + list(" aA")
    rng = random.Random(3)
    plain = 0
    for _ in range(20_000):
        text = "".join(rng.choices(odd, k=rng.randint(1, 8)))
        if stage._is_plain(text):
            plain += 1
            assert stage._mended(text) == text
    assert plain > 1000


@pytest.mark.parametrize(
    ("parted", "whole"),
    [
        ("kommu-\nnen vedtok", "kommunen vedtok"),
        ("Kommune-\nstyret", "Kommunestyret"),
        ("barne-\nog ungdomsarbeid", "barne- og ungdomsarbeid"),
        ("e-\npost", "e-post"),
        ("NAV-\nkontoret", "NAV-kontoret"),
        ("Sør-\nNorge", "Sør-Norge"),
        ("2020-\n2021", "2020-2021"),
        (
            "sosial-\nkontoret. Et sosial-kontor, altså sosial-kontoret",
            "sosial-kontoret. Et sosial-kontor, altså sosial-kontoret",
        ),
        ("kom\u00ad\nmunen og fyl\ufffe\nket og ord\u00addeling", "kommunen og fylket og orddeling"),
        ("- ett punkt\n- et annet", "- ett punkt\n- et annet"),
        ("av folke-\n\nregisteret", "av folke-\n\nregisteret"),
    ],
)
def test_words_that_a_line_end_parted_are_put_together(parted: str, whole: str) -> None:
    assert normalise(parted) == whole


def test_parted_words_are_those_of_one_expression() -> None:
    """It says the same more plainly, in quadratic time."""
    plain = re.compile(r"\b([^\W_][\w-]*)-[ \t]*\n[ \t]*([^\W_]\w*)")
    rng = random.Random(5)
    sample = Path(stage.__file__).parents[1] / "sample"
    known = [file.read_text(errors="replace") for file in sorted(sample.rglob("*.*")) if file.suffix in (".jsonl", ".txt")]
    drawn = ["".join(rng.choices(["a", "B", "-", "-\n", "_", " ", "1", "ø", "\t", "\n", "."], k=20)) for _ in range(20_000)]
    for text in [*known, *(text.replace("s", "-\n").replace("\\n", "\n") for text in known), *drawn]:
        found = stage._parted_replaced(text, lambda first, second: f"<{first}|{second}>")
        assert found == plain.sub(r"<\1|\2>", text)


@pytest.mark.parametrize(
    "text",
    [
        "a-" * 50_000 + "a",
        "a" * 100_000,
        "_-" * 50_000,
        "-" * 100_000,
        "-\n" * 50_000,
        "\u0327\u0301" * 50_000,
        "&#807;&#769;" * 50_000,
    ],
)
def test_no_text_takes_forever(text: str) -> None:
    """Guards against rules in quadratic time: of a base64url blob of 100 KB, putting words together took minutes."""
    assert normalise(f"kommu-\nnen {text}-\nb").startswith("kommunen ")


def test_typography_stays_and_noise_goes() -> None:
    assert normalise("«Vedtak» – § 3, jf. ‘a’…") == "«Vedtak» – § 3, jf. ‘a’…"
    assert normalise("a\u00a0 b \t c\r\n\r\n\r\n\r\nd\ufeff\x00") == "a b c\n\nd"
    assert normalise("SÃ¸knad om a\u030a") == "Søknad om å"
