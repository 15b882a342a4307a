"""HTML pages of any site: the main text as Markdown, without menus, banners, share buttons and footers (extra
`prep`).

The part of the page that holds its text is its main or article element, else the smallest part that holds
what trafilatura takes for the text. All of it is read but for its furniture (see furniture.py). The letters
kept are measured against the page's own: below `min_kept` the page is read another way, at last all of it but
for what its tags say is no text. The ways are counted. Pages below one folder are a group, by their address
if they name it, else by where they lie.
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
from data_prep.sources.article import Block, Kind, join, read_blocks
from data_prep.sources.files import contents, find, stem
from data_prep.sources.furniture import Furniture, count_letters, is_running, main_element, without_labels
from data_prep.sources.maalfrid import site_folder
from data_prep.sources.markup import local_name, parse_html
from data_prep.user_error import UserError

SUFFIXES = (".html", ".htm", ".xhtml")
MOST = 0.9  # of the letters that trafilatura took: the part of the page that holds so many is its text
NEAR = 5_000  # letters behind the last block found: there the next is looked for first
_PARTS = (Kind.ROW, Kind.ITEM, Kind.DEFINITION)  # trafilatura drops them where they should stay


@dataclass
class Options:
    """Options of HTML pages."""

    min_kept: float = setting(
        0.6,
        "minimum share of the page's letters in the extracted text; below it, the page is read in another "
        "way, and counted",
    )

    def __post_init__(self) -> None:
        between("options.min_kept", self.min_kept, 0, 1)


@dataclass(slots=True)
class Reading:
    """A page's text, the way it was read, and how many letters the page has of its own."""

    way: str
    text: str
    own: int

    @property
    def kept(self) -> float:
        return count_letters(self.text) / max(1, self.own)


