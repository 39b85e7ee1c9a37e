"""`verify` against what a hash cannot show: stores whose writer was wrong, and manifests that disagree."""

from __future__ import annotations

import errno
import io
import json
import tarfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encode_pipeline.latents.commit import Payload, ShardBuild, ShardCommit, SourceShard
from encode_pipeline.latents.shard_check import DUPLICATE_KEY
from encode_pipeline.latents.spec import LatentSpec, canonical_json
from encode_pipeline.latents.storage import Storage
from encode_pipeline.latents.store import MANIFEST, Store, Version
from encode_pipeline.latents.verify import Problem, verify
from encode_pipeline.latents.writer import BLOCK, END_OF_TAR, member_header, npy_header
from encode_pipeline.records import Reason
from tests.faults import Do
from tests.faulty_s3 import FaultyBucket, faulty, faulty_server

__all__ = ["faulty", "faulty_server"]

SHARDS, SAMPLES = 3, 5
Members = list[tuple[str, bytes]]


def small_store(url: str, spec: LatentSpec, folder: Path, shards: int = SHARDS) -> Version:
    """A store that no VAE stands behind: shards of five samples, three more refused."""
    version = Store(url).create(spec)
    sources = [SourceShard(f"/tars/{number:05d}.tar", 1000, collection="laion") for number in range(shards)]
    version.record_plan(sources)
    chance = np.random.default_rng(0)
    for source in sources:
        with ShardBuild(folder / source.name, spec, source) as build:
            for number in range(SAMPLES):
                latents = [chance.standard_normal(spec.shape).astype(np.float16) for _ in range(spec.views)]
                about = {"source": source.uri, "collection": source.collection, "metadata": {"n": number}}
                records = [{**about, "view": view, "augmentation": {}} for view in range(spec.views)]
                build.add(f"{number:03d}", latents, f"caption {number}", records)
            build.reject("900", Reason.MISSING_IMAGE, "parts: txt")
            build.reject("900", Reason.DUPLICATE_KEY, "the first of which was refused")
            build.reject("001", Reason.DUPLICATE_KEY, "the first of which was encoded")
            version.publish(*build.finish("0" * 64, {"versions": {}}))
    return version


@pytest.fixture
def version(spec: LatentSpec, tmp_path: Path) -> Version:
    return small_store(str(tmp_path / "store"), spec, tmp_path / "scratch")


def problems_of(version: Version, **how: Any) -> list[Problem]:
    return verify(version, **how).problems


def rewrite(version: Version, number: int, change: Callable[[bytes], bytes]) -> str:
    """Gives a payload of the first shard another content and commits it as if it had been written so."""
    shard = sorted(version.done())[0]
    commit = version.commit(shard)
    payload = commit.payloads[number]
    data = change(version.storage.read(payload.path))
    version.storage.replace(payload.path, data)
    sha256 = version.storage.sha256(payload.path)
    changed = payload.model_copy(update={"size": len(data), "sha256": sha256})
    recommit(version, commit, payloads=(*commit.payloads[:number], changed, *commit.payloads[number + 1 :]))
    return version.storage.url(payload.path)


def recommit(version: Version, commit: ShardCommit, **changes: Any) -> str:
    version.storage.replace(f"commits/{commit.shard}.json", commit.model_copy(update=changes).to_json())
    return version.storage.url(f"commits/{commit.shard}.json")


def members(change: Callable[[Members], Members]) -> Callable[[bytes], bytes]:
    """A change of a tar's members as one of its bytes."""

    def apply(data: bytes) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            found = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
        parts = [
            member_header(name, len(content)) + content + bytes(-len(content) % BLOCK)
            for name, content in change(found)
        ]
        return b"".join(parts) + END_OF_TAR

    return apply


def member(name: str, change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return members(lambda found: [(each, change(data) if each == name else data) for each, data in found])


def record(key: str, **changes: Any) -> Callable[[bytes], bytes]:
    return member(f"{key}.json", lambda data: canonical_json({**json.loads(data), **changes}))


def value(number: float) -> Callable[[bytes], bytes]:
    return lambda data: data[:-2] + np.float16(number).tobytes()


def renamed(old: str, new: str) -> Callable[[bytes], bytes]:
    return members(lambda found: [(name.replace(old, new), data) for name, data in found])


def lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[bytes], bytes]:
    return lambda data: b"".join(line + b"\n" for line in change(data.splitlines()))


