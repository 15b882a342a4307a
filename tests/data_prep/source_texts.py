"""Invented documents in the formats of their sources, for the tests of readers."""

from __future__ import annotations

from typing import Any

# --- Lovdata

LOVDATA_ACT = """<html lang="nn"><head></head><body><header class="documentHeader">\
<dl class="data-document-key-info">
<dd class="dokid">NL/lov/2019-05-03-907</dd><dd class="refid">lov/2019-05-03-907</dd>\
<dd class="title">Lov om vatn</dd>
<dd class="dateInForce">2019-07-01</dd></dl></header><main class="documentBody"><h1>Lov om vatn</h1>
<section class="section"><h2>Kapittel 1. Føremål</h2>\
<article class="legalArticle" data-lovdata-URL="NL/lov/2019-05-03-907/§1">
<h3 class="legalArticleHeader"><span>§ 1.</span> <span>Føremål</span></h3>
<article class="legalP">Lova skal<br>verne vatn.</article>\
<article class="changesToParent">Endra ved lov.</article></article>
{deep}</section></main></body></html>"""


# --- Stortinget

OLD_MINUTES = """<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE forhandling SYSTEM "forhandl_xml.dtd">
<forhandling><mote sakid="7"><formalia><dato>Møte torsdag den 13. februar 2014 kl. 10</dato>
<president>President: Per Prøve</president></formalia>
<saker><sak sakid="101"><sakhode><saknr>Sak nr. 1</saknr>\
<saktit>Innstilling om fjellskogen</saktit></sakhode>
<presinnl><navn>Presidenten:</navn><a>Ordet går til saksordføreren.</a></presinnl>
<innlegg type="hovedinnlegg"><navn>Kari Eksempel (Sp) [10:00:37]:</navn>\
<a>Skogen er <i>viktig</i>.</a><a>Takk.</a></innlegg>
<innlegg type="replikk"><navn>Ola Dømme (A) [10:05:00]:</navn><a>Kva kostar det?</a></innlegg>
<handling><a>Per Prøve hadde her overtatt presidentplassen.</a></handling></sak>
<sak sakid="102"><sakhode><saktit>Referat</saktit></sakhode>\
<innlegg><navn>Kari Eksempel (Sp):</navn><a>Ingen merknader.</a>
</innlegg></sak>
</saker></mote></forhandling>"""

NEW_MINUTES = """<?xml version="1.0" encoding="UTF-8"?>
<Forhandlinger Id="refs-202021-11-17-2" Status="Komplett">\
<Mote Id="refs-202021-11-17-3" moteID="10"><Startseksjon><Motestart>
<Tittel>Møte tirsdag den 17. november 2020 kl. 10</Tittel><President>\
<A>President: <Uth Type="Sperret">Per Prøve</Uth></A>
</President>
</Motestart></Startseksjon><Hovedseksjon><Saker><Sak Id="a" sakID="1" saksKartNr="1"><Sakshode>
<Saknr>Sak nr. 1 [10:00:12]</Saknr>
<Saktittel><A>Innstilling om ferjer</A></Saktittel></Sakshode>
<Presinnlegg><A><Navn>Presidenten:</Navn> Etter ønske fra komiteen er taletiden begrenset.</A>\
</Presinnlegg>
<Hovedinnlegg><A><Navn personID="KAE">Kari Eksempel (H) [10:01:00]:</Navn> Ferjene går&nbsp;for \
sjelden.</A><A>Punkt:</A>
<Liste><Pkt><A>flere avganger</A></Pkt></Liste></Hovedinnlegg>
<Replikk><A><Navn personID="OLD">Ola Dømme (A) [10:04:00]:</Navn> Hva koster det?</A></Replikk>
<Tabell><table><tr><td>År</td><td>Kroner</td></tr></table></Tabell></Sak></Saker></Hovedseksjon>\
</Mote></Forhandlinger>"""