def files(source: SourceConfig) -> list[Path]:
    _trafilatura()
    claims.options(source, Options)
    return find(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    trafilatura = _trafilatura()
    min_kept = claims.options(source, Options).min_kept
    for where, raw in contents(name, source, report, paths, SUFFIXES):
        with report.quarantining(where):
            root = parse_html(raw, report)
            claimed = claims.language(root.get("lang"))
            about = trafilatura.extract_metadata(root)
            reading = read_page(root, parse_html(raw, Report()), min_kept)
            if not reading.text:
                report.drops.append(
                    Drop(
                        str(where), name, "no_main_text", "neither paragraphs nor lists outside of navigation"
                    )
                )
                continue
            report.counts[f"pages_read_by_{reading.way}"] += 1
            report.counts["page_letters"] += reading.own
            report.counts["page_letters_kept"] += count_letters(reading.text)
            yield _document(reading.text, about, where, claimed, source)


def read_page(root: html.HtmlElement, spare: html.HtmlElement, min_kept: float) -> Reading:
    """Return the page's text by the first way that keeps `min_kept` of the page's own letters, else by the
    one that keeps most.

    `spare` is the same page parsed anew: trafilatura cuts the tree that it is given.
    """
    best = Reading("", "", 0)
    for reading in _readings(root, spare):
        if reading.text and reading.kept > best.kept:
            best = reading
        if best.kept >= min_kept:
            break
    return best


def _readings(root: html.HtmlElement, spare: html.HtmlElement) -> Iterator[Reading]:
    """Yield readings of a page, the most selective first."""
    extracted = _trafilatura().extract(spare, output_format="txt", include_comments=False) or ""
    body = root.find(".//body")
    body = body if body is not None else root
    main = _main_element(body, extracted)
    if main is not None:
        own = _own_letters(main)
        furniture = Furniture(main)
        blocks = _text_of(main, furniture)
        yield _reading("main_element", _text_blocks(blocks, extracted, furniture, strict=False), own)
        yield _reading("all_of_main_element", blocks, own)
        yield _reading("tags_of_main_element", read_blocks(main, Furniture(main, by_class=False).skips), own)
    own = _own_letters(body)
    furniture = Furniture(body)
    blocks = _text_of(body, furniture)
    yield _reading("found_text", _text_blocks(blocks, extracted, furniture, strict=True), own)
    yield _reading("whole_body", blocks, own)
    yield _reading("tags_of_body", read_blocks(body, Furniture(body, by_class=False).skips), own)


def _text_of(root: html.HtmlElement, furniture: Furniture) -> list[Block]:
    blocks = read_blocks(root, furniture.skips)
    return [blocks[number] for number in without_labels([block.text for block in blocks])]


def _reading(way: str, blocks: list[Block], own: int) -> Reading:
    return Reading(way, join(blocks), own)


def _main_element(body: html.HtmlElement, extracted: str) -> html.HtmlElement | None:
    """Return the element that the page itself names as its text, if there is one.

    An article element is believed if it holds half of what was extracted: some pages have one for each
    teaser.
    """
    if (main := main_element(body)) is not None:
        return main
    letters = Furniture(body, by_class=False).letters
    articles = [e for e in body.iter("article") if next(e.iterancestors("article"), None) is None]
    article = max(articles, key=letters, default=None)
    if article is None or letters(article) < 0.5 * sum(map(letters, articles)):
        return None
    blocks = read_blocks(body, Furniture(body, by_class=False).skips)
    taken = [block for block, is_taken in zip(blocks, _taken(blocks, extracted), strict=True) if is_taken]
    inside = sum(count_letters(block.text) for block in taken if _stands_in(block, article))
    return (
        article
        if inside >= 0.5 * sum(count_letters(block.text) for block in taken) and letters(article)
        else None
    )


def _own_letters(root: html.HtmlElement) -> int:
    """Return the letters of the page's own text: outside of navigation, buttons and forms, and not in lists
    of links."""
    furniture = Furniture(root, by_class=False)

    def skips(element: html.HtmlElement) -> bool:
        return furniture.skips(element) or (element is not root and furniture.is_link_list(element))

    return sum(count_letters(block.text) for block in read_blocks(root, skips))


def _text_blocks(blocks: list[Block], extracted: str, furniture: Furniture, strict: bool) -> list[Block]:
    """Return the blocks that are text by what trafilatura extracted, in order.

    Those are: all that it took; what stands in the smallest part of the page that holds most of that, but for
    links before the first and after the last of them; and, unless `strict`, running text, tables, lists and
    fact boxes that it dropped elsewhere.
    """
    taken = _taken(blocks, extracted)
    part = _part_of(blocks, taken)
    if part is None:
        return []
    numbers = [number for number, is_taken in enumerate(taken) if is_taken]
    kept = list(taken)
    for number, block in enumerate(blocks):
        inside = _stands_in(block, part)
        between = inside and (numbers[0] <= number <= numbers[-1] or not furniture.is_linked(block.element))
        is_text = is_running(block.text) or block.kind in _PARTS or _in_box(block)
        put_back = is_text and (inside or not strict) and not furniture.is_linked(block.element)
        kept[number] = taken[number] or between or put_back or local_name(block.element) == "h1"
    for number in reversed(range(len(blocks) - 1)):
        kept[number] |= blocks[number].kind == Kind.HEADING and kept[number + 1]
    return [block for block, is_kept in zip(blocks, kept, strict=True) if is_kept]


def _taken(blocks: list[Block], extracted: str) -> list[bool]:
    """Return for each block whether it stands in the extracted text, wherever that is, by its letters."""
    letters = "".join(filter(str.isalnum, extracted))
    taken: list[bool] = []
    at = 0
    for block in blocks:
        text = "".join(filter(str.isalnum, block.text))
        found = letters.find(text, at, at + len(text) + NEAR)
        if found < 0:
            found = letters.find(text)
        taken.append(bool(text) and found >= 0)
        at = found + len(text) if taken[-1] else at
    return taken


def _stands_in(block: Block, part: html.HtmlElement) -> bool:
    return block.element is part or part in block.element.iterancestors()


def _in_box(block: Block) -> bool:
    """Return whether a block stands in a fact box or the like, which furniture is not."""
    return next(block.element.iterancestors("aside", "details", "figure", "blockquote"), None) is not None


def _part_of(blocks: list[Block], taken: list[bool]) -> html.HtmlElement | None:
    held: dict[html.HtmlElement, int] = {}
    total = 0
    for block, is_taken in zip(blocks, taken, strict=True):
        if is_taken:
            letters = count_letters(block.text)
            total += letters
            for element in (block.element, *block.element.iterancestors()):
                held[element] = held.get(element, 0) + letters
    parts = [element for element, letters in held.items() if letters >= MOST * total]
    return max(parts, key=lambda element: len(list(element.iterancestors())), default=None)


def _document(text: str, about: Any, where: Place, claimed: str, source: SourceConfig) -> Document:
    place = stem(where)
    return Document(
        id=place,
        text=text,
        title=about.title or "",
        source=where.source,
        license=source.license,
        url=about.url or "",
        date=claims.date(about.date),
        language=claimed or claims.language(about.language),
        group=site_folder(about.url) if about.url else place.rpartition("/")[0] or place,
    )


def _trafilatura() -> Any:
    try:
        return importlib.import_module("trafilatura")
    except ImportError as fault:
        raise UserError(f"reader webpage needs trafilatura ({fault}): pip install 'finetune[prep]'") from None
