"""Untrusted archives and compressed files: good members are read, and others are quarantined."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import random
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.containers.streams import zstd
from tests.data_prep.reading import broken_places, read, texts

LETTERS = {
    "a.txt": "Vedtaket kan påklages innen tre uker.",
    "mappe/b.txt": "Kommunen svarar på søknaden.",
}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
}


def make_tar(members: dict[str, str | bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def make_zip(members: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def make_special_member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


def make_json_lines(count: int, text: str = "Vedtaket kan påklages.") -> bytes:
    records = [{"id": str(n), "text": f"{n} {text}"} for n in range(count)]
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


# --- compression and nesting change nothing


@pytest.mark.parametrize("name", ["docs", "docs.lying.gz", "docs.lying.zip", "docs.tar"])
@pytest.mark.parametrize("compression", [None, *COMPRESS])
def test_a_tar_archive_is_read_whatever_its_compression_and_name(
    tmp_path: Path, compression: str | None, name: str
) -> None:
    data = make_tar(LETTERS)  # type: ignore[arg-type]
    (tmp_path / name).write_bytes(COMPRESS[compression](data) if compression else data)
    documents, report = read("text", tmp_path / name)
    assert texts(documents) == list(LETTERS.values())
    assert [d.id.partition(":")[2] for d in documents] == ["a", "mappe/b"]
    assert not report.broken


@pytest.mark.parametrize("compression", [None, *COMPRESS])
def test_json_lines_are_read_whatever_their_compression(tmp_path: Path, compression: str | None) -> None:
    data = make_json_lines(50)
    if compression:
        (tmp_path / f"a.jsonl.{compression}").write_bytes(COMPRESS[compression](data))
    else:
        (tmp_path / "a.jsonl").write_bytes(data)
    documents, report = read("jsonl", tmp_path)
    assert [d.id for d in documents] == [str(n) for n in range(50)]
    assert not report.broken


def test_nested_archives_are_read_and_ids_name_the_member(tmp_path: Path) -> None:
    inner = make_zip(
        {
            "c.txt.gz": gzip.compress(b"Inst i alt."),
            "bilde.png": b"\x89PNG....",
            "__MACOSX/._c.txt": b"\0\1",
        }
    )
    (tmp_path / "alt.tar").write_bytes(make_tar({"ytre.txt": "Ytterst.", "indre.zip": inner}))
    documents, report = read("text", tmp_path)
    assert [(d.id, d.text) for d in documents] == [
        ("alt.tar:ytre", "Ytterst."),
        ("alt.tar:indre.zip:c", "Inst i alt."),
    ]
    assert report.counts["members_of_other_kinds"] == 2
    assert not report.broken


def test_reading_a_file_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").write_bytes(
            b'{"text": "En."}\n' + f'{{"text": "{folder}"}}\n'.encode()
        )
    together, _ = read("jsonl", tmp_path)
    assert [d.id for d in together] == ["x/a.jsonl:1", "x/a.jsonl:2", "y/a.jsonl:1", "y/a.jsonl:2"]
    (tmp_path / "x" / "a.jsonl").unlink()
    assert read("jsonl", tmp_path)[0] == together[2:]


# --- truncated and damaged files


@pytest.mark.parametrize("compression", COMPRESS)
def test_lines_before_a_truncation_are_kept(tmp_path: Path, compression: str) -> None:
    noise = random.Random(0)
    records = [
        json.dumps({"id": str(n), "text": str(noise.random())}).encode() + b"\n" for n in range(30_000)
    ]
    whole = COMPRESS[compression](b"".join(records))
    (tmp_path / "a.jsonl").write_bytes(whole[: len(whole) * 2 // 3])
    documents, report = read("jsonl", tmp_path)
    assert [d.id for d in documents] == [str(n) for n in range(len(documents))]
    # bzip2 compresses blocks of 900 kB, so it may lose all lines of the first
    at_least = 0 if compression == "bz2" else 10_000
    assert at_least < len(documents) < 22_500
    ((place, error),) = broken_places(report)
    assert place == f"a.jsonl:line {len(documents) + 1}"
    assert "truncated or corrupt" in error
    assert report.counts["broken_off"] == 1


@pytest.mark.parametrize("compression", [None, "gz", "zst"])
@pytest.mark.parametrize("cut", [0, 100, 512, 700, 1024])
def test_members_before_a_truncation_of_a_tar_archive_are_kept(
    tmp_path: Path, compression: str | None, cut: int
) -> None:
    """Some archives are cut at the end of a member. tarfile considers such an archive complete."""
    data = make_tar({f"{n}.txt": f"Brev nummer {n}." for n in range(5)})[: 3 * 1024 + cut]
    (tmp_path / "a.tar").write_bytes(COMPRESS[compression](data) if compression else data)
    documents, report = read("text", tmp_path)
    assert texts(documents) == [f"Brev nummer {n}." for n in range(3 + (cut in (700, 1024)))]
    assert len(report.broken) == 1
    assert report.counts["broken_off"] == 1


def test_a_corrupt_header_within_a_tar_archive_is_detected(tmp_path: Path) -> None:
    data = bytearray(make_tar({f"{n}.txt": f"Brev nummer {n}." for n in range(5)}))
    data[2 * 1024 + 148 : 2 * 1024 + 156] = b"notcksum"
    (tmp_path / "a.tar").write_bytes(data)
    documents, report = read("text", tmp_path)
    assert texts(documents) == ["Brev nummer 0.", "Brev nummer 1."]
    assert "truncated or corrupt" in report.broken[0].error


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
def test_members_before_a_truncation_of_a_zip_archive_are_kept(tmp_path: Path, cut: float) -> None:
    names = {f"{n}.txt": f"Brev nummer {n}, med noe mer tekst." for n in range(10)}
    data = make_zip(names)  # type: ignore[arg-type]
    directory = data.index(b"PK\x01\x02")
    (tmp_path / "a.zip").write_bytes(data[: int(directory * cut)])
    documents, report = read("text", tmp_path)
    assert 0 < len(documents) < 10
    assert texts(documents) == list(names.values())[: len(documents)]
    assert "directory cannot be read" in report.broken[0].error


def test_a_damaged_member_of_a_zip_archive_does_not_affect_others(tmp_path: Path) -> None:
    data = bytearray(make_zip({f"{n}.txt": f"Brev nummer {n}, med noe mer tekst." for n in range(3)}))
    at = data.index(b"1.txt") + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.zip").write_bytes(data)
    documents, report = read("text", tmp_path)
    assert [d.id for d in documents] == ["a.zip:0", "a.zip:2"]
    assert broken_places(report)[0][0] == "a.zip:1.txt"


# --- members that must not be opened


def test_links_devices_and_escaping_names_in_a_tar_archive_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("Hemmelig.")
    bad: dict[str, str | bytes | tarfile.TarInfo] = {
        "../ut.txt": "Ut.",
        "/tmp/absolutt.txt": "Absolutt.",
        "a/../../ut.txt": "Ut igjen.",
        "c:\\windows.txt": "Stasjon.",
        "lenke.txt": make_special_member("lenke.txt", tarfile.SYMTYPE, str(tmp_path / "secret.txt")),
        "hard.txt": make_special_member("hard.txt", tarfile.LNKTYPE, "/etc/hostname"),
        "ror.txt": make_special_member("ror.txt", tarfile.FIFOTYPE),
        "disk.txt": make_special_member("disk.txt", tarfile.BLKTYPE),
    }
    (tmp_path / "a.tar").write_bytes(make_tar({"før.txt": "Før.", **bad, "etter.txt": "Etter."}))
    before = set(tmp_path.rglob("*"))
    documents, report = read("text", tmp_path / "a.tar")
    assert texts(documents) == ["Før.", "Etter."]
    assert [b.member for b in report.broken] == list(bad)
    assert set(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "ut.txt").exists()


def test_links_and_escaping_names_in_a_zip_archive_are_rejected(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("lenke.txt")
    link.create_system = 3
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../ut.txt", "Ut.")
        archive.writestr(link, "/etc/passwd")
        archive.writestr("god.txt", "God.")
    documents, report = read("text", tmp_path)
    assert texts(documents) == ["God."]
    assert [b.member for b in report.broken] == ["../ut.txt", "lenke.txt"]


def test_an_encrypted_member_is_reported(tmp_path: Path) -> None:
    data = bytearray(make_zip({"a.txt": "Lukket.", "b.txt": "Åpen."}))
    data[6] |= 1
    directory = data.index(b"PK\x01\x02")
    data[directory + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    documents, report = read("text", tmp_path)
    assert texts(documents) == ["Åpen."]
    assert "encrypted" in report.broken[0].error


# --- decompression bombs and other excessive sizes


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("line", [b"\0" * 1000, b'{"text": "' + b"x" * 100_000 + b'"}\n'])
def test_a_decompression_bomb_stops_at_max_ratio(tmp_path: Path, compression: str, line: bytes) -> None:
    bomb = COMPRESS[compression](line * (60_000_000 // len(line)))
    (tmp_path / "a.jsonl").write_bytes(bomb)
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "God."}\n')
    tracemalloc.start()
    try:
        documents, report = read("jsonl", tmp_path, limits={"max_record_bytes": 2**20})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert documents[-1].text == "God."
    assert any("limits.max_ratio" in b.error for b in report.broken)
    assert sum(len(document.text) for document in documents) < 20_000_000
    assert peak < 40_000_000


def test_a_bomb_in_a_zip_archive_does_not_affect_other_members(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(make_zip({"bombe.txt": b"0" * 100_000_000, "god.txt": "God."}))
    documents, report = read("text", tmp_path, limits={"max_record_bytes": 2**27})
    assert texts(documents) == ["God."]
    assert [(b.member, "max_ratio" in b.error) for b in report.broken] == [("bombe.txt", True)]


def test_unpacking_stops_at_max_unpacked_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(make_json_lines(5000)))
    documents, report = read("jsonl", tmp_path, limits={"max_unpacked_bytes": 100_000})
    assert 500 < len(documents) < 4000
    assert "max_unpacked_bytes" in report.broken[0].error


def test_nested_archives_stop_at_max_depth(tmp_path: Path) -> None:
    data = b"Inst."
    for _ in range(4):
        data = gzip.compress(data)
    (tmp_path / "dypt.txt").write_bytes(data)
    (tmp_path / "god.txt").write_text("God.")
    documents, report = read("text", tmp_path)
    assert texts(documents) == ["God."]
    assert "max_depth=3" in report.broken[0].error
    assert len(read("text", tmp_path, limits={"max_depth": 4})[0]) == 2


def test_a_name_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    """By itself, tarfile reads a member's name into memory, whatever length the header claims."""
    header = tarfile.TarInfo("././@LongLink")
    header.type = b"L"
    header.size = 2**30
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096)
    (tmp_path / "b.tar").write_bytes(make_tar({"god.txt": "God."}))
    documents, report = read("text", tmp_path)
    assert texts(documents) == ["God."]
    assert "a member name of 1024.0 MiB" in report.broken[0].error


