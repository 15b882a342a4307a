"""Compute the tables of weights that identify the language of a text:

    python -m data_prep.written_standard.train --ton FOLDER --nav FILE [--messages FOLDER] [--out FOLDER]

--ton is a folder with sentences_talk_of_norway_7k_nob.txt and …_nno.txt (parliament, one sentence a
line). --nav is a file of NAV's parallel letters (JSON lines with `path`, `nob`, `nno`). Three in
ten of NAV's files are held out for testing; `python -m benchmarks.language` prints the figures.
--messages is a folder with LibreOffice's translated messages, unpacked from Debian's packages
libreoffice-l10n-da, -nb, -nn and -sv; without it, the tables of Danish and Swedish are not
computed. The tables contain weights and no text, and equal input gives equal bytes.
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
from data_prep.written_standard.table import NEIGHBOURS, STANDARDS_TABLE, iter_features, words

STANDARDS = ("nob", "nno")
SENTENCES = "sentences_talk_of_norway_7k_{}.txt"
MESSAGES = "usr/lib/libreoffice/program/resource/{}/LC_MESSAGES"
LOCALES = {"nob": "nb", "nno": "nn", "dan": "da", "swe": "sv"}
_MARKUP = re.compile(r"<[^>]*>|%\w+%?|\$\(?\w+\)?|\\n")
_MNEMONIC = re.compile(r"[~_&](?=\w)")
# Chosen by cross-validation over NAV's training files; figures in README.md.
# Weight of the counts in NAV's letters. Their standard is known, but that of parliament's sentences
# was detected by a program.
NAV_COUNTS = 2
MIN_COUNT = 3  # a feature that occurs less often is left out, as it may be a name
SMOOTHING = 0.2  # added to each count, so that a feature of only one language has a finite weight
MIN_WEIGHT = 0.1  # nats; smaller weights are noise
TEST_TENTHS = 3  # tenths of NAV's files that are held out for testing


def is_test_file(path: str) -> bool:
    """Return whether a file of NAV's letters is held out for testing.

    The result depends only on the path.
    """
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=4).digest(), "big") % 10 < TEST_TENTHS


def read_nav_records(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def count_features(texts: Iterable[str], times: int = 1) -> Counter[str]:
    """Return the number of occurrences of each feature in the texts, multiplied by `times`."""
    counts = Counter(feature for text in texts for word in words(text) for feature in iter_features(word))
    return Counter({feature: times * number for feature, number in counts.items()})


def compute_log_odds(of: Counter[str], against: Sequence[Counter[str]]) -> dict[str, float]:
    """Return the log-odds of each feature in one language against others.

    The log-odds compare the feature's relative frequency in `of` with the mean of its relative
    frequencies in the corpora of `against`. All these corpora have the same weight, so that the
    subject of a large corpus does not dominate. The log-odds are rounded to hundredths and sorted
    by feature. Features are left out if they occur fewer than MIN_COUNT times in all, or if the
    absolute value of their log-odds is below MIN_WEIGHT.
    """
    corpora = (of, *against)
    all_features = set[str]().union(*corpora)
    frequent = [
        feature for feature in sorted(all_features) if sum(corpus[feature] for corpus in corpora) >= MIN_COUNT
    ]
    totals = [corpus.total() + SMOOTHING * len(frequent) for corpus in corpora]
    weights = {}
    for feature in frequent:
        frequency, *others = (
            (corpus[feature] + SMOOTHING) / total for corpus, total in zip(corpora, totals, strict=True)
        )
        weights[feature] = round(math.log(frequency) - math.log(sum(others) / len(others)), 2)
    return {feature: weight for feature, weight in weights.items() if abs(weight) >= MIN_WEIGHT}


def compute_neighbour_log_odds(
    of: Counter[str], parallel: Sequence[Counter[str]], running: Sequence[Counter[str]]
) -> dict[str, float]:
    """Return the log-odds of each feature in a neighbouring language against Norwegian.

    Positive log-odds (features of the neighbour) are computed against all Norwegian texts. Negative
    ones (features of Norwegian) are computed against the parallel texts only, because the subjects
    of parliament and NAV are not evidence of Norwegian.

    Args:
        of: counts of features in the neighbour's texts.
        parallel: counts in Norwegian texts with the same content as the neighbour's.
        running: counts in Norwegian texts with other content.
    """
    against_all = compute_log_odds(of, [*parallel, *running])
    weights = {}
    for feature, weight in compute_log_odds(of, parallel).items():
        weights[feature] = weight if weight < 0 else max(0.0, against_all.get(feature, 0.0))
    return {feature: weight for feature, weight in weights.items() if weight}


def read_messages(folder: Path) -> dict[str, list[str]]:
    """Return the messages that are translated to all four languages, by language.

    The messages of all languages have the same content, so their subjects are not evidence of a
    language.

    Args:
        folder: the folder with the unpacked packages.
    """
    catalogues = {
        language: _read_catalogue(folder / MESSAGES.format(locale)) for language, locale in LOCALES.items()
    }
    shared = sorted(set.intersection(*(set(catalogue) for catalogue in catalogues.values())))
    return {language: [catalogue[key] for key in shared] for language, catalogue in catalogues.items()}


def _read_catalogue(folder: Path) -> dict[tuple[str, str], str]:
    """Return the translations in a folder by (file, message), without markup.

    A translation that is equal to the English message is left out.

    Raises:
        UserError: the folder contains no translations.
    """
    found: dict[tuple[str, str], str] = {}
    for file in sorted(folder.glob("*.mo")):
        with file.open("rb") as stream:
            translations = gettext.GNUTranslations(stream)
        catalogue = translations._catalog  # type: ignore[attr-defined]  # no public attribute lists all messages
        for key, text in catalogue.items():
            if isinstance(key, str) and key and text != key.rpartition("\x04")[2]:
                found[file.name, key] = _MNEMONIC.sub("", _MARKUP.sub(" ", text))
    if not found:
        raise UserError(
            f"{folder}: contains no messages; unpack Debian's libreoffice-l10n packages into the folder "
            "of --messages with `dpkg -x`"
        )
    return found


def _digest(source: Path) -> str:
    """Return the SHA-256 of a file.

    For a folder, return the SHA-256 of the concatenated digests of its .mo files, sorted by name.
    """
    if source.is_file():
        return sha256_file(source)
    digests = "".join(sha256_file(file) for file in sorted(source.glob("*.mo")))
    return hashlib.sha256(digests.encode()).hexdigest()


def _write_table(file: Path, subject: str, sources: Iterable[Path], weights: dict[str, float]) -> None:
    lines = [f"# log-odds of {subject}; licences and figures: README.md; made by train.py from"]
    for path in sources:
        name = path.name if path.is_file() else "/".join(path.parts[-2:])
        lines.append(f"# sha256 {_digest(path)}  {name}")
    lines += [f"{feature}\t{weight:g}" for feature, weight in weights.items()]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ton", type=Path, required=True, help="folder with Talk of Norway's sentences")
    parser.add_argument("--nav", type=Path, required=True, help="file of NAV's parallel letters, JSON lines")
    parser.add_argument(
        "--messages", type=Path, help="folder with the unpacked libreoffice-l10n packages of Debian"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    letters = [record for record in read_nav_records(options.nav) if not is_test_file(record["path"])]
    files = {standard: options.ton / SENTENCES.format(standard) for standard in STANDARDS}
    spoken = {}
    written = {}
    for standard, file in files.items():
        spoken[standard] = count_features(file.read_text(encoding="utf-8").splitlines())
        texts = (record[standard] for record in letters if standard in record)
        written[standard] = count_features(texts, NAV_COUNTS)
    nob, nno = (spoken[standard] + written[standard] for standard in STANDARDS)
    sources = [*files.values(), options.nav]
    weights = compute_log_odds(nno, [nob])
    _write_table(options.out / STANDARDS_TABLE, "Nynorsk against Bokmål", sources, weights)
    if options.messages is None:
        return
    messages = read_messages(options.messages)
    counts = {language: count_features(texts) for language, texts in messages.items()}
    parallel = [counts[standard] for standard in STANDARDS]
    running = [sum(spoken.values(), Counter()), sum(written.values(), Counter())]
    sources += [options.messages / MESSAGES.format(locale) for locale in LOCALES.values()]
    for language, table in NEIGHBOURS.items():
        weights = compute_neighbour_log_odds(counts[language], parallel, running)
        _write_table(options.out / table, f"{language} against Norwegian", sources, weights)


if __name__ == "__main__":
    main()
