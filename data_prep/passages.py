"""Division of a text into passages and stretches, the units of language detection."""

from __future__ import annotations

from collections.abc import Iterator

# Characters of a stretch. Below 60, every tool is wrong in one text of six (sentences of UD
# treebanks); at this length, this stage is wrong in one of a hundred.
STRETCH = 200
MAX_STRETCH = 1500  # characters; longer stretches are divided at line ends
PASSAGE = 60  # bytes of the shortest passage that may have a language of its own
PARAGRAPH = 100  # bytes of a line that is a paragraph even without a blank line after it


def split_into_passages(text: str) -> Iterator[str]:
    """Yield the passages of a text, which may differ in language; joined, they are the text.

    They are paragraphs, or several short ones. Short lines are never joined with the paragraph
    below, because it may be in another language.
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
    """Return whether a line begins a paragraph that is long enough to have its own language."""
    size = len(line.encode())
    if size < PASSAGE:
        return False
    is_sentence = line.rstrip().endswith((".", "!", "?", "。", "።", "۔", "؟"))
    return size >= PARAGRAPH or is_after_blank or is_sentence


def split_into_stretches(text: str) -> Iterator[str]:
    """Yield the stretches of a text: paragraphs, or several short ones.

    Long paragraphs are divided at line ends. A short rest is joined with the last stretch.
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
