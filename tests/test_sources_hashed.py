"""Tars whose hash is known, and tars that come damaged: encoded as they are meant to be, or not at all."""

from __future__ import annotations

import hashlib
import io
import itertools
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encode_pipeline import sources
from encode_pipeline.config import EncodeConfig
from encode_pipeline.encode_shard import encode_shard
from encode_pipeline.encoder import LatentEncoder
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.commit import ShardCommit, SourceShard
from encode_pipeline.latents.spec import LatentSpec, digest
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.latents.tables import PLAN_SCHEMA
from encode_pipeline.latents.verify import verify
from encode_pipeline.run import run, spec_of
from encode_pipeline.sources import SourceChanged, SourceUnreadable, find_sources
from encode_pipeline.tar import TarError
from encode_pipeline.vae import load_vae
from tests.conftest import Configure, payload_hashes
from tests.faulty_s3 import FaultyBucket, faulty, faulty_server
from tests.tars import good
from tests.test_sources import TAR, fill, read_through

__all__ = ["faulty", "faulty_server"]
OTHER = "0" * 64


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that give up soon, and no bucket known for its etags."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 3)
    monkeypatch.setattr(sources, "_other_etags", set())


def tars(folder: Path, count: int = 3) -> dict[str, str]:
    """Different tars in a folder, and their hashes by name."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.tar").write_bytes(TAR.replace(b"xxx", b"%03d" % number))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")}


# --- lists of hashes ------------------------------------------------------------------------------------


def test_a_list_as_sha256sum_writes_it(tmp_path: Path) -> None:
    known = tars(tmp_path / "d")
    for options in ("", "--binary"):
        subprocess.run(f"sha256sum {options} *.tar > tars.sha256", shell=True, check=True, cwd=tmp_path / "d")
        found = find_sources([f"laion={tmp_path}/d/tars.sha256"])
        assert {source.uri.rpartition("/")[2]: source.sha256 for source in found} == known
        assert {source.collection for source in found} == {"laion"}
    plain = find_sources([str(tmp_path / "d")])
    assert [source.name for source in plain] == [source.name for source in found]  # no shard is renamed
    assert [source.sha256 for source in plain] == [""] * 3
    assert find_sources([str(tmp_path / "d"), f"{tmp_path}/d/tars.sha256"], limit=3) == plain
    both = find_sources([str(tmp_path / "d"), f"{tmp_path}/d/tars.sha256"])
    assert {source.uri.rpartition("/")[2]: source.sha256 for source in both} == known
    for source in found:
        assert read_through(source) == (9, source.sha256)


def test_names_in_a_list_of_hashes_are_names_and_no_patterns(tmp_path: Path) -> None:
    folder = fill(tmp_path / "a {0..1} [b]*", 1)
    (tmp_path / "l.sha256").write_text(f"# comment\n\n{OTHER.upper()}  {folder.name}/00000.tar\r\n")
    (source,) = find_sources([str(tmp_path / "l.sha256")])
    assert (source.uri, source.sha256) == (f"{folder}/00000.tar", OTHER)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("d/0.tar", r"l.sha256: not a line of a hash and a name, as sha256sum writes them: 'd/0.tar'"),
        (f"{OTHER[1:]}  d/0.tar", "not a line of a hash and a name"),
        (f"\\{OTHER}  d/0.tar", "not a line of a hash and a name"),
        (f"{OTHER}  d", "d: a folder, and .*l.sha256 has a hash for it"),
        (f"{OTHER}  gone.tar", "gone.tar: no such tar or folder"),
        (f"{OTHER}  d/0.tar\n{'1' * 64}  d/0.tar", "0.tar: named with two hashes, 0000"),
        ("", "no tar files found there"),
    ],
)
def test_wrong_lists_of_hashes(tmp_path: Path, line: str, says: str) -> None:
    tars(tmp_path / "d")
    (tmp_path / "l.sha256").write_text(line)
    with pytest.raises(RequestError, match=says):
        find_sources([str(tmp_path / "l.sha256")])


def test_a_tar_with_another_hash_is_refused(tmp_path: Path) -> None:
    known = tars(tmp_path / "d", 2)
    (tmp_path / "l.sha256").write_text(f"{OTHER}  d/0.tar\n{known['1.tar']}  d/1.tar\n")
    bad, fine = find_sources([str(tmp_path / "l.sha256")])
    assert read_through(fine)[1] == known["1.tar"]
    with pytest.raises(SourceChanged, match=f"d/0.tar: its sha256 is {known['0.tar']}, not {OTHER} as its list says"):
        read_through(bad)


def test_hashes_are_kept_in_plans_and_commits(configure: Configure, world: Path, tmp_path: Path) -> None:
    one, other, _ = sorted((world / "train").glob("*.tar"))
    listed = tmp_path / "l.sha256"
    right = hashlib.sha256(one.read_bytes()).hexdigest()
    listed.write_text(f"{right}  {one}\n{OTHER}  {other}\n")
    config = configure(source=str(listed), views=1)
    result = run(config)
    assert (result["ok"], result["shards"]["done"], result["shards"]["failed"]) == (False, 1, 1)
    assert f"{other}: its sha256 is" in result["failures"][0]["error"]
    version = Store(config.store).version()
    assert {source.sha256 for source in version.planned().values()} == {right, OTHER}
    (commit,) = version.commits()
    assert commit.source.sha256 == commit.source_sha256 == right and verify(version).problems[0].path.endswith(
        f"{SourceShard(str(other), other.stat().st_size).name}.json"
    )
    again = run(configure(source=[str(one), str(other)], views=1))  # without a list nothing speaks against it
    assert again["ok"] and again["already_done"] == 1
    assert len(version.plans()) == 2 and len(version.planned()) == 2


def test_commits_and_plans_without_hashes_are_as_they_were(spec: LatentSpec, tmp_path: Path) -> None:
    source = SourceShard("/a.tar", 5)
    commit = ShardCommit(
        fingerprint="f", shard=source.name, attempt="a", source=source, source_sha256="0", read=0, encoded=0,
        rejected={}, payloads=(), made_by={},
    )  # fmt: skip
    assert b'"source": {\n  "etag": "",\n  "size": 5,\n  "uri": "/a.tar"\n }' in commit.to_json()
    version = Store(tmp_path / "store").create(spec)
    version.record_plan([source])
    (path,) = version.plans()
    assert path == f"plans/{digest([('/a.tar', 5, '', '')])[:16]}.parquet"
    buffer = io.BytesIO()  # as it was written before there were hashes
    pq.write_table(pa.table([["/a.tar"], [5], [""], [""]], schema=PLAN_SCHEMA), buffer)
    version.storage.replace(path, buffer.getvalue())
    assert version.plan(path) == [source]
    version.record_plan([SourceShard("/a.tar", 5, sha256=OTHER)])
    assert len(version.plans()) == 2 and version.planned().keys() == {source.name}


def test_a_commit_of_another_tar_than_its_list_says_contradicts_itself() -> None:
    source = SourceShard("/a.tar", 5, sha256=OTHER)
    commit = ShardCommit(
        fingerprint="f", shard=source.name, attempt="a", source=source, source_sha256="1" * 64, read=0, encoded=0,
        rejected={}, payloads=(), made_by={},
    )  # fmt: skip
    assert commit.problem() == f"made from a tar of sha256 {'1' * 64}, not of {OTHER} as planned"
    assert ShardCommit.from_json(commit.to_json(), "here") == commit


# --- a bucket -------------------------------------------------------------------------------------------


def put(faulty: FaultyBucket, data: bytes, key: str = "0.tar") -> SourceShard:
    faulty.client.put_object(Bucket=faulty.name, Key=key, Body=data)
    (source,) = find_sources([f"{faulty.url}/{key}"])
    return source


def encrypt(faulty: FaultyBucket, key: str = "0.tar") -> SourceShard:
    """Gives an object an etag as under SSE-KMS: it looks like an MD5, and is none."""
    from moto.s3.models import s3_backends

    stored = s3_backends["123456789012"]["aws"].buckets[faulty.name].keys[key]
    stored._etag = hashlib.md5(b"another " + stored.value).hexdigest()
    (source,) = find_sources([f"{faulty.url}/{key}"])
    assert source.etag == stored._etag
    return source


def test_an_etag_that_is_the_md5_finds_a_flipped_bit(faulty: FaultyBucket) -> None:
    source = put(faulty, TAR)
    assert source.etag == hashlib.md5(TAR).hexdigest()
    rule = faulty.s3.add("flip", method="GET", at=600)
    with pytest.raises(OSError, match=rf"{source.uri}: damaged on its way: its md5 is \w+, and {source.etag} when"):
        read_through(source)
    assert rule.met == 1
    assert read_through(source)[0] == 9


def test_an_etag_that_is_no_md5_is_known_for_the_rest_of_the_bucket(faulty: FaultyBucket) -> None:
    for key in ("0.tar", "1.tar"):
        put(faulty, TAR, key)
    one, other = (encrypt(faulty, key) for key in ("0.tar", "1.tar"))
    before = faulty.s3.asked["GET"]
    assert read_through(one)[0] == 9 and faulty.s3.asked["GET"] == before + 2
    assert read_through(other)[0] == 9 and faulty.s3.asked["GET"] == before + 3
    assert sources._other_etags == {faulty.name}


def test_a_flipped_bit_is_found_under_an_etag_that_is_no_md5(faulty: FaultyBucket) -> None:
    put(faulty, TAR)
    source = encrypt(faulty)
    faulty.s3.add("flip", method="GET", at=600)
    with pytest.raises(OSError, match="0.tar: damaged on its way: its md5 is"):
        read_through(source)
    assert not sources._other_etags and read_through(source)[0] == 9


def test_of_a_tar_in_a_list_only_the_hash_of_the_list_counts(faulty: FaultyBucket) -> None:
    put(faulty, TAR)
    encrypt(faulty)
    faulty.client.put_object(
        Bucket=faulty.name, Key="l.sha256", Body=f"{hashlib.sha256(TAR).hexdigest()} *0.tar\n".encode()
    )
    (source,) = find_sources([f"{faulty.url}/l.sha256"])
    before = faulty.s3.asked["GET"]
    assert read_through(source) == (9, source.sha256) and faulty.s3.asked["GET"] == before + 1
    faulty.s3.add("flip", method="GET", at=600)
    with pytest.raises(OSError, match=f"0.tar: damaged on its way: its sha256 is .*, and {source.sha256} when"):
        read_through(source)


def test_a_tar_that_is_only_damaged_on_its_way_is_no_bad_tar(faulty: FaultyBucket) -> None:
    client = boto3.client("s3", endpoint_url=faulty.s3.direct_url)
    where = {"Bucket": faulty.name, "Key": "0.tar"}
    upload = client.create_multipart_upload(**where)["UploadId"]
    etag = client.upload_part(**where, UploadId=upload, PartNumber=1, Body=TAR)["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload=parts)
    (source,) = find_sources([f"{faulty.url}/0.tar"])
    assert source.etag.endswith("-1")  # no hash of it is known
    faulty.s3.add("flip", method="GET", at=2 * 1536 + 150)
    with pytest.raises(OSError, match=r"0.tar: damaged on its way: .* \(.*0.tar: damaged member header") as raised:
        read_through(source)
    assert not isinstance(raised.value, SourceUnreadable)
    assert read_through(source)[0] == 9
    source = put(faulty, good(), "bad.tar")
    with pytest.raises(TarError, match="bad.tar: cut short"):
        read_through(source)


def test_a_tar_that_is_gone_or_may_not_be_read(faulty: FaultyBucket, tmp_path: Path) -> None:
    source = put(faulty, TAR)
    faulty.client.delete_object(Bucket=faulty.name, Key="0.tar")
    with pytest.raises(SourceUnreadable, match=f"^{source.uri}: no such tar$"):
        read_through(source)
    path = tmp_path / "0.tar"
    path.write_bytes(TAR)
    (source,) = find_sources([str(path)])
    path.unlink()
    with pytest.raises(SourceUnreadable, match=f"^{path}: no such tar$"):
        read_through(source)


# --- encoding what comes through trouble ----------------------------------------------------------------


class Line:
    """One tar in a bucket, and all that it takes to encode it."""

    def __init__(self, faulty: FaultyBucket, config: EncodeConfig, tar: Path) -> None:
        self.faulty, self.config = faulty, config
        self.source = put(faulty, tar.read_bytes())
        vae = load_vae(config.vae)
        self.spec = spec_of(config, vae)
        self.encoder = LatentEncoder(vae, self.spec, config.batch_size)

    def encode(self, store: Path) -> Version:
        version = Store(store).create(self.spec)
        encode_shard(self.source, version, self.encoder, self.config)
        return version


@pytest.fixture
def line(faulty: FaultyBucket, configure: Configure, world: Path) -> Iterator[Line]:
    tar = sorted((world / "train").glob("*.tar"))[0]
    yield Line(faulty, configure(views=2), tar)


def offsets(tar: Path) -> dict[str, int]:
    """A byte of the header of the third picture in a tar, and one in the middle of the picture."""
    with tarfile.open(tar) as file:
        third = [member for member in file if not member.name.endswith((".json", ".txt"))][2]
        return {"header": third.offset + 20, "image": third.offset_data + third.size // 2}


def test_a_shard_is_as_without_the_fault_or_not_there(line: Line, world: Path, tmp_path: Path) -> None:
    expected = payload_hashes(line.encode(tmp_path / "calm"))
    where = offsets(sorted((world / "train").glob("*.tar"))[0])
    faults = [*itertools.product(["503", "reset", "lose-reply", "cut", "short", "delay", "flip header"], [1, None])]
    for number, (name, times) in enumerate([*faults, ("flip image", 1)]):
        fault, _, part = name.partition(" ")
        rule = line.faulty.s3.add(fault, method="GET", key="0.tar", times=times, at=where.get(part), seconds=0.2)
        store = tmp_path / str(number)
        if not ((times == 1 and fault != "flip") or fault == "delay"):
            with pytest.raises((OSError, TarError), match=f"{line.source.uri}: "):
                line.encode(store)
            version = Store(store).version()
            assert version.done() == set() and version.storage.files("data") == {}, name
            line.faulty.s3.clear()
        version = line.encode(store)
        assert rule.met >= 1 and payload_hashes(version) == expected and verify(version).problems == [], name
        line.faulty.s3.clear()


def test_a_byte_that_always_comes_wrong_is_known_by_a_list_alone(line: Line, world: Path, tmp_path: Path) -> None:
    tar = sorted((world / "train").glob("*.tar"))[0]
    right = hashlib.sha256(tar.read_bytes()).hexdigest()
    line.source = replace(line.source, sha256=right)
    line.faulty.s3.add("flip", method="GET", key="0.tar", times=None, at=offsets(tar)["image"])
    with pytest.raises(SourceChanged, match=rf"0.tar: its sha256 is \w+, not {right} as its list says"):
        line.encode(tmp_path / "store")
    assert Store(tmp_path / "store").version().done() == set()
