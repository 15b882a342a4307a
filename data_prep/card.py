"""The corpus card: a corpus folder's README.md, for people who train on it or publish a model.

It consists of counts and names only. It has no text, title or id of a document, because these may
identify persons. `finetune inspect` shows dropped documents, from the stages' files. Nothing in the
card depends on the time or place of preparation. The section on personal data comes last, so that
an agency can append its own assessment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.languages import NAMES, language_name
from data_prep.shards import Manifest

CARD = "README.md"
UNKNOWN_YEAR = "unknown"
# ISO 639-1 codes, which data set cards use.
_CODES = {
    "nob": "nb",
    "nno": "nn",
    "dan": "da",
    "swe": "sv",
    "eng": "en",
    "sme": "se",
    "nor": "no",
}
_STANDARDS = {"nor": "both standards"}  # other written standards: see language_name

Rows = Iterable[tuple[str, ...]]


@dataclass
class Years:
    """The number of documents and the number of tokens, each by (source, year of the document)."""

    documents: Counter[tuple[str, str]] = field(default_factory=Counter)
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, source: str, date: str, tokens: int) -> None:
        has_year = len(date) >= 4 and date[:4].isdigit()
        year = date[:4] if has_year else UNKNOWN_YEAR
        self.documents[source, year] += 1
        self.tokens[source, year] += tokens


def write_card(folder: Path, manifest: Manifest, years: Years) -> None:
    (folder / CARD).write_text(render_card(manifest, years), encoding="utf-8")


def render_card(manifest: Manifest, years: Years) -> str:
    """Return the card as Markdown."""
    sections = [
        _head(manifest),
        _warnings(manifest),
        _sources(manifest),
        _standards(manifest),
        _licences(manifest),
        _years(years),
        _stages(manifest),
        _drops(manifest),
        _losses(manifest),
        _personal_data(manifest),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(manifest: Manifest) -> str:
    languages = sorted(
        {key.partition("/")[2] for source in manifest.sources.values() for key in source.documents}
    )
    splits = ", ".join(
        f"{s} {manifest.documents(s):,} documents, {manifest.tokens(s):,} tokens" for s in manifest.splits
    )
    tokenizer = manifest.tokenizer
    encoder = tokenizer.encoder
    encoded_by = f", encoded by {encoder.library} {encoder.version} ({encoder.reason})" if encoder else ""
    mask_column = manifest.mask_column
    targets = f"the tokens that `{mask_column}` marks" if mask_column else "every token"
    return "\n".join(
        [
            "---",
            f"pretty_name: {manifest.name}",
            f"language: [{', '.join(_CODES.get(code, code) for code in languages)}]",
            "license: other",
            "task_categories: [text-generation]",
            "---",
            f"# {manifest.name}",
            "",
            f"{splits}.",
            "",
            f"Tokenizer: {tokenizer.vocab_size:,} tokens, sha256 `{tokenizer.sha256[:16]}`{encoded_by}.",
            f"Targets: {targets}.",
            f"Made by `finetune prepare`; digest of the manifest `{manifest.digest[:16]}`. "
            "`finetune inspect` shows how each stage changed a document.",
        ]
    )


def _sources(manifest: Manifest) -> str:
    rows = []
    for name, source in manifest.sources.items():
        counts = (source.documents, source.tokens, source.supervised_tokens)
        totals = [f"{sum(count.values()):,}" for count in counts]
        rows.append((name, source.license, *totals, source.attribution or "–"))
    return _section("Sources", ("source", "licence", "documents", "tokens", "targets", "attribution"), rows)


def _standards(manifest: Manifest) -> str:
    documents = Counter[tuple[str, str]]()
    tokens = Counter[tuple[str, str]]()
    for name, source in manifest.sources.items():
        for key, count in source.documents.items():
            code = key.partition("/")[2]
            documents[name, code] += count
            tokens[name, code] += source.tokens[key]
    rows = [
        (
            name,
            _STANDARDS.get(code) or language_name(code),
            f"{documents[name, code]:,}",
            f"{tokens[name, code]:,}",
        )
        for name, code in sorted(documents)
    ]
    return _section("Written standards", ("source", "written standard", "documents", "tokens"), rows)


def _licences(manifest: Manifest) -> str:
    sources = Counter[str]()
    documents = Counter[str]()
    tokens = Counter[str]()
    for source in manifest.sources.values():
        sources[source.license] += 1
        documents[source.license] += sum(source.documents.values())
        tokens[source.license] += sum(source.tokens.values())
    rows = [
        (name, str(sources[name]), f"{documents[name]:,}", f"{tokens[name]:,}") for name in sorted(documents)
    ]
    return _section("Licences", ("licence", "sources", "documents", "tokens"), rows)


def _years(years: Years) -> str:
    rows = [
        (source, year, f"{years.documents[source, year]:,}", f"{years.tokens[source, year]:,}")
        for source, year in sorted(years.documents)
    ]
    return _section("Years", ("source", "year", "documents", "tokens"), rows)


_CUT_COUNTS = ("lines_cut", "paragraphs_cut")  # counts of stages that cut text from documents


def _stages(manifest: Manifest) -> str:
    rows = [
        (stage.name, f"{stage.documents_in:,}", f"{stage.documents_out:,}", _list_counts(stage.counts))
        for stage in manifest.stages
    ]
    has_cuts = any(stage.counts.get(name) for stage in manifest.stages for name in _CUT_COUNTS)
    note = ""
    if has_cuts:
        note = "`finetune inspect CORPUS --cut` lists the lines that were cut, if the stages' files exist."
    return _section("Stages", ("stage", "documents in", "documents out", "counts"), rows, note)


def _drops(manifest: Manifest) -> str:
    read = max(manifest.stages[0].documents_out, 1) if manifest.stages else 1
    rows = [
        (stage.name, reason, f"{count:,}", f"{count / read:.2%}")
        for stage in manifest.stages
        for reason, count in sorted(stage.dropped.items(), key=lambda item: (-item[1], item[0]))
    ]
    if not rows:
        return ""
    note = (
        "Shares are of all documents read. `finetune inspect CORPUS --dropped REASON` shows "
        "examples, if the stages' files exist."
    )
    note += _languages(reason for _, reason, _, _ in rows)
    return _section("Dropped", ("stage", "reason", "documents", "share"), rows, note)


def _warnings(manifest: Manifest) -> str:
    return "\n".join(f"- {line}." for line in manifest.warnings())


def _losses(manifest: Manifest) -> str:
    """Return the section on the text that stages removed, by stage, reason and source."""
    rows = []
    for stage in manifest.stages:
        for loss in sorted(stage.losses, key=lambda loss: (-loss.characters, loss.source, loss.reason)):
            source = manifest.sources[loss.source]
            rows.append(
                (
                    stage.name,
                    loss.reason,
                    loss.source,
                    f"{loss.documents:,}",
                    f"{loss.documents / max(source.documents_read, 1):.2%}",
                    f"{loss.cut:,}",
                    f"{loss.characters:,}",
                    f"{loss.characters / max(source.characters_read, 1):.2%}",
                )
            )
    if not rows:
        return ""
    documents = ("dropped", "share of documents", "cut")
    columns = ("stage", "reason", "source", *documents, "characters", "share of text")
    note = (
        "Shares are of all that was read of the source. Documents under `cut` were kept "
        "without a part of their text."
    )
    return _section("Text removed, by source", columns, rows, note)


def _languages(reasons: Iterable[str]) -> str:
    """Return a sentence that lists the languages for which documents were dropped.

    Return "" if no document was dropped for its language.

    Args:
        reasons: the reasons of all drops. A document whose language is not kept is dropped for the
            reason `language_` followed by the language's code.
    """
    found = {reason.removeprefix("language_") for reason in reasons if reason.startswith("language_")}
    codes = sorted(found & set(NAMES))
    if not codes:
        return ""
    return f" Languages: {', '.join(f'{code} {language_name(code)}' for code in codes)}."


def _personal_data(manifest: Manifest) -> str:
    stage = next((stage for stage in manifest.stages if stage.name == "deidentify"), None)
    if stage is None:
        return ""
    masked = _list_counts(stage.counts) if stage.counts else "nothing was found to mask"
    return (
        f"## Personal data\n\nDe-identification (version {stage.version}): {masked}. "
        "It masks national identity numbers; other personal data may remain in the texts."
    )


def _list_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "–"


def _section(title: str, columns: tuple[str, ...], rows: Rows, note: str = "") -> str:
    """Return a section of the card: a heading, a table and a note."""
    lines = [f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    if note:
        lines += ["", note]
    return "\n".join(lines)
