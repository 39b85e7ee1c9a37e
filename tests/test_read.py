"""Source tars: every sample accounted for, every damaged tar noticed."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from demo.warts import WartPlan
from encode_pipeline.read import TarError, read_samples
from encode_pipeline.records import Reason, Rejected, Sample


def tar_of(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if format == tarfile.PAX_FORMAT:
                info.mtime = 1700000000.5  # as webdataset writes it: an extended header for every member
            tar.addfile(info, io.BytesIO(data))
    return path


def outcomes(path: Path) -> list[tuple[str, str]]:
    return [(item.key, "" if isinstance(item, Sample) else item.reason) for item in read_samples(path)]


def test_pax_headers_folders_and_capital_extensions(tmp_path: Path) -> None:
    members = [("./part/0.JPG", b"i"), ("./part/0.txt", b" text "), ("1.webp", b"i"), ("1.json", b'{"caption": "c"}')]
    samples = list(read_samples(tar_of(tmp_path / "a.tar", members, tarfile.PAX_FORMAT)))
    assert [(s.key, s.caption) for s in samples if isinstance(s, Sample)] == [("part/0", "text"), ("1", "c")]


def test_what_is_wrong_with_samples(tmp_path: Path) -> None:
    good = [("jpg", b"i"), ("txt", b"t")]
    cases: dict[str, list[tuple[str, bytes]]] = {
        "ok": good,
        "noimage": [("txt", b"t")],
        "nocaption": [("jpg", b"i")],
        "blank": [("jpg", b"i"), ("txt", b" \n")],
        "latin": [("jpg", b"i"), ("txt", b"caf\xe9")],
        "surrogate": [("jpg", b"i"), ("json", b'{"caption": "\\ud800"}')],
        "badjson": [*good, ("json", b"{")],
        "listjson": [*good, ("json", b"[]")],
        "deepjson": [*good, ("json", b"[" * 200_000)],
        "dots": [("v1.jpg", b"i"), ("txt", b"t")],
    }
    members = [(f"{key}.{part}", data) for key, parts in cases.items() for part, data in parts]
    members += [("../up.jpg", b"i"), ("/etc/abs.jpg", b"i"), ("ok.jpg", b"i"), ("ok.txt", b"t")]
    assert outcomes(tar_of(tmp_path / "a.tar", members)) == [
        ("ok", ""),
        ("noimage", Reason.MISSING_IMAGE),
        ("nocaption", Reason.MISSING_CAPTION),
        ("blank", Reason.MISSING_CAPTION),
        ("latin", Reason.CAPTION_NOT_UTF8),
        ("surrogate", Reason.CAPTION_NOT_UTF8),
        ("badjson", Reason.BAD_METADATA),
        ("listjson", Reason.BAD_METADATA),
        ("deepjson", Reason.BAD_METADATA),
        ("dots", Reason.MISSING_IMAGE),
        ("../up", Reason.UNSAFE_KEY),
        ("/etc/abs", Reason.UNSAFE_KEY),
        ("ok", Reason.DUPLICATE_KEY),
    ]


def test_neighbouring_duplicates_are_two_samples(tmp_path: Path) -> None:
    members = [("a.jpg", b"1"), ("a.txt", b"t"), ("a.jpg", b"2"), ("a.txt", b"t")]
    assert outcomes(tar_of(tmp_path / "a.tar", members)) == [("a", ""), ("a", Reason.DUPLICATE_KEY)]


def test_links_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert outcomes(path) == [("a", Reason.UNSAFE_MEMBER)]


def test_numbers_that_json_does_not_have_become_null(tmp_path: Path) -> None:
    members = [("a.jpg", b"i"), ("a.txt", b"t"), ("a.json", b'{"x": NaN, "y": Infinity, "z": 1e999, "w": 1.5}')]
    (sample,) = read_samples(tar_of(tmp_path / "a.tar", members))
    assert isinstance(sample, Sample)
    assert sample.metadata == {"x": None, "y": None, "z": None, "w": 1.5}


def small_tar(path: Path) -> bytes:
    members = [(f"{n}.{part}", b"x" * 700) for n in range(3) for part in ("jpg", "txt")]
    return tar_of(path, members).read_bytes()


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    data = small_tar(path)
    members_end = 6 * (512 + 1024)
    for length in [*range(0, members_end + 1023, 97), *range(0, members_end + 1024, 512)]:
        path.write_bytes(data[:length])
        with pytest.raises(TarError, match="a[.]tar"):
            list(read_samples(path))
    path.write_bytes(data[: members_end + 1024])  # two zero blocks are an end; the padding after them is not needed
    assert len(list(read_samples(path))) == 3


def test_every_flipped_header_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    data = bytearray(small_tar(path))
    for member in range(6):
        for offset in (0, 100, 124, 135, 148, 156, 257):
            position = member * (512 + 1024) + offset
            data[position] ^= 0x55
            path.write_bytes(data)
            with pytest.raises(TarError):
                list(read_samples(path))
            data[position] ^= 0x55


def test_trailing_bytes_and_other_files_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    data = small_tar(path)
    for content in (data + b"more", b"", b"not a tar at all" * 100, bytes(range(256)) * 8):
        path.write_bytes(content)
        with pytest.raises(TarError):
            list(read_samples(path))


def test_warty_tar_is_read_as_planned(warty_tar: tuple[Path, WartPlan]) -> None:
    path, plan = warty_tar
    items = list(read_samples(path))
    assert len(items) == plan.samples
    found = Counter(str(item.reason) for item in items if isinstance(item, Rejected))
    of_the_picture = {"undecodable_image", "too_small"}
    assert found == {reason: n for reason, n in plan.expected_rejected.items() if reason not in of_the_picture}
    assert all(json.dumps(item.metadata) for item in items if isinstance(item, Sample))
