"""Detection of page furniture: menus, share buttons, cookie banners and other boilerplate of HTML.

The code calls it furniture, because `boilerplate` is a stage of the pipeline. That stage removes
lines that nearly all documents of a site share.

Furniture is detected by structure: tags, roles, classes, the addresses of links, and the share of
letters that are in links. Wording counts only for headings of lists of links ("Les også"), for
buttons ("Vis mer"), and for short labels before or after the text ("Skriv ut", "Redaktør: …").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from lxml import etree, html

from data_prep.sources.markup import local_name

INVISIBLE = {
    "script", "style", "noscript", "template", "svg", "head", "iframe", "select", "option",
    "datalist", "input", "textarea", "audio", "video", "canvas", "map", "object",
}  # fmt: skip
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
# An element with one of _CLASSES is furniture if it has at most SHORT letters, has less than
# SMALL_SHARE of the page's letters, or is mostly links. Forms and dialogs are furniture below
# SMALL_SHARE.
SHORT = 200
SMALL_SHARE = 0.3
# An element with at least this share of the page's letters is text, even with one of _SURE_CLASSES.
NEARLY_ALL = 0.8
# A main element with at most this share of the page's letters is ignored, as an unused template.
MIN_MAIN_SHARE = 0.1
MOSTLY_LINKS = 0.6  # an element is mostly links if more than this share of its letters is in links
ONLY_LINKS = 0.85  # an element consists of links if more than this share of its letters is in links
# Maximum number of letters beside links to social networks, as in "Del denne siden på".
AROUND_LINKS = 40


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ROLES = _word_set("navigation banner contentinfo search menu menubar toolbar dialog alertdialog")
_CLASSES = _word_set(
    """
    share sharing shares sharebar sharebuttons shareicons sharelinks
    social socials socialmedia socialshare socialsharing
    deling deleknapper delknapper delelenker tipsvenn smulesti pagination pager paginering
    consent gdpr nyhetsbrev
    toolbar skiplink skiplinks navbar navigation menu meny submenu sidemeny undermeny
    related relatedcontent relatedlinks relatert relaterte tags taglist tagcloud emneord stikkord
    recommended recommendations advert advertisement annonse promo
    noprint printnone hiddenprint printbutton printlink printpage skrivut utskrift
    feedback tilbakemelding subscribe byline
    redaktor redaktør redaktorer redaktører nettredaktor nettredaktør editors editorinfo
    ansvarligredaktor ansvarligredaktør
    totop backtotop tiltoppen
    """
)
# The members of _CLASSES that name lists of links. An element with such a class is text if it has
# running text and no links.
_LINKING_CLASSES = _word_set(
    """
    related relatedcontent relatedlinks relatert relaterte recommended recommendations
    navigation menu meny submenu sidemeny undermeny
    """
)
# Classes of elements that are furniture even if they are long.
_SURE_CLASSES = _word_set(
    """
    comment comments commentlist respond kommentarer kommentarfelt disqus
    cookie cookies cookiebanner cookieconsent informasjonskapsler
    breadcrumb breadcrumbs brodsmuler brødsmuler brodsmulesti brødsmulesti
    addtoany addthis newsletter paywall
    """
)
# Classes of panels that the user of a page can open. Their content is text, although hidden at
# first.
_PANEL = _word_set(
    """
    accordion accordions trekkspill collapse collapsible collapsed panel tabpanel
    expandable expander ekspanderbar details foldout readmore
    """
)


def _one_of(*alternatives: str) -> re.Pattern[str]:
    return re.compile("(?:" + "|".join(alternatives) + ")", re.IGNORECASE)


_SITE = r"(?:https?:)?//(?:[\w-]+\.)*"
_SHARE_ADDRESS = _one_of(
    rf"{_SITE}facebook\.com/(?:sharer?|dialog/(?:share|feed))\b",
    rf"{_SITE}(?:twitter|x)\.com/(?:intent|share|home\?status)",
    rf"{_SITE}linkedin\.com/(?:sharearticle|sharing|cws/share)",
    rf"{_SITE}(?:plus\.google\.com/share|pinterest\.\w+/pin/create|reddit\.com/submit|bsky\.app/intent)",
    rf"{_SITE}(?:wa\.me/\?|api\.whatsapp\.com/send|t\.me/share|addtoany\.com|addthis\.com)",
    r"whatsapp://",
    r"mailto:\?(?:subject|body|&)",
    r"javascript:.*\b(?:print\b|share)",
)
_SOCIAL_ADDRESS = re.compile(
    rf"{_SITE}(?:facebook|twitter|x|linkedin|instagram|youtube|flickr|tiktok|snapchat|vimeo|threads|bsky)"
    r"\.\w+(?:/|$)",
    re.IGNORECASE,
)
_RELATED = _one_of(
    r"(?:les|se|sjå) (?:også|òg|og)",
    r"(?:andre )?relater[at]\w*",
    r"(?:andre )?relater[at]\w* "
    r"(?:saker|artikler|artiklar|lenker|lenkjer|innhold|innhald|sider|dokument\w*|stoff|tema)",
    r"beslekt\w+ \w+",
    r"(?:mest|siste|flere|fleire|andre) (?:lest\w*|nytt|nyheter|nyhende|saker|artikler|artiklar)",
    r"følg oss(?: (?:på|i) .*)?",
    r"del(?: (?:artikkel|siden|sida|saken|denne|på|med|via)\b.*)?",
    r"relat\w+ (?:articles|links|content|pages|stories)",
    r"read also|see also|share(?: this.*)?|follow us(?: .*)?",
    r"tema|emneord|stikkord|tagg?er|tags",
)
_CONTENTS = _one_of(
    r"innhold(?:sfortegnelse)?",
    r"innhald(?:sliste)?",
    r"(?:på|i) denne (?:siden|sida|artikkelen)",
    r"on this page",
    r"contents",
)
_TOGGLE = re.compile(
    r"(?:vis|skjul|les|se|sjå|åpne|opne|lukk|lat att|show|hide|read|open|close)\b"
    r"(?: (?:mer|meir|mindre|alle?|alt|fler\w*|fleire|more|less|all|innhold|innhald|meny\w*|menu))*",
    re.IGNORECASE,
)
_EDITOR = _one_of(
    r"(?:ansvarlig|ansvarleg) (?:redaktør|utgiver|utgjevar)",
    r"(?:nett|web|vakt)?redaktør(?:er|ar)?",
    r"(?:nett|web)(?:ansvarlig|ansvarleg|master)",
    r"redaksjon(?:en)?",
    r"(?:ansvarlig|ansvarleg) for (?:siden|sida|innhold\w*|innhald\w*|nettsi\w+)",
)
_LABEL = _one_of(
    r"skriv ut\b|utskrift\b|utskriftsvennlig \w+",
    r"del (?:på|med|via|denne|siden|sida|artikkelen|saken)\b|del$",
    r"tips en venn|tips ein ven|send (?:til en venn|som e-post|på e-post)",
    r"følg oss|til toppen|tilbake til toppen|lytt(?: til (?:teksten|siden))?$",
    r"sist (?:oppdatert|endr[ae]t?|revidert|publisert)|oppdatert\s*:|oppdatert \d|last updated",
    r"publisert(?: (?:dato|av))?\s*:|publisert (?:\d|under|av)",
    rf"{_EDITOR.pattern}(?:\s*:|$)",
    r"(?:ansvarlig|ansvarleg) "
    r"(?:redaktør|utgiver|utgjevar|for (?:siden|sida|innhold\w*|innhald\w*|nettsi\w+))",
    r"fant du (?:det|informasjonen) du (?:lette|leitte) etter",
    r"var (?:denne )?(?:siden|sida|artikkelen|informasjonen|dette) (?:til hjelp|nyttig)",
    r"print(?: this)? page|share (?:on|this|via)\b",
)
_SENTENCE = re.compile(r"[.!?…:][\"'»”)\]]*$")
_WORD = re.compile(r"[A-ZÆØÅ]?[a-zæøå]+|[A-ZÆØÅ]+(?![a-zæøå])|\d+")


def count_letters(text: str | None) -> int:
    """Return the number of letters and digits in a text; 0 for None."""
    return sum(map(str.isalnum, text or ""))


def is_running(text: str) -> bool:
    """Return whether a text is running text.

    Running text has at least 60 letters and digits, or at least 25 if it ends like a sentence.
    """
    return count_letters(text) >= 60 or (count_letters(text) >= 25 and _SENTENCE.search(text) is not None)


def is_label(text: str) -> bool:
    """Return whether a line is a label that is common on web pages, such as "Skriv ut"."""
    letters = count_letters(text)
    is_sentence = letters > 45 and _SENTENCE.search(text) is not None
    return letters <= 100 and not is_sentence and _LABEL.match(text.lstrip("#-*•– ")) is not None


def drop_labels(lines: list[str]) -> list[int]:
    """Return the indices of the lines to keep: all except labels before and after the running text.

    A name on the line after a label such as "Redaktør:" is dropped too.
    """
    running = [number for number, line in enumerate(lines) if is_running(line) and not is_label(line)]
    first = running[0] if running else len(lines)
    last = running[-1] if running else -1
    kept: list[int] = []
    follows_editor_label = False
    for number, line in enumerate(lines):
        if first < number < last:
            kept.append(number)
            follows_editor_label = False
        elif is_label(line):
            follows_editor_label = _EDITOR.fullmatch(line.lstrip("#-*•– ").rstrip(": ")) is not None
        elif follows_editor_label and count_letters(line) <= AROUND_LINKS and not is_running(line):
            follows_editor_label = False
        else:
            kept.append(number)
            follows_editor_label = False
    return kept


def find_main_element(body: html.HtmlElement) -> html.HtmlElement | None:
    """Return the page's main element: <main>, or one with the role "main".

    Return None if it is missing or nearly empty.
    """
    count = Furniture(body, by_class=False).count_letters
    marked = [
        e for e in body.iter(etree.Element) if local_name(e).lower() == "main" or e.get("role") == "main"
    ]
    main = max(marked, key=count, default=None)
    if main is None or count(main) <= MIN_MAIN_SHARE * count(body):
        return None
    return main


@dataclass(slots=True)
class _Size:
    """Numbers of an element's letters and links. Digits count as letters.

    Attributes:
        letters: number of all letters.
        linked: number of letters in links.
        links: number of all links.
        share: number of links that print the page or share it on a social network.
        social: number of other links to a social network.
        anchors: number of links to a place in the same page.
    """

    letters: int = 0
    linked: int = 0
    links: int = 0
    share: int = 0
    social: int = 0
    anchors: int = 0

    def add(self, other: _Size) -> None:
        self.letters += other.letters
        self.linked += other.linked
        self.links += other.links
        self.share += other.share
        self.social += other.social
        self.anchors += other.anchors

    @property
    def link_share(self) -> float:
        return self.linked / self.letters if self.letters else 0.0


class Furniture:
    """Classifier of a page's elements: page furniture, such as menus and banners, or text.

    Attributes:
        root: the page, or the part of it that is read.
        by_class: false to ignore the classes in _CLASSES and the criteria for lists of links. Tags,
            roles, the addresses of links and _SURE_CLASSES are always used.
    """

    def __init__(self, root: html.HtmlElement, by_class: bool = True) -> None:
        self.root = root
        self.by_class = by_class
        self._sizes = _measure(root)
        self._controlled = set(_iter_controlled_ids(root))
        self._titles = list(root.iter("h1"))

    def count_letters(self, element: html.HtmlElement) -> int:
        """Return the number of letters and digits in an element, except in invisible elements."""
        return self._sizes[element].letters

    def skips(self, element: html.HtmlElement) -> bool:
        """Return whether an element is page furniture, such as a menu, and must be left out."""
        name = local_name(element).lower()
        if name in INVISIBLE or name == "nav" or (element.get("role") or "").lower() in _ROLES:
            return True
        if element is self.root or name in ("body", "main"):
            return False
        if name == "button":
            return not self._opens_text(element)
        if self._is_hidden(element) or self._is_made_of_social_links(element, name):
            return True
        if name in ("form", "dialog"):
            return self._is_small(element)
        if name == "footer":
            is_of_text = _is_inside(element, ("main", "article", "blockquote", "figure"))
            return not is_of_text or not self._has_running_text(element)
        if name == "header":
            is_of_text = _is_inside(element, ("main", "article", "section", "figure", "li"))
            return not is_of_text and not self._has_only_title(element)
        if not _SURE_CLASSES.isdisjoint(_class_words(element)) and self._page_share(element) < NEARLY_ALL:
            return True
        return self.by_class and self._is_furniture_by_class(element, name)

    def is_link_list(self, element: html.HtmlElement) -> bool:
        """Return whether an element has two or more links and hardly any other text."""
        size = self._sizes[element]
        return size.links >= 2 and size.link_share > ONLY_LINKS

    def is_linked(self, element: html.HtmlElement) -> bool:
        """Return whether an element consists of links, or is inside a link."""
        return self._sizes[element].link_share > ONLY_LINKS or _is_inside(element, ("a",))

    def _is_furniture_by_class(self, element: html.HtmlElement, name: str) -> bool:
        size = self._sizes[element]
        is_minor = size.letters <= SHORT or size.link_share > MOSTLY_LINKS or self._is_small(element)
        classes = _CLASSES & _class_words(element)
        if not size.links and self._has_running_text(element):
            classes -= _LINKING_CLASSES
        if classes and is_minor and not _is_inside(element, ("blockquote", "figure", "table")):
            return True
        if name == "aside":
            return size.link_share > MOSTLY_LINKS or any(True for _ in element.iter("form"))
        if name in ("ul", "ol", "div", "section", "p"):
            return self._is_list_of_contents(element) or self._is_list_of_related(element, name)
        return name in HEADINGS and self._is_heading_of_furniture(element)

    def _is_small(self, element: html.HtmlElement) -> bool:
        return self._page_share(element) < SMALL_SHARE

    def _page_share(self, element: html.HtmlElement) -> float:
        return self.count_letters(element) / max(1, self.count_letters(self.root))

    def _is_list_of_contents(self, element: html.HtmlElement) -> bool:
        size = self._sizes[element]
        return size.anchors >= 3 and size.anchors == size.links and size.link_share > ONLY_LINKS

    def _is_list_of_related(self, element: html.HtmlElement, name: str) -> bool:
        """Return whether an element is a list of links with a heading such as "Les også".

        The heading is in the element or directly before it.

        Args:
            name: the element's tag.
        """
        if self.is_link_list(element):
            before = element.getprevious()
            return before is not None and _RELATED.fullmatch(_line(before)) is not None
        if name not in ("div", "section") or self._sizes[element].link_share <= MOSTLY_LINKS:
            return False
        heading = next(element.iter(*HEADINGS), None)
        return heading is not None and _RELATED.fullmatch(_line(heading)) is not None

    def _is_heading_of_furniture(self, heading: html.HtmlElement) -> bool:
        line = _line(heading)
        after = heading.getnext()
        if after is None or local_name(after).lower() in HEADINGS:
            return False
        if not _RELATED.fullmatch(line) and not _CONTENTS.fullmatch(line):
            return False
        return self.is_link_list(after) or self.skips(after)

    def _has_only_title(self, header: html.HtmlElement) -> bool:
        """Return whether the page has a single h1, and it is in this header."""
        return len(self._titles) == 1 and header in self._titles[0].iterancestors()

    def _is_made_of_social_links(self, element: html.HtmlElement, name: str) -> bool:
        size = self._sizes[element]
        if name == "a":
            return size.share > 0
        if not size.links or size.letters - size.linked > AROUND_LINKS:
            return False
        return size.share == size.links or (size.links >= 2 and size.share + size.social == size.links)

    def _is_hidden(self, element: html.HtmlElement) -> bool:
        """Return whether an element is hidden and no control of the page can show it."""
        style = (element.get("style") or "").replace(" ", "").lower()
        has_hidden_attribute = element.get("hidden") is not None or element.get("aria-hidden") == "true"
        if not has_hidden_attribute and "display:none" not in style:
            return False
        has_panel_role = (element.get("role") or "").lower() in ("region", "tabpanel")
        if has_panel_role or not _PANEL.isdisjoint(_class_words(element)):
            return False
        return element.get("id") not in self._controlled and not _is_inside(element, ("details",))

    def _opens_text(self, button: html.HtmlElement) -> bool:
        """Return whether a button is a text's heading, or opens a panel that contains text."""
        line = _line(button)
        if not line or _TOGGLE.fullmatch(line):
            return False
        is_heading = _is_inside(button, (*HEADINGS, "summary", "dt"))
        return is_heading or button.get("aria-controls") in self._controlled

    def _has_running_text(self, element: html.HtmlElement) -> bool:
        if _is_inside(element, ("blockquote", "figure")):
            return True
        blocks = element.iter("p", "li", "dd", "cite")
        lines = (_line(block) for block in blocks if self._sizes[block].link_share < MOSTLY_LINKS)
        return any(is_running(line) and not is_label(line) for line in lines)