def test_a_sparse_file_is_rejected(tmp_path: Path) -> None:
    header = tarfile.TarInfo("hull.txt")
    header.type = tarfile.GNUTYPE_SPARSE
    header.size = 0
    buffer = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    buffer[483:495] = b"77777777777\0"  # size including the holes
    buffer[148:156] = b"        "
    buffer[148:156] = b"%06o\0 " % sum(buffer)
    (tmp_path / "a.tar").write_bytes(bytes(buffer) + make_tar({"god.txt": "God."}))
    documents, report = read("text", tmp_path)
    assert texts(documents) == ["God."]
    assert "sparse" in report.broken[0].error


def test_a_line_of_100_megabytes_is_skipped(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"text": "En."}\n{"text": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "To."}\n')
    tracemalloc.start()
    try:
        documents, report = read("jsonl", tmp_path, limits={"max_record_bytes": 2**22})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert texts(documents) == ["En.", "To."]
    assert [d.id for d in documents] == ["a.jsonl:1", "a.jsonl:3"]
    assert broken_places(report) == [
        (
            "a.jsonl:line 2",
            "a line of 95.4 MiB is too long; raise limits.max_record_bytes if this is intended",
        )
    ]
    assert peak < 20_000_000


# --- content that contradicts names and headers


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"%PDF-1.7\n...", "a PDF by its first bytes, not text"),
        (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
        (b"\x7fELF\x02\x01", "a program"),
        (b"7z\xbc\xaf\x27\x1c", "unpack it, or pack it as tar or zip"),
        (make_zip({"word/document.xml": "<w/>"}), "the archive contains no file of a kind"),
        (b"\1\2\3\0\0\0\0\0" * 100, "bytes are NUL"),
    ],
)
def test_content_that_contradicts_the_file_name_is_rejected(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "b.txt").write_text("God.")
    documents, report = read("text", tmp_path)
    assert texts(documents) == ["God."]
    ((place, error),) = broken_places(report)
    assert place == "a.txt"
    assert message in error


