"""Which written standard a document is in, decided per document by py3langid; other languages are dropped by name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from typing import Any

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report

VERSION = 1

# py3langid's ISO 639-1 codes; its Bokmål is "no". Only languages that occur beside Norwegian compete: more only adds noise.
CODES = {"no": "nob", "nn": "nno", "da": "dan", "sv": "swe", "en": "eng", "se": "sme"}


def settings(config: CorpusConfig) -> dict[str, Any]:
    return {"keep": config.language.keep, "min_characters": config.language.min_characters, "py3langid": version("py3langid")}


def run(documents: Iterator[Document], config: CorpusConfig, report: Report) -> Iterator[Document]:
    if unknown := set(config.language.keep) - set(CODES.values()):
        raise ValueError(f"language.keep names {', '.join(sorted(unknown))}: choose among {', '.join(CODES.values())}")
    for document in documents:
        text = document.whole_text
        if len(text) >= config.language.min_characters:
            document.language = detect(text)
        elif not document.language:
            report.drop(document, "language_undecided", f"{len(text)} characters, and the source claims no language")
            continue
        if document.language not in config.language.keep:
            report.drop(document, f"language_{document.language}")
            continue
        report.counts[document.language] += 1
        yield document


def detect(text: str) -> str:
    """ISO 639-3 code of the likeliest language among CODES."""
    code, _confidence = _identifier().classify(text)
    return CODES[code]


@cache
def _identifier() -> Any:
    # An identifier of our own: the module-level one is shared with any other code in the process.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(list(CODES))
    return identifier
