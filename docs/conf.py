"""Settings of Sphinx for the pages of this folder; `make docs` builds them into build/docs.

Nothing in the built pages is loaded from another host: the theme brings its own stylesheets and scripts,
and uses the reader's fonts.
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
sys.path[:0] = [str(DOCS), str(ROOT), str(ROOT / "src")]

from generate.pages import write_pages  # noqa: E402 (it lies beside this file)

project = "finetune"
copyright = "the finetune authors, Apache-2.0"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_static"]
suppress_warnings = ["misc.highlighting_failure"]  # examples are shortened with "…"

smartquotes = False  # they would turn --option into –option
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

LINK = re.compile(r"\]\((?!https?:|mailto:|#|/)([^)\s]+)\)")
FENCE = re.compile(r"^ *(```|~~~)")


def move_links(text: str, folder: Path) -> str:
    """Return a page that lies outside docs/ with its links as they must be in a page of docs/.

    Args:
        folder: where the page lies, relative to docs/.
    """
    lines = []
    is_code = False
    for line in text.splitlines():
        if FENCE.match(line):
            is_code = not is_code
        lines.append(line if is_code else LINK.sub(partial(_move_link, folder), line))
    return "\n".join(lines) + "\n"


def _move_link(folder: Path, found: re.Match[str]) -> str:
    target = os.path.normpath(folder / found[1])
    return f"]({target.removeprefix('../docs/')})"


def _move_links_of_included(app: Sphinx, path: Path, docname: str, content: list[str]) -> None:
    """Mend the links of an included file that lies outside docs/."""
    if path.parts[0] == "..":
        content[0] = move_links(content[0], path.parent)


def setup(app: Sphinx) -> None:
    """Write the reference pages, and connect what mends included pages."""
    write_pages(DOCS / "reference")
    app.connect("include-read", _move_links_of_included)