# --- ParlaMint

PARLAMINT_DEBATE = """<?xml version="1.0" encoding="UTF-8"?>
<TEI xmlns="http://www.tei-c.org/ns/1.0" xml:lang="nb" xml:id="ParlaMint-NO_2022-05-10"><teiHeader>\
<fileDesc><sourceDesc><bibl>
<idno type="URI" subtype="parliament">https://data.stortinget.no/x</idno>\
<date when="2022-05-10">10.05.22</date></bibl>
</sourceDesc></fileDesc></teiHeader>
<text><body><div type="debateSection"><head>Sak nr. 1 [10:00:00]</head>\
<note type="comment">Spørsmål om ferjer</note>
<note type="speaker">Kari Eksempel (Sp) [10:00:37]:</note>
<u who="#person.KAE" ana="#regular" xml:id="u1" xml:lang="nn">
<seg>Representanten <name>Ola Dømme</name> , frå fylket, spør.</seg>
<gap reason="editorial"><desc xml:lang="en">SAMPLING</desc></gap>\
<seg>Eg svarar gjerne, og eg svarar lenge.</seg></u>
<u who="#person.PPR" ana="#chair" xml:id="u2" xml:lang="nb"><seg>Neste.</seg><vocal>\
<desc>applause</desc></vocal></u></div>
<div type="debateSection"><u who="#person.OLD" ana="#regular" xml:id="u3" xml:lang="nb">{seg}</u>\
</div></body></text></TEI>"""
ANNOTATED_WORDS = (
    '<seg><s><w join="right">Takk</w><pc>,</pc><w join="right">president</w><pc>!</pc></s></seg>'
)


# --- regjeringen.no

PUBLICATION = """<?xml version="1.0" encoding="utf-8"?>\
<html xmlns="http://www.w3.org/1999/xhtml" lang="nn"><head>
<title>NOU 2015: 8</title>
<meta name="dc.date" content="2015-06-15"/><link rel="canonical" \
href="https://www.regjeringen.no/nou-2015-8"/></head>
<body><div class="TOP"><a href="#">Til innhaldet</a></div><nav>Meny</nav>\
<h1 class="K-TITTEL">NOU 2015: 8 Framtida</h1>
<h2>1 Innleiing</h2>
<p class="K-A">Skulen endrar seg.<sup class="K-NOTEREF">1</sup></p><ul><li><p>leike</p></li><li>\
<p>lære</p></li></ul>
<p>Etter lista.</p><table><caption>Tabell 1</caption><tr><th>År</th><th>Elevar</th></tr><tr>\
<td>2014</td><td>615 327</td>
</tr></table>
<div class="K-NOTE-TBLNOTER"><p>Note til tabell.</p></div><p class="K-NOTETEXT">1 Fotnote.</p>
<p class="K-REFLISTE">Hansen, K. (2003).</p></body></html>"""


# --- eInnsyn

