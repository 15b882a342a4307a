"""Normalisation: repairs, text that is kept, counts, and idempotence."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from data_prep import mojibake, verbatim
from data_prep.document import Turn
from data_prep.stages import normalise as stage
from data_prep.stages.normalise import Normalise, normalise, repair
from tests.data_prep.documents import make_config, make_document, run_shard_stage

FRAGMENTS = [
    *re.findall(
        r"\S+",
        "Ã¸ Ã¥ &amp; &lt; a - é e\u0301 § 1 « â€™ å » – ﬁ og A Â &#229; | ` = https:// :// "
        "www. http 👩 amp; Ã oslash;",
    ),
    *"\n \u00ad\ufffe\x00\t\u200b\r\x85\ufeff\f\u2028\u200d\x92\ud83d",
    "```\n",
    "\n\n    ",
]


@pytest.mark.parametrize("clean", [normalise, repair])
def test_cleaning_is_idempotent(clean: object) -> None:
    """Clean 5,000 random concatenations of FRAGMENTS."""
    assert callable(clean)
    rng = random.Random(1)
    for _ in range(5000):
        text = "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 14)))
        assert "".join(verbatim.split(text)) == text
        cleaned = clean(text)
        assert clean(cleaned) == cleaned


def test_the_short_cut_for_plain_text_equals_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules do not change a random text that the short cut classifies as plain."""
    letters = [chr(code) for code in range(9, 0x2100) if stage._PLAIN.fullmatch(chr(code))]
    unusual = [letter for letter in letters if ord(letter) > 126] + list(" aA")
    rng = random.Random(3)
    drawn = ["".join(rng.choices(unusual, k=rng.randint(1, 8))) for _ in range(20_000)]
    plain = [text for text in drawn if stage._is_plain(text)]
    assert len(plain) > 1000
    monkeypatch.setattr(stage, "_is_plain", lambda text: False)
    rules = stage.Rules()
    for text in plain:
        assert stage._repair_prose(stage._repair_characters(text, rules), rules) == text
    assert not rules.changes


@pytest.mark.parametrize(
    ("hyphenated", "joined"),
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
        (
            "kom\u00ad\nmunen og fyl\ufffe\nket og ord\u00addeling",
            "kommunen og fylket og orddeling",
        ),
        ("- ett punkt\n- et annet", "- ett punkt\n- et annet"),
        ("av folke-\n\nregisteret", "av folke-\n\nregisteret"),
    ],
)
def test_words_hyphenated_at_a_line_end_are_joined(hyphenated: str, joined: str) -> None:
    assert normalise(hyphenated) == joined


def test_joining_equals_one_regular_expression() -> None:
    """The regular expression defines the rule, but runs in quadratic time."""
    plain = re.compile(r"\b([^\W_][\w-]*)-[ \t]*\n[ \t]*([^\W_]\w*)")
    rng = random.Random(5)
    sample = Path(stage.__file__).parents[1] / "sample"
    files = [file for file in sorted(sample.rglob("*.*")) if file.suffix in (".jsonl", ".txt")]
    texts = [file.read_text(errors="replace") for file in files]
    drawn = [
        "".join(rng.choices(["a", "B", "-", "-\n", "_", " ", "1", "ø", "\t", "\n", "."], k=20))
        for _ in range(20_000)
    ]
    hyphenated = [text.replace("s", "-\n").replace("\\n", "\n") for text in texts]
    for text in [*texts, *hyphenated, *drawn]:
        found = stage._replace_divided_words(text, lambda first, second: f"<{first}|{second}>")
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
def test_normalising_takes_linear_time(text: str) -> None:
    """Quadratic time would be minutes. Joining words once took that long on 100 KB of base64url."""
    assert normalise(f"kommu-\nnen {text}-\nb").startswith("kommunen ")


def test_typography_is_kept_and_noise_removed() -> None:
    assert normalise("«Vedtak» – § 3, jf. ‘a’…") == "«Vedtak» – § 3, jf. ‘a’…"
    assert normalise("a\u00a0 b \t c\r\n\r\n\r\n\r\nd\ufeff\x00") == "a b c\n\nd"
    assert normalise("SÃ¸knad om a\u030a") == "Søknad om å"


