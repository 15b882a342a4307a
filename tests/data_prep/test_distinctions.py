"""Of similar documents, copies are dropped, and documents with other content are kept.

The documents are written on the same form. Copies are found even if they were printed, scanned or
edited.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from data_prep.document import Document
from data_prep.stage_settings import DeduplicateConfig
from data_prep.stages.deduplicate import Deduplicate
from data_prep.stages.near_duplicates import MAX_COMPARED
from tests.data_prep.documents import make_config, make_document
from tests.data_prep.stages import run_corpus_stage

ACT = """{title}

§ 1. Satser

For transport av {goods} betales {rate} kroner per {unit}. Satsen gjelder fra 1. januar og \
justeres hvert år.

§ 2. Beregning

Satsen beregnes av den som utfører oppdraget, og føres i oppgaven som sendes innen den femtende i \
måneden etter. Oppgaven skal
være undertegnet, og den skal vise hva som er fraktet og hvor langt.

§ 3. Klage

Vedtak etter denne forskriften kan påklages til departementet innen tre uker. Klagen settes fram \
for den som har truffet
vedtaket, og den skal være begrunnet.

§ 4. Ikrafttredelse

Forskriften trer i kraft straks."""
TIMBER = {
    "title": "Forskrift om transport av tømmer",
    "goods": "tømmer",
    "rate": "412",
    "unit": "lastet tonn",
}
MILK = {
    "title": "Forskrift om transport av melk",
    "goods": "melk",
    "rate": "388",
    "unit": "tusen liter",
}
RESERVE = """Forskrift om vern av {name} naturreservat, {place} kommune

§ 1. Formål

Formålet er å ta vare på et område med gammel barskog, og på det biologiske mangfoldet i den. \
Området har særlig verdi på grunn
av kontinuitet i gamle trær og død ved, og det er et levested for mange arter som ellers er \
blitt sjeldne.

§ 2. Grenser

Naturreservatet berører {farms}, og dekker {area} dekar. Grensene går fram av kart datert {date}. \
Kartet ligger i kommunen.

§ 3. Vern

Vegetasjonen er fredet mot skade og ødeleggelse. Det er forbudt å fjerne planter og sopp, og å \
plante eller så trær. Dyrelivet er
fredet mot skade og unødig forstyrrelse. Området er vernet mot ethvert tiltak, som bygninger, \
anlegg, gjerder og veier.

§ 4. Unntak

Forbudene er ikke til hinder for sanking av bær og matsopp, jakt og fiske etter gjeldende lovverk, \
og beiting."""
STORHAUG = {
    "name": "Storhaugen",
    "place": "Lillevik",
    "farms": "gnr. 12 bnr. 3",
    "area": "1 412",
    "date": "3. mai 2024",
}
GRANLI = {
    "name": "Granlia",
    "place": "Sørdal",
    "farms": "gnr. 77 bnr. 1 og 2",
    "area": "655",
    "date": "17. juni 2023",
}
LETTER = """Sørdal kommune
{who}

Vår dato: {date}
Vår ref.: {case}

Vedtak om barnehageplass

Vi viser til søknaden din. Du har fått tilbud om plass i {where} barnehage fra 15. august 2024. \
Faktura sendes ut den femtende i
hver måned, og prisen følger av det som kommunestyret har vedtatt.

Du må svare på tilbudet innen to uker. Hvis du ikke svarer innen fristen, kan plassen bli gitt til \
andre. Du kan si opp plassen
med én måneds varsel, og tiden regnes fra den første i måneden etter at vi har mottatt oppsigelsen.

Du kan klage på vedtaket innen tre uker etter at du har mottatt dette brevet. Klagen sendes til \
kommunen, og du må skrive hva du
klager på og hvorfor du mener at vedtaket er feil."""
KARI = {
    "who": "Kari Nordmann\nStorgata 3",
    "date": "3. mars 2024",
    "case": "24/01234-2",
    "where": "Solbakken",
}
OLA = {
    "who": "Ola Hansen\nLia 8",
    "date": "5. mars 2024",
    "case": "24/01399-2",
    "where": "Solbakken",
}
MINUTES = """Møteprotokoll

Utvalg: Eldrerådet
Møtedato: {date}

Lederen ønsket velkommen og redegjorde for dagsorden. Innkalling og saksliste ble godkjent uten \
merknader. Protokollen fra forrige
møte ble godkjent og undertegnet. Lederen orienterte om saker som er under arbeid, og medlemmene \
fikk stille spørsmål. Det ble
ikke fattet vedtak i sakene som ble lagt fram til orientering. Møtet ble hevet klokka {end}."""
PLAN = """Bestemmelser til reguleringsplan

1. Bebyggelsen skal ha saltak med takvinkel mellom {low} og 38 grader. Gesimshøyde skal ikke \
overstige {height} meter over planert
terreng. Tillatt bebygd areal er {area} prosent av tomta.

