"""Any bytes at all: samples, refusals or a TarError, in bounded memory; and of a sound tar nothing is lost."""

from __future__ import annotations

import io
import re
import tarfile
import tracemalloc
from itertools import groupby

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from encode_pipeline.read import read_samples
from encode_pipeline.records import Rejected, Sample
from encode_pipeline.tar import BLOCK, TarError
from tests.tars import END, good, member, outcomes, pax, resealed, tar_of

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
PARTS = ("jpg", "png", "txt", "json", "npy", "pkl", "seg.png", "JPG", "")

names = st.tuples(st.sampled_from(["a", "b", "c", "d/a", "../a", "/a", "", "ü"]), st.sampled_from(PARTS))
contents = st.one_of(st.binary(max_size=40), st.just(b"x" * 1500), st.just(b'{"caption": "c"}'), st.just(b"text"))
members = st.lists(st.tuples(names, contents), max_size=25)
bounded = settings(max_examples=500, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


def named(listed: list[tuple[tuple[str, str], bytes]]) -> list[tuple[str, bytes]]:
    return [(f"{key}.{part}" if part else key or "x", data) for (key, part), data in listed]


def survives(data: bytes, knows_size: bool) -> list[Sample | Rejected] | None:
    """What is read from the bytes, None for a TarError. Anything else fails the test, as does much memory."""
    found = []
    tracemalloc.start()
    try:
        for item in read_samples(io.BytesIO(data), "a.tar", len(data) if knows_size else None):
            assert isinstance(item, (Sample, Rejected))
            found.append(item)
    except TarError as error:
        assert str(error).startswith("a.tar: ") and str(error).isprintable()
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (4 << 20) + 40 * len(data)
    return found


def runs(listed: list[tuple[str, bytes]]) -> int:
    """How many samples the names of a sound tar make: a run of one key, cut where a part of it repeats."""
    split = [re.fullmatch(r"((?:.*/)?[^./]*)[.]?(.*)", name) for name, _ in listed]
    count = 0
    for _, run in groupby((match for match in split if match), lambda match: match[1]):
        parts: list[str] = []
        for match in run:
            if not parts or match[2].lower() in parts:
                parts = []
                count += 1
            parts.append(match[2].lower())
    return count


@bounded
@given(members, st.sampled_from(FORMATS))
@example([(("a", "jpg"), b""), (("a", "JPG"), b"")], tarfile.PAX_FORMAT)
def test_of_a_sound_tar_no_sample_is_lost(listed: list[tuple[tuple[str, str], bytes]], format: int) -> None:
    entries = named(listed)
    assert len(outcomes(tar_of(entries, format))) == runs(entries)


@bounded
@given(st.binary(max_size=5000), st.booleans())
@example(END, False)
@example(END + b"\0" * 511 + b"\1", True)
def test_any_bytes(data: bytes, knows_size: bool) -> None:
    survives(data, knows_size)


@bounded
@given(members, st.sampled_from(FORMATS), st.data(), st.booleans())
def test_a_tar_with_damage(
    listed: list[tuple[tuple[str, str], bytes]], format: int, data: st.DataObject, knows_size: bool
) -> None:
    tar = bytearray(tar_of(named(listed), format))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(tar) - 1))
        tar[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    survives(bytes(tar), knows_size)


@bounded
@given(st.binary(min_size=BLOCK, max_size=BLOCK), st.data(), st.booleans())
def test_headers_of_any_content_that_sum_up_rightly(block: bytes, data: st.DataObject, knows_size: bool) -> None:
    kind = data.draw(st.sampled_from([b"0", b"\0", b"5", b"1", b"L", b"K", b"x", b"g", b"S", b"7", b"Q"]))
    size = data.draw(st.one_of(st.binary(min_size=12, max_size=12), st.integers(0, 9000).map(lambda n: b"%011o\0" % n)))
    numbers = b"0000644\0" * 3 + size + b"00000000000\0"
    block = (
        block[:100] + numbers + block[148:156] + kind + block[157:257] + b"ustar\00000" + block[265:329] + bytes(183)
    )
    survives(resealed(block) + data.draw(contents) + bytes(600) + good() + END, knows_size)


@bounded
@given(st.binary(max_size=300), st.booleans())
def test_pax_records_of_any_content(records: bytes, knows_size: bool) -> None:
    survives(member("p", records, tarfile.XHDTYPE) + good() + END, knows_size)


keys = st.one_of(
    st.sampled_from(["path", "size", "GNU.sparse.name", "GNU.sparse.major"]), st.text(min_size=1, max_size=9)
)


@bounded
@given(st.lists(st.tuples(keys, st.text(max_size=30)), max_size=5), st.sampled_from([b"x", b"g", b"X"]))
def test_pax_records_of_any_text(records: list[tuple[str, str]], kind: bytes) -> None:
    survives(pax(*records, kind=kind) + good() + END, knows_size=True)


@bounded
@given(members, members, st.data(), st.booleans())
def test_tars_spliced_together(
    one: list[tuple[tuple[str, str], bytes]],
    other: list[tuple[tuple[str, str], bytes]],
    data: st.DataObject,
    knows_size: bool,
) -> None:
    first, second = tar_of(named(one)), tar_of(named(other))
    cut, start = (BLOCK * data.draw(st.integers(0, len(tar) // BLOCK)) for tar in (first, second))
    survives(first[:cut] + second[start:], knows_size)
