"""The tar reader: every kind of damage is named, nothing is believed that was not there, memory stays small."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator

import pytest

from encode_pipeline.read import MAX_MEMBER_BYTES, MAX_TEXT_BYTES, read_samples
from encode_pipeline.records import Reason, Rejected, Sample
from encode_pipeline.tar import BLOCK, MAX_HEADER_BYTES, MAX_PADDING, ZERO_BLOCK, TarError, TarReader
from tests.tars import END, Generated, good, header, member, outcomes, padded, pax, read, resealed, tar_of

A, B = ("a", ""), ("b", "")
LONG = "d" * 60 + "/" + "e" * 60 + "/"
DIRECTORY, SPARSE = header("d/", kind=tarfile.DIRTYPE), tarfile.GNUTYPE_SPARSE
HALF = len(good()) // 2


def a_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.jpg", b"i" * 900)
    return buffer.getvalue()


def long_name(name: str, kind: bytes = tarfile.GNUTYPE_LONGNAME) -> bytes:
    return member("././@LongLink", name.encode() + b"\0", kind)


SOUND: dict[str, tuple[bytes, list[tuple[str, str]]]] = {
    "nothing in it": (END, []),
    "zeros to fill a record": (good() + END + bytes(8192), [A]),
    "ustar with a prefix": (tar_of([(f"{LONG}a.jpg", b"i")]), [(f"{LONG}a", Reason.UNSAFE_KEY)]),
    "GNU long names": (tar_of([(f"{LONG}a.jpg", b"i")], tarfile.GNU_FORMAT), [(f"{LONG}a", Reason.UNSAFE_KEY)]),
    "a long link name": (long_name("x", tarfile.GNUTYPE_LONGLINK) + good() + END, [A]),
    "pax records": (pax(("path", "b.jpg"), ("mtime", "1.5")) + member("x", b"i") + member("b.txt", b"t") + END, [B]),
    "pax size": (pax(("size", "3")) + header("a.jpg", 0) + padded(b"iii") + member("a.txt", b"t") + END, [A]),
    "pax beats a long name": (pax(("path", "b.jpg")) + long_name("z.jpg") + good() + END, [("b", "missing_caption"),
                                                                                          ("a", "missing_image")]),
    "pax empties a record": (pax(("path", "z.jpg")) + pax(("path", "")) + good() + END, [A]),
    "a global pax header": (pax(("comment", "c"), kind=tarfile.XGLTYPE) + good() + END, [A]),
    "a global path, and one of its own": (
        pax(("path", "z.gif"), kind=tarfile.XGLTYPE) + pax(("path", "a.jpg")) + member("q", b"i") + END,
        [("a", Reason.MISSING_CAPTION)],
    ),
    "folders": (DIRECTORY + good("d/a") + DIRECTORY + END, [("d/a", "")]),
    "a folder of a claimed size": (header("d/", 4096, tarfile.DIRTYPE) + good() + END, [A]),
    "an old folder": (header("d/", kind=tarfile.AREGTYPE) + good() + END, [A]),
    "a size in binary": (header("a.jpg", size_field=b"\x80" + bytes(10) + b"\3") + padded(b"iii") + END,
                         [("a", Reason.MISSING_CAPTION)]),
    "a symbolic link": (header("b.jpg", kind=tarfile.SYMTYPE) + good() + END, [("b", Reason.UNSAFE_MEMBER), A]),
    "a hard link of a claimed size": (header("b.jpg", 999, tarfile.LNKTYPE) + good() + END,
                                      [("b", Reason.UNSAFE_MEMBER), A]),
    "a character device": (header("b.jpg", kind=tarfile.CHRTYPE) + good() + END, [("b", Reason.UNSAFE_MEMBER), A]),
    "a block device": (header("b.jpg", kind=tarfile.BLKTYPE) + good() + END, [("b", Reason.UNSAFE_MEMBER), A]),
    "a pipe": (header("b.jpg", kind=tarfile.FIFOTYPE) + good() + END, [("b", Reason.UNSAFE_MEMBER), A]),
    "an unknown kind": (member("b.jpg", b"x" * 600, b"Q") + good() + END, [("b", Reason.UNSAFE_MEMBER), A]),
    "sparse as GNU had it": (header("b.jpg", 9, SPARSE) + padded(b"x" * 9) + good() + END,
                             [("b", Reason.UNSAFE_MEMBER), A]),
    "sparse with a longer map": (
        header("b.jpg", 9, SPARSE, extended=b"\1") + bytes(504) + b"\1" + bytes(7) + ZERO_BLOCK + padded(b"x" * 9)
        + good() + END, [("b", Reason.UNSAFE_MEMBER), A]),
    "sparse as pax has it": (pax(("GNU.sparse.major", "1"), ("GNU.sparse.name", "b.jpg")) + good("z") + good() + END,
                             [("b", Reason.UNSAFE_MEMBER), ("z", Reason.MISSING_IMAGE), A]),
    "an undecodable name": (member("\udcff.jpg", b"i") + END, [("\udcff", Reason.UNSAFE_KEY)]),
    "junk where content is padded": (header("a.jpg", 3) + b"iii" + b"?" * 509 + member("a.txt", b"t") + END, [A]),
}  # fmt: skip

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "a.tar: empty file"),
    "cut in the first header": (good()[:100], "a.tar: cut short at byte 100"),
    "cut in a header": ((good() + good("b"))[: len(good()) + 5], f"cut short at byte {len(good()) + 5}, after a.txt"),
    "cut in a member": (good()[:800], "a.tar: cut short: 700 bytes are claimed and 288 are left of the tar, in a.jpg"),
    "cut in padding": (good()[:1300], "cut short at byte 1300, in a.jpg"),
    "cut between members": (good()[:1536], "cut short at byte 1536, after a.jpg"),
    "no end": (good(), f"cut short at byte {len(good())}, after a.txt"),
    "half an end": (good() + ZERO_BLOCK, "cut short at byte 3072, after a.txt"),
    "cut in the end": (good() + END[:-1], "cut short at byte 3583"),
    "one zero block, then a member": (good() + ZERO_BLOCK + good("b") + END, "one zero block at byte 2560"),
    "one zero block, then anything": (good() + ZERO_BLOCK + b"?" * BLOCK, "one zero block at byte 2560"),
    "concatenated tars": (good() + END + good("b") + END, "another tar follows the end of the tar, at byte 3584"),
    "bytes after the end": (good() + END + b"more", "bytes follow the end of the tar, at byte 3584, after a.txt"),
    "bytes far after the end": (good() + END + bytes(6000) + b"x", "bytes follow the end of the tar, at byte 9584"),
    "a tail never written": (good() + bytes(2048 + MAX_PADDING), "zero bytes follow its end at byte 3584"),
    "a flipped name": (good() + b"c" + good("b")[1:] + END, "damaged member header at byte 2560, after a.txt"),
    "content where a header should be": (good() + b"x" * BLOCK + END, "damaged member header at byte 2560"),
    "no checksum": (good()[:148] + bytes(8) + good()[156:] + END, "damaged member header at byte 0"),
    "a negative size": (header("a.jpg", -1) + END, "a.tar: claims a size of -1 bytes, in a.jpg"),
    "a negative size in binary": (header("a.jpg", size_field=b"\xff" * 12) + END, "claims a size of -1 bytes"),
    "a size that is no number": (header("a.jpg", size_field=b"many") + END, "damaged member header at byte 0"),
    "a size beyond the tar": (header("a.jpg", 5000) + END, "5000 bytes are claimed and 1024 are left of the tar"),
    "an absurd size in binary": (header("a.jpg", 1 << 50) + END, "1125899906842624 bytes are claimed"),
    "a size beyond all numbers": (header("a.jpg", size_field=b"\x80" + b"\xff" * 11) + END, "claims a size of 30948"),
    "an absurd pax size": (pax(("size", "9" * 18)) + good() + END, "999999999999999999 bytes are claimed"),
    "a pax size beyond all numbers": (pax(("size", "9" * 5000)) + good() + END, "claims a size of 9999"),
    "a negative pax size": (pax(("size", "-5")) + good() + END, "claims a size of -5"),
    "a pax size that is no number": (pax(("size", "²")) + good() + END, "claims a size of ²"),
    "a pax header without a member": (good() + pax(("path", "b")) + END, "an extended header without the member"),
    "a long name without a member": (long_name("b") + END, "an extended header without the member"),
    "a pax header of absurd size": (header("p", MAX_HEADER_BYTES + 1, tarfile.XHDTYPE), "claims 1048577 bytes"),
    "a long name of absurd size": (header("p", 1 << 40, tarfile.GNUTYPE_LONGNAME), "claims 1099511627776"),
    "a pax header beyond the tar": (header("p", 5000, tarfile.XHDTYPE) + END, "5000 bytes are claimed and 1024"),
    "a negative pax header": (header("p", -1, tarfile.XHDTYPE) + END, "claims -1 bytes"),
    "pax records of wrong length": (member("p", b"99 path=b\n", tarfile.XHDTYPE) + good() + END, "damaged pax header"),
    "pax records without end": (member("p", b"9 path=b", tarfile.XHDTYPE) + good() + END, "damaged pax header"),
    "pax records of no length": (member("p", b"0 path=b\n", tarfile.XHDTYPE) + good() + END, "damaged pax header"),
    "pax records of no number": (member("p", b"x path=b\n", tarfile.XHDTYPE) + good() + END, "damaged pax header"),
    "pax records without =": (member("p", b"9 path-b\n", tarfile.XHDTYPE) + good() + END, "damaged pax header"),
    "an endless name": (pax(("path", "n" * 5000)) + good() + END, "a name of more than 4096 bytes"),
    "an endless sparse map": (header("b", 9, SPARSE, extended=b"\1") + b"\1" * BLOCK, "cut short at byte 1024, in b"),
    "gzip": (gzip.compress(good() + END), "a.tar: not a tar: looks like gzip"),
    "a zip": (a_zip(), "a.tar: not a tar: looks like zip"),
    "a web page": (b"\n<!DOCTYPE html><title>403</title>" * 40, "a.tar: not a tar: looks like HTML"),
    "a short web page": (b"<html>gone</html>", "a.tar: not a tar: looks like HTML"),
    "an answer of S3": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "looks like XML"),
    "parquet": (b"PAR1" + bytes(900), "a.tar: not a tar: looks like parquet"),
    "a pointer to a file": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "like a git LFS pointer"),
    "noise": (bytes(range(256)) * 8, "a.tar: damaged member header at byte 0"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SOUND)
def test_what_is_strange_but_sound_is_read(kind: str) -> None:
    data, expected = SOUND[kind]
    assert outcomes(data) == expected


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_named(kind: str) -> None:
    data, says = BROKEN[kind]
    with pytest.raises(TarError) as error:
        read(data)
    assert str(error.value).startswith("a.tar: ") and says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_noticed_without_knowing_the_size(kind: str) -> None:
    data, _ = BROKEN[kind]
    with pytest.raises(TarError):
        list(read_samples(io.BytesIO(data), "a.tar"))


def test_a_stream_of_another_length_than_was_said() -> None:
    whole = good() + END
    with pytest.raises(TarError, match="3584 bytes, 3585 were expected"):
        list(read_samples(io.BytesIO(whole), "a.tar", len(whole) + 1))
    with pytest.raises(TarError, match="3584 bytes, 3583 were expected"):
        list(read_samples(io.BytesIO(whole), "a.tar", len(whole) - 1))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_truncation_at_every_byte_is_noticed(format: int) -> None:
    data = tar_of([(f"{LONG}{key}.{part}", b"x" * 700) for key in "ab" for part in ("jpg", "txt")], format)
    end = data.rindex(b"x") + 1
    end += -end % BLOCK + len(END)
    for length in range(end):
        with pytest.raises(TarError):
            read(data[:length])
        with pytest.raises(TarError):
            list(read_samples(io.BytesIO(data[:length]), "a.tar"))
    assert len(read(data[:end])) == 2  # two zero blocks are an end; the padding after them is not needed


def test_every_flipped_byte_of_a_header_is_noticed() -> None:
    """All of a header is summed but the sum itself, which other letters can spell too (` 123` for `0123`).

    So a flip that passes must lie in the checksum's own field and must change nothing of what is read.
    """
    data = bytearray(good("a") + good("b") + good("c") + END)
    start = len(good())
    whole = read(bytes(data))
    passed = set()
    for position in range(start, start + BLOCK):
        for mask in (1, 2, 4, 8, 16, 32, 64, 128, 0x55, 0xFF):
            data[position] ^= mask
            try:
                assert read(bytes(data)) == whole
                passed.add(position - start)
            except TarError:
                pass
            data[position] ^= mask
    assert passed <= set(range(148, 156))


def test_signed_checksums_of_old_tars_are_sums_too() -> None:
    block = header("\udce9.txt", 0)
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + 8 * 32
    block = block[:148] + f"{signed:06o}\0 ".encode() + block[156:]
    (old,) = TarReader(io.BytesIO(block + END), "a.tar")
    assert old.name == "\udce9.txt" and resealed(block) != block


def test_content_comes_whole_from_a_stream_that_gives_little_at_a_time() -> None:
    data = tar_of([("a.jpg", bytes(range(256)) * 9000), ("a.txt", b"text")], tarfile.PAX_FORMAT)
    (sample,) = read_samples(Generated(iter([data]), at_once=lambda size: min(size, 7777)), "a.tar", len(data))
    assert isinstance(sample, Sample) and sample.image == bytes(range(256)) * 9000 and sample.caption == "text"


def big_tar(count: int, image: bytes) -> Iterator[bytes]:
    for number in range(count):
        yield from (header(f"{number}.jpg", len(image)), padded(image), member(f"{number}.txt", b"t"))
        yield from (header(f"{number}.npy", len(image)), padded(image))
    yield END


def peak_of(pieces: Iterator[bytes]) -> tuple[list[tuple[str, str]], int]:
    """What became of the samples of a tar made on the way, and the most memory that took."""
    tracemalloc.start()
    found = []
    for item in read_samples(Generated(pieces), "a.tar"):
        found.append((item.key, item.reason if isinstance(item, Rejected) else ""))
        del item
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found, peak


def test_a_large_tar_takes_no_memory() -> None:
    found, peak = peak_of(big_tar(150, b"i" * (1 << 20)))  # 300 MB, half of it nothing that is wanted
    assert found == [(str(number), "") for number in range(150)]
    assert peak < 8 << 20


def zeros(size: int) -> Iterator[bytes]:
    piece = bytes(1 << 20)
    for start in range(0, size, len(piece)):
        yield piece[: size - start]


def test_members_that_are_too_large_are_passed_over_and_counted() -> None:
    def pieces() -> Iterator[bytes]:
        for name, size in (("a.jpg", MAX_MEMBER_BYTES + 512), ("b.txt", MAX_TEXT_BYTES + 512), ("c.bin", 1 << 30)):
            yield header(name, size)
            yield from zeros(size)
        yield good("d") + END

    found, peak = peak_of(pieces())
    assert found == [("a", "too_large"), ("b", "too_large"), ("c", "missing_image"), ("d", "")]
    assert peak < 8 << 20


def test_a_claimed_size_allocates_nothing_before_it_arrives() -> None:
    tracemalloc.start()
    with pytest.raises(TarError, match="cut short at byte 10512, in a.jpg"):
        list(read_samples(Generated(iter([header("a.jpg", MAX_MEMBER_BYTES), bytes(10_000)])), "a.tar"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_an_endless_run_of_extended_headers_is_bounded() -> None:
    long = pax(("path", "n" * (MAX_HEADER_BYTES - 2000)), ("comment", "c"))
    tracemalloc.start()
    with pytest.raises(TarError, match="cut short"):
        list(read_samples(Generated(long for _ in range(50)), "a.tar"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
