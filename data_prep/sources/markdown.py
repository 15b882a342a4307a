"""Reader of Markdown documentation, including sources of Jekyll and Hugo sites.

Each file is one document. The files of a folder form a group, which a split keeps together.

Headings, lists, tables, footnotes and code are kept as Markdown. Code is not changed. Links and
pictures are reduced to their text. The line of hyphens below a table's header is shortened to at
most three hyphens per column. A paragraph becomes one line.

Front matter, comments, HTML tags and tables of contents are removed. If the text does not begin
with a heading, the front matter's title becomes its heading. Template tags are reduced to the
titles, captions and other texts that they show. A tag that would insert a value is replaced by that
value from the front matter. If the front matter does not have the value, the tag is removed, and
the report counts it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.config import SourceConfig
from data_prep.document import Document, Report, Unreadable
from data_prep.sources import claims
from data_prep.sources.files import decode, find_files, id_from_place, iter_contents

SUFFIXES = (".md", ".markdown", ".mdx")

_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_TOML_FRONT = re.compile(r"\A\+\+\+[ \t]*\r?\n(.*?)\r?\n\+\+\+[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_TOML_KEY = re.compile(r"^(\w+)[ \t]*=[ \t]*([^ \t\n].*)$", re.MULTILINE)
_KEY = re.compile(r"^(\w+)[ \t]*:[ \t]*([^ \t\n].*)$", re.MULTILINE)
# In the patterns below, repetitions are bounded, or end at the next opening of the same construct.
# Otherwise, a page that contains many openings would take hours.
_HIGHLIGHT = re.compile(
    r"\{%-?\s{0,20}highlight\s{0,20}(\w*+)[^%]{0,200}%\}((?:(?!\{%-?\s{0,20}(?:end)?highlight).){0,50000}+)"
    r"\{%-?\s{0,20}endhighlight\s{0,20}-?%\}",
    re.DOTALL,
)
# A code fence is closed by at least as many characters as it was opened with. Without a closing
# fence, the code extends to the end of the text.
_FENCE = re.compile(
    r"^([ \t]*)(`{3,}+|~{3,}+)[^\n]*+\n.*?(?:^[ \t]*\2[`~]*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_INLINE_CODE = re.compile(r"(?<!`)(`{1,20}+)(?!`).{1,2000}?(?<!`)\1(?!`)")
_ITEM = re.compile(r"\s*(?:[-*+]|\d+[.)])[ \t]")
# Beginning of a line that is not joined to the lines before and after it, such as a heading.
_SINGLE_LINE = re.compile(r"\s*(?:[#>|<:{]|!!!|\?\?\?|\[[^\]\n]+\]:|=+\s*$|-+\s*$|\*{3,}|_{3,})")
_TABLE_RULE = re.compile(r"^(?=.*\|)[ \t|:-]+$", re.MULTILINE)
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_RAW = re.compile(
    r"\{%-?\s{0,20}raw\s{0,20}-?%\}((?:(?!\{%-?\s{0,20}(?:end)?raw\b).){0,50000}+)"
    r"\{%-?\s{0,20}endraw\s{0,20}-?%\}",
    re.DOTALL,
)
_VALUE = re.compile(r"\{\{-?\s{0,20}([\w.-]{1,100})(?:\s{0,20}\|[^{}]{0,200})?\s{0,20}-?\}\}")
# Template tags of Jekyll ({% … %}, {{ … }}) and of Hugo ({{< … >}}, {{% … %}}).
_SHORTCODE = re.compile(r"\{\{[<%](?:(?!\{\{[<%]).){0,2000}?[>%]\}\}", re.DOTALL)
_TEMPLATE = re.compile(r"\{[%{](?:(?!\{[%{]).){0,4000}?[%}]\}", re.DOTALL)
# An attribute of a template tag whose value the page shows.
_SHOWN = re.compile(
    r"\b(?:content|text|title|caption|message|summary)\s{0,20}=\s{0,20}"
    r"(?:\"([^\"]{1,4000})\"|'([^']{1,4000})')",
    re.IGNORECASE,
)
_KRAMDOWN_CONTENTS = re.compile(
    r"^[ \t]*(?:[-*+]|\d+\.)[^\n]*\n[ \t]*\{:[ \t]*toc[^}\n]*\}[ \t]*$", re.MULTILINE
)
_KRAMDOWN_ATTRIBUTES = re.compile(r"(?<![ \t])[ \t]*+\{[:#][^{}\n]*\}[ \t]*$", re.MULTILINE)
_LINK_DEFINITION = re.compile(  # the address of links written as [text][name]
    r"^[ \t]*\[(?!\^)[^\]\n]+\]:[ \t]+\S+(?:[ \t]+(?:\"[^\"\n]*\"|'[^'\n]*'|\([^()\n]*\)))?[ \t]*$",
    re.MULTILINE,
)
_PICTURE = re.compile(
    r"!\[((?:(?!!\[)[^\]]){0,1000})\]\((?:[^()]|\([^()]{0,500}\)){0,2000}\)(?:\{[^{}\n]*\})?"
)
_LINK = re.compile(
    r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]{0,200}\]){1,1000})\]"
    r"\((?:[^()\n]|\([^()\n]{0,500}\)){0,2000}\)(?:\{[^{}\n]*\})?"
)
_REFERENCE_LINK = re.compile(r"\[([^\[\]\n]+)\]\[[^\[\]\n]*\]")
_AUTOLINK = re.compile(r"<(https?://[^<>\s]+|[\w.+-]+@[\w.-]+)>")
_CODE_TAG = re.compile(r"<code>((?:(?!<code>).){0,20000}?)</code>", re.DOTALL | re.IGNORECASE)
_SCRIPT = re.compile(r"<(script|style)\b(?:(?!<\1\b).){0,20000}?</\1>", re.DOTALL | re.IGNORECASE)
_IMG_ALT = re.compile(
    r"<img\b[^<>]{0,2000}?\balt\s*=\s*(?:\"([^\"<>]{0,1000})\"|'([^'<>]{0,1000})')[^<>]*>",
    re.IGNORECASE,
)
_INLINE_TAG = re.compile(
    r"</?(?:a|abbr|b|cite|col|dfn|em|font|i|iframe|img|kbd|mark|nobr|notextt?ile|picture|q|s|samp|small"
    r"|source|span|strong|sub|sup|time|u|var|video)(?=[\s/>])[^<>]*>",
    re.IGNORECASE,
)
_REDUCTIONS = (
    (_KRAMDOWN_CONTENTS, ""),
    (_LINK_DEFINITION, ""),
    (_PICTURE, r"\1"),
    (_LINK, r"\1"),
    (_REFERENCE_LINK, r"\1"),
    (_AUTOLINK, r"\1"),
    (_KRAMDOWN_ATTRIBUTES, ""),
    (_CODE_TAG, r"`\1`"),
    (_SCRIPT, ""),
    (_IMG_ALT, r"\1\2"),
    (_INLINE_TAG, ""),
)
_TAG_OF_ITEM = re.compile(r"<li(?=[\s/>])[^<>]*>\s*$")
_TAG_OF_CELL = re.compile(r"<t[dh](?=[\s/>])")
# One or more tags of block elements in sequence. They separate the text before and after them.
_BLOCK_TAGS = re.compile(
    r"(?:</?(?:address|article|aside|blockquote|body|br|caption|center|colgroup|dd|details|div|dl|dt"
    r"|fieldset|figcaption|figure|footer|h[1-6]|header|hr|html|legend|li|main|nav|ol|p|pre|section|summary"
    r"|table|tbody|td|tfoot|th|thead|tr|ul)(?=[\s/>])[^<>]*>[ \t]*+)++",
    re.IGNORECASE,
)


def list_files(source: SourceConfig) -> list[Path]:
    return find_files(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    for place, raw in iter_contents(name, source, report, paths, SUFFIXES):
        with report.quarantining(place):
            text, front = simplify(decode(raw, report), report)
            heading = re.match(r"#+[ \t]+(.+)", text)
            title = front.get("title") or (heading[1] if heading else "")
            if title and not heading:
                text = f"# {title}\n\n{text}"
            document_id = id_from_place(place)
            yield Document(
                id=document_id,
                text=text,
                title=title,
                source=name,
                license=source.license,
                date=claims.parse_date(front.get("date")),
                language=claims.parse_language(front.get("lang") or front.get("language")),
                group=document_id.rpartition("/")[0] or document_id,
            )


def simplify(text: str, report: Report) -> tuple[str, dict[str, str]]:
    """Return the text that the rendered page would show, as Markdown, and the front matter."""
    text, front = _split_front_matter(text.replace("\r\n", "\n"))
    text = _HIGHLIGHT.sub(lambda match: f"```{match[1]}\n{match[2].strip(chr(10))}\n```", text)
    pieces = []
    end = 0  # end of the last fenced code
    for fence in _FENCE.finditer(text):
        pieces += [_simplify_prose(text[end : fence.start()], front, report), fence[0]]
        end = fence.end()
    text = "".join([*pieces, _simplify_prose(text[end:], front, report)])
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip(), front


def _split_front_matter(text: str) -> tuple[str, dict[str, str]]:
    for block, pair in ((_FRONT, _KEY), (_TOML_FRONT, _TOML_KEY)):
        match = block.match(text)
        if match:
            front = {key.lower(): value.rstrip(" \t").strip("\"'") for key, value in pair.findall(match[1])}
            return text[match.end() :], front
    return text, {}


def _simplify_prose(text: str, front: dict[str, str], report: Report) -> str:
    """Reduce text outside code fences to what the page shows; inline code is kept unchanged."""
    code: list[str] = []

    def set_aside(unchanged: str) -> str:
        code.append(unchanged)
        return f"\0{len(code) - 1}\0"

    text = _RAW.sub(lambda match: set_aside(match[1]), text.replace("\0", ""))
    text = _INLINE_CODE.sub(lambda match: set_aside(match[0]), _unwrap(text))
    text = "\n".join(map(_replace_line_breaks, text.split("\n")))
    text = _replace_template_tags(_remove_comments(text), front, report)
    for pattern, replacement in _REDUCTIONS:
        text = pattern.sub(replacement, text)
    text = "\n".join(map(_replace_block_tags, text.split("\n")))
    try:
        text = html.unescape(text)
    except ValueError:  # a numeric character reference of thousands of digits
        raise Unreadable("contains a numeric character reference with too many digits") from None
    text = _TABLE_RULE.sub(lambda match: re.sub("-{4,}", "---", match[0]), text)
    return re.sub(r"\0(\d+)\0", lambda match: code[int(match[1])], text)


def _replace_line_breaks(line: str) -> str:
    """Replace <br> by line ends; in a table row, by spaces."""
    is_row = line.lstrip().startswith("|")
    return _LINE_BREAK.sub(" " if is_row else "\n", line)


def _replace_template_tags(text: str, front: dict[str, str], report: Report) -> str:
    """Replace tags such as {{ page.title }} by the front matter's values; return the text.

    If the front matter does not have the value, the tag is removed. The report counts these tags,
    unless they are in an address. All other template tags are reduced to the attributes that a page
    shows (title, caption, text …).
    """

    def replace_value(match: re.Match[str]) -> str:
        name = match[1].removeprefix("page.").lower()
        if match[1].startswith("page.") and name in front:
            return front[name]
        before = match.string[match.start() - 1 : match.start()]
        is_in_address = before in ("(", '"', "'", "/")
        if not is_in_address:  # addresses are removed later, so nothing is lost
            report.counts["template_values_left_out"] += 1
        return ""

    def replace_tag(match: re.Match[str]) -> str:
        text = ": ".join(double or single for double, single in _SHOWN.findall(match[0]))
        after = match.string[match.end() : match.end() + 1]
        if text and after.strip():
            text += " "
        return text

    text = _VALUE.sub(replace_value, text)
    return _TEMPLATE.sub(replace_tag, _SHORTCODE.sub(replace_tag, text))


def _replace_block_tags(line: str) -> str:
    """Replace tags of block elements by line ends; in a table row, by spaces. List items get bullets."""
    is_row = line.lstrip().startswith("|")
    first = len(line) - len(line.lstrip())
    last = len(line.rstrip())

    def replace_tags(match: re.Match[str]) -> str:
        tags = match[0].lower()
        is_item = _TAG_OF_ITEM.search(tags) is not None
        bullet = "- "
        if is_row:
            bullet = "• "
            separator = "" if line[match.start() - 1] in " |" else " "
        elif match.end() >= last:
            return ""
        elif match.start() <= first:
            separator = ""
        elif _TAG_OF_CELL.search(tags) and "<tr" not in tags:
            bullet = "• "
            separator = " | "
        else:
            separator = "\n"
        return f"{separator}{bullet}" if is_item else separator

    return _BLOCK_TAGS.sub(replace_tags, line)


def _unwrap(text: str) -> str:
    """Join the lines of each paragraph and list item to one line.

    A line end after two spaces or a backslash is kept, because it is a line break on the page.
    """
    lines: list[list[str]] = []  # the pieces of each line
    continues = False  # true if the next line may be joined to the previous one
    is_blank = False
    is_code = False
    for line in text.split("\n"):
        is_single = "|" in line or _SINGLE_LINE.match(line) is not None
        is_item = not is_single and _ITEM.match(line) is not None
        is_code = (is_code or is_blank) and not is_item and line.startswith(("    ", "\t"))
        is_blank = not line.strip()
        if continues and not (is_blank or is_single or is_item):
            lines[-1][-1] = lines[-1][-1].rstrip()
            lines[-1].append(line.lstrip())
        else:
            lines.append([line])
        continues = not (is_blank or is_single or is_code or line.endswith(("  ", "\\")))
    return "\n".join(map(" ".join, lines))


def _remove_comments(text: str) -> str:
    """Remove HTML comments from a text. A comment that is not closed is kept as text."""
    pieces = []
    end = 0  # end of the last comment
    while True:
        start = text.find("<!--", end)
        close = text.find("-->", start)
        if start < 0 or close < 0:
            break
        pieces.append(text[end:start])
        end = close + len("-->")
    return "".join([*pieces, text[end:]])
