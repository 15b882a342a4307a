"""Makes the tables: python -m data_prep.written_standard.train --ton FOLDER --nav FILE [--messages FOLDER]
[--out FOLDER]

--ton holds sentences_talk_of_norway_7k_nob.txt and …_nno.txt (parliament, one sentence a line), --nav is
NAV's letters in parallel (JSON lines with `path`, `nob`, `nno`). Three in ten of NAV's files are kept out of
the training, and tested on: `python -m benchmarks.language` prints the figures. --messages holds
LibreOffice's translated messages, as Debian's packages libreoffice-l10n-da, -nb, -nn and -sv unpack; without
it the tables of Danish and Swedish are left as they are. The result is weights, no text, and the same bytes
for the same input.
"""

from __future__ import annotations

import argparse
import gettext
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.shards import sha256_file
from data_prep.user_error import UserError
from data_prep.written_standard.table import NEIGHBOURS, STANDARDS_TABLE, features, words

STANDARDS = ("nob", "nno")
SENTENCES = "sentences_talk_of_norway_7k_{}.txt"
MESSAGES = "usr/lib/libreoffice/program/resource/{}/LC_MESSAGES"
LOCALES = {"nob": "nb", "nno": "nn", "dan": "da", "swe": "sv"}
_MARKUP = re.compile(r"<[^>]*>|%\w+%?|\$\(?\w+\)?|\\n")
_MNEMONIC = re.compile(r"[~_&](?=\w)")
# Chosen by cross-validation over NAV's training files; figures in README.md.
NAV_COUNTS = (
    2  # people wrote NAV's letters in either standard; parliament's sentences were told apart by a program
)
MIN_COUNT = 3  # a feature seen less often says nothing, and may be a name
SMOOTHING = 0.2  # added to each count, so that a feature of one language alone gets no infinite weight
MIN_WEIGHT = 0.1  # nats; less is noise
TEST_TENTHS = 3


def is_test(path: str) -> bool:
    """Whether a file of NAV's letters is kept for the test: a pure function of its name."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=4).digest(), "big") % 10 < TEST_TENTHS


def nav_records(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def count(texts: Iterable[str], times: int = 1) -> Counter[str]:
    """How often each feature occurs in the texts, each text taken `times` times."""
    once = Counter(feature for text in texts for word in words(text) for feature in features(word))
    return Counter({feature: times * number for feature, number in once.items()})


def log_odds(of: Counter[str], against: Sequence[Counter[str]]) -> dict[str, float]:
    """Log-odds of each feature: of its frequency in `of` against its mean frequency in `against`, to
    hundredths, by name.

    The mean is over corpora, however large each is: what one of them talks about weighs no more than that.
    """
    corpora = (of, *against)
    known = {
        feature for corpus in corpora for feature in corpus if sum(c[feature] for c in corpora) >= MIN_COUNT
    }
    totals = [corpus.total() + SMOOTHING * len(known) for corpus in corpora]
    weights = {}
    for feature in sorted(known):
        here, *there = (
            (corpus[feature] + SMOOTHING) / total for corpus, total in zip(corpora, totals, strict=True)
        )
        weights[feature] = round(math.log(here) - math.log(sum(there) / len(there)), 2)
    return {feature: weight for feature, weight in weights.items() if abs(weight) >= MIN_WEIGHT}


def neighbour_log_odds(
    of: Counter[str], parallel: Sequence[Counter[str]], running: Sequence[Counter[str]]
) -> dict[str, float]:
    """Log-odds of a neighbour of Norwegian, from texts that say the same in both (`parallel`) and Norwegian
    alone (`running`).

    What leans to the neighbour is held against all Norwegian; what leans to Norwegian counts by the parallel
    texts alone, for what parliament and NAV talk about is no sign of Norwegian.
    """
    everywhere = log_odds(of, [*parallel, *running])
    weights = {f: w if w < 0 else max(0.0, everywhere.get(f, 0.0)) for f, w in log_odds(of, parallel).items()}
    return {feature: weight for feature, weight in weights.items() if weight}


def messages(folder: Path) -> dict[str, list[str]]:
    """Messages that all four languages translate, by language: the same is said in each, so that the subject
    tells nothing."""
    catalogues = {
        language: _catalogue(folder / MESSAGES.format(locale)) for language, locale in LOCALES.items()
    }
    shared = sorted(set.intersection(*(set(catalogue) for catalogue in catalogues.values())))
    return {language: [catalogue[key] for key in shared] for language, catalogue in catalogues.items()}


def _catalogue(folder: Path) -> dict[tuple[str, str], str]:
    """A language's translations by file and message; those that are their English source are left out."""
    found = {}
    for file in sorted(folder.glob("*.mo")):
        with file.open("rb") as stream:
            catalogue = gettext.GNUTranslations(stream)._catalog  # type: ignore[attr-defined]  # gettext lists them nowhere else
        for key, text in catalogue.items():
            if isinstance(key, str) and key and text != key.rpartition("\x04")[2]:
                found[file.name, key] = _MNEMONIC.sub("", _MARKUP.sub(" ", text))
    if not found:
        raise UserError(
            f"{folder} holds no messages: unpack Debian's libreoffice-l10n packages there (dpkg -x)"
        )
    return found


def _digest(source: Path) -> str:
    """SHA-256 of a file, or over those of a folder's message files in the order of their names."""
    if source.is_file():
        return sha256_file(source)
    return hashlib.sha256(
        "".join(sha256_file(file) for file in sorted(source.glob("*.mo"))).encode()
    ).hexdigest()


def _write(file: Path, what: str, sources: Iterable[Path], weights: dict[str, float]) -> None:
    names = {path: path.name if path.is_file() else "/".join(path.parts[-2:]) for path in sources}
    digests = "".join(f"# sha256 {_digest(path)}  {name}\n" for path, name in names.items())
    head = f"# log-odds of {what}; licences and figures: README.md; made by train.py from\n{digests}"
    file.write_text(head + "".join(f"{f}\t{w:g}\n" for f, w in weights.items()), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ton", type=Path, required=True, help="folder with Talk of Norway's sentences")
    parser.add_argument("--nav", type=Path, required=True, help="NAV's letters in parallel, JSON lines")
    parser.add_argument(
        "--messages", type=Path, help="folder that Debian's libreoffice-l10n packages were unpacked into"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    letters = [record for record in nav_records(options.nav) if not is_test(record["path"])]
    files = {s: options.ton / SENTENCES.format(s) for s in STANDARDS}
    spoken = {s: count(file.read_text(encoding="utf-8").splitlines()) for s, file in files.items()}
    written = {s: count((record[s] for record in letters if s in record), NAV_COUNTS) for s in STANDARDS}
    nob, nno = (spoken[s] + written[s] for s in STANDARDS)
    sources = [*files.values(), options.nav]
    _write(options.out / STANDARDS_TABLE, "Nynorsk against Bokmål", sources, log_odds(nno, [nob]))
    if options.messages is None:
        return
    counts = {language: count(texts) for language, texts in messages(options.messages).items()}
    running = [sum(spoken.values(), Counter()), sum(written.values(), Counter())]
    for language, table in NEIGHBOURS.items():
        used = [*sources, *(options.messages / MESSAGES.format(locale) for locale in LOCALES.values())]
        weights = neighbour_log_odds(counts[language], [counts[s] for s in STANDARDS], running)
        _write(options.out / table, f"{language} against Norwegian", used, weights)


if __name__ == "__main__":
    main()