def wider(data: bytes) -> bytes:
    other = LatentSpec.model_validate({**SPEC_VALUES, "shape": (8, 4, 8)})
    return npy_header(other) + data[len(npy_header(other)) :]


SPEC_VALUES: dict[str, Any] = {
    "vae": {"name": "none", "weights_sha256": "0" * 64, "config": {}, "scaling_factor": 1.0},
    "shape": (4, 8, 8),
    "image_size": 64,
    "views": 2,
    "recipe": {},
    "seed": 0,
}


REFUSED = 2  # the third payload
WRITTEN_WRONG = {
    "a NaN": (0, member("002.npy", value(np.nan)), "002: not finite"),
    "an infinity": (1, member("002.npy", value(-np.inf)), "002: not finite"),
    "another shape": (1, member("003.npy", wider), "003.npy: not a float16 latent of shape (4, 8, 8)"),
    "a part missing": (1, members(lambda found: found[:-1]), "004.npy: sample without its other parts"),
    "parts in disorder": (0, members(lambda found: [found[1], found[0], *found[2:]]), "not a latent shard: 000.txt"),
    "a record that is none": (0, member("003.json", lambda _: b"[1]"), "003.json: damaged: not a JSON object"),
    "another view": (1, record("003", view=0), "003: is of view 0 of /tars/00000.tar"),
    "another source": (0, record("003", source="/tars/1.tar"), "003: is of view 0 of /tars/1.tar"),
    "another version": (0, record("003", spec="ab12"), "003: is of version ab12"),
    "another collection": (0, record("003", collection="coyo"), "003: is of collection coyo"),
    "a key with a dot": (0, renamed("003", "0.03"), "0.03: a dot in the name in its key"),
    "a key that climbs": (0, renamed("003", "../03"), "../03: an absolute, empty or climbing path in its key"),
    "a key of control letters": (0, renamed("003", "0\n3"), r"'0\n3': control or undecodable letters in its key"),
    "a key twice": (1, renamed("003", "001"), "a key occurs twice"),
    "another order": (1, members(lambda found: [*found[3:6], *found[:3], *found[6:]]), "001: stands where view0.tar"),
    "another key": (1, renamed("003", "005"), "005: stands where view0.tar has 003"),
    "another caption": (1, member("003.txt", lambda _: b"else"), "003: another caption than in view0.tar"),
    "a caption in Latin-1": (0, member("003.txt", lambda _: b"caf\xe9"), "003.txt: damaged: not UTF-8"),
    "fewer samples": (1, members(lambda found: found[:-3]), "4 samples, 5 committed"),
    "a line cut short": (REFUSED, lines(lambda found: [found[0], found[1][:-5], found[2]]), "line 2: not the record"),
    "a line of another kind": (REFUSED, lines(lambda found: [b"7", *found[1:]]), "line 1: not the record"),
    "a line lost": (REFUSED, lines(lambda found: found[:-1]), "2 lines, 3 committed"),
    "another reason": (
        REFUSED,
        lambda data: data.replace(b"missing_image", b"too_small"),
        "0 missing_image, 1 committed",
    ),
    "encoded and rejected": (REFUSED, lambda data: data.replace(b'"900"', b'"002"'), "002: rejected, and encoded too"),
    "a second without a first": (
        REFUSED,
        lambda data: data.replace(b'"001"', b'"007"'),
        "007: rejected as the second of its key, and there is no first",
    ),
}


@pytest.mark.parametrize("kind", WRITTEN_WRONG)
def test_deep_finds_what_was_written_wrong(kind: str, version: Version) -> None:
    number, change, says = WRITTEN_WRONG[kind]
    path = rewrite(version, number, change)
    assert problems_of(version) == []  # every byte is as committed
    (problem,) = problems_of(version, deep=True)
    assert problem.path == path and problem.problem.startswith(says.split(":")[0]) and says in problem.problem


