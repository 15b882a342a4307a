"""Reader of HTML pages of any site: the main text as Markdown, without menus, banners and footers.

It needs trafilatura, which the extra `prep` installs. The text is taken from the page's main or
article element. If the page has neither, it is taken from the smallest part of the page that
contains the text extracted by trafilatura. Page boilerplate in it is left out (see furniture.py).

If less than `min_kept` of the page's letters is kept, less selective methods are tried. The last
method leaves out only the boilerplate that tags mark. The report counts the pages by method.

A split keeps the pages of a group together. A group is the first folder of a site, taken from the
pages' addresses. Pages that do not state an address are grouped by the folder of their files.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lxml import html

from data_prep.config import SourceConfig
from data_prep.document import Document, Drop, Place, Report
from data_prep.fields import between, setting
from data_prep.sources import claims
from data_prep.sources.article import Block, Kind, join_blocks, read_blocks
from data_prep.sources.files import find_files, id_from_place, iter_contents
from data_prep.sources.furniture import Furniture, count_letters, drop_labels, find_main_element, is_running
from data_prep.sources.maalfrid import site_folder
from data_prep.sources.markup import local_name, parse_html
from data_prep.user_error import UserError

SUFFIXES = (".html", ".htm", ".xhtml")
# The page's text is in the smallest element with at least this share of the extracted letters.
MOST = 0.9
# A block is first searched for in this many letters after the previous block found, then in all of
# the extracted text.
NEAR = 5_000
_PARTS = (Kind.ROW, Kind.ITEM, Kind.DEFINITION)  # kinds of blocks that trafilatura sometimes drops


@dataclass
class Options:
    """Options of reader `webpage`."""

    min_kept: float = setting(
        0.6,
        "share of the page's letters that the extracted text should keep; if it keeps less,"
        " other methods that keep more are tried, and the report counts pages by method",
    )

    def __post_init__(self) -> None:
        between("options.min_kept", self.min_kept, 0, 1)


@dataclass(slots=True)
class Reading:
    """The text of a page, and how it was extracted.

    Attributes:
        way: name of the extraction method. The report counts its pages as pages_read_by_<way>.
        page_letters: number of letters of the page, or of its main element, without navigation and
            lists of links.
    """

    way: str
    text: str
    page_letters: int

    @property
    def kept_share(self) -> float:
        return count_letters(self.text) / max(1, self.page_letters)


def list_files(source: SourceConfig) -> list[Path]:
    _import_trafilatura()
    claims.parse_options(source, Options)
    return find_files(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    trafilatura = _import_trafilatura()
    min_kept = claims.parse_options(source, Options).min_kept
    for place, raw in iter_contents(name, source, report, paths, SUFFIXES):
        with report.quarantining(place):
            root = parse_html(raw, report)
            claimed = claims.parse_language(root.get("lang"))
            about = trafilatura.extract_metadata(root)
            reading = read_page(root, parse_html(raw, Report()), min_kept)
            if not reading.text:
                report.drops.append(
                    Drop(str(place), name, "no_main_text", "no paragraphs or lists outside navigation")
                )
                continue
            report.counts[f"pages_read_by_{reading.way}"] += 1
            report.counts["page_letters"] += reading.page_letters
            report.counts["page_letters_kept"] += count_letters(reading.text)
            yield _document(reading.text, about, place, claimed, source)


def read_page(root: html.HtmlElement, spare: html.HtmlElement, min_kept: float) -> Reading:
    """Return a page's text, extracted by the first method that keeps enough of the page's letters.

    If no method keeps enough, the method that keeps the most is used.

    Args:
        min_kept: minimum share of the letters to keep.
        spare: the same page, parsed a second time, because trafilatura modifies its input.
    """
    best = Reading("", "", 0)
    for reading in _iter_readings(root, spare):
        if reading.text and reading.kept_share > best.kept_share:
            best = reading
        if best.kept_share >= min_kept:
            break
    return best


def _iter_readings(root: html.HtmlElement, spare: html.HtmlElement) -> Iterator[Reading]:
    """Yield a page's text by each extraction method, the most selective method first."""
    extracted = _import_trafilatura().extract(spare, output_format="txt", include_comments=False) or ""
    body = root.find(".//body")
    if body is None:
        body = root
    main = _find_main(body, extracted)
    if main is not None:
        letters = _count_page_letters(main)
        furniture = Furniture(main)
        blocks = _read_without_labels(main, furniture)
        selected = _select_text(blocks, extracted, furniture, strict=False)
        yield Reading("main_element", join_blocks(selected), letters)
        yield Reading("all_of_main_element", join_blocks(blocks), letters)
        yield Reading("tags_of_main_element", join_blocks(_read_by_tags(main)), letters)
    letters = _count_page_letters(body)
    furniture = Furniture(body)
    blocks = _read_without_labels(body, furniture)
    selected = _select_text(blocks, extracted, furniture, strict=True)
    yield Reading("found_text", join_blocks(selected), letters)
    yield Reading("whole_body", join_blocks(blocks), letters)
    yield Reading("tags_of_body", join_blocks(_read_by_tags(body)), letters)


def _read_without_labels(root: html.HtmlElement, furniture: Furniture) -> list[Block]:
    blocks = read_blocks(root, furniture.skips)
    return [blocks[number] for number in drop_labels([block.text for block in blocks])]


def _read_by_tags(root: html.HtmlElement) -> list[Block]:
    return read_blocks(root, Furniture(root, by_class=False).skips)