def test_text_named_pdf_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("Bare tekst.")
    documents, report = read("pdf", tmp_path)
    assert not documents
    assert report.broken[0].error == "is text by its first bytes, not a PDF"


def test_sizes_in_the_header_of_a_zip_archive_are_not_trusted(tmp_path: Path) -> None:
    """The archive has no central directory. A local header claims a size beyond the file's end."""
    data = bytearray(make_zip({"a.txt": "God.", "b.txt": "Lang."}))
    second = data.index(b"PK\x03\x04", 10)
    data[second + 18 : second + 22] = struct.pack("<I", 2**31)
    (tmp_path / "a.zip").write_bytes(data[: data.index(b"PK\x01\x02")])
    documents, _ = read("text", tmp_path)
    assert texts(documents) == ["God."]


# --- errors of the machine are not errors of the data


@pytest.mark.parametrize("compression", [None, "gz", "bz2", "zst"])
def test_an_io_error_is_not_taken_for_a_broken_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str | None
) -> None:
    """If it were, the rest of the archive would be lost, because later runs skip a broken file."""
    data = make_tar({f"{number}.txt": random.Random(number).randbytes(50_000).hex() for number in range(20)})
    (tmp_path / "a.tar").write_bytes(COMPRESS[compression](data) if compression else data)

    class Failing(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            if self.tell() > 300_000:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().readinto(buffer) or 0

    monkeypatch.setattr(Path, "open", lambda path, mode: io.BufferedReader(Failing(path)))
    with pytest.raises(OSError, match="Input/output error"):
        read("text", tmp_path)


def test_a_full_disk_for_temporary_files_is_reported_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", full)
    (tmp_path / "a.tar").write_bytes(make_tar({"inner.zip": make_zip(dict(LETTERS))}))
    with pytest.raises(OSError, match=f"No space left on device: '{tempfile.gettempdir()}'"):
        read("text", tmp_path)


def test_member_names_in_latin_1_are_decoded(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        info = tarfile.TarInfo("søknad.txt")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"Hei. "))
    documents, report = read("text", tmp_path)
    assert not report.broken
    assert [document.id for document in documents] == ["a.tar:søknad"]