def test_a_sound_store_is_sound_to_the_bottom(version: Version) -> None:
    """Its refused samples share a key with an encoded one, and with each other, as duplicates may."""
    verdict = verify(version, deep=True)
    assert verdict.problems == [] and DUPLICATE_KEY == Reason.DUPLICATE_KEY
    assert (verdict.shards, verdict.read, verdict.checked) == (SHARDS, SHARDS, SHARDS * 4)
    assert verdict.bytes == sum(payload.size for commit in version.commits() for payload in commit.payloads)


def test_a_damaged_view_is_no_measure_for_the_others(version: Version) -> None:
    """A caption that changed after the hash was taken: its own tar is to blame, and nothing is said of the next."""
    tar = version.storage.local_path(version.commit(sorted(version.done())[0]).payloads[0].path)
    assert tar is not None
    tar.write_bytes(tar.read_bytes().replace(b"caption 3", b"caption 4"))
    (problem,) = problems_of(version, deep=True)
    assert problem.path == str(tar) and "is not the committed" in problem.problem


@pytest.mark.parametrize(
    ("payloads", "says"),
    [
        (lambda found: found[1:], "lists the views [1], [0, 1] should be there"),
        (lambda found: (*found, found[0]), "lists the views [0, 1, 0], [0, 1] should be there"),
        (lambda found: found[:-1], "lists 0 rejected samples, 3 are counted"),
    ],
)
def test_a_commit_that_leaves_files_out(
    payloads: Callable[[tuple[Payload, ...]], tuple[Payload, ...]], says: str, version: Version
) -> None:
    commit = version.commit(sorted(version.done())[1])
    path = recommit(version, commit, payloads=payloads(commit.payloads))
    assert problems_of(version) == [Problem(path, says)]


def test_shards_without_a_usable_sample_are_fine(spec: LatentSpec, tmp_path: Path) -> None:
    version = small_store(str(tmp_path / "store"), spec, tmp_path / "scratch", shards=1)
    for source, reasons in ((SourceShard("/tars/none.tar", 1), []), (SourceShard("/tars/bad.tar", 1), ["too_small"])):
        with ShardBuild(tmp_path / source.name, spec, source) as build:
            for reason in reasons:
                build.reject("1", reason, "")
            version.publish(*build.finish("0" * 64, {}))
    version.seal()
    assert problems_of(version, deep=True) == []


def test_a_store_that_is_no_disk_is_copied_to_one(
    spec: LatentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = small_store(f"memory://{uuid.uuid4().hex}", spec, tmp_path / "scratch")
    wrong = rewrite(version, 1, WRITTEN_WRONG["another caption"][1])
    flipped = version.commit(sorted(version.done())[1]).payloads[0].path
    version.storage.replace(flipped, version.storage.read(flipped).replace(b"000.txt", b"000.xtx"))
    where, says = version.storage.url(flipped), "is not the committed"
    (found,) = problems_of(version)
    assert found.path == where and says in found.problem and "damaged member header" in found.problem
    assert [problem.path for problem in problems_of(version, deep=True)] == [wrong, where]

    def full(self: Storage, path: str, local: Path) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", str(local))

    monkeypatch.setattr(Storage, "fetch", full)
    with pytest.raises(OSError, match="No space left"):  # nothing that the store is to blame for
        verify(version, deep=True)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("do", ["flip", "short", "cut", "503"])
def test_what_goes_wrong_on_the_way_is_no_fault_of_the_store(
    do: Do, deep: bool, spec: LatentSpec, tmp_path: Path, faulty: FaultyBucket
) -> None:
    version = small_store(f"{faulty.url}/store", spec, tmp_path / "scratch", shards=1)
    rules = [faulty.s3.add(do, method="GET", key=key) for key in ("*/view1.tar", "*/commits/*.json")]
    assert problems_of(version, deep=deep) == [] and [rule.met for rule in rules] == [1, 1]
    lasting = faulty.s3.add("flip", method="GET", key="*/view1.tar", times=None)
    (problem,) = problems_of(version, deep=deep)
    assert "is not the committed" in problem.problem and problem.path.endswith("/view1.tar") and lasting.met > 1


# --- the manifest -----------------------------------------------------------------------------------


def rewrite_manifest(version: Version, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> str:
    table = version.manifest()
    changed = pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema)
    path = version.storage.local_path(MANIFEST)
    assert path is not None
    pq.write_table(changed, path)
    version.seal()  # renews the list of tars
    return str(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: [{**rows[0], "sha256": "1" * 64}, *rows[1:]], ["disagrees with the commit of {0} about {path}"]),
        (lambda rows: [{**rows[0], "source": "/else"}, *rows[1:]], ["disagrees with the commit of {0} about {path}"]),
        (lambda rows: rows[1:], ["disagrees with the commit of {0} about {path}"]),
        (lambda rows: [rows[0], *rows], ["lists {path} twice"]),
        (lambda rows: [*rows, {**rows[0], "path": "data/x"}], ["lists data/x, which no commit vouches for"]),
        (lambda rows: [*rows, {**rows[0], "shard": "x", "path": "y"}], ["lists y, which no commit vouches for"]),
        (
            lambda rows: [{**rows[0], "path": rows[0]["path"] + "."}, *rows[1:]],
            ["disagrees with the commit of {0} about {path}", "lists {path}., which no commit vouches for"],
        ),
    ],
)
def test_a_manifest_that_disagrees(
    change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], says: list[str], version: Version
) -> None:
    version.seal()
    first = version.manifest().to_pylist()[0]
    where = rewrite_manifest(version, change)
    expected = [Problem(where, text.replace("{0}", first["shard"]).replace("{path}", first["path"])) for text in says]
    assert problems_of(version) == expected


