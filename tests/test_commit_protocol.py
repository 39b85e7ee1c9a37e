"""Commit, seal, promote, gc: whoever commits first wins, and nothing else counts."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.commit import ShardBuild, ShardCommit, SourceShard
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.status import StatusReader
from encode_pipeline.latents.storage import StorageError
from encode_pipeline.latents.store import Failure, Store, Version
from tests.conftest import Bucket

OpenStore = Callable[[], Store]
SOURCES = [SourceShard(uri=f"/tars/{number:05d}.tar", size=100 + number) for number in range(3)]


@pytest.fixture(params=["file", "memory", "s3"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    if request.param == "file":
        return lambda: Store(tmp_path / "store")
    if request.param == "memory":
        url = f"memory://{uuid.uuid4().hex}"
        return lambda: Store(url)
    bucket: Bucket = request.getfixturevalue("bucket")
    return lambda: Store(f"{bucket.url}/store")


def build(
    version: Version, source: SourceShard, scratch: Path, samples: int = 2
) -> tuple[ShardCommit, dict[str, Path]]:
    folder = scratch / uuid.uuid4().hex
    with ShardBuild(folder, version.spec, source) as shard:
        for number in range(samples):
            latents = [np.full(version.spec.shape, number + view, np.float16) for view in range(version.spec.views)]
            records = [{"source": source.uri, "view": view} for view in range(version.spec.views)]
            shard.add(f"{number:09d}", latents, "a caption", records)
        shard.reject("bad", "too_small", "1x1")
        return shard.finish("0" * 64, {})


def test_the_first_commit_wins_and_the_other_leaves_no_trace(
    open_store: OpenStore, spec: LatentSpec, tmp_path: Path
) -> None:
    version = open_store().create(spec)
    first, second = (build(version, SOURCES[0], tmp_path) for _ in range(2))
    assert version.publish(*first) is True
    assert version.publish(*second) is False
    assert version.commit(SOURCES[0].name).attempt == first[0].attempt
    assert {path.split("/")[2] for path in version.storage.files("data")} == {first[0].attempt}


def test_racing_attempts_commit_once(open_store: OpenStore, spec: LatentSpec, tmp_path: Path) -> None:
    version = open_store().create(spec)
    attempts = [build(version, SOURCES[0], tmp_path) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(lambda attempt: open_store().version().publish(*attempt), attempts))
    assert sum(won) == 1
    winner = attempts[won.index(True)][0]
    assert version.commit(SOURCES[0].name) == winner
    assert set(version.storage.files("data")) == {payload.path for payload in winner.payloads}


def test_a_lost_acknowledgement_is_still_ours(open_store: OpenStore, spec: LatentSpec, tmp_path: Path) -> None:
    version = open_store().create(spec)
    attempt = build(version, SOURCES[0], tmp_path)
    assert version.publish(*attempt) is True
    assert version.publish(*attempt) is True  # the client's own retry finds its own commit there
    assert len(version.storage.files("data")) == len(attempt[1])


def test_missing_is_what_has_no_commit(open_store: OpenStore, spec: LatentSpec, tmp_path: Path) -> None:
    version = open_store().create(spec)
    assert version.missing(SOURCES) == SOURCES
    version.publish(*build(version, SOURCES[1], tmp_path))
    for path, local in build(version, SOURCES[2], tmp_path)[1].items():
        version.storage.publish(
            local, path, hashlib.sha256(local.read_bytes()).hexdigest()
        )  # payloads without a commit are nothing
    assert open_store().version().missing(SOURCES) == [SOURCES[0], SOURCES[2]]


def test_commits_come_in_order_and_each_once_however_many_a_thread_reads(
    open_store: OpenStore, spec: LatentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = open_store().create(spec)
    made = {}
    for number in range(23):
        commit, files = build(version, SourceShard(f"{number * 7 % 23}.tar", number + 1), tmp_path, samples=0)
        assert version.publish(commit, files)
        made[commit.shard] = commit
    for threads, at_once in ((1, 1024), (2, 5), (2, 1024), (32, 1024)):
        monkeypatch.setattr("encode_pipeline.latents.version.READ_THREADS", threads)
        monkeypatch.setattr("encode_pipeline.latents.version.COMMITS_AT_ONCE", at_once)
        assert list(version.commits()) == [made[name] for name in sorted(made)]
        some = sorted(made)[3:15]
        assert list(version.commits(reversed(some))) == [made[name] for name in some]
    damaged = sorted(made)[17]
    path = f"commits/{damaged}.json"
    version.storage.replace(path, version.storage.read(path).replace(b'"read": 1', b'"read": 2'))
    with pytest.raises(StorageError, match=f"{damaged}.json: edited or damaged"):
        list(version.commits())


def test_a_commit_under_the_name_of_another_is_none(open_store: OpenStore, spec: LatentSpec, tmp_path: Path) -> None:
    version = open_store().create(spec)
    for source in SOURCES:
        assert version.publish(*build(version, source, tmp_path))
    one, other = (f"commits/{source.name}.json" for source in SOURCES[:2])
    swapped = {one: version.storage.read(other), other: version.storage.read(one)}
    for path, data in swapped.items():
        version.storage.replace(path, data)
    fault = rf"{SOURCES[0].name}\.json: is the commit of {SOURCES[1].name} in version {spec.fingerprint}"
    with pytest.raises(StorageError, match=fault):
        version.commit(SOURCES[0].name)
    with pytest.raises(StorageError, match=r"\.json: is the commit of "):
        list(version.commits())


def test_very_many_commits_take_little_memory(spec: LatentSpec, tmp_path: Path) -> None:
    version = Store(tmp_path / "store").create(spec)
    folder = tmp_path / "store" / version.fingerprint / "commits"
    folder.mkdir()
    for number in range(20_000):
        (folder / f"{number:06d}-0123456789.json").touch()
    tracemalloc.start()
    done = version.done()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(done) == 20_000 and "019999-0123456789" in done
    assert peak < 200 * 20_000  # at 250,000: 50 MB


def test_a_shard_without_a_usable_sample_commits_too(open_store: OpenStore, spec: LatentSpec, tmp_path: Path) -> None:
    version = open_store().create(spec)
    commit, files = build(version, SOURCES[0], tmp_path, samples=0)
    version.publish(commit, files)
    assert (commit.read, commit.encoded, commit.rejected, commit.views) == (1, 0, {"too_small": 1}, ())
    assert version.missing(SOURCES[:1]) == []


def test_seal_waits_for_every_planned_shard(open_store: OpenStore, spec: LatentSpec, tmp_path: Path) -> None:
    version = open_store().create(spec)
    version.record_plan(SOURCES)
    version.record_plan(SOURCES)
    for source in SOURCES[:2]:
        version.publish(*build(version, source, tmp_path))
    with pytest.raises(CheckFailed, match="1 planned shards have no commit"):
        version.seal()
    with pytest.raises(CheckFailed):
        version.seal(accept_failed=True)  # not given up on either: it may be under way
    version.record_failure(Failure(SOURCES[2].name, SOURCES[2].uri, "bad tar", 1))
    assert [failure.error for failure in version.failures()] == ["bad tar"]
    assert version.seal(accept_failed=True) == 4
    assert version.seal() == 4  # sealed is sealed
    assert version.manifest().num_rows == 4
    lines = version.storage.read("shards.txt").decode().split()
    assert lines == [version.storage.url(path) for path in version.manifest().column("path").to_pylist()]
    status = StatusReader(open_store(), version).look().to_dict()
    assert status["shards"] == {"total": 3, "done": 2, "failed": 1}
    assert status["samples"] == {"read": 6, "encoded": 4, "rejected": 2} and status["sealed"]


def test_a_source_that_is_gone_can_be_left_out_of_the_seal(
    open_store: OpenStore, spec: LatentSpec, tmp_path: Path
) -> None:
    version = open_store().create(spec)
    version.record_plan(SOURCES)
    version.publish(*build(version, SOURCES[0], tmp_path))
    with pytest.raises(CheckFailed, match="accept_missing=true"):
        version.seal(accept_failed=True)
    assert version.seal(accept_missing=True) == 2
    assert version.sealed_shards() == {SOURCES[0].name}


def test_strange_files_in_a_store_harm_nothing(open_store: OpenStore, spec: LatentSpec, tmp_path: Path) -> None:
    version = open_store().create(spec)
    version.publish(*build(version, SOURCES[0], tmp_path))
    for path in ("commits/.DS_Store", "commits/backup/x.json", "data/stray", "data/a/b/c/d/e"):
        version.storage.create(path, b"?")
    assert version.done() == {SOURCES[0].name}
    assert version.unreferenced() == {} and StatusReader(open_store(), version).look().tally.done == 1


def test_a_seal_cut_off_half_way_is_finished_by_the_next(
    open_store: OpenStore, spec: LatentSpec, tmp_path: Path
) -> None:
    version = open_store().create(spec)
    version.publish(*build(version, SOURCES[0], tmp_path))
    version.seal()
    version.storage.delete("shards.txt")
    assert version.seal() == 2
    assert version.storage.exists("shards.txt")


def test_promote_keeps_a_history_and_gc_frees_what_is_retired(
    open_store: OpenStore, spec: LatentSpec, tmp_path: Path
) -> None:
    store = open_store()
    versions = [store.create(spec.model_copy(update={"seed": seed})) for seed in range(3)]
    with pytest.raises(RequestError, match="none is promoted; say version="):
        store.version()
    with pytest.raises(CheckFailed, match="not sealed"):
        store.promote(versions[0])
    for version in versions:
        version.publish(*build(version, SOURCES[0], tmp_path))
        version.seal()
        store.promote(version)
    assert store.current() == versions[2].fingerprint
    assert open_store().version().fingerprint == versions[2].fingerprint
    assert store.retired(keep=1) == [versions[0].fingerprint]
    store.promote(versions[0])  # rolled back
    assert store.retired(keep=1) == [versions[1].fingerprint]
    assert set(store.retired(keep=0)) == {versions[1].fingerprint, versions[2].fingerprint}


def test_gc_names_lost_attempts_but_not_those_that_may_be_alive(
    open_store: OpenStore, spec: LatentSpec, tmp_path: Path
) -> None:
    version = open_store().create(spec)
    version.publish(*build(version, SOURCES[0], tmp_path))
    dead, files = build(version, SOURCES[0], tmp_path)
    _alive, alive_files = build(version, SOURCES[1], tmp_path)
    for path, local in [*files.items(), *alive_files.items()]:
        version.storage.publish(local, path, hashlib.sha256(local.read_bytes()).hexdigest())
    assert list(version.unreferenced()) == [f"data/{SOURCES[0].name}/{dead.attempt}"]


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from encode_pipeline.latents.commit import ShardCommit
from encode_pipeline.latents.store import Store

def die(*names):
    if names[0].name.startswith(".publishing-" + sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(*names)

rename, link = Path.replace, os.link
Path.replace = os.link = die
version = Store(sys.argv[1]).version()
commit = ShardCommit.from_json(sys.stdin.buffer.read(), "stdin")
version.publish(commit, {payload.path: Path(sys.argv[3]) for payload in commit.payloads})
"""


