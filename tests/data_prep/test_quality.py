"""Each rule of quality: a document that it drops, and that without it would pass; and law, which passes all."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from data_prep import reading
from data_prep.config import QualityConfig, SourceConfig
from data_prep.document import Report, Turn
from data_prep.stages import normalise, quality
from tests.data_prep.documents import config, document, through

SENTENCES = [
    "Kommunen skal sørge for at alle som bor der får hjelp når de trenger det.",
    "Fristen for å klage på et vedtak er tre uker fra den dagen det kom fram.",
    "Den som har fått avslag kan be om innsyn i sakens dokumenter.",
    "Departementet gir forskrift om gebyr, og om hvem som skal betale det.",
    "Reglene gjelder ikke for fartøy under femten meter i innenriks fart.",
    "Styret velger selv sin leder blant medlemmene for ett år om gangen.",
    "Eieren plikter å holde bygningen i forsvarlig stand til enhver tid.",
    "Tilsynet kan kreve de opplysninger som er nødvendige for kontrollen.",
    "Søknaden sendes på skjema som er fastsatt av direktoratet for formålet.",
    "Vedtaket trer i kraft straks, med mindre noe annet er sagt i det.",
]
TEXT = "\n\n".join(SENTENCES)
LAW = "Lov om noe\n\n§ 1.\n\nFormål\n\nLoven skal gi trygghet.\n\n§ 2.\n\nVirkeområde\na. land\nb. sjø\n\n§ 3.\n\n(Opphevet)"
AMENDMENT = "Forskrift om endring i forskrift om gebyr\n\nI\n\n§ 3 skal lyde:\n\nGebyret er kr 500.\n\nII\n\nDen trer i kraft."

LONG = "https://www.example.no/en/lang/adresse/uten/mellomrom og https://www.example.no/i/det "
CODE = "if (og) { return [i] = {x: [1]}; } else { for (på) { y[i] = {}; } } \\ <a> = <b> {er} [av] "
PLACES = "Halden Moss Sarpsborg Fredrikstad Drammen Kongsberg Ringerike Hvaler "

# rule -> what it drops, and the settings that switch it off
DROPPED = {
    "too_short": ("Kontakt oss her", {"min_words": None}),
    "too_long": (TEXT, {"max_words": None}),
    "short_words": ("x | x | x | – | og " * 30, {"min_word_length": None}),
    "long_words": (LONG * 3, {"max_word_length": None}),
    "few_letters": ("i og " + "3421 12,50 99,75 118,40 " * 30, {"min_letter_words": None}),
    "spaced_letters": ("v e d t a k o m a t og i på " * 5 + "kommunestyret behandler", {"max_spaced_letters": None}),
    "few_function_words": (PLACES * 8, {"min_function_words": None}),
    "symbols": (TEXT.replace(" ", " #sak ", 20), {"max_symbol_share": None}),
    "bullets": ("\n".join(f"- {sentence}" for sentence in SENTENCES), {"max_bullet_lines": None}),
    "ellipses": (TEXT.replace(".\n", " …\n").replace(".", ""), {"max_ellipsis_lines": None}),
    "code": (CODE * 2, {"max_code_share": None}),
    "lorem_ipsum": ("Lorem ipsum dolor sit amet og i på av er det som for.", {"max_lorem_ipsum": None}),
    "lost_letters": (TEXT.replace("ø", "\ufffd").replace("å", "\ufffd"), {"max_broken_share": None}),
    "repeated_lines": ("\n".join([*SENTENCES, *SENTENCES, *SENTENCES]), {"max_duplicate_lines": None}),
    "repeated_paragraphs": ("\n\n".join([TEXT.replace("\n\n", "\n")] * 3), {"max_duplicate_paragraphs": None}),
    "repeated_words": (TEXT + " forordning (EU) 2020/1, forordning (EU) 2021/2," * 60, {"max_top_ngrams": None}),
    "repeated_passages": (" ".join([TEXT.replace("\n\n", " ")] * 4), {"max_duplicate_ngrams": None}),
}  # fmt: skip
LIMITS = {"too_long": {"max_words": 50}}


def reasons(text: str, **limits: object) -> set[str]:
    return {name for name, _ in quality.findings(text, replace(QualityConfig(), **limits))}  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", DROPPED)
def test_each_rule_drops_its_document_and_is_switched_off_alone(rule: str) -> None:
    text, off = DROPPED[rule]
    limits = LIMITS.get(rule, {})
    assert rule in reasons(text, **limits)
    assert rule not in reasons(text, **{**limits, **off})
    assert rule not in reasons(TEXT)


@pytest.mark.parametrize(
    "text",
    [
        "– Vi har ikke tatt stilling til saken, sier ordføreren.",
        "«... han behandler oss som barn».",
        "De dro hjem, som alle de andre …",
        "Å få reise i båt i solskinn.",
    ],
)
def test_a_sentence_is_not_judged_as_a_page_is(text: str) -> None:
    """Dialogue opens with a dash, a quotation with an ellipsis, and å and i are words."""
    assert reasons(text) == set()


@pytest.mark.parametrize("text", [TEXT, LAW, AMENDMENT, "- ett\n- to\n- tre\n" + TEXT, f"# Overskrift\n\n## Innhold\n\n{TEXT}"])
def test_law_and_guidance_break_no_rule(text: str) -> None:
    assert reasons(text) == set()


def test_a_rule_is_named_with_what_it_measured_and_conversations_are_not_judged() -> None:
    turns = [Turn(role="user", content="Hei", target=False), Turn(role="assistant", content="Ja.", target=True)]
    documents = [document(TEXT, "good"), document("For kort", "short"), document("", "chat", turns=turns)]
    kept, said = through(quality, documents, config())
    assert [d.id for d in kept] == ["good", "chat"]
    assert [(d.id, d.reason, d.detail) for d in said.drops] == [("short", "too_short", "2")]
    kept, _ = through(quality, documents, config(quality=QualityConfig(skip_sources=["letters"])))
    assert len(kept) == 3


def test_of_real_law_hardly_any_is_dropped(real_corpora: Path) -> None:
    """Of acts none; of regulations at most one in twenty-five: tables and lists of references."""
    source = SourceConfig(reader="lovdata", path=str(real_corpora / "lovdata"), license="NLOD-2.0")
    settings = config(reader="lovdata")
    read = list(islice(reading.read("letters", source, Report(), reading.files(source)), 400))
    _, said = through(quality, normalise.run(iter(read), settings, Report()), settings)
    acts = [drop.id for drop in said.drops if "/lov/" in drop.id]
    assert acts == []
    assert len(said.drops) <= len(read) / 25