# --- a sample of the shards -------------------------------------------------------------------------


def flip_all_and_cut_one(version: Version) -> tuple[set[str], str]:
    """Flips a byte in a tar of every shard, and cuts a tar of one; gives the tars flipped and the one cut."""
    flipped = set()
    for commit in version.commits():
        tar = version.storage.local_path(commit.payloads[0].path)
        assert tar is not None
        data = bytearray(tar.read_bytes())
        data[len(data) // 2] ^= 1
        tar.write_bytes(data)
        flipped.add(str(tar))
    cut = version.storage.local_path(commit.payloads[1].path)
    assert cut is not None
    cut.write_bytes(cut.read_bytes()[:-1])
    return flipped, str(cut)


def test_a_sample_is_read_and_the_rest_is_looked_up(spec: LatentSpec, tmp_path: Path) -> None:
    version = small_store(str(tmp_path / "store"), spec, tmp_path / "scratch", shards=20)
    flipped, cut = flip_all_and_cut_one(version)
    draws = {}
    for seed in range(3):
        verdict = verify(version, sample=4, seed=seed)
        assert (verdict.shards, verdict.read, verdict.checked) == (20, 4, 80)
        paths = [problem.path for problem in verdict.problems]
        assert paths.count(cut) == 1 and len(paths) == 5 and set(paths) <= {*flipped, cut}
        draws[seed] = tuple(paths)
        assert verify(version, sample=4, seed=seed, deep=True).bytes == verdict.bytes
    assert len(set(draws.values())) == 3 and verify(version, sample=4).to_dict()["problems"][0]["path"] == draws[0][0]
    assert len(problems_of(version, sample=1000)) == 21


def test_deep_looks_into_the_sample_alone(version: Version) -> None:
    rewrite(version, 0, member("002.npy", value(np.nan)))
    found = [len(problems_of(version, deep=True, sample=1, seed=seed)) for seed in range(20)]
    assert set(found) == {0, 1}


def test_sizes_are_from_a_listing(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = verify(version, sample=1)

    def asked(self: Storage, path: str) -> int:
        raise AssertionError(f"{path} was asked for alone")

    monkeypatch.setattr(Storage, "size", asked)
    payloads = {payload.path for commit in version.commits() for payload in commit.payloads}
    read: set[str] = set()
    plain = Storage.sha256

    def noted(self: Storage, path: str) -> str:
        read.add(path)
        return plain(self, path)

    monkeypatch.setattr(Storage, "sha256", noted)
    assert verify(version, sample=1) == drawn
    assert len(read) == 3 and read < payloads