@pytest.mark.parametrize("at", ["view0.tar", "rejected.jsonl", SOURCES[0].name])
def test_gc_frees_what_a_killed_writer_left_once_its_shard_is_done(spec: LatentSpec, tmp_path: Path, at: str) -> None:
    version = Store(tmp_path / "store").create(spec)
    lost, files = build(version, SOURCES[0], tmp_path)
    some_file = str(next(iter(files.values())))
    words = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path / "store"), at, some_file]
    assert subprocess.run(words, input=lost.to_json()).returncode == -signal.SIGKILL
    left = list((tmp_path / "store").rglob(".publishing-*"))
    assert [path.name.removeprefix(".publishing-").startswith(at) for path in left] == [True]
    assert version.unreferenced() == {}  # for all that can be known, it is being written at this moment
    winner = build(version, SOURCES[0], tmp_path)
    assert version.publish(*winner) is True
    unreferenced = version.unreferenced()
    assert sum(unreferenced.values()) == sum(
        path.stat().st_size
        for path in (tmp_path / "store").rglob("*")
        if path.is_file() and (lost.attempt in path.parts or path in left)
    )
    for path in unreferenced:
        version.storage.delete(path)
    assert set(version.storage.files("", unfinished=True)) == {
        "spec.json", f"commits/{SOURCES[0].name}.json", *(payload.path for payload in winner[0].payloads)
    }  # fmt: skip
    assert version.done() == {SOURCES[0].name}


