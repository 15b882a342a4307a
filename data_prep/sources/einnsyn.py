"""Journals and meetings as agencies deliver them to eInnsyn: Noark 5 XML, and JSON-LD with the same terms;
and the two journals of a Noark 5 archive, `offentligJournal.xml` and `loependeJournal.xml`, which have a case
and an entry a row.

One document is one case (saksmappe) or meeting (moetemappe) with its entries: titles, dates and kinds of
documents, and by what law something is withheld. Entries whose case is in another file are documents of their
own, in the case's group.

Nothing that is withheld is ever read, in either format, as only the terms below are looked at. JSON-LD marks
it: `*_SENSITIV` (and `*_LIST`, which is cut from it) holds the whole title, `offentligTittel` and a
document's `tittel` the public one. Noark 5 has no such mark: `tittel` there is the whole title, and only
`offentligTittel` the public one. A document within an entry has no `offentligTittel`; its `tittel` is read
only where nothing around it is withheld and the entry's two titles are the same. Of the two journals,
`tittel` is never read: that of a class may be a person's name. Names of persons (correspondents, officers,
participants) are left out in all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lxml import etree

from data_prep.config import SourceConfig
from data_prep.document import Document, Place, Report, Unreadable
from data_prep.sources import claims
from data_prep.sources.files import decode, find_files, id_from_place, iter_contents
from data_prep.sources.json_stream import parse
from data_prep.sources.jsonl import to_valid_text
from data_prep.sources.markup import local_name, parse_xml, squeeze

SUFFIXES = (".xml", ".jsonld", ".json")
NOARK = "http://www.arkivverket.no/standarder/noark5/arkivstruktur/"
FOLDERS = {"saksmappe": "Sak", "moetemappe": "Møte"}
ENTRIES = {
    "journalpost": "Journalpost", "moetesaksregistrering": "Møtesak", "moetedokumentregistrering": "Møtedokument",
    "basisregistrering": "Registrering", "registrering": "Registrering",
}  # fmt: skip
TYPES = ("journalposttype", "moetesakstype", "moetedokumentregistreringstype")
KIND_WORDS = re.compile(r"(?<=[a-zæøå])(?=[A-ZÆØÅ])")


@dataclass
class Node:
    """A folder, an entry or a document. `terms` holds public terms alone; `is_withheld` that a part of it is
    not public."""

    id: str
    kind: str
    parent: str = ""
    terms: dict[str, str] = field(default_factory=dict)
    documents: list[tuple[int, str, str]] = field(default_factory=list)
    is_withheld: bool = False


def list_files(source: SourceConfig) -> list[Path]:
    return find_files(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    for place, raw in iter_contents(name, source, report, paths, SUFFIXES):
        with report.quarantining(place):
            if raw.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
                try:
                    nodes = list(_of_json_ld(parse(decode(raw, report))))
                except RecursionError:
                    raise Unreadable("objects nested too deep in each other") from None
            else:
                nodes = list(_of_noark(parse_xml(raw, report)))
            if not nodes:
                report.counts["files_without_entries"] += 1
            yield from _documents(nodes, place, source, report)


def _documents(nodes: list[Node], place: Place, source: SourceConfig, report: Report) -> Iterator[Document]:
    folders = {node.id: node for node in nodes if node.kind in FOLDERS}
    entries: dict[str, list[Node]] = {}
    for node in nodes:
        if node.kind in ENTRIES:
            entries.setdefault(node.parent if node.parent in folders else node.id, []).append(node)
    loose = [node for node in nodes if node.kind in ENTRIES and node.parent not in folders]
    for head in [*folders.values(), *loose]:
        lines = [_folder_line(head)] if head.kind in FOLDERS else []
        lines += [_entry_lines(entry) for entry in entries.get(head.id, [])]
        if not any(node.terms.get("title") or node.documents for node in (head, *entries.get(head.id, []))):
            report.counts["without_public_titles"] += 1
        else:
            text = "\n\n".join(line for line in lines if line)
            yield Document(
                id=f"{id_from_place(place)}:{head.id}",
                text=text,
                source=place.source,
                license=source.license,
                group=head.parent if head.kind in ENTRIES and head.parent else head.id,
                title=head.terms.get("title", ""),
                date=next(
                    (
                        d
                        for d in (
                            claims.parse_date(head.terms.get(key))
                            for key in ("date", "journaldato", "saksaar")
                        )
                        if d
                    ),
                    "",
                ),
            )


def _folder_line(node: Node) -> str:
    terms = node.terms
    number = "/".join(terms[key] for key in ("saksaar", "sakssekvensnummer") if terms.get(key)) or terms.get(
        "moetenummer", ""
    )
    number = number if any(map(str.isdigit, number)) else ""
    name = f"{FOLDERS[node.kind]} {number}".strip()
    venue = [terms[key] for key in ("utvalg", "administrativEnhet", "moetested") if terms.get(key)]
    when = claims.parse_date(terms.get("date"))
    lines = [
        f"{name}: {terms['title']}" if terms.get("title") else name,
        ", ".join([*venue, *([when] if when else [])]),
    ]
    return "\n".join(line for line in lines if line)


def _entry_lines(node: Node) -> str:
    terms = node.terms
    kind = terms.get("type") or ENTRIES[node.kind]
    number = terms.get("journalpostnummer") or "/".join(
        terms[key] for key in ("moetesaksaar", "moetesakssekvensnummer") if terms.get(key)
    )
    date = claims.parse_date(terms.get("dokumentetsDato")) or claims.parse_date(terms.get("journaldato"))
    head = " ".join(part for part in (kind, number, f"({date})" if date else "") if part)
    lines = [f"{head}: {terms['title']}" if terms.get("title") else head]
    lines += [f"{role}: {title}" for _, role, title in sorted(node.documents) if title != terms.get("title")]
    if node.is_withheld and (terms.get("tilgangsrestriksjon") or terms.get("skjermingshjemmel")):
        parts = (terms.get("tilgangsrestriksjon"), terms.get("skjermingshjemmel"))
        lines.append(": ".join(part for part in parts if part))
    return "\n".join(lines) if terms.get("title") or len(lines) > 1 else ""


_TERMS = {
    "saksaar", "sakssekvensnummer", "moetenummer", "moetested", "utvalg", "administrativEnhet", "journalpostnummer",
    "journaldato", "dokumentetsDato", "moetesaksaar", "moetesakssekvensnummer",
}  # fmt: skip
_DATES = ("moetedato", "saksdato")


JOURNALS = ("offentligJournal", "loependeJournal")
_WITHHELD = ("tilgangsrestriksjon", "skjermingshjemmel", "skjermingMetadata", "grad", "gradering")


def _of_journal(root: etree._Element) -> Iterator[Node]:
    """Yield the entries of a journal, and its cases. A case stands in every row of its entries: what is said
    first of it holds."""
    creator = next((squeeze(element.itertext()) for element in root.iter("{*}arkivskaperID")), "")
    cases: dict[str, Node] = {}
    for number, row in enumerate(root.iter("{*}journalregistrering"), start=1):
        folder, entry = (_leaves(row.find(f"{{*}}{name}")) for name in ("saksmappe", "journalpost"))
        numbers = "/".join(folder[key] for key in ("saksaar", "sakssekvensnummer") if folder.get(key))
        case = (
            ":".join(part for part in (creator, numbers or folder.get("mappeID", "")) if part)
            or f"_:{number}"
        )
        terms = _public_terms(folder)
        known = cases.setdefault(case, Node(case, "saksmappe"))
        known.terms = terms | {key: value for key, value in known.terms.items() if value}
        node = Node(entry.get("systemID") or f"{case}:{number}", "journalpost", case, _public_terms(entry))
        node.is_withheld = any(element.get(key) for element in (folder, entry) for key in _WITHHELD)
        node.terms |= {key: entry[key] for key in _SHIELD if entry.get(key)}
        yield node
    yield from cases.values()


def _leaves(element: etree._Element | None) -> dict[str, str]:
    """Return the values of an element's plain children, by name; of several with one name, the first."""
    values: dict[str, str] = {}
    for child in element if element is not None else ():
        if len(child) == 0:
            values.setdefault(local_name(child), squeeze(child.itertext()))
    return values