def _measure(root: html.HtmlElement) -> dict[html.HtmlElement, _Size]:
    sizes: dict[html.HtmlElement, _Size] = {}
    for element in reversed(list(root.iter(etree.Element))):
        size = sizes[element] = _Size()
        name = local_name(element).lower()
        if name in INVISIBLE:
            continue
        size.letters = count_letters(element.text)
        for child in element:
            if child in sizes:
                size.add(sizes[child])
            size.letters += count_letters(child.tail)
        if name == "a" and element.get("href") is not None:
            _measure_link(element, size)
    return sizes


def _measure_link(link: html.HtmlElement, size: _Size) -> None:
    address = link.get("href") or ""
    prints = "print" in (link.get("onclick") or "")
    size.linked = size.letters
    size.links = 1
    size.share = int(prints or _SHARE_ADDRESS.match(address.strip()) is not None)
    size.social = int(not size.share and _SOCIAL_ADDRESS.match(address.strip()) is not None)
    size.anchors = int(address.startswith("#") and len(address) > 1)


def _iter_controlled_ids(root: html.HtmlElement) -> Iterator[str]:
    """Yield the ids of elements that buttons, tabs or other controls can open."""
    for element in root.iter(etree.Element):
        name = local_name(element).lower()
        is_control = name in ("button", "a", "summary", "div", "h2", "h3", "h4")
        if not is_control and element.get("role") != "tab":
            continue
        for attribute in ("aria-controls", "data-target", "data-bs-target"):
            value = element.get(attribute)
            if value:
                yield value.lstrip("#")


def _class_words(element: html.HtmlElement) -> set[str]:
    """Return the words of an element's class, id and label, and each pair of adjacent words joined.

    For example, the class "no-print" gives "no", "print" and "noprint".
    """
    words: set[str] = set()
    for attribute in ("class", "id", "aria-label", "data-component"):
        for name in (element.get(attribute) or "").split():
            parts = [part.lower() for part in _WORD.findall(name)]
            words.update(parts)
            words.update(first + second for first, second in pairwise(parts))
    return words


def _is_inside(element: html.HtmlElement, names: Iterable[str]) -> bool:
    return next(element.iterancestors(*names), None) is not None


def _line(element: html.HtmlElement) -> str:
    return " ".join("".join(element.itertext()).split())