@pytest.mark.parametrize("step", ["os.link", "shutil.copyfile"])
def test_a_loser_whose_unfinished_file_was_freed_loses_in_order(
    spec: LatentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    version = Store(tmp_path / "store").create(spec)
    winner, loser = (build(version, SOURCES[0], tmp_path) for _ in range(2))
    real = {"os.link": os.link, "shutil.copyfile": shutil.copyfile}[step]

    def beaten(source: Path, target: Path) -> None:
        monkeypatch.setattr(step, real)
        if step == "shutil.copyfile":
            real(source, target)
        assert version.publish(*winner) is True
        freed = version.unreferenced()
        assert len(freed) == (2 if step == "os.link" else 1)
        for path in freed:
            version.storage.delete(path)
        if step == "os.link":
            real(source, target)

    monkeypatch.setattr(step, beaten)
    assert version.publish(*loser) is False
    assert version.commit(SOURCES[0].name) == winner[0]
    assert set(version.storage.files("data", unfinished=True)) == {payload.path for payload in winner[0].payloads}


def test_commits_notice_edits_and_contradictions(spec: LatentSpec, tmp_path: Path) -> None:
    version = Store(tmp_path / "store").create(spec)
    commit, _ = build(version, SOURCES[0], tmp_path)
    assert commit.problem() is None
    assert ShardCommit.from_json(commit.to_json(), "here") == commit
    with pytest.raises(StorageError, match="here: edited or damaged"):
        ShardCommit.from_json(commit.to_json().replace(b'"read": 3', b'"read": 4'), "here")
    for lie in ({"read": 4}, {"encoded": 3, "read": 4}, {"shard": "other"}, {"attempt": "other"}):
        assert commit.model_copy(update=lie).problem() is not None


def test_shard_names_are_readable_stable_and_distinct() -> None:
    name = SourceShard(uri="s3://laion/part 1/00012.tar", size=5, etag="abc").name
    assert name == SourceShard(uri="s3://laion/part 1/00012.tar", size=5, etag="abc").name
    assert name.startswith("00012-")
    others = [
        ("s3://coyo/00012.tar", 5, "abc"),
        ("s3://laion/part 1/00012.tar", 6, "abc"),
        ("s3://laion/part 1/00012.tar", 5, "d"),
    ]
    assert len({name, *(SourceShard(uri=u, size=s, etag=e).name for u, s, e in others)}) == 4


def test_versions_are_found_by_the_beginning_of_their_name(spec: LatentSpec, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(RequestError, match="no latent store here"):
        store.version()
    version = store.create(spec)
    assert store.version(version.fingerprint[:4]).spec == spec
    assert store.version().spec == spec
    with pytest.raises(RequestError, match="no one version zzz"):
        store.version("zzz")
