"""Reader of journals and meetings of public agencies (eInnsyn), as Noark 5 XML or JSON-LD.

The two journals of a Noark 5 archive, `offentligJournal.xml` and `loependeJournal.xml`, are read
too. Each of their rows contains an entry, such as a letter, and the case of that entry.

A document is a case (saksmappe) or meeting (moetemappe) with its entries: titles, dates, kinds of
documents, and the legal basis if something is withheld. An entry whose case is in another file is a
document of its own. It is in the group of that case, so that a split keeps the two together.

Withheld information and names of persons (correspondents, officers, participants) are never read.
Of all terms, only those listed in this module are read. Titles need care, because a full title may
name a person:

    JSON-LD           `offentligTittel`, and `tittel` of a document, are public. The full titles are
                      in terms named `*_SENSITIV`. Terms named `*_LIST` are derived from these. Both
                      are skipped.
    Noark 5           `offentligTittel` is public, `tittel` is the full title. A document within an
                      entry has only `tittel`. It is read only if neither the document nor its
                      entry and folders are withheld, and the entry's two titles are equal.
    the two journals  `tittel` is never read, because the title of a class may be a person's name.
"""

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
    "journalpost": "Journalpost",
    "moetesaksregistrering": "Møtesak",
    "moetedokumentregistrering": "Møtedokument",
    "basisregistrering": "Registrering",
    "registrering": "Registrering",
}
TYPES = ("journalposttype", "moetesakstype", "moetedokumentregistreringstype")
JOURNALS = ("offentligJournal", "loependeJournal")
_TERMS = {
    "saksaar", "sakssekvensnummer", "moetenummer", "moetested", "utvalg", "administrativEnhet",
    "journalpostnummer", "journaldato", "dokumentetsDato", "moetesaksaar",
    "moetesakssekvensnummer",
}  # fmt: skip
_DATES = ("moetedato", "saksdato")
_WITHHELD = ("tilgangsrestriksjon", "skjermingshjemmel", "skjermingMetadata", "grad", "gradering")
_SHIELD = ("tilgangsrestriksjon", "skjermingshjemmel")
_DOCUMENT = ("tittel", "dokumentnummer", "tilknyttetRegistreringSom")
_CAMEL_CASE = re.compile(r"(?<=[a-zæøå])(?=[A-ZÆØÅ])")
_SPELLINGS = str.maketrans({"ø": "oe", "å": "aa"})


@dataclass
class Node:
    """A folder (a case or meeting), or an entry in a folder, such as a letter.

    Attributes:
        kind: the name of its kind in Noark 5, in lower case; a key of FOLDERS or ENTRIES.
        parent: id of the folder that contains it; "" if there is none.
        terms: values of its public terms.
        documents: number, role and title of each document of an entry.
        is_withheld: true if a part of it is not public.
    """

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
                    nodes = list(_read_json_ld(parse(decode(raw, report))))
                except RecursionError:
                    raise Unreadable("objects are nested too deeply to be read") from None
            else:
                nodes = list(_read_noark(parse_xml(raw, report)))
            if not nodes:
                report.counts["files_without_entries"] += 1
            yield from _documents(nodes, place, source, report)


def _documents(nodes: list[Node], place: Place, source: SourceConfig, report: Report) -> Iterator[Document]:
    folders = {node.id: node for node in nodes if node.kind in FOLDERS}
    entries: dict[str, list[Node]] = {}
    for node in nodes:
        if node.kind in ENTRIES:
            head_id = node.parent if node.parent in folders else node.id
            entries.setdefault(head_id, []).append(node)
    loose = [node for node in nodes if node.kind in ENTRIES and node.parent not in folders]
    for head in [*folders.values(), *loose]:
        own_entries = entries.get(head.id, [])
        if not any(node.terms.get("title") or node.documents for node in (head, *own_entries)):
            report.counts["without_public_titles"] += 1
            continue
        paragraphs = []
        group = head.id
        if head.kind in FOLDERS:
            paragraphs.append(_describe_folder(head))
        elif head.parent:
            group = head.parent
        paragraphs += [_describe_entry(entry) for entry in own_entries]
        yield Document(
            id=f"{id_from_place(place)}:{head.id}",
            text="\n\n".join(paragraph for paragraph in paragraphs if paragraph),
            source=place.source,
            license=source.license,
            group=group,
            title=head.terms.get("title", ""),
            date=_first_date(head.terms, ("date", "journaldato", "saksaar")),
        )


def _first_date(terms: Mapping[str, str], keys: Sequence[str]) -> str:
    dates = (claims.parse_date(terms.get(key)) for key in keys)
    return next((date for date in dates if date), "")


def _join_terms(terms: Mapping[str, str], keys: Sequence[str]) -> str:
    return "/".join(terms[key] for key in keys if terms.get(key))