def _find_main(body: html.HtmlElement, extracted: str) -> html.HtmlElement | None:
    """Return the page's main element, or else its longest article element; None if neither fits.

    The article element must contain at least half of the letters of all article elements, and half
    of the text extracted by trafilatura, because some pages have an article element for each
    teaser.
    """
    main = find_main_element(body)
    if main is not None:
        return main
    count = Furniture(body, by_class=False).count_letters
    articles = [e for e in body.iter("article") if next(e.iterancestors("article"), None) is None]
    article = max(articles, key=count, default=None)
    if article is None or not count(article) or count(article) < 0.5 * sum(map(count, articles)):
        return None
    blocks = _read_by_tags(body)
    num_extracted = 0
    num_inside = 0
    for block, is_extracted in zip(blocks, _find_extracted(blocks, extracted), strict=True):
        if is_extracted:
            letters = count_letters(block.text)
            num_extracted += letters
            if _is_inside(block, article):
                num_inside += letters
    if num_inside < 0.5 * num_extracted:
        return None
    return article


def _count_page_letters(root: html.HtmlElement) -> int:
    """Return a page's number of letters, without navigation, buttons, forms and lists of links."""
    furniture = Furniture(root, by_class=False)

    def skips(element: html.HtmlElement) -> bool:
        return furniture.skips(element) or (element is not root and furniture.is_link_list(element))

    return sum(count_letters(block.text) for block in read_blocks(root, skips))


def _select_text(blocks: list[Block], extracted: str, furniture: Furniture, strict: bool) -> list[Block]:
    """Return the blocks that belong to the page's main text.

    These are:
    - the blocks in the text that trafilatura extracted;
    - the other blocks in the smallest part of the page that contains most of the extracted blocks,
      except links before the first or after the last extracted block;
    - if not `strict`, running text, tables, lists and fact boxes elsewhere, except links:
      trafilatura may drop such blocks;
    - titles (h1), and headings before blocks that are returned.

    Args:
        extracted: the text that trafilatura extracted.
        strict: true to leave out blocks outside the smallest part, unless trafilatura extracted
            them.
    """
    are_extracted = _find_extracted(blocks, extracted)
    part = _smallest_part(blocks, are_extracted)
    if part is None:
        return []
    numbers = [number for number, is_extracted in enumerate(are_extracted) if is_extracted]
    kept = list(are_extracted)
    for number, block in enumerate(blocks):
        is_inside = _is_inside(block, part)
        is_linked = furniture.is_linked(block.element)
        is_between = is_inside and (numbers[0] <= number <= numbers[-1] or not is_linked)
        is_text = is_running(block.text) or block.kind in _PARTS or _is_in_box(block)
        is_dropped_text = is_text and (is_inside or not strict) and not is_linked
        is_title = local_name(block.element) == "h1"
        kept[number] = are_extracted[number] or is_between or is_dropped_text or is_title
    for number in reversed(range(len(blocks) - 1)):
        kept[number] |= blocks[number].kind == Kind.HEADING and kept[number + 1]
    return [block for block, is_kept in zip(blocks, kept, strict=True) if is_kept]


def _find_extracted(blocks: list[Block], extracted: str) -> list[bool]:
    """Return for each block whether the extracted text contains it.

    Only letters and digits are compared. The blocks may be in a different order.
    """
    letters = "".join(filter(str.isalnum, extracted))
    are_extracted: list[bool] = []
    end = 0  # end of the last block found
    for block in blocks:
        text = "".join(filter(str.isalnum, block.text))
        found = letters.find(text, end, end + len(text) + NEAR)
        if found < 0:
            found = letters.find(text)
        is_extracted = bool(text) and found >= 0
        are_extracted.append(is_extracted)
        if is_extracted:
            end = found + len(text)
    return are_extracted


def _is_inside(block: Block, part: html.HtmlElement) -> bool:
    return block.element is part or part in block.element.iterancestors()


def _is_in_box(block: Block) -> bool:
    """Return whether a block is in a fact box, a collapsible section, a figure or a quotation."""
    return next(block.element.iterancestors("aside", "details", "figure", "blockquote"), None) is not None


def _smallest_part(blocks: list[Block], are_extracted: list[bool]) -> html.HtmlElement | None:
    """Return the innermost element with at least the share MOST of the extracted blocks' letters.

    Return None if no block is extracted.
    """
    letters_by_element: dict[html.HtmlElement, int] = {}
    total = 0
    for block, is_extracted in zip(blocks, are_extracted, strict=True):
        if is_extracted:
            letters = count_letters(block.text)
            total += letters
            for element in (block.element, *block.element.iterancestors()):
                letters_by_element[element] = letters_by_element.get(element, 0) + letters
    parts = [element for element, letters in letters_by_element.items() if letters >= MOST * total]
    return max(parts, key=lambda element: len(list(element.iterancestors())), default=None)


def _document(text: str, about: Any, place: Place, claimed: str, source: SourceConfig) -> Document:
    document_id = id_from_place(place)
    group = document_id.rpartition("/")[0] or document_id
    if about.url:
        group = site_folder(about.url)
    return Document(
        id=document_id,
        text=text,
        title=about.title or "",
        source=place.source,
        license=source.license,
        url=about.url or "",
        date=claims.parse_date(about.date),
        language=claimed or claims.parse_language(about.language),
        group=group,
    )


def _import_trafilatura() -> Any:
    try:
        return importlib.import_module("trafilatura")
    except ImportError as fault:
        raise UserError(
            f"reader webpage: trafilatura cannot be imported ({fault}); run pip install 'finetune[prep]'"
        ) from None
