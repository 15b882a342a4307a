"""Build the pages of docs/, and read their HTML: loaded files, links, anchors and text."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parent.parent
# by element: the attribute whose URL a browser loads
LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
    "link": "href",
}
LINK_KINDS_THAT_LOAD_NOTHING = {"next", "prev", "index", "search", "canonical", "author", "up"}


def build_docs(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Build the docs with the options of `make docs`. These turn warnings into errors."""
    options = ["--fail-on-warning", "--keep-going", "--nitpicky", "--quiet", "-d", f"{target}.doctrees"]
    command = [sys.executable, "-m", "sphinx", *options, str(source), str(target)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@dataclass
class PageContent:
    """The parts of a built page that tests compare.

    Attributes:
        loads: URLs of scripts, images, stylesheets and other files that a browser loads.
        links: targets of the page's links.
        anchors: names to which a link can point.
        codes: the content of each `<code>` element. Sphinx writes inline code into these
            elements, and code blocks into `<pre>`.
        text: all text of the page, without tags.
    """

    loads: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    codes: set[str] = field(default_factory=set)
    text: str = ""


class _PageParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.content = PageContent()
        self._code: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        kinds = set(values.get("rel", "").split())
        if tag in LOADS and LOADS[tag] in values and not kinds & LINK_KINDS_THAT_LOAD_NOTHING:
            self.content.loads.append(values[LOADS[tag]])
        if tag == "code":
            self._code = []
        if tag == "a" and "href" in values:
            self.content.links.append(values["href"])
        self.content.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.content.loads += css_urls(values.get("style", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "code" and self._code is not None:
            self.content.codes.add("".join(self._code))
            self._code = None

    def handle_data(self, data: str) -> None:
        self.content.text += data
        if self._code is not None:
            self._code.append(data)


def parse_page(path: Path) -> PageContent:
    """Return the parts of a built page that tests compare."""
    parser = _PageParser()
    parser.feed(path.read_text("utf-8"))
    return parser.content


def css_urls(text: str) -> list[str]:
    """Return the URLs that a stylesheet loads."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    urls = re.findall(r"""url\(\s*["']?([^"')]+)""", text)
    return urls + re.findall(r"""@import\s+["']([^"']+)""", text)


def is_external(url: str) -> bool:
    """Return whether a URL leads to another host. A data URL does not: it contains its content."""
    return bool(urlsplit(url).netloc) or urlsplit(url).scheme not in ("", "data")


def external_loads(built: Path) -> list[str]:
    """Return the URLs that built pages and stylesheets load from other hosts, as `file: URL`."""
    found = []
    for path in sorted(built.rglob("*.html")):
        found += [(path, url) for url in parse_page(path).loads]
    for path in sorted(built.rglob("*.css")):
        found += [(path, url) for url in css_urls(path.read_text("utf-8"))]
    return [f"{path.relative_to(built)}: {url}" for path, url in found if is_external(url)]


def broken_links(built: Path) -> list[str]:
    """Return the links to pages or anchors that the built docs do not have, as `page: link`."""
    pages = {path: parse_page(path) for path in sorted(built.rglob("*.html"))}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path
            if parts.path:
                target = (path.parent / unquote(parts.path)).resolve()
            is_there = target.is_file()
            if is_there and parts.fragment and target in pages:
                is_there = unquote(parts.fragment) in pages[target].anchors
            if not is_there:
                broken.append(f"{path.relative_to(built)}: {link}")
    return broken
