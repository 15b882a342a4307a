"""Parts of an HTML page that are no part of its text: menus, share buttons, cookie banners, editors, related
links.

They are found by structure: by tag, role, class, the addresses of links and the share of linked letters.
Words decide only where a whole short line at the edge of the text is one of the usual labels ("Skriv ut",
"Ansvarlig redaktør: …").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from lxml import etree, html

from data_prep.sources.markup import local_name

INVISIBLE = {
    "script", "style", "noscript", "template", "svg", "head", "iframe", "select", "option", "datalist", "input", "textarea",
    "audio", "video", "canvas", "map", "object",
}  # fmt: skip
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
SHORT = 200  # letters: a part of the page up to this length is furniture if its class says so
SMALL_SHARE = 0.3  # of the page's letters: so much may be furniture by its class, or a form
MOSTLY_LINKS = 0.6
NAMED = 0.1  # of the page's letters: a main element with fewer is left over from a template
ONLY_LINKS = 0.85
AROUND_LINKS = 40  # letters beside links to share or follow, as in "Del denne siden på"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ROLES = {
    "navigation",
    "banner",
    "contentinfo",
    "search",
    "menu",
    "menubar",
    "toolbar",
    "dialog",
    "alertdialog",
}
_CLASSES = _words(
    """
    share sharing shares sharebar sharebuttons shareicons sharelinks social socials socialmedia socialshare socialsharing
    deling deleknapper delknapper delelenker tipsvenn smulesti pagination pager paginering consent gdpr nyhetsbrev
    toolbar skiplink skiplinks navbar navigation menu meny submenu sidemeny undermeny
    related relatedcontent relatedlinks relatert relaterte tags taglist tagcloud emneord stikkord recommended
    recommendations advert advertisement annonse promo noprint printnone hiddenprint printbutton printlink printpage
    skrivut utskrift feedback tilbakemelding subscribe byline redaktor redaktør redaktorer redaktører nettredaktor
    nettredaktør editors editorinfo ansvarligredaktor ansvarligredaktør totop backtotop tiltoppen
    """
)
# Of these, what leads to other pages is furniture: a box of this class without any link is text.
_LINKING_CLASSES = _words(
    """
    related relatedcontent relatedlinks relatert relaterte recommended recommendations
    navigation menu meny submenu sidemeny undermeny
    """
)
_SURE_CLASSES = _words(
    """
    comment comments commentlist respond kommentarer kommentarfelt disqus cookie cookies cookiebanner cookieconsent
    informasjonskapsler breadcrumb breadcrumbs brodsmuler brødsmuler brodsmulesti brødsmulesti addtoany addthis
    newsletter paywall
    """
)
NEARLY_ALL = 0.8  # of the page's letters: what holds so many is not furniture whatever its class
_PANEL = _words(
    """
    accordion accordions trekkspill collapse collapsible collapsed panel tabpanel expandable expander ekspanderbar
    details foldout readmore
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
    _SITE
    + r"(?:facebook|twitter|x|linkedin|instagram|youtube|flickr|tiktok|snapchat|vimeo|threads|bsky)\.\w+(?:/|$)",
    re.IGNORECASE,
)
_RELATED = _one_of(
    r"(?:les|se|sjå) (?:også|òg|og)",
    r"(?:andre )?relater[at]\w*",
    r"(?:andre )?relater[at]\w* (?:saker|artikler|artiklar|lenker|lenkjer|innhold|innhald|sider|dokument\w*|stoff|tema)",
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
    r"(?:ansvarlig|ansvarleg) (?:redaktør|utgiver|utgjevar|for (?:siden|sida|innhold\w*|innhald\w*|nettsi\w+))",
    r"fant du (?:det|informasjonen) du (?:lette|leitte) etter",
    r"var (?:denne )?(?:siden|sida|artikkelen|informasjonen|dette) (?:til hjelp|nyttig)",
    r"print(?: this)? page|share (?:on|this|via)\b",
)
_SENTENCE = re.compile(r"[.!?…:][\"'»”)\]]*$")
_WORD = re.compile(r"[A-ZÆØÅ]?[a-zæøå]+|[A-ZÆØÅ]+(?![a-zæøå])|\d+")


def count_letters(text: str | None) -> int:
    """Return how many letters and digits a text has, the measure of what is kept of a page."""
    return sum(map(str.isalnum, text or ""))