MOJIBAKE = [
    ("«Vi mÃ¥ fÃ¥»", "«Vi må få»"),
    ("“NÃ¥ er det Ã¸st – Ã…lesund”", "“Nå er det øst – Ålesund”"),
    ("§ 3: kommunenÂ\u00a0skal sørge for bÃ¥de a og b", "§ 3: kommunen skal sørge for både a og b"),
    ("Det er viktig Ã¥ lese", "Det er viktig å lese"),
    ("komitÃ©», FÃ˜RST, BÃ…T og PÃ… i «Ã…S»", "komité», FØRST, BÅT og PÅ i «ÅS»"),
    ("åpent – men stengt pÃ¥ sÃ¸ndager", "åpent – men stengt på søndager"),
    ("Han sa â€œneiâ€\x9d og «jÃ¸ss»", "Han sa “nei” og «jøss»"),
    ("20Â°C «ute», Â§ 4 og 2â‚¬", "20°C «ute», § 4 og 2€"),
    ("ÄŒÃ¡hci â€“ sÃ¡megiella, Å¡iehtÃ¡ «Å¡»", "Čáhci – sámegiella, šiehtá «š»"),
    ("sÃƒÂ¸knad «dobbelt»", "søknad «dobbelt»"),
    ("Ã\x85lesund og l\x92amour \x96 «nær»", "Ålesund og l’amour – «nær»"),
    ("ok ðŸ˜€ «bÃ¥t»", "ok 😀 «båt»"),
    ("s√∏knad p√• br√∏d", "søknad på brød"),
    ("forste\x0bandre\r\ntredje", "forste\nandre\ntredje"),
]


@pytest.mark.parametrize("clean", [normalise, repair])
@pytest.mark.parametrize(("broken", "repaired"), MOJIBAKE)
def test_mojibake_is_repaired_beside_correct_letters(broken: str, repaired: str, clean: object) -> None:
    assert callable(clean)
    assert clean(broken).replace("\u00a0", " ") == repaired


CORRECT = [
    "«PÅ» og «BLÅ», HVA ER «Å»?",
    "«på»… IDÉ»… og 5 Å², 3 Å³, Ø²",
    "A IRMÃ» e a MAÇû… SÃO PAULO, AMANHû. «Ã» e «Â»",
    "DÉJÀ VU, FRANÇAIS, «Â», l’ÎLE, ROMÂNIA, Ærø, Øst°",
    "Čáhci, đ, ŋ, Ŧ: «Š» – ČŠŽ",
    "Ísland: ÞAÐ, Ð»",
    "Привет, Ελληνικά, عربى, 日本語！",
    "a⁄b ≈ √2 ± 1 ∂x, ├── mappe",
    "👩‍⚕️ 👨‍👩‍👧 🇳🇴 1️⃣ 👍🏽 🏴󠁧󠁢󠁷󠁬󠁳󠁿 ❤️‍🔥",
    "می‌خواهم क्‍ष",
    "Tegnet Ã¸ vises der ø skulle stått",
]


@pytest.mark.parametrize("clean", [normalise, repair])
@pytest.mark.parametrize("text", CORRECT)
def test_correct_text_is_not_changed(text: str, clean: object) -> None:
    assert callable(clean)
    assert clean(text) == text


def test_correct_real_text_is_not_changed(real_corpora: Path) -> None:
    read = 0
    for path in sorted(real_corpora.rglob("*")):
        if path.suffix in (".md", ".txt", ".xml", ".jsonl", ".json", ".csv", ".conllu"):
            text = path.read_bytes()[:400_000].decode("utf-8", "ignore")
            assert mojibake.repair(text) == text, path
            read += 1
    assert read > 400


VERBATIM = [
    "`&lt;strong&gt;`",
    "`&amp;nbsp;` og ``a `&nbsp;` b``",
    "`a  b\u00a0c\u00ad`",
    "`e\u0301 ﬁ ＡＢ`",
    "https://a.example/?a=1&amp;b=2&copy;=3",
    "https://a.example/en-sti\u200b/ﬁl",
    "www.a.example/e\u0301",
    "```html\n<p>  &aring;&nbsp;\n\n\n\n    kom-\nmune\u200b</p>\t\n```",
    "~~~\n  &lt;\n~~~",
    "    if (a &lt; b) {\n        return  &quot;&quot;;\n    }",
]


@pytest.mark.parametrize("code", VERBATIM)
def test_code_and_urls_are_kept_verbatim(code: str) -> None:
    assert normalise(f"For  &aring;pen:\n\n{code}\n\net  kom-\nmune") == f"For åpen:\n\n{code}\n\net kommune"
    if "\n" not in code:
        assert normalise(f"For  &aring;pen {code} et  kom-\nmune.") == f"For åpen {code} et kommune."
    assert normalise(code) == code


def test_an_unclosed_code_fence_runs_to_the_end() -> None:
    assert normalise("Slik:\n\n```\n&amp;  x\n\n\n\n  y") == "Slik:\n\n```\n&amp;  x\n\n\n\n  y"
    assert normalise("~~~~~~\na  b\n\nS&oslash;k") == "~~~~~~\na b\n\nSøk", (
        "a line drawn with ~ is not a code fence"
    )