def _describe_folder(node: Node) -> str:
    terms = node.terms
    number = _join_terms(terms, ("saksaar", "sakssekvensnummer")) or terms.get("moetenummer", "")
    if not any(map(str.isdigit, number)):
        number = ""
    first_line = _with_title(f"{FOLDERS[node.kind]} {number}".strip(), terms)
    details = [terms[key] for key in ("utvalg", "administrativEnhet", "moetested") if terms.get(key)]
    date = claims.parse_date(terms.get("date"))
    if date:
        details.append(date)
    return "\n".join(line for line in (first_line, ", ".join(details)) if line)


def _describe_entry(node: Node) -> str:
    terms = node.terms
    kind = terms.get("type") or ENTRIES[node.kind]
    number = terms.get("journalpostnummer") or _join_terms(terms, ("moetesaksaar", "moetesakssekvensnummer"))
    date = _first_date(terms, ("dokumentetsDato", "journaldato"))
    shown_date = f"({date})" if date else ""
    lines = [_with_title(" ".join(part for part in (kind, number, shown_date) if part), terms)]
    lines += [f"{role}: {title}" for _, role, title in sorted(node.documents) if title != terms.get("title")]
    shield = [terms[key] for key in _SHIELD if terms.get(key)]
    if node.is_withheld and shield:
        lines.append(": ".join(shield))
    if not terms.get("title") and len(lines) == 1:
        return ""
    return "\n".join(lines)


def _with_title(name: str, terms: Mapping[str, str]) -> str:
    return f"{name}: {terms['title']}" if terms.get("title") else name


def _read_journal(root: etree._Element) -> Iterator[Node]:
    """Yield the entries of a journal, then its cases.

    Each row of a journal contains an entry, and repeats the terms of the entry's case. If the rows
    of a case differ, the first value of a term is used.
    """
    creator = next((squeeze(element.itertext()) for element in root.iter("{*}arkivskaperID")), "")
    cases: dict[str, Node] = {}
    for number, row in enumerate(root.iter("{*}journalregistrering"), start=1):
        folder = _leaf_values(row.find("{*}saksmappe"))
        entry = _leaf_values(row.find("{*}journalpost"))
        case_number = _join_terms(folder, ("saksaar", "sakssekvensnummer")) or folder.get("mappeID", "")
        case = ":".join(part for part in (creator, case_number) if part) or f"_:{number}"
        terms = _public_terms(folder)
        known = cases.setdefault(case, Node(case, "saksmappe"))
        known.terms = terms | {key: value for key, value in known.terms.items() if value}
        node = Node(entry.get("systemID") or f"{case}:{number}", "journalpost", case, _public_terms(entry))
        node.is_withheld = any(element.get(key) for element in (folder, entry) for key in _WITHHELD)
        node.terms |= {key: entry[key] for key in _SHIELD if entry.get(key)}
        yield node
    yield from cases.values()


def _leaf_values(element: etree._Element | None) -> dict[str, str]:
    """Return the texts of the child elements that have no children themselves, by element name.

    If a name occurs several times, the first text is returned. For None, the dict is empty.
    """
    values: dict[str, str] = {}
    if element is None:
        return values
    for child in element:
        if len(child) == 0:
            values.setdefault(local_name(child), squeeze(child.itertext()))
    return values


def _read_noark(root: etree._Element) -> Iterator[Node]:
    if local_name(root) in JOURNALS:
        yield from _read_journal(root)
        return
    names = map(local_name, root.iter())
    if local_name(root) != "arkiv" and not any(name in ("mappe", "registrering") for name in names):
        raise Unreadable(
            f"not a Noark 5 archive: the root is <{local_name(root)}>, and it contains no folder or entry"
        )
    shielded = {shield.getparent() for shield in root.iter("{*}skjerming")}
    ids: dict[etree._Element, str] = {}
    for element in root.iter("{*}mappe", "{*}registrering"):
        children = {local_name(child): squeeze(child.itertext()) for child in element if len(child) == 0}
        ids[element] = children.get("systemID") or children.get("registreringsID") or f"_:{len(ids)}"
        kind = _noark_kind(element)
        if kind not in FOLDERS and kind not in ENTRIES:
            continue
        parent = next((ids[a] for a in element.iterancestors("{*}mappe")), "")
        node = Node(ids[element], kind, parent, _public_terms(children))
        node.is_withheld = not shielded.isdisjoint((element, *element.iterancestors()))
        shield = element.find("{*}skjerming")
        if shield is not None:
            node.terms |= {local_name(e): squeeze(e.itertext()) for e in shield if local_name(e) in _SHIELD}
        if not node.is_withheld and node.terms["title"] and children.get("tittel") == node.terms["title"]:
            node.documents = _read_noark_documents(element, shielded)
        yield node


def _noark_kind(element: etree._Element) -> str:
    types = (value for key, value in element.attrib.items() if str(key).endswith("}type"))
    return str(next(types, local_name(element))).rpartition(":")[2].lower()


