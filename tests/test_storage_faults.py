"""A store on a server that answers 503, loses answers, lies, cuts bodies short and flips bits: right, or an error."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.storage import Storage, StorageError
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.latents.verify import verify
from tests.faults import Do
from tests.faulty_s3 import FaultyBucket, faulty, faulty_server
from tests.test_commit_protocol import build

__all__ = ["faulty", "faulty_server"]
DATA = random.Random(0).randbytes(300_000)
SOURCE = SourceShard(uri="/tars/0.tar", size=5)
COMMIT = f"*/commits/{SOURCE.name}.json"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that give up after a second instead of a minute."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 3)


@pytest.fixture
def storage(impatient: None, faulty: FaultyBucket) -> Storage:
    return Storage(f"{faulty.url}/folder")


@pytest.fixture
def version(impatient: None, faulty: FaultyBucket, spec: LatentSpec) -> Version:
    return Store(f"{faulty.url}/store").create(spec)


# --- create ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("do", ["503", "reset", "409", "412"])
def test_an_object_is_made_after_a_refusal_that_means_nothing(storage: Storage, faulty: FaultyBucket, do: Do) -> None:
    rule = faulty.s3.add(do, method="PUT")
    assert storage.create("x", b"ours") is True and rule.met == 1
    assert storage.read("x") == b"ours"


@pytest.mark.parametrize("do", ["503", "reset", "409", "412", "lose-reply"])
def test_an_object_that_is_there_stays(storage: Storage, faulty: FaultyBucket, do: Do) -> None:
    storage.create("x", b"theirs")
    rule = faulty.s3.add(do, method="PUT")
    assert storage.create("x", b"ours") is False and rule.met == 1
    assert storage.read("x") == b"theirs"


@pytest.mark.parametrize("do", ["409", "412"])
def test_a_server_that_lies_about_what_is_there(
    storage: Storage, faulty: FaultyBucket, do: Do, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encode_pipeline.latents.storage.REFUSAL_PAUSES", (0.01, 0.02, 0.03))
    rule = faulty.s3.add(do, method="PUT", times=4)
    with pytest.raises(StorageError, match=f"{faulty.url}/folder/x: the server refuses to create it, as if it were"):
        storage.create("x", b"ours")
    assert rule.met == 4 and not storage.exists("x")
    assert storage.create("x", b"ours") is True


def test_what_is_damaged_on_its_way_is_mended(storage: Storage, faulty: FaultyBucket) -> None:
    for number, write in enumerate((storage.create, storage.replace)):
        rule = faulty.s3.add("flip-up", method="PUT", times=3)
        write(f"{number}", DATA)
        assert rule.met == 3 and storage.read(f"{number}") == DATA
        faulty.s3.add("flip-up", method="PUT", times=None)
        with pytest.raises(StorageError, match="folder/x: the server does not hold the bytes that it was sent"):
            write("x", DATA)
        faulty.s3.clear()
        storage.delete("x")


def test_a_server_that_overwrites_what_is_there_is_no_place_for_a_store(
    impatient: None, faulty: FaultyBucket, spec: LatentSpec
) -> None:
    faulty.s3.add("overwrite", times=None)
    for _ in range(2):
        with pytest.raises(RequestError, match=f"{faulty.url}/store: the server overwrites what is there"):
            Store(f"{faulty.url}/store").create(spec)
    faulty.s3.clear()
    assert Store(f"{faulty.url}/store").create(spec).spec == spec


# --- reading --------------------------------------------------------------------------------------------


def read(storage: Storage, scratch: Path) -> bytes:
    return storage.read("x")


def chunks(storage: Storage, scratch: Path) -> bytes:
    return b"".join(storage.chunks("x"))


def fetch(storage: Storage, scratch: Path) -> bytes:
    assert storage.fetch("x", scratch / "x") == hashlib.sha256(DATA).hexdigest() == storage.sha256("x")
    return (scratch / "x").read_bytes()


@pytest.mark.parametrize("how", [read, chunks, fetch])
@pytest.mark.parametrize("do", ["503", "reset", "cut", "short", "lose-reply"])
def test_bytes_are_asked_for_again(
    storage: Storage, faulty: FaultyBucket, tmp_path: Path, how: Callable[[Storage, Path], bytes], do: Do
) -> None:
    storage.replace("x", DATA)
    rule = faulty.s3.add(do, method="GET", times=2)
    assert how(storage, tmp_path) == DATA and rule.met == 2


@pytest.mark.parametrize("do", ["503", "reset", "cut", "short"])
def test_a_server_that_never_gives_all_of_it(storage: Storage, faulty: FaultyBucket, tmp_path: Path, do: Do) -> None:
    storage.replace("x", DATA)
    faulty.s3.add(do, method="GET", times=None)
    for how in (read, chunks, fetch):
        with pytest.raises(StorageError, match=f"^{faulty.url}/folder/x: "):
            how(storage, tmp_path)


def test_every_error_names_the_object(storage: Storage, faulty: FaultyBucket, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    storage.replace("x", DATA)
    faulty.s3.add("503", times=None)
    deeds: list[Callable[[], object]] = [
        lambda: storage.exists("x"),
        lambda: storage.size("x"),
        lambda: storage.create("x", DATA),
        lambda: storage.replace("x", DATA),
        lambda: storage.publish(tmp_path / "x", "x", hashlib.sha256(DATA).hexdigest()),
        lambda: storage.delete("x"),
    ]
    for deed in deeds:
        with pytest.raises(StorageError, match=f"^{faulty.url}/folder/x: "):
            deed()
    for listing in (storage.files, storage.folders, lambda: list(storage.names(""))):
        with pytest.raises(StorageError, match=f"^{faulty.url}/folder"):
            listing()


def test_listings_come_in_pages_and_again_if_they_break_off(storage: Storage, faulty: FaultyBucket) -> None:
    def put(number: int) -> None:
        faulty.client.put_object(Bucket=faulty.name, Key=f"folder/commits/{number:04d}.json", Body=b"x")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(1003)))
    faulty.client.put_object(Bucket=faulty.name, Key="folder/commits/deeper/x.json", Body=b"x")
    rules = [faulty.s3.add(do, method="LIST", times=1) for do in ("503", "cut", "reset")]
    assert list(storage.names("commits")) == [f"{number:04d}.json" for number in range(1003)]
    assert [rule.met for rule in rules] == [1, 1, 1]
    cuts = [f"{number:04d}.json" for number in range(0, 1200, 100)]
    rules = [faulty.s3.add(do, method="LIST", times=1) for do in ("503", "cut", "reset")]
    assert list(storage.names("commits", cuts)) == [f"{number:04d}.json" for number in range(1003)]
    assert [rule.met for rule in rules] == [1, 1, 1]
    assert list(storage.names("nothing")) == list(storage.names("nothing", cuts)) == []


# --- a shard is published -------------------------------------------------------------------------------


def check_whole(version: Version, attempt: str) -> None:
    assert version.done() == {SOURCE.name} and version.is_done(SOURCE.name)
    assert version.commit(SOURCE.name).attempt == attempt
    assert verify(version).problems == []


@pytest.mark.parametrize("key", ["*/view1.tar", COMMIT])
@pytest.mark.parametrize("do", ["503", "reset", "409", "412", "lose-reply", "delay"])
def test_a_shard_is_committed_through_trouble(
    version: Version, faulty: FaultyBucket, tmp_path: Path, key: str, do: Do
) -> None:
    commit, files = build(version, SOURCE, tmp_path)
    rule = faulty.s3.add(do, method="PUT", key=key, seconds=0.1)
    assert version.publish(commit, files) is True
    assert rule.met == (0 if do in ("409", "412") and key != COMMIT else 1)
    check_whole(version, commit.attempt)


@pytest.mark.parametrize("do", ["503", "409", "412", "lose-reply"])
def test_a_lost_race_is_lost_through_trouble(version: Version, faulty: FaultyBucket, tmp_path: Path, do: Do) -> None:
    winner, loser = (build(version, SOURCE, tmp_path) for _ in range(2))
    assert version.publish(*winner) is True
    rule = faulty.s3.add(do, method="PUT", key=COMMIT)
    assert version.publish(*loser) is False and rule.met == 1
    check_whole(version, winner[0].attempt)
    assert set(version.storage.files("data")) == set(winner[1])


def test_a_loser_that_cannot_clear_away_has_lost_all_the_same(
    version: Version, faulty: FaultyBucket, tmp_path: Path
) -> None:
    winner, loser = (build(version, SOURCE, tmp_path) for _ in range(2))
    assert version.publish(*winner) is True
    faulty.s3.add("503", method="POST", times=None)
    assert version.publish(*loser) is False
    faulty.s3.clear()
    assert list(version.unreferenced()) == [f"data/{SOURCE.name}/{loser[0].attempt}"]
    check_whole(version, winner[0].attempt)


def test_a_lying_refusal_is_not_done(
    version: Version, faulty: FaultyBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encode_pipeline.latents.storage.REFUSAL_PAUSES", ())
    faulty.s3.add("412", method="PUT", key=COMMIT)
    with pytest.raises(StorageError, match=r"\.json: the server refuses to create it, as if it were there"):
        version.publish(*build(version, SOURCE, tmp_path))
    assert version.done() == set() and not version.is_done(SOURCE.name)
    commit, files = build(version, SOURCE, tmp_path)
    assert version.publish(commit, files) is True
    check_whole(version, commit.attempt)


def test_a_flipped_bit_is_found_before_the_commit(version: Version, faulty: FaultyBucket, tmp_path: Path) -> None:
    rule = faulty.s3.add("flip-up", method="PUT", key="*/view0.tar")
    first = build(version, SOURCE, tmp_path)
    with pytest.raises(StorageError, match=r"/view0\.tar: the server does not hold the bytes that it was sent"):
        version.publish(*first)
    assert rule.met == 1 and not version.is_done(SOURCE.name)
    assert version.publish(*first) is True  # the same again, and so would a new attempt be
    check_whole(version, first[0].attempt)


def test_a_commit_that_is_damaged_on_its_way_is_mended_by_its_maker(
    version: Version, faulty: FaultyBucket, tmp_path: Path
) -> None:
    rule = faulty.s3.add("flip-up", method="PUT", key=COMMIT)
    commit, files = build(version, SOURCE, tmp_path)
    assert version.publish(commit, files) is True and rule.met == 1
    check_whole(version, commit.attempt)


def test_a_commit_that_is_damaged_when_it_is_read_is_read_again(
    version: Version, faulty: FaultyBucket, tmp_path: Path
) -> None:
    commit, files = build(version, SOURCE, tmp_path)
    version.publish(commit, files)
    rule = faulty.s3.add("flip", method="GET", key=COMMIT)
    assert version.commit(SOURCE.name) == commit and rule.met == 1
    faulty.s3.add("flip", method="GET", key=COMMIT, times=2)
    with pytest.raises(StorageError, match=r"\.json: (edited or damaged|not a commit)"):
        version.commit(SOURCE.name)


def test_a_plan_that_is_damaged_when_it_is_read_is_refused(version: Version, faulty: FaultyBucket) -> None:
    sources = [SourceShard(uri=f"/tars/{number:03d}.tar", size=number) for number in range(100)]
    version.record_plan(sources)
    (path,) = version.plans()
    size = version.storage.size(path)
    for at in range(4, size, size // 40):
        faulty.s3.add("flip", method="GET", at=at)
        assert version.plan(path) == sources  # once damaged, it is read again
        faulty.s3.clear()
        faulty.s3.add("flip", method="GET", at=at, times=2)
        try:
            assert version.plan(path) == sources  # a byte that means nothing
        except StorageError as error:
            assert str(error).startswith(f"{version.storage.url(path)}: damaged")
        faulty.s3.clear()
    assert list(version.planned().values()) == sources


def test_the_winner_must_have_what_it_committed(version: Version, faulty: FaultyBucket, tmp_path: Path) -> None:
    winner, loser = (build(version, SOURCE, tmp_path) for _ in range(2))
    version.publish(*winner)
    version.storage.delete(winner[0].payloads[0].path)
    with pytest.raises(StorageError, match=r"view0\.tar: committed, and not there"):
        version.publish(*loser)


def test_an_upload_in_parts_whose_end_goes_unheard(storage: Storage, faulty: FaultyBucket, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(101 << 20)
    rule = faulty.s3.add("lose-reply", method="POST", key="folder/large?uploadId=*")
    storage.publish(large, "large", hashlib.sha256(large.read_bytes()).hexdigest())
    assert rule.met == 1
    assert storage.size("large") == 101 << 20