def test_mojibake_quoted_in_code_is_kept() -> None:
    about = 'Skriv `bokmÃ¥l` som det er:\n\n```\nfix("bÃ¥t")\n```'
    assert normalise(about) == repair(about) == about
    assert "Ã" not in normalise(f"Les dette nÃ¥.\n\n{about}"), (
        "mojibake in prose shows that the whole text was decoded wrongly"
    )


@pytest.mark.parametrize(
    "content",
    [
        "Skriv &lt;strong&gt; og &amp;nbsp;, `&lt;i&gt;` og R&amp;D.",
        "1\u00a0000\u00a0kr, or\u00addeling, e\u0301, ﬁn, ＡＢ, a\u200bb, می‌خواهم",
        "Legen (👩‍⚕️) kan hjelpe 👨‍👩‍👧.",
        "- a\n    - b  \n\n\n\n\tc\n| x  | y |",
        "    innrykk\nsiste-\nlinje",
        "https://a.example/?a=1&amp;b=2",
    ],
)
def test_conversations_are_kept_verbatim(content: str) -> None:
    chat = make_document(
        "",
        turns=[
            Turn(role="user", content="Hei", target=False),
            Turn(role="assistant", content=content, target=True),
        ],
    )
    (kept,), report = run_shard_stage(Normalise(), [chat], make_config("chat"))
    assert kept.turns[1].content == content
    assert not +report.counts


def test_entities_are_decoded_once_and_kept_where_the_text_is_about_them() -> None:
    text = "S&oslash;knad &amp; vedtak&nbsp;fra &laquo;R&amp;D&raquo; &#229;"
    assert normalise(text) == "Søknad & vedtak fra «R&D» å"
    assert normalise("s&amp;oslash;knad") == "søknad", "a text that was escaped twice"
    for about in (
        "Skriv &amp;lt; for mindre enn.",
        "Bruk &lt;strong&gt;fet&lt;/strong&gt; skrift.",
        "a < b &amp; c",
    ):
        assert normalise(about) == about
    page = "Et hardt mellomrom skrives &nbsp;, og R&amp;D og s&oslash;knad er feil."
    (kept,), report = run_shard_stage(
        Normalise(), [make_document(page, title="A &amp; B")], make_config("markdown")
    )
    assert kept.text == "Et hardt mellomrom skrives &nbsp;, og R&D og søknad er feil."
    assert report.counts["entities_decoded"] == 1


def test_backticks_as_apostrophes_and_stray_ampersands_are_text() -> None:
    assert normalise("Per`s hus, s&oslash;r for Kari`s") == "Per`s hus, sør for Kari`s"
    assert normalise("AT&amp;T; R&amp;D; og &xyz;") == "AT&T; R&D; og &xyz;"


def test_meaningless_joiners_and_other_noise_are_removed() -> None:
    assert normalise("a\u200db\u200cc\u200b d\u2060e 👩\u200d \u200d👩") == "abc de 👩 👩"
    assert normalise("eﬀekt ＡＢＣ ko\u00admune a\u030a") == "effekt ABC komune å"


def test_each_kind_of_change_is_counted_by_documents() -> None:
    texts = {
        "mojibake_repaired": "Vi mÃ¥ fÃ¥",
        "control_characters_removed": "a\x00b \x1b[31mc",
        "line_breaks_replaced": "a\r\nb",
        "entities_decoded": "R&amp;D &aring;",
        "letters_composed": "a\u030a",
        "letter_forms_replaced": "ﬁn",
        "invisible_removed": "ko\u00admune",
        "words_joined": "kom-\nmune",
        "white_space_changed": "a  b",
    }
    documents = [make_document(text, kind) for kind, text in texts.items()]
    _, report = run_shard_stage(
        Normalise(),
        [*documents, make_document("Helt vanlig tekst – «ja».", "plain")],
        make_config(),
    )
    assert report.counts == {**dict.fromkeys(texts, 1), "changed": len(texts)}


def test_an_answer_that_begins_with_code_keeps_its_indent() -> None:
    chat = make_document(
        "",
        turns=[Turn(role="assistant", content="\n\n    def f():\n        pass\n\n", target=True)],
    )
    (kept,), report = run_shard_stage(Normalise(), [chat], make_config("chat"))
    assert kept.turns[0].content == "    def f():\n        pass"
    assert report.counts["white_space_changed"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "```\n" * 30_000,
        "~~~\n~~~~\n" * 20_000,
        "`a" * 60_000,
        "Ã¥Â" * 40_000,
        "&lt;a" * 40_000,
        "\n\n    a" * 20_000,
    ],
)
def test_finding_code_and_mojibake_takes_linear_time(text: str) -> None:
    verbatim.find_spans(text)
    normalise(text)
