"""`finetune inspect`: shows the effects of preparation on a corpus and on single documents."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.user_error import UserError
from finetune.cli.overrides import Parser
from finetune.cli.run_arguments import add_corpora_dir

if TYPE_CHECKING:
    from data_prep.inspection import Inspection


def inspect(arguments: list[str]) -> int:
    """Print an overview of a corpus, or the views selected by the options."""
    _print_views(_make_parser().parse_args(arguments))
    return 0


def _make_parser() -> Parser:
    parser = Parser(
        prog="finetune inspect",
        description="Show the effects of preparation on a corpus: changes to documents, why documents or "
        "lines were removed, tokens and training targets, and lengths. Without options, print an "
        "overview. Caution: the output may contain raw text that is not de-identified.",
    )
    parser.add_argument("corpus", metavar="CORPUS", help="name or folder of the corpus")
    parser.add_argument(
        "documents",
        nargs="*",
        metavar="ID",
        help="documents (id or source/id) whose changes by each stage are shown",
    )
    parser.add_argument(
        "--sample", type=int, metavar="N", help="show N random documents; with other options, N results"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", default=0, help="seed of the random sample (default: 0)"
    )
    parser.add_argument(
        "--dropped",
        nargs="?",
        const="",
        metavar="REASON",
        help="show examples of dropped documents, of all reasons or of one; "
        "REASON=quarantined shows records that could not be read",
    )
    parser.add_argument(
        "--find",
        metavar="TEXT",
        help="search all stages for a text, ignoring case; show each place and whether the document was kept",
    )
    parser.add_argument(
        "--cut",
        nargs="?",
        const="",
        metavar="WHERE",
        help="show lines that were cut from documents, with counts and examples; "
        "WHERE limits them to a stage, a source or a host",
    )
    parser.add_argument(
        "--tokens",
        action="store_true",
        help="show the tokens and targets of the documents, not their changes",
    )
    parser.add_argument(
        "--lengths", action="store_true", help="show a histogram of tokens per document, by source"
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="save the histogram of lengths as a .png or .svg file"
    )
    parser.add_argument(
        "--characters",
        type=int,
        metavar="N",
        default=1500,
        help="characters of a text to show (default: 1500; 0: all)",
    )
    add_corpora_dir(parser)
    return parser


def _print_views(options: argparse.Namespace) -> None:
    """Print the views that the options select, or an overview."""
    from data_prep.inspection import Inspection, bin_lengths
    from finetune.cli import corpus_tables, document_tables

    folder = Path(options.corpus)
    if not folder.is_dir():
        folder = Path(options.corpora_dir) / options.corpus
    inspection = Inspection(folder)
    names = [name for wanted in options.documents for name in inspection.find(wanted)]
    lists_documents = options.dropped is None and options.cut is None and options.find is None
    if lists_documents:
        default_sample = 3 if options.tokens and not names else 0
        names += inspection.sample(options.sample or default_sample, options.seed)
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
        print(_draw_lengths(inspection, options.picture))
    printed = names or not lists_documents or options.lengths or options.picture
    if not printed:
        corpus_tables.print_corpus_overview(inspection.corpus)


def _draw_lengths(inspection: Inspection, path: Path) -> Path:
    """Draw a histogram of the lengths of a corpus' rows into a file, and return the file's path."""
    from data_prep.inspection import draw_lengths

    lengths = inspection.lengths()
    try:
        return draw_lengths(lengths, path)
    except UserError:
        raise
    except ValueError as fault:  # matplotlib does not support the file's format
        raise UserError(f"--picture {path}: {fault}") from fault