def _of_noark(root: etree._Element) -> Iterator[Node]:
    if local_name(root) in JOURNALS:
        yield from _of_journal(root)
        return
    if local_name(root) != "arkiv" and not any(
        local_name(e) in ("mappe", "registrering") for e in root.iter()
    ):
        raise Unreadable(
            f"no Noark 5 archive: the root is <{local_name(root)}>, and there is no folder or entry in it"
        )
    shielded = {shield.getparent() for shield in root.iter("{*}skjerming")}
    ids: dict[etree._Element, str] = {}
    for element in root.iter("{*}mappe", "{*}registrering"):
        children = {local_name(child): squeeze(child.itertext()) for child in element if len(child) == 0}
        ids[element] = children.get("systemID") or children.get("registreringsID") or f"_:{len(ids)}"
        xsi = next(
            (value for key, value in element.attrib.items() if str(key).endswith("}type")),
            local_name(element),
        )
        kind = str(xsi).rpartition(":")[2].lower()
        if kind not in FOLDERS and kind not in ENTRIES:
            continue
        parent = next((ids[a] for a in element.iterancestors("{*}mappe")), "")
        node = Node(ids[element], kind, parent, _public_terms(children))
        node.is_withheld = not shielded.isdisjoint((element, *element.iterancestors()))
        if (shield := element.find("{*}skjerming")) is not None:
            node.terms |= {local_name(e): squeeze(e.itertext()) for e in shield if local_name(e) in _SHIELD}
        if not node.is_withheld and node.terms["title"] and children.get("tittel") == node.terms["title"]:
            for number, document in enumerate(element.findall("{*}dokumentbeskrivelse")):
                if document not in shielded:
                    values = {local_name(e): squeeze(e.itertext()) for e in document if len(e) == 0}
                    node.documents.append((number, _role(values), values.get("tittel", "")))
        node.documents = [document for document in node.documents if document[2]]
        yield node