def is_running(text: str) -> bool:
    """Return whether a block is a sentence, or long enough to be one, and not a label."""
    return count_letters(text) >= 60 or (count_letters(text) >= 25 and _SENTENCE.search(text) is not None)


def is_label(text: str) -> bool:
    """Return whether a whole line is one of the labels around a text: to print, to share, who edits it and
    when it changed."""
    letters = count_letters(text)
    is_sentence = letters > 45 and _SENTENCE.search(text) is not None
    return letters <= 100 and not is_sentence and _LABEL.match(text.lstrip("#-*•– ")) is not None


def without_labels(lines: list[str]) -> list[int]:
    """Return the numbers of the lines that are text: all but labels before the first running text or after
    the last.

    A name below a label that ends there ("Redaktør:") goes with it.
    """
    running = [number for number, line in enumerate(lines) if is_running(line) and not is_label(line)]
    first, last = (running[0], running[-1]) if running else (len(lines), -1)
    kept: list[int] = []
    names_follow = False
    for number, line in enumerate(lines):
        at_edge = not first < number < last
        labels = at_edge and is_label(line)
        if labels or (
            at_edge and names_follow and count_letters(line) <= AROUND_LINKS and not is_running(line)
        ):
            names_follow = labels and _EDITOR.fullmatch(line.lstrip("#-*•– ").rstrip(": ")) is not None
        else:
            kept.append(number)
            names_follow = False
    return kept


def main_element(body: html.HtmlElement) -> html.HtmlElement | None:
    """Return the element that a page names as its main one, unless hardly anything stands in it."""
    letters = Furniture(body, by_class=False).letters
    named = [
        e for e in body.iter(etree.Element) if local_name(e).lower() == "main" or e.get("role") == "main"
    ]
    main = max(named, key=letters, default=None)
    return main if main is not None and letters(main) > NAMED * letters(body) else None


