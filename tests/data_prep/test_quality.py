"""Each quality rule drops the document that was made to break it; laws and guidance pass all rules."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from data_prep import reading
from data_prep.config import SourceConfig
from data_prep.document import Report, Turn
from data_prep.stage_settings import QualityConfig
from data_prep.stages import normalise, quality
from data_prep.stages.quality import Quality
from tests.data_prep.documents import make_config, make_document, run_shard_stage

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
LAW = (
    "Lov om noe\n\n§ 1.\n\nFormål\n\nLoven skal gi trygghet.\n\n§ 2.\n\nVirkeområde\na. land\n"
    "b. sjø\n\n§ 3.\n\n(Opphevet)"
)
AMENDMENT = (
    "Forskrift om endring i forskrift om gebyr\n\nI\n\n§ 3 skal lyde:\n\nGebyret er kr 500.\n\n"
    "II\n\nDen trer i kraft."
)

LONG = "https://www.example.no/en/lang/adresse/uten/mellomrom og https://www.example.no/i/det "
CODE = "if (og) { return [i] = {x: [1]}; } else { for (på) { y[i] = {}; } } \\ <a> = <b> {er} [av] "
PLACES = "Halden Moss Sarpsborg Fredrikstad Drammen Kongsberg Ringerike Hvaler "

# by rule: a text that it drops, and the setting that switches it off
DROPPED = {
    "too_short": ("Kontakt oss her", {"min_words": None}),
    "too_long": (TEXT, {"max_words": None}),
    "short_words": ("x | x | x | – | og " * 30, {"min_word_length": None}),
    "long_words": (LONG * 3, {"max_word_length": None}),
    "few_letters": ("i og " + "3421 12,50 99,75 118,40 " * 30, {"min_letter_words": None}),
    "spaced_letters": (
        "v e d t a k o m a t og i på " * 5 + "kommunestyret behandler",
        {"max_spaced_letters": None},
    ),
    "few_function_words": (PLACES * 8, {"min_function_words": None}),
    "symbols": (TEXT.replace(" ", " #sak ", 20), {"max_symbol_share": None}),
    "bullets": ("\n".join(f"- {sentence}" for sentence in SENTENCES), {"max_bullet_lines": None}),
    "ellipses": (TEXT.replace(".\n", " …\n").replace(".", ""), {"max_ellipsis_lines": None}),
    "code": (CODE * 2, {"max_code_share": None}),
    "lorem_ipsum": (
        "Lorem ipsum dolor sit amet og i på av er det som for.",
        {"max_lorem_ipsum": None},
    ),
    "lost_letters": (
        TEXT.replace("ø", "\ufffd").replace("å", "\ufffd"),
        {"max_broken_share": None},
    ),
    "repeated_lines": (
        "\n".join([*SENTENCES, *SENTENCES, *SENTENCES]),
        {"max_duplicate_lines": None},
    ),
    "repeated_paragraphs": (
        "\n\n".join([TEXT.replace("\n\n", "\n")] * 3),
        {"max_duplicate_paragraphs": None},
    ),
    "repeated_words": (
        TEXT + " forordning (EU) 2020/1, forordning (EU) 2021/2," * 60,
        {"max_top_ngrams": None},
    ),
    "repeated_passages": (
        " ".join([TEXT.replace("\n\n", " ")] * 4),
        {"max_duplicate_ngrams": None},
    ),
}
LIMITS = {"too_long": {"max_words": 50}}

FORM = (
    "Søknad om støtte\n\nNavn: ..........................\nAdresse ……………………………\nSted, dato: _ _ _ _ _ _ _ _\n"
)
FORM += "Fødselsnummer . . . . . . . . . . .\nUnderskrift ____________________\n\n" + SENTENCES[2]
CONTENTS = "\n".join(
    f"{n} {' '.join(sentence.split()[:5])} {'.' * 40} {9 * n}" for n, sentence in enumerate(SENTENCES)
)
REFERENCES = ", ".join(f"forordning (EU) 20{10 + n % 15}/{7 * n + 100}" for n in range(200))
EXAMPLE = """# Hente kontaktinformasjon

Tjenesten svarer på spørsmål om en person, og er åpen for alle som har avtale. Kall den med et \
token fra ID-porten, som her:

```
curl -H 'Authorization: Bearer \
eyJraWQiOiJjWmswME1rbTVIQzRnN3Z0NmNwUDVGSFpMS0pzdzhmQkFJdUZiUzRSVEQ0' https://www.example.no/v1
{"personer": [{"personidentifikator": "12345678901", "kontaktinformasjon": {"epostadresse": \
"kari@example.no"}}]}
```

Svaret er en liste, og feil er beskrevet i det siste avsnittet. Ta kontakt med oss hvis \
noe mangler."""
LETTER = (
    "Hei {}\n\nDu har fått {} kroner fra og med {}. Det er {} prosent av det som du har rett til. "
    "Saken har nummer {}.\n\n{}"
)
FIELDS = [
    "{felt}",
    "{{ felt }}",
    "${felt}",
    "<felt>",
    "[felt]",
    "[Navn på mottaker]",
    "«felt»",
    "%felt%",
    "{navn.fornavn}",
    "{0}",
]
TARIFF = (
    "Forskrift om satser for frakt av dyr\n\nI\n\nI forskrift 1. mai 2020 nr. 12 om satser for "
    "frakt gjøres det en endring:\n"
)
TARIFF += "\n§ 5 skal lyde:\n\nSatser for frakt til anlegg i hver kommune, i kroner per dyr og med avgift:\n"
TARIFF += (
    "\n".join(f"{3400 + n} | Sted{n} | {n},18 | {n + 3},94 | {2 * n},88" for n in range(60))
    + "\n\nII\n\nDen trer i kraft."
)
SAME_IN_MANY = "\n\n".join(
    f"§ {n} tredje ledd skal lyde:\n\nTilskuddet begrenses til 37 584 kroner per termin av "
    "innbetalt skatt, trygdeavgift og arbeidsgiveravgift for hver sysselsatt som det gis "
    "tilskudd for."
    for n in range(8, 16)
)

# Texts that must pass, by "rule: kind of text". Earlier versions of the rule dropped them.
WRONGLY_DROPPED = {
    "symbols: a form": FORM * 2,
    "symbols: a table of contents": CONTENTS,
    "ellipses: a form": "\n".join(
        f"{word}: {'.' * 30}" for word in ("Navn", "Adresse", "Telefon", "Stilling", "Underskrift")
    ),
    "code: a letter with fields": LETTER.format(
        *["{felt}"] * 5, "{felt}{felt} år{felt} og {felt} måneder{felt}. " * 6
    ),
    "code: references": " ".join(
        f"{sentence[:-1]} [{n}], [{n}, {n + 1}] [se]." for n, sentence in enumerate(SENTENCES)
    ),
    "long_words: an example": EXAMPLE,
    "few_letters: a tariff": TARIFF,
    "repeated_words: references": f"{TEXT}\n\n{REFERENCES}",
    "repeated_lines: an amendment": f"{AMENDMENT}\n\n{SAME_IN_MANY}",
    "symbols: speech": "– Ja… nei… jeg vet ikke… kanskje, men…",
    "long_words: a headline": (
        "Arbeidsmiljøundersøkelsen gjennomføres: Kommunedirektørens personalpolitiske retningslinjer"
    ),
    "lost_letters: icons": "\n".join(f"{chr(0xE800 + n)} {sentence}" for n, sentence in enumerate(SENTENCES)),
    "bullets: a list": normalise.normalise("\n".join(f"\uf0b7 {sentence}" for sentence in SENTENCES)),
    "bullets: a heading and a list": "Kommunen har disse oppgavene:\n"
    + "\n".join(f"• {s}" for s in SENTENCES * 3),
}


def broken_rules(text: str, **limits: object) -> set[str]:
    """Return the names of the rules that a text breaks; `limits` replace the default limits."""
    config = replace(QualityConfig(), **limits)  # type: ignore[arg-type]
    return {name for name, _ in quality.find_broken_rules(text, config)}


@pytest.mark.parametrize("rule", DROPPED)
def test_each_rule_drops_its_document_and_can_be_switched_off(rule: str) -> None:
    text, off = DROPPED[rule]
    limits = LIMITS.get(rule, {})
    assert rule in broken_rules(text, **limits)
    assert rule not in broken_rules(text, **{**limits, **off})
    assert rule not in broken_rules(TEXT)


@pytest.mark.parametrize(
    "text",
    [
        "– Vi har ikke tatt stilling til saken, sier ordføreren.",
        "«... han behandler oss som barn».",
        "De dro hjem, som alle de andre …",
        "Å få reise i båt i solskinn.",
    ],
)
def test_rules_for_pages_do_not_apply_to_sentences(text: str) -> None:
    """A dash may open dialogue, an ellipsis may open a quotation, and "å" and "i" are words."""
    assert broken_rules(text) == set()


@pytest.mark.parametrize(
    "text",
    [TEXT, LAW, AMENDMENT, "- ett\n- to\n- tre\n" + TEXT, f"# Overskrift\n\n## Innhold\n\n{TEXT}"],
)
def test_law_and_guidance_break_no_rule(text: str) -> None:
    assert broken_rules(text) == set()


@pytest.mark.parametrize("name", WRONGLY_DROPPED)
def test_forms_letters_tables_and_examples_are_kept(name: str) -> None:
    assert name.partition(":")[0] not in broken_rules(WRONGLY_DROPPED[name])
    # this list repeats each sentence three times, so it breaks the rule on repeated lines
    if name != "bullets: a heading and a list":
        assert broken_rules(WRONGLY_DROPPED[name]) == set()


@pytest.mark.parametrize("field", FIELDS)
def test_merge_fields_are_not_code_and_text_of_fields_alone_is_dropped(field: str) -> None:
    assert broken_rules(LETTER.format(*[field] * 5, "")) == set()
    assert broken_rules(LETTER.format(*[field] * 5, " ".join([field] * 20))) == set()
    if field[0] in "{$<[":
        assert broken_rules(f"{field} - {field}\n\n{field} - {field}") == {"few_letters"}


def test_programs_and_tables_without_sentences_are_dropped() -> None:
    program = "\n".join(
        f"const x{n} = items.map((item) => {{ return item[{n}] + '{n}'; }});" for n in range(20)
    )
    assert "code" in broken_rules(program)
    assert "code" in broken_rules(f"// og nå skal det bli som det er for den som har det\n{program}")
    markup = "\n".join(f'<div class="a{n}"><a href="/side/{n}">Side {n}</a></div>' for n in range(30))
    assert "code" in broken_rules(markup)
    assert "few_letters" in broken_rules("\n".join(f"{n} | {n},5 | {n * 3} | {n}" for n in range(100)))
    assert "lost_letters" in broken_rules(TEXT.replace("ø", "\ue0f8"))
    assert "repeated_passages" in broken_rules(
        " ".join(SENTENCES[n % 3] for n in (0, 1, 2, 1, 0, 2, 0, 1, 2, 1) * 6)
    )


def test_documents_of_evaluation_readers_are_exempt_and_counted() -> None:
    sentence = make_document("Nei, aldri!")
    kept, report = run_shard_stage(Quality(), [sentence], make_config(reader="conllu"))
    assert (len(kept), report.counts) == (1, {"not_judged_letters": 1})
    kept, report = run_shard_stage(
        Quality(), [sentence], make_config(reader="conllu", quality=QualityConfig(skip_readers=[]))
    )
    assert (kept, report.drop_reasons()) == ([], {"too_short": 1})
    with pytest.raises(ValueError, match="skip_readers names 'nobody'"):
        make_config(quality=QualityConfig(skip_readers=["nobody"]))


def test_drops_name_rule_and_measurement_and_conversations_are_exempt() -> None:
    turns = [
        Turn(role="user", content="Hei", target=False),
        Turn(role="assistant", content="Ja.", target=True),
    ]
    documents = [
        make_document(TEXT, "good"),
        make_document("For kort", "short"),
        make_document("", "chat", turns=turns),
    ]
    kept, report = run_shard_stage(Quality(), documents, make_config())
    assert [d.id for d in kept] == ["good", "chat"]
    assert [(d.id, d.reason, d.detail) for d in report.drops] == [("short", "too_short", "2")]
    kept, _ = run_shard_stage(
        Quality(), documents, make_config(quality=QualityConfig(skip_sources=["letters"]))
    )
    assert len(kept) == 3


def test_real_laws_are_not_dropped(real_corpora: Path) -> None:
    """Acts and regulations contain tables and lists of references."""
    source = SourceConfig(reader="lovdata", path=str(real_corpora / "lovdata"), license="NLOD-2.0")
    settings = make_config(reader="lovdata")
    read = list(islice(reading.read("letters", source, Report(), reading.files(source)), 400))
    _, report = run_shard_stage(
        Quality(), normalise.Normalise().run(iter(read), settings, Report()), settings
    )
    assert report.drops == []