def _read_noark_documents(
    entry: etree._Element, shielded: set[etree._Element | None]
) -> list[tuple[int, str, str]]:
    documents = []
    for number, document in enumerate(entry.findall("{*}dokumentbeskrivelse")):
        if document in shielded:
            continue
        values = {local_name(e): squeeze(e.itertext()) for e in document if len(e) == 0}
        if values.get("tittel"):
            documents.append((number, _role(values), values["tittel"]))
    return documents


def _public_terms(values: Mapping[str, str]) -> dict[str, str]:
    """Select the public terms of a folder or entry, and add its title, date and type."""
    terms = {key: values[key] for key in _TERMS if values.get(key)}
    terms["title"] = values.get("offentligTittel", "")
    terms["date"] = next((values[key] for key in _DATES if values.get(key)), "")
    terms["type"] = next((_split_camel_case(values[key]) for key in TYPES if values.get(key)), "")
    return terms


def _role(values: Mapping[str, str]) -> str:
    return _split_camel_case(values.get("tilknyttetRegistreringSom", "")) or "Dokument"


def _split_camel_case(term: str) -> str:
    """Split a term into words: "inngåendeDokument" becomes "Inngående dokument"."""
    return " ".join(_CAMEL_CASE.sub(" ", term.rpartition(":")[2]).split()).capitalize()


@dataclass
class Thing:
    """A JSON-LD object.

    Attributes:
        kind: its first type, in lower case and without namespace.
        inside: id of the object that it is nested in; "" for an object at the top level.
        terms: its values by term, without namespaces.
    """

    kind: str = ""
    inside: str = ""
    terms: dict[str, object] = field(default_factory=dict)


def _read_json_ld(body: Any) -> Iterator[Node]:
    things: dict[str, Thing] = {}
    _collect_things(body, things, "")
    for identity, thing in things.items():
        terms = thing.terms
        if thing.kind not in FOLDERS and thing.kind not in ENTRIES:
            continue
        texts = {key: _text(value) for key, value in terms.items()}
        parent = _reference(terms.get("parent")) or thing.inside
        node = Node(identity, thing.kind, parent, _public_terms(texts))
        for reference in _references(terms.get("dokumentbeskrivelse")):
            described = things.get(reference, Thing()).terms
            document = {key: _text(value) for key, value in described.items() if key in _DOCUMENT}
            if document.get("tittel"):
                number = document.get("dokumentnummer", "")
                position = int(number) if re.fullmatch(r"\d{1,9}", number) else 0
                node.documents.append((position, _role(document), document["tittel"]))
        shield = things.get(_reference(terms.get("skjerming")))
        if shield:
            node.is_withheld = True
            node.terms |= {key: _text(shield.terms[key]) for key in _SHIELD if key in shield.terms}
        yield node


def _collect_things(value: Any, things: dict[str, Thing], inside: str) -> None:
    """Add all objects in a JSON-LD value, also nested ones, to `things`, which has ids as keys.

    Args:
        inside: id of the object that contains the value; "" at the top level.
    """
    if isinstance(value, list):
        for element in value:
            _collect_things(element, things, inside)
        return
    if not isinstance(value, dict):
        return
    types = value.get("@type")
    if isinstance(types, list) and types:
        kind = _term(str(types[0])).lower()
    else:
        kind = _term(str(types or "")).lower()
    identity = to_valid_text(value.get("@id") or f"_:{len(things)}").rpartition("/")[2]
    is_object = bool(kind) and "@value" not in value
    if is_object:
        terms = things.setdefault(identity, Thing(kind, inside)).terms
        terms |= {_term(key): element for key, element in value.items() if not key.startswith("@")}
    for key, element in value.items():
        if key != "@context" and not key.endswith(("_SENSITIV", "_LIST")):
            _collect_things(element, things, identity if is_object else inside)


def _term(name: str) -> str:
    """Convert a term to Noark's spelling, without namespace: arkiv:møtesaksår to moetesaksaar."""
    return re.split(r"[/:#]", name)[-1].translate(_SPELLINGS)


def _text(value: Any) -> str:
    """Return a term's value as text; for a list, the text of its first value.

    A value is a string, a number, {"@value": …} or {"@id": …}. An @id refers to a value that the
    Noark 5 standard defines. For any other value, "" is returned.
    """
    if isinstance(value, list):
        value = value[0] if value else ""
    if isinstance(value, dict):
        value = value.get("@value", value.get("@id", ""))
    if not isinstance(value, str | int | float):
        return ""
    return to_valid_text(value).removeprefix(NOARK)


def _references(value: Any) -> list[str]:
    elements = value if isinstance(value, list) else [value]
    return [_reference(element) for element in elements if element]


def _reference(value: Any) -> str:
    return _text(value).rpartition("/")[2]
