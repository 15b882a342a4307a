"""Markdown documentation, also as Jekyll builds sites from it: one document a file, a folder's files are a
group.

Kept: headings with their marks, lists, tables, footnotes, code as it stands, titles and captions that
template tags carry. Out: front matter (its title becomes the first heading if the text has none of its own),
comments, HTML tags, template tags around their text, contents; links and pictures are reduced to their text,
rules of tables to their least. A paragraph is one line, as on the page, wherever its source broke it. Values
that a template would put in are taken from the front matter, or counted as left out.
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
# What may run on and on ends at its own next opening, or is bounded: a page of nothing but openings must not
# take hours.
_HIGHLIGHT = re.compile(
    r"\{%-?\s{0,20}highlight\s{0,20}(\w*+)[^%]{0,200}%\}((?:(?!\{%-?\s{0,20}(?:end)?highlight).){0,50000}+)"
    r"\{%-?\s{0,20}endhighlight\s{0,20}-?%\}",
    re.DOTALL,
)
# A fence closes with at least as many marks as it opened with; one that never closes runs to the end.
_FENCE = re.compile(
    r"^([ \t]*)(`{3,}+|~{3,}+)[^\n]*+\n.*?(?:^[ \t]*\2[`~]*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_INLINE_CODE = re.compile(r"(?<!`)(`{1,20}+)(?!`).{1,2000}?(?<!`)\1(?!`)")
_ITEM = re.compile(r"\s*(?:[-*+]|\d+[.)])[ \t]")
_ALONE = re.compile(
    r"\s*(?:[#>|<:{]|!!!|\?\?\?|\[[^\]\n]+\]:|=+\s*$|-+\s*$|\*{3,}|_{3,})"
)  # begins what no line can go on with, or be part of
_TABLE_RULE = re.compile(r"^(?=.*\|)[ \t|:-]+$", re.MULTILINE)
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_RAW = re.compile(
    r"\{%-?\s{0,20}raw\s{0,20}-?%\}((?:(?!\{%-?\s{0,20}(?:end)?raw\b).){0,50000}+)\{%-?\s{0,20}endraw\s{0,20}-?%\}",
    re.DOTALL,
)
_VALUE = re.compile(r"\{\{-?\s{0,20}([\w.-]{1,100})(?:\s{0,20}\|[^{}]{0,200})?\s{0,20}-?\}\}")
# Template tags of Jekyll ({% … %}, {{ … }}) and of Hugo ({{< … >}}, {{% … %}}).
_SHORTCODE = re.compile(r"\{\{[<%](?:(?!\{\{[<%]).){0,2000}?[>%]\}\}", re.DOTALL)
_TEMPLATE = re.compile(r"\{[%{](?:(?!\{[%{]).){0,4000}?[%}]\}", re.DOTALL)
# What such a tag shows of itself.
_SHOWN = re.compile(
    r"\b(?:content|text|title|caption|message|summary)\s{0,20}=\s{0,20}(?:\"([^\"]{1,4000})\"|'([^']{1,4000})')",
    re.IGNORECASE,
)
_REDUCTIONS = (
    (
        re.compile(r"^[ \t]*(?:[-*+]|\d+\.)[^\n]*\n[ \t]*\{:[ \t]*toc[^}\n]*\}[ \t]*$", re.MULTILINE),
        "",
    ),  # kramdown's contents
    (
        re.compile(
            r"^[ \t]*\[(?!\^)[^\]\n]+\]:[ \t]+\S+(?:[ \t]+(?:\"[^\"\n]*\"|'[^'\n]*'|\([^()\n]*\)))?[ \t]*$",
            re.MULTILINE,
        ),
        "",
    ),  # what [text][name] refers to
    (
        re.compile(r"!\[((?:(?!!\[)[^\]]){0,1000})\]\((?:[^()]|\([^()]{0,500}\)){0,2000}\)(?:\{[^{}\n]*\})?"),
        r"\1",
    ),
    (
        re.compile(
            r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]{0,200}\]){1,1000})\]"
            r"\((?:[^()\n]|\([^()\n]{0,500}\)){0,2000}\)(?:\{[^{}\n]*\})?"
        ),
        r"\1",
    ),
    (re.compile(r"\[([^\[\]\n]+)\]\[[^\[\]\n]*\]"), r"\1"),
    (re.compile(r"<(https?://[^<>\s]+|[\w.+-]+@[\w.-]+)>"), r"\1"),
    (re.compile(r"(?<![ \t])[ \t]*+\{[:#][^{}\n]*\}[ \t]*$", re.MULTILINE), ""),  # kramdown's attributes
    (re.compile(r"<code>((?:(?!<code>).){0,20000}?)</code>", re.DOTALL | re.IGNORECASE), r"`\1`"),
    (re.compile(r"<(script|style)\b(?:(?!<\1\b).){0,20000}?</\1>", re.DOTALL | re.IGNORECASE), ""),
    (
        re.compile(
            r"<img\b[^<>]{0,2000}?\balt\s*=\s*(?:\"([^\"<>]{0,1000})\"|'([^'<>]{0,1000})')[^<>]*>",
            re.IGNORECASE,
        ),
        r"\1\2",
    ),
    (
        re.compile(
            r"</?(?:a|abbr|b|cite|col|dfn|em|font|i|iframe|img|kbd|mark|nobr|notextt?ile|picture|q|s|samp|small|source|span|strong|sub|"
            r"sup|time|u|var|video)(?=[\s/>])[^<>]*>",
            re.IGNORECASE,
        ),
        "",
    ),
)
_TAG_OF_ITEM = re.compile(r"<li(?=[\s/>])[^<>]*>\s*$")
_TAG_OF_CELL = re.compile(r"<t[dh](?=[\s/>])")
# Tags of blocks, one or several on end: what stands before them and after them are two blocks.
_BLOCK_TAGS = re.compile(
    r"(?:</?(?:address|article|aside|blockquote|body|br|caption|center|colgroup|dd|details|div|dl|dt|fieldset|figcaption|figure|footer|"
    r"h[1-6]|header|hr|html|legend|li|main|nav|ol|p|pre|section|summary|table|tbody|td|tfoot|th|thead|tr|ul)"
    r"(?=[\s/>])[^<>]*>[ \t]*+)++",
    re.IGNORECASE,
)


def list_files(source: SourceConfig) -> list[Path]:
    return find_files(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    for place, raw in iter_contents(name, source, report, paths, SUFFIXES):
        with report.quarantining(place):
            text, front = reduce(decode(raw, report), report)
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


def reduce(text: str, report: Report) -> tuple[str, dict[str, str]]:
    """Return what a reader of the page would read, and its front matter."""
    text, front = _without_front_matter(text.replace("\r\n", "\n"))
    text = _HIGHLIGHT.sub(lambda match: f"```{match[1]}\n{match[2].strip(chr(10))}\n```", text)
    pieces, at = [], 0
    for fence in _FENCE.finditer(text):
        pieces += [_prose(text[at : fence.start()], front, report), fence[0]]
        at = fence.end()
    text = "".join([*pieces, _prose(text[at:], front, report)])
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip(), front


def _without_front_matter(text: str) -> tuple[str, dict[str, str]]:
    for block, pair in ((_FRONT, _KEY), (_TOML_FRONT, _TOML_KEY)):
        if match := block.match(text):
            front = {key.lower(): value.rstrip(" \t").strip("\"'") for key, value in pair.findall(match[1])}
            return text[match.end() :], front
    return text, {}


def _prose(text: str, front: dict[str, str], report: Report) -> str:
    code: list[str] = []

    def keep(kept: str) -> str:
        code.append(kept)
        return f"\0{len(code) - 1}\0"

    text = _RAW.sub(lambda match: keep(match[1]), text.replace("\0", ""))
    text = _INLINE_CODE.sub(lambda match: keep(match[0]), _unwrapped(text))
    # In a table row a line break would end the row.
    text = "\n".join(
        _LINE_BREAK.sub(" " if line.lstrip().startswith("|") else "\n", line) for line in text.split("\n")
    )
    text = _without_template_tags(_without_comments(text), front, report)
    for pattern, replacement in _REDUCTIONS:
        text = pattern.sub(replacement, text)
    text = "\n".join(_part_blocks(line) for line in text.split("\n"))
    try:
        text = html.unescape(text)
    except ValueError:  # of thousands of digits
        raise Unreadable("a numeric reference to no character") from None
    text = _TABLE_RULE.sub(lambda match: re.sub("-{4,}", "---", match[0]), text)
    return re.sub(r"\0(\d+)\0", lambda match: code[int(match[1])], text)


def _without_template_tags(text: str, front: dict[str, str], report: Report) -> str:
    """Put in what the front matter says ({{ page.title }}), and reduce other tags to the titles and captions
    that they carry."""

    def value(match: re.Match[str]) -> str:
        name = match[1].removeprefix("page.").lower()
        if match[1].startswith("page.") and name in front:
            return front[name]
        if match.string[match.start() - 1 : match.start()] not in (
            "(",
            '"',
            "'",
            "/",
        ):  # of an address, which no reader sees
            report.counts["template_values_left_out"] += 1
        return ""

    def shown(match: re.Match[str]) -> str:
        text = ": ".join(double or single for double, single in _SHOWN.findall(match[0]))
        return f"{text} " if text and match.string[match.end() : match.end() + 1].strip() else text

    return _TEMPLATE.sub(shown, _SHORTCODE.sub(shown, _VALUE.sub(value, text)))


def _part_blocks(line: str) -> str:
    """Take the tags of blocks out of a line, and part what stands between them: by line ends, in a table row
    by spaces and bullets."""
    in_row = line.lstrip().startswith("|")
    first, last = len(line) - len(line.lstrip()), len(line.rstrip())

    def between(match: re.Match[str]) -> str:
        tags = match[0].lower()
        item = _TAG_OF_ITEM.search(tags) is not None
        if in_row:
            space = "" if line[match.start() - 1] in " |" else " "
            return f"{space}• " if item else space
        if match.start() <= first or match.end() >= last:
            return "- " if item and match.end() < last else ""
        if _TAG_OF_CELL.search(tags) and "<tr" not in tags:
            return " | • " if item else " | "
        return "\n- " if item else "\n"

    return _BLOCK_TAGS.sub(between, line)


def _unwrapped(text: str) -> str:
    """Each paragraph and list item as one line: a line end in it is a space, unless two spaces or a backslash
    stand before it."""
    lines: list[list[str]] = []  # of pieces each
    goes_on = blank = code = False
    for line in text.split("\n"):
        alone = "|" in line or _ALONE.match(line) is not None
        item = not alone and _ITEM.match(line) is not None
        code = (code or blank) and not item and line.startswith(("    ", "\t"))
        blank = not line.strip()
        if goes_on and not (blank or alone or item):
            lines[-1][-1] = lines[-1][-1].rstrip()
            lines[-1].append(line.lstrip())
        else:
            lines.append([line])
        goes_on = not (blank or alone or code or line.endswith(("  ", "\\")))
    return "\n".join(map(" ".join, lines))


def _without_comments(text: str) -> str:
    """A comment that never ends is none."""
    pieces, at = [], 0
    while (start := text.find("<!--", at)) >= 0 and (end := text.find("-->", start)) >= 0:
        pieces.append(text[at:start])
        at = end + 3
    return "".join([*pieces, text[at:]])