2. Garasje kan plasseres inntil én meter fra nabogrense når den ligger vinkelrett på veien. Farger \
og materialer skal være dempede
og tilpasset omgivelsene. Ubebygde deler av tomta skal gis en tiltalende form."""
JOURNAL = (
    "Sak 2024/{case}: Tilsyn med {what} avløpsanlegg\n\n"
    "Inngående dokument 3 ({date}): Svar på varsel om tilsyn\n"
)
JOURNAL += (
    "Avsender: {what} kommune\nSaksbehandler: Seksjon for tilsyn og kontroll\n"
    "Hoveddokument: Svar på varsel om tilsyn"
)


def fill_form(text: str, *fillings: dict[str, str], title: bool = False) -> list[Document]:
    """Fill in a form once for each of the fillings; return the documents.

    Args:
        text: the form, with keys in braces.
        fillings: for each document, the values that replace the keys.
        title: set each document's title to the value of the key `title`.
    """
    documents = []
    for number, filling in enumerate(fillings):
        documents.append(make_document(text.format(**filling), str(number)))
        if title:
            documents[-1].title = filling["title"]
    return documents


def deduplicate_ids(documents: list[Document], **settings: object) -> list[str]:
    rules = DeduplicateConfig(**settings)  # type: ignore[arg-type]
    return [d.id for d in run_corpus_stage(Deduplicate(), [documents], make_config(deduplicate=rules))[0]]


UNTITLED = ACT.partition("\n\n")[2]
DISTINCT = {
    "acts with titles": fill_form(ACT, TIMBER, MILK, title=True),
    "acts whose title is the first line": fill_form(ACT, TIMBER, MILK),
    "acts without titles": fill_form(UNTITLED, TIMBER, MILK),
    "acts with another rate": fill_form(ACT, TIMBER, TIMBER | {"rate": "428"}),
    "an act on a part of the subject of the other": [
        make_document(RESERVE.format(**STORHAUG), "0", title="Forskrift om rammeplan for lærerutdanning"),
        make_document(
            RESERVE.format(**STORHAUG),
            "1",
            title="Forskrift om rammeplan for samisk lærerutdanning",
        ),
    ],
    "protected areas": fill_form(RESERVE, STORHAUG, GRANLI),
    "protected areas, with one name for the regulation": fill_form(
        RESERVE.partition("\n\n")[2], STORHAUG, GRANLI
    ),
    "letters to two persons": fill_form(LETTER, KARI, OLA),
    "letters to two persons on one day": fill_form(LETTER, KARI, KARI | {"who": "Ola Hansen\nLia 8"}),
    "letters on two places": fill_form(LETTER, KARI, KARI | {"where": "Tusenfryd", "case": "24/02001-1"}),
    "a decision of 360 words on another place and day": fill_form(
        "Vedtak om kamp\n\nListen endres {day} 2025 for lokalet {place} i byen.\n\n"
        + " ".join(
            f"Vilkår {n} om {chr(97 + n % 26)}{chr(97 + n // 26)}steder er oppfylt." for n in range(70)
        ),
        {"day": "19. mai", "place": "Valhall"},
        {"day": "18. juni", "place": "Storgården"},
    ),
    "minutes": fill_form(
        MINUTES, {"date": "3. mai 2024", "end": "14.30"}, {"date": "7. juni 2024", "end": "15.10"}
    ),
    "plans": fill_form(
        PLAN,
        {"low": "22", "height": "6", "area": "25"},
        {"low": "27", "height": "7,5", "area": "30"},
    ),
    "journal posts": fill_form(
        JOURNAL,
        {"case": "101", "what": "Lillevik", "date": "2024-03-01"},
        {"case": "102", "what": "Sørdal", "date": "2024-03-04"},
    ),
    "regulations whose title lines alone differ": fill_form(
        "Forskrift om fredning av {fish} i Lillevik\n\n"
        + RESERVE.partition("\n\n")[2].format(**STORHAUG)
        + " Også laks og ørret.",
        {"fish": "laks"},
        {"fish": "ørret"},
    ),
    "decisions that differ in their outcome alone": fill_form(
        LETTER.format(**KARI) + "\n\nVedtaket {x}.", {"x": "stadfestes"}, {"x": "oppheves"}
    ),
    "few words": fill_form(
        "Gebyret betales av den som søker om {x} etter alkoholloven.",
        {"x": "skjenkeløyve"},
        {"x": "salgsløyve"},
    ),
}


@pytest.mark.parametrize("name", DISTINCT)
def test_documents_on_the_same_form_are_kept(name: str) -> None:
    if name == "an act on a part of the subject of the other":  # make the two texts differ
        DISTINCT[name][1].text += " Forskriften gjelder også på Svalbard."
    assert deduplicate_ids(DISTINCT[name]) == ["0", "1"]


@pytest.mark.parametrize("name", ["acts with titles", "letters to two persons", "minutes"])
def test_documents_on_the_same_form_are_dropped_only_if_tell_apart_is_off(name: str) -> None:
    assert len(deduplicate_ids(DISTINCT[name], tell_apart=False)) == 1
    _, report = run_corpus_stage(Deduplicate(), [DISTINCT[name]], make_config())
    assert report.counts["similar_but_kept"] == 1


def add_scan_errors(text: str) -> str:
    """Replace a letter in every thirtieth word, as a poor scan does."""
    rng = random.Random(0)
    words = text.split(" ")
    for place in range(7, len(words), 30):
        letters = list(words[place])
        letters[rng.randrange(len(letters))] = rng.choice("1l0ocei")
        words[place] = "".join(letters)
    return " ".join(words)


def edit_words(text: str) -> str:
    """Replace, remove or double 3% of the words. Titles, numbers and names are not edited."""
    rng = random.Random(0)
    words = re.split(r"(\s+)", text)
    plain = [place for place, word in enumerate(words) if place > 20 and re.fullmatch("[a-zæøå]{3,}", word)]
    for place in rng.sample(plain, round(0.03 * len(text.split()))):
        words[place] = rng.choice(["fartøy", "", f"{words[place]} {words[place]}"])
    return "".join(words)


TEXTS = [RESERVE.format(**STORHAUG), LETTER.format(**KARI), ACT.format(**TIMBER)]
BANNER = (
    "Vi bruker informasjonskapsler\nNettstedet bruker dem for å gi deg en bedre opplevelse. Du "
    "kan godta alle eller noen.\n\n"
)
COPIES: dict[str, Callable[[str], str]] = {
    "capitals": str.upper,
    "small letters": str.lower,
    "one line": lambda text: " ".join(text.split()),
    "other line breaks": lambda text: re.sub(r"((?:\S+\s+){8})", r"\1\n", text),
    "spaces that do not break": lambda text: text.replace(" ", "\u00a0"),
    "no punctuation": lambda text: re.sub(r"[.,;:](?=\s)", "", text),
    "another day's print": lambda text: f"{text}\n\nSkrevet ut 12.03.2024 kl. 14.05\nSide 1 av 2",
    "a page's date": lambda text: f"Sist oppdatert: 4. mai 2025\n{text}",
    "a banner": lambda text: BANNER + text,
    "a paragraph more": lambda text: (
        f"{text}\n\nPå nettsidene finner du skjema og svar på det mange spør om. Ring 22 33 44 55."
    ),
    "a scan": add_scan_errors,
    "edited": edit_words,
    "a date written otherwise": lambda text: text.replace("3. mai 2024", "03.05.2024").replace(
        "1 412", "1412"
    ),
}


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("text", TEXTS, ids=["reserve", "letter", "act"])
def test_edited_and_reprinted_copies_are_found(text: str, copy: str) -> None:
    documents = [make_document(text, "0"), make_document(COPIES[copy](text), "1")]
    assert len(deduplicate_ids(documents)) == 1


def test_a_site_name_after_the_title_does_not_make_a_different_document() -> None:
    text = RESERVE.format(**STORHAUG)
    titles = [
        "Vern av Storhaugen",
        "Vern av Storhaugen – Lillevik kommune",
        "VERN AV STORHAUGEN (verneforskrift)",
    ]
    documents = [
        make_document(f"{text} {number}", str(number), title=title) for number, title in enumerate(titles)
    ]
    assert len(deduplicate_ids(documents)) == 1


def test_prints_of_a_page_from_two_dates_are_copies() -> None:
    text = LETTER.format(**KARI)
    pages = [
        f"{text}\n\nPublisert: 12. mars 2024\nSist endret: {date}" for date in ("1. mai 2024", "3. juni 2025")
    ]
    documents = [make_document(page, str(number)) for number, page in enumerate(pages)]
    assert len(deduplicate_ids(documents)) == 1


def test_copies_are_found_among_many_documents_on_one_form() -> None:
    """Documents with equal titles, numbers and names are compared even if many share a form."""
    rng = random.Random(0)
    letters = [
        LETTER.format(
            who=f"{rng.choice('ABCDEF')}nne Etternavn{n}",
            date="3. mars 2024",
            case=f"24/{n + 1000}",
            where=f"Sted{n}x",
        )
        for n in range(3 * MAX_COMPARED)
    ]
    documents = [make_document(text, str(n)) for n, text in enumerate(letters)]
    copies = [make_document(edit_words(text), f"copy-{n}") for n, text in enumerate(letters) if n % 16 == 15]
    names = deduplicate_ids([*documents, *copies])
    assert len(names) == len(documents)