@dataclass(slots=True)
class _Size:
    """Letters of an element, those in links, and its links by what they lead to."""

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
    """Tells the furniture of one page from its text.

    Attributes:
        root: the page, or the part of it that is read.
        by_class: whether classes and the share of links decide too, not only tags, roles and addresses.
    """

    def __init__(self, root: html.HtmlElement, by_class: bool = True) -> None:
        self.root = root
        self.by_class = by_class
        self._sizes = _measure(root)
        self._controlled = set(_controlled(root))
        self._titles = list(root.iter("h1"))

    def letters(self, element: html.HtmlElement) -> int:
        return self._sizes[element].letters

    def skips(self, element: html.HtmlElement) -> bool:
        """Return whether an element is left out, with all that is in it."""
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
            return not self._has_running_text(element) or not _inside(
                element, ("main", "article", "blockquote", "figure")
            )
        if name == "header":
            return not (
                _inside(element, ("main", "article", "section", "figure", "li"))
                or self._has_the_only_title(element)
            )
        if not _SURE_CLASSES.isdisjoint(_words_of(element)) and self._share(element) < NEARLY_ALL:
            return True
        return self.by_class and self._is_furniture_by_class(element, name)

    def is_link_list(self, element: html.HtmlElement) -> bool:
        """Return whether an element holds several links and hardly anything else."""
        size = self._sizes[element]
        return size.links >= 2 and size.link_share > ONLY_LINKS

    def is_linked(self, element: html.HtmlElement) -> bool:
        """Return whether all that an element holds is links, or it stands in one."""
        return self._sizes[element].link_share > ONLY_LINKS or _inside(element, ("a",))

    def _is_furniture_by_class(self, element: html.HtmlElement, name: str) -> bool:
        size = self._sizes[element]
        is_minor = size.letters <= SHORT or size.link_share > MOSTLY_LINKS or self._is_small(element)
        classes = _CLASSES & _words_of(element)
        if not size.links and self._has_running_text(element):
            classes -= _LINKING_CLASSES
        named = bool(classes) and not _inside(element, ("blockquote", "figure", "table"))
        if named and is_minor:
            return True
        if name == "aside":
            return size.link_share > MOSTLY_LINKS or any(True for _ in element.iter("form"))
        if name in ("ul", "ol", "div", "section", "p"):
            return self._is_list_of_contents(element) or self._is_list_of_related(element, name)
        return name in HEADINGS and self._heads_what_is_skipped(element)

    def _is_small(self, element: html.HtmlElement) -> bool:
        return self._share(element) < SMALL_SHARE

    def _share(self, element: html.HtmlElement) -> float:
        return self.letters(element) / max(1, self.letters(self.root))

    def _is_list_of_contents(self, element: html.HtmlElement) -> bool:
        size = self._sizes[element]
        return size.anchors >= 3 and size.anchors == size.links and size.link_share > ONLY_LINKS

    def _is_list_of_related(self, element: html.HtmlElement, name: str) -> bool:
        if not self.is_link_list(element):
            headed = next((e for e in element.iter(*HEADINGS)), None) if name in ("div", "section") else None
            links = self._sizes[element].link_share
            return (
                headed is not None and links > MOSTLY_LINKS and _RELATED.fullmatch(_line(headed)) is not None
            )
        before = element.getprevious()
        return before is not None and _RELATED.fullmatch(_line(before)) is not None

    def _heads_what_is_skipped(self, heading: html.HtmlElement) -> bool:
        line = _line(heading)
        after = heading.getnext()
        if (
            after is None
            or local_name(after).lower() in HEADINGS
            or not (_RELATED.fullmatch(line) or _CONTENTS.fullmatch(line))
        ):
            return False
        return self.is_link_list(after) or self.skips(after)

    def _has_the_only_title(self, header: html.HtmlElement) -> bool:
        return len(self._titles) == 1 and header in self._titles[0].iterancestors()

    def _is_made_of_social_links(self, element: html.HtmlElement, name: str) -> bool:
        size = self._sizes[element]
        if name == "a":
            return size.share > 0
        if not size.links or size.letters - size.linked > AROUND_LINKS:
            return False
        return size.share == size.links or (size.links >= 2 and size.share + size.social == size.links)

    def _is_hidden(self, element: html.HtmlElement) -> bool:
        """Hidden elements are read where a reader can open them, as the panels of an accordion."""
        style = (element.get("style") or "").replace(" ", "").lower()
        hidden = (
            element.get("hidden") is not None
            or element.get("aria-hidden") == "true"
            or "display:none" in style
        )
        if not hidden:
            return False
        is_panel = (element.get("role") or "").lower() in ("region", "tabpanel") or not _PANEL.isdisjoint(
            _words_of(element)
        )
        return not (is_panel or element.get("id") in self._controlled or _inside(element, ("details",)))

    def _opens_text(self, button: html.HtmlElement) -> bool:
        """A button that is a heading, or opens a panel, names what stands below it."""
        line = _line(button)
        if not line or _TOGGLE.fullmatch(line):
            return False
        return (
            _inside(button, (*HEADINGS, "summary", "dt")) or button.get("aria-controls") in self._controlled
        )

    def _has_running_text(self, element: html.HtmlElement) -> bool:
        blocks = (
            e for e in element.iter("p", "li", "dd", "cite") if self._sizes[e].link_share < MOSTLY_LINKS
        )
        quoted = _inside(element, ("blockquote", "figure"))
        return quoted or any(is_running(line) and not is_label(line) for line in map(_line, blocks))


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


def _controlled(root: html.HtmlElement) -> Iterator[str]:
    """Yield the ids of what a button or a tab opens."""
    for element in root.iter(etree.Element):
        if (
            local_name(element).lower() in ("button", "a", "summary", "div", "h2", "h3", "h4")
            or element.get("role") == "tab"
        ):
            for attribute in ("aria-controls", "data-target", "data-bs-target"):
                if value := element.get(attribute):
                    yield value.lstrip("#")


def _words_of(element: html.HtmlElement) -> set[str]:
    """Words of an element's class, id and name, each alone and with its neighbour: no-print is "no", "print"
    and "noprint"."""
    words: set[str] = set()
    for attribute in ("class", "id", "aria-label", "data-component"):
        for name in (element.get(attribute) or "").split():
            parts = [part.lower() for part in _WORD.findall(name)]
            words.update(parts)
            words.update(first + second for first, second in pairwise(parts))
    return words


def _inside(element: html.HtmlElement, names: Iterable[str]) -> bool:
    return next(element.iterancestors(*names), None) is not None


def _line(element: html.HtmlElement) -> str:
    return " ".join("".join(element.itertext()).split())
