"""Division of a text into passages and stretches, the units of language detection.

Passages (paragraphs) are searched for languages far from Norwegian. The rest of the text is divided
into stretches, which are longer, to distinguish languages that are near to Norwegian.
"""

from __future__ import annotations

from collections.abc import Iterator

# Minimum characters of a stretch. For sentences of UD treebanks below 60 characters, every tool is
# wrong in one of six. At this length, stage language is wrong in one of a hundred.
STRETCH = 200
MAX_STRETCH = 1500  # characters; longer stretches are divided at line ends
PASSAGE = 60  # bytes; shorter text is joined with the text below, unless that is a paragraph
PARAGRAPH = 100  # bytes; a line of this size is a paragraph even if no blank line precedes it


def split_into_passages(text: str) -> Iterator[str]:
    """Divide a text into passages, and yield them. Passages may differ in language.

    A passage is a paragraph, or several short paragraphs in a row. Short lines are never joined
    with the paragraph below, because it may be in another language. The passages together are the
    text, followed by a line end.
    """
    piece = ""
    is_after_blank = True
    for line in text.split("\n"):
        stands_alone = _is_paragraph(line, is_after_blank)
        is_after_blank = not line
        if piece and stands_alone:
            yield piece
            piece = ""
        piece += line + "\n"
        is_end = not line or stands_alone or len(piece) >= MAX_STRETCH
        if is_end and len(piece.encode()) >= PASSAGE:
            yield piece
            piece = ""
    if piece:
        yield piece


def _is_paragraph(line: str, is_after_blank: bool) -> bool:
    """Return whether a line begins a paragraph that is long enough to have a language of its own.

    Args:
        is_after_blank: True if the line above is blank, or if there is none.
    """
    size = len(line.encode())
    if size < PASSAGE:
        return False
    is_sentence = line.rstrip().endswith((".", "!", "?", "。", "።", "۔", "؟"))
    return size >= PARAGRAPH or is_after_blank or is_sentence


def split_into_stretches(text: str) -> Iterator[str]:
    """Divide a text into stretches, and yield them.

    A stretch is a paragraph, or several short paragraphs in a row. Long paragraphs are divided at
    line ends. If the last stretch is shorter than a third of STRETCH, it is joined with the one
    before it.
    """
    stretch = gathered = ""
    for line in text.split("\n"):
        gathered += line + "\n"
        if len(gathered) >= (MAX_STRETCH if line else STRETCH):
            if stretch:
                yield stretch
            stretch = gathered
            gathered = ""
    if stretch and len(gathered) >= STRETCH // 3:
        yield stretch
        stretch = ""
    yield stretch + gathered
