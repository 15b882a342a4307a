"""Functions that write PDF files from pieces of text with a position, size and weight."""

from __future__ import annotations

from dataclasses import dataclass

LEADING = 14  # distance of lines in points


@dataclass
class Piece:
    """A piece of text on a page.

    Attributes:
        x: left edge, in points from the page's left edge.
        y: baseline, in points from the page's bottom.
        size: font size in points.
    """

    x: float
    y: float
    text: str
    size: float = 11
    bold: bool = False


def column(lines: list[str], x: float = 72, top: float = 760, size: float = 11) -> list[Piece]:
    """Return a piece for each line of a column. Lines are LEADING points apart.

    Args:
        x: left edge of the column.
        top: baseline of the first line.
        size: font size.
    """
    return [Piece(x, top - LEADING * number, line, size) for number, line in enumerate(lines)]


def make_pdf(pages: list[list[Piece]], picture: bool = False) -> bytes:
    """Return a PDF file of A4 pages.

    Args:
        picture: draw a picture on each page that has no pieces, so that it resembles a scanned
            page.
    """
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica-Bold /Encoding /WinAnsiEncoding >>",
        b"<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray "
        b"/BitsPerComponent 8 /Length 1 >>\nstream\n\x00\nendstream",
    ]
    resources = b"<< /Font << /F1 3 0 R /F2 4 0 R >> /XObject << /I 5 0 R >> >>"
    kids = []
    for pieces in pages:
        stream = b"".join(map(_show, pieces)) or (b"595 0 0 842 0 0 cm /I Do" if picture else b"")
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents %d 0 R /Resources %s >>"
        objects.append(page % (len(objects), resources))
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    return _write(objects)


def _show(piece: Piece) -> bytes:
    text = piece.text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)").encode("cp1252")
    font = 2 if piece.bold else 1
    return b"BT /F%d %g Tf %g %g Td (%s) Tj ET\n" % (font, piece.size, piece.x, piece.y, text)


def _write(objects: list[bytes]) -> bytes:
    out = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    table += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF"
    return out + table + trailer % (len(objects) + 1, len(out))