_SHIELD = ("tilgangsrestriksjon", "skjermingshjemmel")


def _public_terms(values: Mapping[str, str]) -> dict[str, str]:
    """Of all terms, those that are public."""
    terms = {key: values[key] for key in _TERMS if values.get(key)}
    terms["title"] = values.get("offentligTittel", "")
    terms["date"] = next((values[key] for key in _DATES if values.get(key)), "")
    terms["type"] = next((_words(values[key]) for key in TYPES if values.get(key)), "")
    return terms


def _role(values: Mapping[str, str]) -> str:
    return _words(values.get("tilknyttetRegistreringSom", "")) or "Dokument"


def _words(term: str) -> str:
    """inngåendeDokument as Inngående dokument."""
    return " ".join(KIND_WORDS.sub(" ", term.rpartition(":")[2]).split()).capitalize()


@dataclass
class Thing:
    """An object of JSON-LD: its terms by their own names. `inside` is the id of the one that it was nested
    in."""

    kind: str = ""
    inside: str = ""
    terms: dict[str, object] = field(default_factory=dict)


def _of_json_ld(body: Any) -> Iterator[Node]:
    things: dict[str, Thing] = {}
    _gather(body, things, "")
    for identity, thing in things.items():
        kind, terms = thing.kind, thing.terms
        if kind not in FOLDERS and kind not in ENTRIES:
            continue
        texts = {key: _text(value) for key, value in terms.items()}
        node = Node(identity, kind, _reference(terms.get("parent")) or thing.inside, _public_terms(texts))
        for reference in _references(terms.get("dokumentbeskrivelse")):
            described = things.get(reference, Thing()).terms
            document = {key: _text(value) for key, value in described.items() if key in _DOCUMENT}
            if document.get("tittel"):
                number = document.get("dokumentnummer", "")
                position = int(number) if re.fullmatch(r"\d{1,9}", number) else 0
                node.documents.append((position, _role(document), document["tittel"]))
        if shield := things.get(_reference(terms.get("skjerming"))):
            node.is_withheld = True
            node.terms |= {key: _text(shield.terms[key]) for key in _SHIELD if key in shield.terms}
        yield node


_DOCUMENT = ("tittel", "dokumentnummer", "tilknyttetRegistreringSom")
_SPELLINGS = str.maketrans({"ø": "oe", "å": "aa"})


def _gather(value: Any, things: dict[str, Thing], inside: str) -> None:
    """Every object with an id, however nested, under its terms' own names; nested ones are replaced by
    references."""
    if isinstance(value, list):
        for element in value:
            _gather(element, things, inside)
        return
    if not isinstance(value, dict):
        return
    types = value.get("@type")
    kind = _term(str(types[0] if isinstance(types, list) and types else types or "")).lower()
    identity = to_valid_text(value.get("@id") or f"_:{len(things)}").rpartition("/")[2]
    is_object = bool(kind) and "@value" not in value
    if is_object:
        known = things.setdefault(identity, Thing(kind, inside)).terms
        known |= {_term(key): element for key, element in value.items() if not key.startswith("@")}
    for key, element in value.items():
        if key != "@context" and not key.endswith(("_SENSITIV", "_LIST")):
            _gather(element, things, identity if is_object else inside)


def _term(name: str) -> str:
    """arkiv:møtesaksår, or the same behind the whole address, as moetesaksaar, Noark's own spelling."""
    return re.split(r"[/:#]", name)[-1].translate(_SPELLINGS)


def _text(value: Any) -> str:
    """The value of a term: a string, {"@value": …}, a reference to a word of the standard, or the first of a
    list of these."""
    if isinstance(value, list):
        value = value[0] if value else ""
    if isinstance(value, dict):
        value = value.get("@value", value.get("@id", ""))
    text = to_valid_text(value) if isinstance(value, str | int | float) else ""
    return text.removeprefix(NOARK)


def _references(value: Any) -> list[str]:
    return [_reference(element) for element in (value if isinstance(value, list) else [value]) if element]


def _reference(value: Any) -> str:
    return _text(value).rpartition("/")[2]