NOARK_EXPORT = """<?xml version="1.0" encoding="utf-8"?>
<arkiv xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" \
xmlns="http://www.arkivverket.no/standarder/noark5/arkivstruktur">
<systemID>arkiv</systemID><tittel>HEMMELIG arkiv</tittel>
<mappe xsi:type="ark:saksmappe"><systemID>sak-1</systemID>\
<tittel>HEMMELIG klage fra Kari Eksempel</tittel>
<offentligTittel>Klage på vedtak</offentligTittel>
<saksaar>2021</saksaar><sakssekvensnummer>44</sakssekvensnummer>\
<administrativEnhet>Plan</administrativEnhet>
<saksansvarlig>HEMMELIG saksbehandler</saksansvarlig>
<registrering xsi:type="journalpost"><systemID>jp-1</systemID>\
<tittel>HEMMELIG helseopplysning</tittel>
<offentligTittel>Klage</offentligTittel>
<skjerming><tilgangsrestriksjon>Unntatt offentlighet</tilgangsrestriksjon>\
<skjermingshjemmel>Offl. § 13</skjermingshjemmel>
<skjermingMetadata>HEMMELIG</skjermingMetadata></skjerming>
<dokumentbeskrivelse><tittel>HEMMELIG vedlegg</tittel>\
<tilknyttetRegistreringSom>Vedlegg</tilknyttetRegistreringSom>
</dokumentbeskrivelse>
<korrespondansepart><korrespondansepartNavn>HEMMELIG navn</korrespondansepartNavn>\
</korrespondansepart>
<journalposttype>Inngående dokument</journalposttype><journalpostnummer>1</journalpostnummer>
<journaldato>2021-03-02</journaldato></registrering>
<registrering xsi:type="ark:journalpost"><systemID>jp-2</systemID><tittel>Svar HEMMELIG</tittel>
<offentligTittel>Svar</offentligTittel>
<dokumentbeskrivelse><tittel>Svar HEMMELIG 2</tittel></dokumentbeskrivelse>\
<journalpostnummer>2</journalpostnummer>
</registrering>
<registrering xsi:type="ark:journalpost"><systemID>jp-3</systemID><tittel>Kart</tittel>\
<offentligTittel>Kart</offentligTittel>
<dokumentbeskrivelse><tittel>Kart over området</tittel>\
<tilknyttetRegistreringSom>Hoveddokument</tilknyttetRegistreringSom>
</dokumentbeskrivelse>
<journalpostnummer>3</journalpostnummer></registrering></mappe></arkiv>"""

ARKIV = "http://www.arkivverket.no/standarder/noark5/arkivstruktur/"


def make_node(name: str, kind: str | list[str], **terms: Any) -> dict[str, Any]:
    return {"@id": f"http://namespace/{name}", "@type": kind} | {
        f"arkiv:{term}": value for term, value in terms.items()
    }


def reference(name: str) -> dict[str, str]:
    return {"@id": f"http://namespace/{name}"}


JSON_LD_GRAPH: list[dict[str, Any]] = [
    make_node(
        "sak-1",
        "arkiv:Saksmappe",
        offentligTittel="Klage på vedtak",
        offentligTittel_SENSITIV="HEMMELIG klage",
        offentligTittel_LIST=["HEMMELIG"],
        saksansvarlig="HEMMELIG",
        saksaar={"@type": "xsd:integer", "@value": "2021"},
        sakssekvensnummer=44,
        administrativEnhet="Plan",
    ),
    make_node(
        "jp-1",
        ["arkiv:Journalpost"],
        offentligTittel="Klage",
        offentligTittel_SENSITIV="HEMMELIG",
        parent=reference("sak-1"),
        journalposttype={"@id": "arkiv:inngåendeDokument"},
        journalpostnummer={"@value": "1"},
        skjerming=reference("sk-1"),
        journaldato={"@type": "xsd:date", "@value": "2021-03-02"},
        korrespondansepart=reference("k-1"),
        dokumentbeskrivelse=[reference("d-1")],
    ),
    make_node(
        "d-1",
        "arkiv:Dokumentbeskrivelse",
        tittel="Vedlegg om vei",
        tittel_SENSITIV="HEMMELIG vedlegg",
        dokumentnummer=2,
        tilknyttetRegistreringSom={"@id": "arkiv:vedlegg"},
    ),
    make_node(
        "sk-1",
        "arkiv:Skjerming",
        tilgangsrestriksjon="Unntatt offentlighet",
        skjermingshjemmel="Offl. § 13",
    ),
    make_node(
        "k-1",
        "arkiv:Korrespondansepart",
        korrespondansepartNavn="HEMMELIG",
        korrespondansepartNavn_SENSITIV="HEMMELIG",
    ),
]


