"""From manifests to batches: the same everywhere, exact, and plain about what is damaged."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch

from encode_pipeline.latents.bounded import BoundedFolder
from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.disk import files_under
from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import MANIFEST, Version
from encode_pipeline.latents.tables import to_parquet
from tests.conftest import Bucket
from tests.faulty_s3 import FaultyBucket, faulty, faulty_server
from tests.latent_stores import latent_store
from tests.traps import wait_for
from train.config import TrainConfig
from train.data import Batch, LatentData, open_data
from train.tokenizer import BoundedTokenizer
from train.window import OpenWindow

__all__ = ["faulty", "faulty_server"]
SIZES = [7, 5, 9, 3, 6]
EPOCH = sum(SIZES)
TOKENIZER = open_clip.SimpleTokenizer(context_length=16)
ODD_CAPTIONS = [
    "",
    "🎉 naïve café",
    "word " * 500,
    "a &amp; b &lt;i&gt;",
    " \n\t ",
    "Ünïcödé 東京",
    "<start_of_text>",
    "a",
]


@pytest.fixture
def store(tmp_path: Path, spec: LatentSpec) -> Version:
    """Five shards in two views, of thirty samples."""
    return latent_store(tmp_path / "store", tmp_path / "scratch", spec, SIZES)


def config_of(data: Any, out: Path, **changes: Any) -> TrainConfig:
    address = str(data.storage.url()).rpartition("/")[0] if isinstance(data, Version) else data
    values = {"model": "latent-vit-demo", "data": address, "out": out, "steps": 1, "batch_size": 8, "workers": 0}
    return TrainConfig(**{**values, **changes})


def opened(data: Any, out: Path, **changes: Any) -> LatentData:
    return open_data(config_of(data, out, **changes), BoundedTokenizer(context_length=TOKENIZER.context_length))


def read(data: LatentData, first: int, last: int, rows: range | None = None) -> list[Batch]:
    return list(data.batches(first, last, rows or range(8)))


def same(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(
        np.array_equal(a.ids, b.ids)
        and torch.equal(a.latents_bchw, b.latents_bchw)
        and torch.equal(a.tokens_bl, b.tokens_bl)
        for a, b in pairs
    )


def joined(parts: Sequence[Batch]) -> Batch:
    """The pieces of several ranks as one batch."""
    return Batch(
        torch.cat([part.latents_bchw for part in parts]),
        torch.cat([part.tokens_bl for part in parts]),
        np.concatenate([part.ids for part in parts]),
    )


def tar_paths(version: Version) -> list[Path]:
    """The tars of a local store by their numbers."""
    rows = sorted(version.manifest().to_pylist(), key=lambda row: (row["shard"], row["view"]))
    return [Path(version.storage.root) / row["path"] for row in rows]


def expected(versions: Sequence[Version], ids: np.ndarray) -> Batch:
    """What the samples of these numbers are, read one by one."""
    shards = [[LatentShard(path, version.spec) for path in tar_paths(version)] for version in versions]
    latents = np.stack([shards[store][tar].latent(sample) for store, tar, sample in ids.tolist()])
    tokens = TOKENIZER([shards[store][tar].caption(sample) for store, tar, sample in ids.tolist()])
    return Batch(torch.from_numpy(latents), tokens, ids)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# --- the same batches everywhere ------------------------------------------------------------------


@pytest.mark.parametrize("views", ["rotate", "mixed"])
def test_every_sample_once_an_epoch_with_its_own_latent_and_tokens(store: Version, tmp_path: Path, views: str) -> None:
    data = opened(store, tmp_path / "out", views=views, batch_size=10, mix=2)
    epoch = EPOCH * (2 if views == "mixed" else 1)
    assert data.samples == epoch
    batches = read(data, 0, 3 * epoch // 10, range(10))
    for number, batch in enumerate(batches):
        assert np.array_equal(batch.ids, data.batch_ids(number))
        assert same([batch], [expected([store], batch.ids)])
    ids = np.concatenate([batch.ids for batch in batches])
    for number in range(3):
        found = Counter(map(tuple, ids[number * epoch : (number + 1) * epoch, 1:].tolist()))
        seen = range(2) if views == "mixed" else [number % 2]
        assert found == Counter(
            (2 * shard + view, i) for shard, size in enumerate(SIZES) for i in range(size) for view in seen
        )


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_ranks_and_workers_change_nothing(store: Version, tmp_path: Path, workers: int) -> None:
    data = opened(store, tmp_path / "out", workers=workers, mix=2)
    whole = read(data, 0, 9)
    assert same(whole, [expected([store], data.batch_ids(number)) for number in range(9)])
    for ranks in (2, 4):
        rows = [range(rank * 8 // ranks, (rank + 1) * 8 // ranks) for rank in range(ranks)]
        parts = [read(opened(store, tmp_path / "out", workers=0, mix=2), 0, 9, some) for some in rows]
        assert same(whole, [joined(pieces) for pieces in zip(*parts, strict=True)])


def test_begun_anywhere_the_batches_are_the_same(store: Version, tmp_path: Path) -> None:
    whole = read(opened(store, tmp_path / "a", mix=2), 0, 12)
    for first in (1, 5, 11):
        assert same(whole[first:], read(opened(store, tmp_path / "b", mix=2), first, 12))
    data = opened(store, tmp_path / "a", mix=2)
    stream = data.batches(3, 12, range(8))
    assert same([next(stream)], whole[3:4])
    stream.close()  # given up in the middle, as a run that is told to end
    assert same(read(data, 3, 12), whole[3:])


def test_a_sealed_store_of_pictures(sealed: Version, tmp_path: Path) -> None:
    data = opened(sealed, tmp_path / "out", batch_size=12, workers=2)
    assert data.samples == 48 and data.spec == sealed.spec
    batches = read(data, 0, 8, range(12))
    assert [set((batch.ids[:, 1] % 4).tolist()) for batch in batches] == [{0}] * 4 + [{1}] * 4
    assert same(batches, [expected([sealed], data.batch_ids(number)) for number in range(8)])
    store, tar, sample = batches[0].ids[5].tolist()
    path = tar_paths(sealed)[tar]
    with LatentShard(path, sealed.spec) as shard:
        assert data.names(batches[0].ids)[5] == f"{path}: {shard.keys[sample]}"
    assert store == 0


def test_the_order_in_the_manifest_does_not_matter(store: Version, tmp_path: Path) -> None:
    before = opened(store, tmp_path / "out").batch_ids(4)
    table = store.manifest()
    store.storage.delete(MANIFEST)
    store.storage.create(MANIFEST, to_parquet(table.take(pa.array(np.random.default_rng(0).permutation(len(table))))))
    data = opened(store, tmp_path / "out")
    assert np.array_equal(data.batch_ids(4), before)
    assert same(read(data, 4, 5), [expected([store], before)])


def test_views_that_do_not_hold_the_same_are_refused(store: Version, tmp_path: Path) -> None:
    table = store.manifest()
    store.storage.delete(MANIFEST)
    store.storage.create(MANIFEST, to_parquet(table.slice(1)))
    with pytest.raises(RequestError, match="the views do not hold the same samples"):
        opened(store, tmp_path / "out")


@pytest.mark.parametrize("workers", [0, 1])
def test_tokens_are_the_tokenizers_own(tmp_path: Path, spec: LatentSpec, workers: int) -> None:
    version = latent_store(tmp_path / "store", tmp_path / "scratch", spec, [300, 40], ODD_CAPTIONS)
    data = opened(version, tmp_path / "out", batch_size=340, workers=workers)
    for batch in read(data, 0, 2, range(340)):
        assert same([batch], [expected([version], batch.ids)])


def test_another_tokenizer_has_tokens_of_its_own(store: Version, tmp_path: Path) -> None:
    read(opened(store, tmp_path / "out"), 0, 1)
    longer = BoundedTokenizer(context_length=20, clean="whitespace")
    (batch,) = read(open_data(config_of(store, tmp_path / "out"), longer), 0, 1)
    (shorter,) = read(opened(store, tmp_path / "out"), 0, 1)
    assert batch.tokens_bl.shape == (8, 20) and shorter.tokens_bl.shape == (8, 16)


# --- several stores -------------------------------------------------------------------------------


@pytest.fixture
def second(tmp_path: Path, spec: LatentSpec) -> Version:
    """Another store of latents of the same kind, with a recipe and a seed of its own."""
    other = spec.model_copy(update={"seed": 5, "views": 1})
    return latent_store(tmp_path / "second", tmp_path / "scratch2", other, [4, 6])


def test_stores_are_mixed_by_their_samples_or_by_weight(store: Version, second: Version, tmp_path: Path) -> None:
    addresses = [str(tmp_path / "store"), str(tmp_path / "second")]
    by_size = opened(addresses, tmp_path / "out")
    assert by_size.samples == 40
    assert [np.bincount(by_size.batch_ids(number)[:, 0]).tolist() for number in range(3)] == [[6, 2]] * 3
    data = opened(dict(zip(addresses, [1, 2.2], strict=True)), tmp_path / "out", mix=2)
    ids = np.concatenate([data.batch_ids(number) for number in range(40)])
    assert np.bincount(ids[:, 0]).tolist() == [100, 220]
    for number, epoch in ((0, 30), (1, 10)):  # each store by itself leaves nothing out and brings nothing twice
        own = ids[ids[:, 0] == number, 1:]
        whole = len(own) // epoch
        assert [len(np.unique(part, axis=0)) for part in np.split(own[: whole * epoch], whole)] == [epoch] * whole
    whole = read(data, 0, 12)
    assert same(whole, [expected([store, second], data.batch_ids(number)) for number in range(12)])
    parts = [
        read(opened(dict(zip(addresses, [1, 2.2], strict=True)), tmp_path / "out", mix=2), 0, 12, rows)
        for rows in (range(3), range(3, 8))
    ]
    assert same(whole, [joined(pieces) for pieces in zip(*parts, strict=True)])


@pytest.mark.parametrize("change", ["vae", "scale", "shape"])
def test_stores_that_mean_other_things_are_refused(
    store: Version, spec: LatentSpec, tmp_path: Path, change: str
) -> None:
    changes: dict[str, Any] = {
        "vae": spec.vae.model_copy(update={"weights_sha256": "1" * 64}),
        "scale": "model",
        "shape": (4, 8, 4),
    }
    other = spec.model_copy(update={change: changes[change]})
    latent_store(tmp_path / "other", tmp_path / "scratch2", other, [4])
    with pytest.raises(RequestError, match=f"other/.*: other latents than in .*store/.*: {change}: .* against"):
        opened([str(tmp_path / "store"), str(tmp_path / "other")], tmp_path / "out")


@pytest.mark.parametrize(
    ("data", "changes", "said"),
    [
        ([], {}, "data: no store"),
        ({"{0}": 0.0}, {}, r"a weight of 0\.0; it has to be above 0"),
        ({"{0}": float("nan")}, {}, "a weight of nan"),
        (["{0}", "{0}"], {"version": "ab"}, "version=ab: of which of the 2 stores"),
        ("{0}", {"cache_gb": 1e-6}, r"cache_gb=1e-06: two windows of mix=64 shards can take .* say cache_gb=0\.01"),
    ],
)
def test_what_cannot_be_is_refused(store: Version, tmp_path: Path, data: Any, changes: Any, said: str) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return value.format(tmp_path / "store")
        return (
            {filled(key): weight for key, weight in value.items()}
            if isinstance(value, dict)
            else list(map(filled, value))
        )

    with pytest.raises(RequestError, match=said):
        opened(filled(data), tmp_path / "out", **changes)


# --- damage ---------------------------------------------------------------------------------------


def spoil(path: Path, how: str) -> None:
    if how == "flipped":
        flip(path, path.stat().st_size // 2)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-512])
    else:
        path.unlink()


SAID = {
    "flipped": r"view0\.tar: sha256 .* in the manifest",
    "cut": r"view0\.tar: \d+ bytes, \d+ in the manifest",
    "gone": r"view0\.tar: not there",
}


@pytest.mark.parametrize("how", SAID)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_stops_the_run_in_one_line(store: Version, tmp_path: Path, how: str, workers: int) -> None:
    spoil(tar_paths(store)[4], how)
    with pytest.raises(CheckFailed, match=SAID[how]) as failure:
        read(opened(store, tmp_path / "out", workers=workers), 0, 4)
    assert "\n" not in str(failure.value) and str(failure.value).count("view0.tar") == 1


@pytest.mark.parametrize("how", SAID)
def test_a_skipped_shard_is_filled_alike_on_any_ranks(
    store: Version, tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    spoil(tar_paths(store)[4], how)

    def parts(ranks: int) -> tuple[list[Batch], int]:
        rows = [range(rank * 8 // ranks, (rank + 1) * 8 // ranks) for rank in range(ranks)]
        data = [opened(store, tmp_path / f"out{ranks}", damaged="skip", mix=3) for _ in rows]
        batches = [read(some, 0, 8, part) for some, part in zip(data, rows, strict=True)]
        return [joined(pieces) for pieces in zip(*batches, strict=True)], sum(some.skipped for some in data)

    (whole, lost), told = parts(1), capfd.readouterr().err
    assert told.count("damaged, and left out: ") == 1 and "view0.tar: " in told
    planned = [opened(store, tmp_path / "out1", mix=3).batch_ids(number) for number in range(8)]
    replaced = np.concatenate([(batch.ids != plan).any(axis=1) for batch, plan in zip(whole, planned, strict=True)])
    assert lost == replaced.sum() == (np.concatenate(planned)[:, 1] == 4).sum() >= SIZES[2]
    assert not (np.concatenate([batch.ids for batch in whole])[:, 1] == 4).any()
    for batch in whole:
        latents = [LatentShard(tar_paths(store)[tar], store.spec).latent(i) for _, tar, i in batch.ids.tolist()]
        assert np.array_equal(batch.latents_bchw.numpy(), np.stack(latents))
    for ranks in (2, 4):
        again, count = parts(ranks)
        assert same(again, whole) and count == lost
        assert capfd.readouterr().err.count("damaged, and left out: ") == 1


def test_where_nothing_is_sound_there_is_nothing_to_go_on_with(store: Version, tmp_path: Path) -> None:
    for path in tar_paths(store):
        spoil(path, "flipped")
    with pytest.raises(CheckFailed, match="no other shard of its window is sound either"):
        read(opened(store, tmp_path / "out", damaged="skip"), 0, 1)


def test_a_shard_that_changes_later_is_checked_again(store: Version, tmp_path: Path) -> None:
    read(opened(store, tmp_path / "out"), 0, 4)
    flip(tar_paths(store)[2], 5000)
    with pytest.raises(CheckFailed, match=r"view0\.tar: sha256"):
        read(opened(store, tmp_path / "out"), 0, 4)


def test_tokens_cut_by_a_crash_are_made_again(store: Version, tmp_path: Path) -> None:
    whole = read(opened(store, tmp_path / "out"), 0, 4)
    for number, path in enumerate(sorted((tmp_path / "out" / "cache").rglob("*.npy"))):
        path.write_bytes(path.read_bytes()[: (0, 50, 300)[number % 3]])
    assert same(read(opened(store, tmp_path / "out"), 0, 4), whole)


def test_a_killed_worker_is_told(store: Version, tmp_path: Path) -> None:
    stream = opened(store, tmp_path / "out", workers=1, mix=1).batches(0, 400, range(8))
    next(stream)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    for path in (tmp_path / "out" / "cache").rglob("*.npy"):
        path.unlink()
    with pytest.raises(CheckFailed, match="a process that prepares shards was killed"):
        for _ in stream:
            for path in (tmp_path / "out" / "cache").rglob("*.npy"):
                path.unlink(missing_ok=True)


def test_a_wait_for_shards_can_be_given_up(store: Version, tmp_path: Path) -> None:
    data = opened(store, tmp_path / "out")
    rows = [data._stores[0].row(tar) for tar in range(4)]
    futures = [Future[None]() for _ in rows]
    window = OpenWindow(0, data._stores[0], data._ready[0], np.arange(4), lambda store, row: futures[rows.index(row)])
    with ThreadPoolExecutor(1) as waiter:
        waiting = waiter.submit(window.wait)
        data._ready[0].prepare(rows[0])
        futures[0].set_result(None)
        wait_for("the first shard to be open", lambda: 0 in window._open)
        window.cancel()
        try:
            assert isinstance(waiting.exception(timeout=20), CancelledError)
        finally:
            for future in futures:
                future.cancel()


def test_a_signal_to_the_trainers_group_spares_its_workers(store: Version, tmp_path: Path) -> None:
    """As torchrun sends one: the step under way is to be finished, and may need them."""
    stream = opened(store, tmp_path / "out", workers=1, mix=1).batches(0, 40, range(8))
    next(stream)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None and os.getpgid(worker.pid) not in (os.getpgid(0), worker.pid)
    stream.close()


def test_the_samples_of_a_large_batch_are_named_by_opening_each_tar_once(
    store: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = opened(store, tmp_path / "out", batch_size=2 * EPOCH)
    ids, opens, real = data.batch_ids(0), [], ShardCache.open

    def counted(cache: ShardCache, row: Any) -> LatentShard:
        opens.append(row["path"])
        return real(cache, row)

    monkeypatch.setattr(ShardCache, "open", counted)
    names = data.names(ids)
    assert len(set(names)) == len(names) == 2 * EPOCH and len(opens) == 2 * len(SIZES)
    assert names[7].endswith(f"{ids[7, 1] // 2:05d}{ids[7, 2]:04d}")
    tar_paths(store)[ids[7, 1]].unlink()
    assert data.names(ids[7:8]) == [f"{tar_paths(store)[ids[7, 1]]}: sample {ids[7, 2]}"]


# --- the cache ------------------------------------------------------------------------------------


def held(folder: Path) -> int:
    """Bytes in a cache, while nothing is removed from it for another file."""
    with BoundedFolder(folder)._lock("room"):
        return sum(size for _, size in files_under(folder))


def test_a_file_takes_as_much_room_as_was_made_for_it(
    bucket: Bucket, spec: LatentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = latent_store(f"{bucket.url}/store", tmp_path / "scratch", spec, SIZES)
    really, sizes = BoundedFolder.add, []

    def add(self: BoundedFolder, name: str, size: int, write: Callable[[Path], object]) -> Path:
        path = really(self, name, size, write)
        sizes.append((path.suffix, size, path.stat().st_size))
        return path

    monkeypatch.setattr(BoundedFolder, "add", add)
    read(opened(remote, tmp_path / "out"), 0, 4)
    assert {suffix for suffix, _, _ in sizes} == {".tar", ".npy"}
    assert all(said == taken for _, said, taken in sizes)


def test_from_s3_the_batches_are_those_of_a_disk(
    bucket: Bucket, store: Version, spec: LatentSpec, tmp_path: Path
) -> None:
    remote = latent_store(f"{bucket.url}/store", tmp_path / "again", spec, SIZES)
    whole = read(opened(store, tmp_path / "a", mix=2), 0, 8)
    for workers in (0, 2):
        assert same(whole, read(opened(remote, tmp_path / f"b{workers}", mix=2, workers=workers), 0, 8))


def test_a_small_cache_stays_small_and_right(bucket: Bucket, store: Version, spec: LatentSpec, tmp_path: Path) -> None:
    remote = latent_store(f"{bucket.url}/store", tmp_path / "again", spec, SIZES)
    whole = read(opened(store, tmp_path / "a", mix=1), 0, 20)
    with pytest.raises(RequestError) as refusal:
        opened(remote, tmp_path / "b", mix=1, cache_gb=1e-9)
    two_windows = float(str(refusal.value).split("can take ")[1].split(" GB")[0])
    limit = two_windows * 1.2e9
    data = opened(remote, tmp_path / "b", mix=1, cache_gb=limit / 1e9)
    most = 0
    for batch, wanted in zip(data.batches(0, 20, range(8)), whole, strict=True):
        assert same([batch], [wanted])
        most = max(most, held(tmp_path / "b" / "cache"))
    assert limit / 3 < most <= limit < sum(row["size"] for row in remote.manifest().to_pylist()) / 2


def test_what_others_remove_is_fetched_again(bucket: Bucket, spec: LatentSpec, tmp_path: Path) -> None:
    remote = latent_store(f"{bucket.url}/store", tmp_path / "scratch", spec, SIZES)
    whole = read(opened(remote, tmp_path / "a", mix=1), 0, 12)
    data = opened(remote, tmp_path / "b", mix=1)
    for batch, wanted in zip(data.batches(0, 12, range(8)), whole, strict=True):
        assert same([batch], [wanted])
        for path in (tmp_path / "b" / "cache").rglob("*.*"):
            path.unlink()


def test_a_copy_of_another_size_is_not_trusted(bucket: Bucket, spec: LatentSpec, tmp_path: Path) -> None:
    remote = latent_store(f"{bucket.url}/store", tmp_path / "scratch", spec, SIZES)
    whole = read(opened(remote, tmp_path / "out"), 0, 4)
    for path in (tmp_path / "out" / "cache").rglob("*.tar"):
        path.write_bytes(path.read_bytes()[:-1])
    assert same(read(opened(remote, tmp_path / "out"), 0, 4), whole)


def test_what_comes_damaged_once_is_fetched_again(faulty: FaultyBucket, spec: LatentSpec, tmp_path: Path) -> None:
    remote = latent_store(f"{faulty.url}/store", tmp_path / "scratch", spec, SIZES)
    whole = read(opened(remote, tmp_path / "a"), 0, 4)
    flips = faulty.s3.add("flip", method="GET", key="*/00002-*/view0.tar")
    assert same(read(opened(remote, tmp_path / "b"), 0, 4), whole) and flips.met == 1
    for_ever = faulty.s3.add("flip", method="GET", key="*/00002-*/view0.tar", times=None)
    with pytest.raises(CheckFailed, match=r"s3://.*/00002-.*view0\.tar: arrived with sha256 .* in the manifest$"):
        read(opened(remote, tmp_path / "c", workers=1), 0, 4)
    assert for_ever.met == 2
    data = opened(remote, tmp_path / "c", damaged="skip")
    assert not (np.concatenate([batch.ids for batch in read(data, 0, 3)])[:, 1] == 4).any() and data.skipped > 0


READ = """
import sys
from pathlib import Path
from tests.test_train_data import opened
data = opened(sys.argv[1], Path(sys.argv[2]), workers=2, mix=2)
print(*[batch.ids.sum() for batch in data.batches(0, int(sys.argv[3]), range(int(sys.argv[4]), int(sys.argv[4]) + 4))])
"""
ROOT = Path(__file__).parent.parent


def reading(address: str, out: Path, batches: int, first_row: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", READ, address, str(out), str(batches), str(first_row)]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_two_processes_fetch_each_tar_once(faulty: FaultyBucket, spec: LatentSpec, tmp_path: Path) -> None:
    remote = latent_store(f"{faulty.url}/store", tmp_path / "scratch", spec, SIZES)
    fetched = faulty.s3.add("delay", method="GET", key="*.tar", times=None)
    ranks = [reading(f"{faulty.url}/store", tmp_path / "out", 8, first) for first in (0, 4)]
    said = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert fetched.met == 2 * len(SIZES)  # 64 samples are two epochs of 30 and some: both views of all shards
    ids = [opened(remote, tmp_path / "out", mix=2).batch_ids(number) for number in range(8)]
    assert [line.split() for line in said] == [
        [str(part[:4].sum()) for part in ids],
        [str(part[4:].sum()) for part in ids],
    ]


def test_a_killed_trainer_leaves_no_worker(store: Version, tmp_path: Path) -> None:
    script = (
        "import multiprocessing, sys, time\nfrom pathlib import Path\nfrom tests.test_train_data import opened\n"
        "stream = opened(sys.argv[1], Path(sys.argv[2]), workers=2, mix=1).batches(0, 50, range(8))\nnext(stream)\n"
        "print(*[child.pid for child in multiprocessing.active_children()], flush=True)\ntime.sleep(600)\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "store"), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as trainer:
        assert trainer.stdout is not None
        workers = [Path(f"/proc/{pid}") for pid in trainer.stdout.readline().split()]
        assert workers and all(worker.exists() for worker in workers)
        trainer.kill()
    wait_for("the workers to end", lambda: not any(map(is_running, workers)))


def is_running(process: Path) -> bool:
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_full_disk_is_told_in_one_line(bucket: Bucket, spec: LatentSpec, tmp_path: Path) -> None:
    from tests.test_fleet_disks import small_disk

    remote = latent_store(f"{bucket.url}/store", tmp_path / "scratch", spec, [20, 20, 20])
    with small_disk(tmp_path / "small", kilobytes=48) as disk:
        with pytest.raises(CheckFailed, match=f"^{disk}: no room on this disk for a file of .* bytes$"):
            read(opened(remote, tmp_path / "out", cache=disk, damaged="skip"), 0, 1)
        assert not [path for path in disk.rglob("*") if "arriving" in path.name]


def test_what_killed_writers_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    folder = BoundedFolder(tmp_path, limit=250)
    left = tmp_path / ".arriving-100-dead"
    left.write_bytes(b"x" * 30)

    def write(path: Path) -> None:
        folder.add("b", 100, lambda path: path.write_bytes(b"b" * 100))
        folder.add("c", 100, lambda path: path.write_bytes(b"c" * 100))
        assert path.exists()
        path.write_bytes(b"a" * 100)

    folder.add("a", 100, write)
    assert not left.exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["a", "c"]
    folder.touch("c")
    os.utime(tmp_path / "a", ns=(1, 1))
    folder.add("d", 100, lambda path: path.write_bytes(b"d" * 100))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["c", "d"]


def test_writers_at_once_leave_each_other_alone(tmp_path: Path) -> None:
    """None is taken for dead between beginning its file and writing it."""

    def write(writer: int) -> list[Path]:
        folder = BoundedFolder(tmp_path, limit=10**6)
        return [folder.add(f"{writer}-{number}", 1, lambda path: path.write_bytes(b"x")) for number in range(100)]

    with ThreadPoolExecutor(4) as writers:
        written = [path for paths in writers.map(write, range(4)) for path in paths]
    assert len(written) == 400 and all(path.is_file() for path in written)
