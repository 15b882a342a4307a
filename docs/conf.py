"""Settings of Sphinx for the pages of this folder; `make docs` builds them into build/docs.

Nothing in the built pages is loaded from another host: the theme brings its own stylesheets and
scripts, and uses the reader's fonts.
"""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from docs.generate.pages import write_pages  # noqa: E402

project = "finetune"
copyright = "the finetune authors, Apache-2.0"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_static"]
# Some examples contain "…", which a highlighter may not accept.
suppress_warnings = ["misc.highlighting_failure"]

smartquotes = False  # otherwise --option would become –option
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]

html_theme = "furo"
html_title = "finetune"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

LINK = re.compile(r"\]\((?!https?:|mailto:|path:|#|/)([^)\s#]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"^ *(```|~~~)")
# Files outside docs/ that are pages of the documentation.
PAGES_ABOVE = {
    "../ARCHITECTURE.md": "architecture.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
}


def move_links(text: str, folder: str, page_folder: str) -> str:
    """Return a Markdown text, with its relative links rewritten for a page of docs/.

    Args:
        folder: the folder of the text, relative to docs/: ".." is the root of the repository.
        page_folder: the folder of the page that shows the text, relative to docs/.
    """
    lines = []
    is_code = False
    for line in text.splitlines():
        if FENCE.match(line):
            is_code = not is_code
        if not is_code:
            line = LINK.sub(partial(_move_link, folder, page_folder), line)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _move_link(folder: str, page_folder: str, found: re.Match[str]) -> str:
    """Return a link with a new path, for the page that shows it.

    The link leads to a page, or to a file outside docs/. Sphinx copies such a file to build/docs.

    Args:
        folder, page_folder: as in `move_links`.
        found: match of the link.
    """
    place = os.path.normpath(f"{folder}/{found[1]}").removeprefix("../docs/")
    place = PAGES_ABOVE.get(place, place)
    link = os.path.relpath(place, page_folder) + (found[2] or "")
    if place.startswith("../"):
        link = f"path:{link}"
    return f"]({link})"


def _move_links_of_page(app: Sphinx, docname: str, content: list[str]) -> None:
    folder = str(Path(docname).parent)
    content[0] = move_links(content[0], folder, folder)


def _move_links_of_included(app: Sphinx, path: Path, docname: str, content: list[str]) -> None:
    content[0] = move_links(content[0], str(path.parent), ".")


def setup(app: Sphinx) -> None:
    """Write the generated pages, and register the functions that rewrite links between folders."""
    write_pages(DOCS)
    app.connect("source-read", _move_links_of_page)
    app.connect("include-read", _move_links_of_included)
