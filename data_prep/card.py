"""The corpus card: README.md of a corpus folder, for whoever is asked to train on it, or to publish what was
trained. Written by the publish step.

It is made of counts and names alone. No text, title or id of a document stands in it, as these may be about
persons; samples of what was dropped are looked at with `finetune inspect`, where the stages' files lie.
Nothing in it depends on when or where it was made. The sections on personal data say what the stages counted;
what an agency decides about a corpus has its place behind them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.languages import NAMES
from data_prep.languages import language_name
from data_prep.shards import Manifest

CARD = "README.md"
UNKNOWN_YEAR = "unknown"
_CODES = {
    "nob": "nb",
    "nno": "nn",
    "dan": "da",
    "swe": "sv",
    "eng": "en",
    "sme": "se",
    "nor": "no",
}  # as data set cards write them
_STANDARDS = {"nor": "both standards"}  # others go by their language's name

Rows = Iterable[tuple[str, ...]]


@dataclass
class Years:
    """Documents and tokens by source and year of the documents' dates."""

    documents: Counter[tuple[str, str]] = field(default_factory=Counter)
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, source: str, date: str, tokens: int) -> None:
        year = date[:4] if date[:4].isdigit() and len(date) >= 4 else UNKNOWN_YEAR
        self.documents[source, year] += 1
        self.tokens[source, year] += tokens


def write_card(folder: Path, manifest: Manifest, years: Years) -> None:
    (folder / CARD).write_text(card(manifest, years), encoding="utf-8")


def card(manifest: Manifest, years: Years) -> str:
    """The card's Markdown."""
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
    encoder = manifest.tokenizer.encoder
    encoded = f", encoded by {encoder.library} {encoder.version} ({encoder.reason})" if encoder else ""
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
            f"Tokenizer: {manifest.tokenizer.vocab_size:,} tokens, sha256 `{manifest.tokenizer.sha256[:16]}`{encoded}.",
            f"Targets: {f'the tokens that `{manifest.mask_column}` marks' if manifest.mask_column else 'every token'}.",
            f"Made by `finetune prepare`; digest of the manifest `{manifest.digest[:16]}`. `finetune inspect` shows "
            "what was done to a document.",
        ]
    )


def _sources(manifest: Manifest) -> str:
    rows = []
    for name, source in manifest.sources.items():
        documents, tokens, targets = (
            sum(counts.values()) for counts in (source.documents, source.tokens, source.supervised_tokens)
        )
        rows.append(
            (name, source.license, f"{documents:,}", f"{tokens:,}", f"{targets:,}", source.attribution or "–")
        )
    return _section("Sources", ("source", "licence", "documents", "tokens", "targets", "named as"), rows)


def _standards(manifest: Manifest) -> str:
    documents, tokens = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for name, source in manifest.sources.items():
        for key, count in source.documents.items():
            documents[name, key.partition("/")[2]] += count
            tokens[name, key.partition("/")[2]] += source.tokens[key]
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
    documents, tokens, names = Counter[str](), Counter[str](), Counter[str]()
    for source in manifest.sources.values():
        documents[source.license] += sum(source.documents.values())
        tokens[source.license] += sum(source.tokens.values())
        names[source.license] += 1
    rows = [
        (name, str(names[name]), f"{documents[name]:,}", f"{tokens[name]:,}") for name in sorted(documents)
    ]
    return _section("Licences", ("licence", "sources", "documents", "tokens"), rows)


def _years(years: Years) -> str:
    rows = [
        (source, year, f"{years.documents[source, year]:,}", f"{years.tokens[source, year]:,}")
        for source, year in sorted(years.documents)
    ]
    return _section("Years", ("source", "year", "documents", "tokens"), rows)


_CUT_COUNTS = ("lines_cut", "paragraphs_cut")  # of stages that cut text from documents


def _stages(manifest: Manifest) -> str:
    rows = [
        (stage.name, f"{stage.documents_in:,}", f"{stage.documents_out:,}", _counted(stage.counts))
        for stage in manifest.stages
    ]
    has_cut = any(stage.counts.get(name) for stage in manifest.stages for name in _CUT_COUNTS)
    note = "`finetune inspect CORPUS --cut` lists the lines that were cut, where the stages' files lie."
    return _section("Stages", ("stage", "documents in", "out", "counted"), rows, note if has_cut else "")


def _drops(manifest: Manifest) -> str:
    read = max(manifest.stages[0].documents_out, 1) if manifest.stages else 1
    rows = [
        (stage.name, reason, f"{count:,}", f"{count / read:.2%}")
        for stage in manifest.stages
        for reason, count in sorted(stage.dropped.items(), key=lambda item: (-item[1], item[0]))
    ]
    note = "Shares are of the documents read. `finetune inspect CORPUS --dropped REASON` shows some, where the stages' files lie."
    note += _languages(reason for _, reason, _, _ in rows)
    return _section("Dropped", ("stage", "reason", "documents", "share"), rows, note) if rows else ""


def _warnings(manifest: Manifest) -> str:
    return "\n".join(f"- {line}." for line in manifest.warnings())


def _losses(manifest: Manifest) -> str:
    """What each stage took from each source, as a share of what was read of it."""
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
    columns = (
        "stage",
        "reason",
        "source",
        "dropped",
        "share of documents",
        "cut",
        "characters",
        "share of text",
    )
    note = "Shares are of what was read of the source. Cut are documents that went on without a part of their text."
    return _section("Text taken, by source", columns, rows, note) if rows else ""


def _languages(reasons: Iterable[str]) -> str:
    """Name the languages that documents were dropped for, whose reasons hold their codes alone."""
    codes = sorted(
        {reason.removeprefix("language_") for reason in reasons if reason.startswith("language_")}
        & set(NAMES)
    )
    return f" Languages: {', '.join(f'{code} {language_name(code)}' for code in codes)}." if codes else ""


def _personal_data(manifest: Manifest) -> str:
    stage = next((stage for stage in manifest.stages if stage.name == "deidentify"), None)
    if stage is None:
        return ""
    done = _counted(stage.counts) if stage.counts else "nothing was found to mask"
    return f"## Personal data\n\nDe-identification (version {stage.version}): {done}. What it does not look for is still there."


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "–"


def _section(title: str, columns: tuple[str, ...], rows: Rows, note: str = "") -> str:
    lines = [f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines + (["", note] if note else []))
