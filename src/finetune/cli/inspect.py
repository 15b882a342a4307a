"""`finetune inspect`: what preparation did to a corpus and to single documents of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.user_error import UserError
from finetune.cli.overrides import Parser

if TYPE_CHECKING:
    from data_prep.inspection import Inspection


def inspect(arguments: list[str]) -> int:
    """Print an overview of a corpus, or what the options ask for."""
    _print(_parser().parse_args(arguments))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="finetune inspect",
        description="What was done to a corpus' documents, why some were dropped or cut, which tokens are "
        "targets, how long they are. Without options: an overview. Stages' files hold raw text, and it is shown.",
    )
    parser.add_argument("corpus", help="a corpus' name or folder")
    parser.add_argument(
        "documents", nargs="*", metavar="ID", help="documents to follow through the stages (id, or source/id)"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="follow N documents of the corpus")
    parser.add_argument("--seed", type=int, default=0, help="which are sampled (0)")
    parser.add_argument(
        "--dropped",
        nargs="?",
        const="",
        metavar="REASON",
        help="some of what was dropped (for a reason, as quarantined)",
    )
    parser.add_argument(
        "--find",
        metavar="TEXT",
        help="documents that hold a text at any stage, whatever its case: where, and their fate",
    )
    parser.add_argument(
        "--cut",
        nargs="?",
        const="",
        metavar="WHERE",
        help="lines cut from documents (of a stage, a source, a host): counts, examples",
    )
    parser.add_argument(
        "--tokens", action="store_true", help="of the documents, show tokens and targets instead of stages"
    )
    parser.add_argument("--lengths", action="store_true", help="tokens a row, by source, as bars")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw the lengths into a .png or .svg file"
    )
    parser.add_argument(
        "--characters", type=int, default=1500, help="how much of a text is shown (1500; 0: all)"
    )
    parser.add_argument("--corpora-dir", default="corpora", help="where prepared corpora lie (corpora)")
    return parser


def _print(options: argparse.Namespace) -> None:
    """Print what the options ask for, or an overview."""
    from data_prep.inspection import Inspection, bin_lengths
    from finetune.cli import corpus_tables, document_tables

    folder = Path(options.corpus)
    inspection = Inspection(folder if folder.is_dir() else Path(options.corpora_dir) / options.corpus)
    names = [name for wanted in options.documents for name in inspection.find(wanted)]
    if options.dropped is None and options.cut is None and options.find is None:
        names += inspection.sample(options.sample or (3 if options.tokens and not names else 0), options.seed)
    for name in names:
        if options.tokens:
            document_tables.print_tokens(inspection.tokens(*name), name, options.characters)
        else:
            document_tables.print_trace(inspection.trace(*name), name, options.characters)
    if options.dropped is not None:
        document_tables.print_dropped(
            inspection, options.dropped or None, options.sample or 5, options.seed, options.characters
        )
    if options.find is not None:
        document_tables.print_found(
            inspection.search(options.find, options.sample or 20), options.find, options.characters
        )
    if options.cut is not None:
        document_tables.print_cuts(
            inspection.cuts(options.cut or None), options.sample or 0, options.characters
        )
    if options.lengths:
        histograms = {source: bin_lengths(values) for source, values in inspection.lengths().items()}
        corpus_tables.print_lengths(histograms)
    if options.picture:
        print(_draw(inspection, options.picture))
    listed = [options.dropped, options.cut, options.find]
    asked = names or any(value is not None for value in listed) or options.lengths or options.picture
    if not asked:
        corpus_tables.print_corpus_overview(inspection.corpus)


def _draw(inspection: Inspection, path: Path) -> Path:
    """Draw the lengths of a corpus' rows into a file, and return it."""
    from data_prep.inspection import draw_lengths

    lengths = inspection.lengths()
    try:
        return draw_lengths(lengths, path)
    except UserError:
        raise
    except ValueError as fault:  # matplotlib draws no such files
        raise UserError(f"--picture {path}: {fault}") from fault