JOURNAL_HEAD = """<journalhode><journalStartDato>2021-01-01</journalStartDato>
<journalSluttDato>2021-12-31</journalSluttDato>
<seleksjon>HEMMELIG utvalg</seleksjon><antallJournalposter>{count}</antallJournalposter>\
<arkivskaper>
<arkivskaperID>958</arkivskaperID>
<arkivskaperNavn>Eksempel kommune</arkivskaperNavn></arkivskaper></journalhode>"""
JOURNAL_ROW = """<journalregistrering><klasse><klasseID>010190 00000</klasseID>\
<tittel>HEMMELIG Person</tittel>{class_shield}</klasse>
<saksmappe><saksaar>2021</saksaar><sakssekvensnummer>{case}</sakssekvensnummer>{case_title}
<offentligTittel>{public_case}</offentligTittel>
{case_shield}<administrativEnhet>Plan</administrativEnhet>\
<saksansvarlig>HEMMELIG ansvarlig</saksansvarlig></saksmappe>
<journalpost><systemID>{id}</systemID><journalaar>2021</journalaar>\
<journalsekvensnummer>7</journalsekvensnummer>
<journalpostnummer>{number}</journalpostnummer>{title}\
<offentligTittel>{public}</offentligTittel>{metadata}
<journaldato>2021-03-02</journaldato>{date}<administrativEnhet>Plan</administrativEnhet>\
<saksbehandler>HEMMELIG</saksbehandler>
{shield}<korrespondansepart><korrespondanseparttype>Avsender</korrespondanseparttype>
<korrespondansepartNavn>HEMMELIG navn</korrespondansepartNavn>{party_shield}</korrespondansepart>\
</journalpost>
</journalregistrering>"""


def make_journal(kind: str, version: str = "5") -> str:
    """Return a Noark 5 journal of three entries on two cases.

    In a public journal (`offentligJournal`), only archive classes have `tittel` elements.

    Args:
        kind: name of the journal's root element.
        version: version of the journal's Noark schema.
    """
    hidden = "<skjermingMetadata>HEMMELIG metadata</skjermingMetadata>"
    common = {
        "class_shield": "",
        "case_title": "",
        "title": "",
        "party_shield": "",
        "case_shield": "",
    }
    if kind == "loependeJournal":
        common = {
            "class_shield": hidden,
            "case_title": "<tittel>HEMMELIG sak</tittel>",
            "title": "<tittel>HEMMELIG post</tittel>",
            "party_shield": hidden,
            "case_shield": hidden,
        }
    degree = "<grad>HEMMELIG</grad>" if version == "5" else "<gradering>HEMMELIG</gradering>"
    law = "<skjermingshjemmel>Offl. § 13</skjermingshjemmel>"
    shield = f"<tilgangsrestriksjon>Unntatt offentlighet</tilgangsrestriksjon>{degree}{law}"
    rows = [
        JOURNAL_ROW.format(
            case=44,
            public_case="Klage på vedtak",
            id="jp-1",
            number=1,
            public="Klage",
            metadata=hidden,
            date="<dokumentetsDato>2021-02-27</dokumentetsDato>",
            shield=shield,
            **common,
        ),
        JOURNAL_ROW.format(
            case=45,
            public_case="Ny vei",
            id="jp-2",
            number=1,
            public="Kart",
            metadata="",
            date="",
            shield="",
            **common,
        ),
        JOURNAL_ROW.format(
            case=44,
            public_case="Klage på vedtak",
            id="jp-3",
            number=2,
            public="Svar",
            metadata="",
            date="",
            shield="",
            **common,
        ),
    ]
    space = f"http://www.arkivverket.no/standarder/noark5/{kind}"
    body = JOURNAL_HEAD.format(count=3) + "".join(rows)
    return f'<?xml version="1.0" encoding="utf-8"?><{kind} xmlns="{space}">{body}</{kind}>'


# --- SQuAD

SQUAD_CONTEXT = "Fylkesmannen ble statsforvalter 1. januar 2021. Navnet er kjønnsnøytralt."
