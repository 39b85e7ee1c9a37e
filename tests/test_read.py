"""Source tars into samples: every one accounted for, and nothing read that is not needed."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from demo.warts import WartPlan
from encode_pipeline.read import IMAGE_PARTS, MAX_PARTS, PICKLE_ENDINGS, read_samples
from encode_pipeline.records import Reason, Rejected, Sample
from tests.tars import END, header, member, outcomes, read, tar_of

GOOD = [("jpg", b"i"), ("txt", b"t")]
Parts = list[tuple[str, bytes]]

CASES: dict[str, tuple[Parts, str]] = {
    "whole": (GOOD, ""),
    "capitals": ([("JPG", b"i"), ("Txt", b"t")], ""),
    "caption in the record": ([("jpg", b"i"), ("json", b'{"caption": " c "}')], ""),
    "parts nobody knows": ([("cls", b"3"), *GOOD, ("npy", b"\x93NUMPY"), ("seg.png", b"x")], ""),
    "no image": ([("txt", b"t")], Reason.MISSING_IMAGE),
    "an image nobody knows": ([("heic", b"i"), ("txt", b"t")], Reason.MISSING_IMAGE),
    "a dot in the name": ([("v1.jpg", b"i"), ("txt", b"t")], Reason.MISSING_IMAGE),
    "no ending": ([("", b"i")], Reason.MISSING_IMAGE),
    "no caption": ([("jpg", b"i")], Reason.MISSING_CAPTION),
    "no caption in the record": ([("jpg", b"i"), ("json", b"{}")], Reason.MISSING_CAPTION),
    "a caption that is a number": ([("jpg", b"i"), ("json", b'{"caption": 3}')], Reason.MISSING_CAPTION),
    "a blank caption": ([("jpg", b"i"), ("txt", b" \n")], Reason.MISSING_CAPTION),
    "a caption in latin-1": ([("jpg", b"i"), ("txt", b"caf\xe9")], Reason.CAPTION_NOT_UTF8),
    "half a character": ([("jpg", b"i"), ("json", b'{"caption": "\\ud800"}')], Reason.CAPTION_NOT_UTF8),
    "a broken record": ([*GOOD, ("json", b"{")], Reason.BAD_METADATA),
    "an empty record": ([*GOOD, ("json", b"")], Reason.BAD_METADATA),
    "a record in latin-1": ([*GOOD, ("json", b'{"x": "\xe9"}')], Reason.BAD_METADATA),
    "a record that is a list": ([*GOOD, ("json", b"[]")], Reason.BAD_METADATA),
    "a record too deep": ([*GOOD, ("json", b"[" * 100_000)], Reason.BAD_METADATA),
    "a number too long": ([*GOOD, ("json", b'{"x": ' + b"9" * 5000 + b"}")], Reason.BAD_METADATA),
    **{
        f"a .{ending}": ([*GOOD, (ending, b"cos\nsystem\n")], Reason.UNSAFE_MEMBER) for ending in sorted(PICKLE_ENDINGS)
    },
    "a pickle under another ending": ([("latent.PKL", b"x"), *GOOD], Reason.UNSAFE_MEMBER),
    **{f"a {part} picture": ([(part, b"i"), ("txt", b"t")], "") for part in IMAGE_PARTS},
}


@pytest.mark.parametrize("case", CASES)
def test_what_becomes_of_a_sample(case: str) -> None:
    parts, reason = CASES[case]
    members = [(f"k.{part}" if part else "k", data) for part, data in parts]
    after = [("next.jpg", b"i"), ("next.txt", b"t")]
    assert outcomes(tar_of([*members, *after])) == [("k", reason), ("next", "")]


def test_keys_that_no_sample_may_have() -> None:
    keys = ["../up", "d/../../up", "/etc/abs", "a//b", "./x/./y", "new\nline", "k" * 96]
    found = read(tar_of([(f"{key}.jpg", b"i") for key in keys] + [("._k.jpg", b"mac")], tarfile.PAX_FORMAT))
    assert [(item.key, item.reason) for item in found if isinstance(item, Rejected)] == [
        (key.removeprefix("./"), Reason.UNSAFE_KEY) for key in [*keys, ""]
    ]


def test_pax_headers_and_folders_and_what_is_carried_along() -> None:
    members = [("./part/0.JPG", b"i"), ("./part/0.txt", b" text "), ("1.webp", b"i"), ("1.json", b'{"caption": "c"}')]
    first, second = read(tar_of(members, tarfile.PAX_FORMAT))
    assert first == Sample("part/0", b"i", "text", {})
    assert second == Sample("1", b"i", "c", {"caption": "c"})


@pytest.mark.parametrize(
    ("field", "expected"),
    [(None, "of the text"), ("caption", "plain"), ("blip", "by a model"), ("gone", None), ("number", None)],
)
def test_where_captions_come_from(field: str | None, expected: str | None) -> None:
    record = json.dumps({"caption": "plain", "blip": "by a model", "number": 3}).encode()
    tar = tar_of([("a.jpg", b"i"), ("a.txt", b"of the text"), ("a.json", record)])
    (item,) = read(tar, field)
    caption = item.caption if isinstance(item, Sample) else None
    assert caption == expected
    assert isinstance(item, Sample) or item.reason == Reason.MISSING_CAPTION


def test_of_several_pictures_the_best_known_kind_is_taken() -> None:
    for order in (["png", "jpg", "gif"], ["gif", "png", "jpg"], ["jpg", "gif", "png"]):
        (item,) = read(tar_of([(f"a.{part}", part.encode()) for part in order] + [("a.txt", b"t")]))
        assert isinstance(item, Sample) and item.image == b"jpg"


def test_neighbouring_duplicates_are_two_samples() -> None:
    tar = tar_of([("a.jpg", b"1"), ("a.txt", b"t"), ("a.jpg", b"2"), ("a.txt", b"t"), ("b.txt", b"t"), ("b.txt", b"u")])
    assert outcomes(tar) == [
        ("a", ""), ("a", Reason.DUPLICATE_KEY), ("b", Reason.MISSING_IMAGE), ("b", Reason.DUPLICATE_KEY)
    ]  # fmt: skip


def test_duplicates_far_apart() -> None:
    tar = tar_of([(f"{key}.{part}", b"x") for key in "abcab" for part in ("jpg", "txt")])
    refused = [("a", Reason.DUPLICATE_KEY), ("b", Reason.DUPLICATE_KEY)]
    assert outcomes(tar) == [("a", ""), ("b", ""), ("c", ""), *refused]


def test_interleaved_keys_are_never_put_together() -> None:
    tar = tar_of([("a.jpg", b"i"), ("b.jpg", b"i"), ("a.txt", b"t"), ("b.txt", b"t")])
    assert outcomes(tar) == [
        ("a", Reason.MISSING_CAPTION), ("b", Reason.MISSING_CAPTION),
        ("a", Reason.DUPLICATE_KEY), ("b", Reason.DUPLICATE_KEY),
    ]  # fmt: skip


def test_a_sample_without_end_is_cut_into_pieces() -> None:
    parts = [(f"a.x{number}", b"") for number in range(2 * MAX_PARTS + 1)]
    assert outcomes(tar_of(parts)) == [("a", Reason.MISSING_IMAGE)] + [("a", Reason.DUPLICATE_KEY)] * 2


def test_links_are_not_followed_and_the_refusal_names_the_member() -> None:
    (item,) = read(header("d/a.jpg", kind=tarfile.SYMTYPE) + END)
    assert item == Rejected("d/a", Reason.UNSAFE_MEMBER, "member d/a.jpg")
    (item,) = read(member("a.jpg", b"i") + member("a.latents.PT", b"") + END)
    assert item == Rejected("a", Reason.UNSAFE_MEMBER, "member a.latents.PT")


def test_numbers_that_json_does_not_have_become_null() -> None:
    members = [("a.jpg", b"i"), ("a.txt", b"t"), ("a.json", b'{"x": NaN, "y": Infinity, "z": 1e999, "w": 1.5}')]
    (sample,) = read(tar_of(members))
    assert isinstance(sample, Sample)
    assert sample.metadata == {"x": None, "y": None, "z": None, "w": 1.5}


def test_samples_leave_before_the_tar_has_ended() -> None:
    data = tar_of([(f"{number}.{part}", b"x" * 5000) for number in range(9) for part in ("jpg", "txt")])
    stream = io.BytesIO(data)
    first = next(read_samples(stream, "a.tar", len(data)))
    assert first.key == "0" and stream.tell() < 3 * 6144


def test_warty_tar_is_read_as_planned(warty_tar: tuple[Path, WartPlan]) -> None:
    path, plan = warty_tar
    items = read(path.read_bytes())
    assert len(items) == plan.samples
    found = Counter(str(item.reason) for item in items if isinstance(item, Rejected))
    of_the_picture = {"undecodable_image", "too_small"}
    assert found == {reason: n for reason, n in plan.expected_rejected.items() if reason not in of_the_picture}
    assert all(json.dumps(item.metadata) for item in items if isinstance(item, Sample))
