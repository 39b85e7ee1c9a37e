"""The encode core from tars to a sealed store: exact, accounted for, the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from demo.warts import WartPlan
from encode_pipeline.augment import ViewMaker
from encode_pipeline.encoder import LatentEncoder
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.status import StatusReader
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.randomness import posterior_noise, seed_of
from encode_pipeline.read import read_samples
from encode_pipeline.records import Sample, ViewedSample
from encode_pipeline.run import plan, run
from encode_pipeline.sources import open_source
from encode_pipeline.vae import load_vae
from tests.conftest import Configure, encode_and_seal, payload_hashes


def test_two_clean_encodes_commit_the_same_payloads(configure: Configure, tmp_path: Path) -> None:
    stores = [configure(store=str(tmp_path / name), threads=threads) for name, threads in (("a", 1), ("b", 4))]
    first, second = (payload_hashes(encode_and_seal(config)) for config in stores)
    assert first == second and len(first) == 3


def test_order_of_sources_does_not_change_their_latents(configure: Configure, world: Path, tmp_path: Path) -> None:
    tars = sorted(str(path) for path in (world / "train").glob("*.tar"))
    forward = encode_and_seal(configure(source=tars, store=str(tmp_path / "a")))
    backward = encode_and_seal(configure(source=tars[::-1], store=str(tmp_path / "b")))
    assert payload_hashes(forward) == payload_hashes(backward)


def test_stored_latents_are_what_the_steps_give_one_by_one(sealed: Version, world: Path, small_vae: Path) -> None:
    """Re-derives one latent of each view from the source picture, outside the loop."""
    spec = sealed.spec
    encoder = LatentEncoder(load_vae(str(small_vae)), spec, batch_size=8)
    commit = next(iter(sealed.commits()))
    with open_source(commit.source) as tar:
        sample = next(iter(read_samples(tar, commit.source.uri)))
    assert isinstance(sample, Sample)
    from encode_pipeline.recipe import ViewRecipe

    viewed = ViewMaker(ViewRecipe(**spec.recipe), spec.views, spec.image_size, spec.seed, commit.shard)(sample)
    assert isinstance(viewed, ViewedSample)
    for view, payload in enumerate(commit.views):
        path = sealed.storage.local_path(payload.path)
        assert path is not None
        with LatentShard(path, spec) as shard:
            noise = posterior_noise(seed_of(spec.seed, commit.shard, sample.key, view, "posterior"), spec.shape)
            expected = encoder.encode([viewed.views[view].pixels], [noise]).latents[0]
            assert shard.keys[0] == sample.key and np.array_equal(shard.latent(0), expected)
            record = shard.metadata(0)
            assert record["view"] == view and record["augmentation"] == viewed.views[view].parameters
            assert record["metadata"]["url"] == sample.metadata["url"] and record["source"] == commit.source.uri
            assert shard.caption(0) == sample.caption


def test_warts_are_counted_exactly(configure: Configure, warty_tar: tuple[Path, WartPlan]) -> None:
    path, planted = warty_tar
    result = run(configure(source=str(path), views=2))
    assert result["ok"]
    assert result["samples"]["read"] == planted.samples
    assert result["samples"]["encoded"] == len(planted.expected_accepted)
    assert result["rejected"] == planted.expected_rejected
    version = Store(result["store"]).version()
    (commit,) = version.commits()
    assert commit.problem() is None and commit.rejected == planted.expected_rejected
    (listed,) = [payload for payload in commit.payloads if payload.view is None]
    lines = [json.loads(line) for line in version.storage.read(listed.path).splitlines()]
    assert len(lines) == sum(planted.expected_rejected.values())
    assert {line["key"] for line in lines} & {"../../000009009"}
    for payload in commit.views:
        local = version.storage.local_path(payload.path)
        assert local is not None
        with LatentShard(local, version.spec) as shard:
            assert set(shard.keys) == set(planted.expected_accepted)


def test_a_bad_tar_is_given_up_on_and_the_rest_goes_on(configure: Configure, world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    for path in (world / "train").glob("*.tar"):
        (folder / path.name).write_bytes(path.read_bytes())
    broken = folder / "00001.tar"
    data = broken.read_bytes()
    broken.write_bytes(data[: len(data) // 2])
    config = configure(source=str(folder), views=1)
    result = run(config)
    assert not result["ok"] and result["shards"] == {"done": 2, "failed": 1, "done_by_others": 0}
    assert str(broken) in result["failures"][0]["error"] and result["failures"][0]["attempts"] == 2
    version = Store(config.store).version()
    assert StatusReader(Store(config.store), version).look().to_dict()["shards"] == {"total": 3, "done": 2, "failed": 1}
    assert not [path for path in version.storage.files("data") if "/00001" in path]


def test_the_same_command_again_does_only_what_is_missing(configure: Configure) -> None:
    config = configure(limit=2, views=1)
    assert run(config)["shards"]["done"] == 2
    assert plan(configure(views=1))["shards"] == {"total": 3, "done": 2, "missing": 1}
    full = run(configure(views=1))
    assert (full["shards"]["done"], full["already_done"]) == (1, 2)
    again = run(configure(views=1))
    assert (again["shards"]["done"], again["already_done"], again["ok"]) == (0, 3, True)


def test_plan_writes_nothing(configure: Configure) -> None:
    config = configure()
    assert plan(config)["shards"] == {"total": 3, "done": 0, "missing": 3}
    assert not Path(config.store).exists()


def test_a_sealed_version_takes_nothing_more(configure: Configure, world: Path) -> None:
    encode_and_seal(configure(limit=1, views=1))
    with pytest.raises(RequestError, match="sealed, and 2 of these shards are not in it"):
        run(configure(views=1))


def test_shard_list_is_read_by_plain_webdataset(sealed: Version) -> None:
    assert sealed.spec.views == 4
    urls = sealed.storage.read("shards.txt").decode().split()
    dataset = wds.WebDataset(urls, shardshuffle=False).decode().to_tuple("npy", "txt")
    samples = list(dataset)
    assert len(samples) == 4 * 48
    assert {(latent.shape, str(latent.dtype)) for latent, _ in samples} == {((4, 8, 8), "float16")}


def test_every_sample_conserved_and_no_key_twice(sealed: Version) -> None:
    seen = set()
    for commit in sealed.commits():
        assert commit.read == commit.encoded + sum(commit.rejected.values())
        for payload in commit.views:
            local = sealed.storage.local_path(payload.path)
            assert local is not None
            with LatentShard(local, sealed.spec) as shard:
                keys = {(commit.shard, key, payload.view) for key in shard.keys}
            assert len(keys) == commit.encoded and not keys & seen
            seen |= keys
    assert len(seen) == 4 * 48


def test_gc_frees_lost_attempts_and_retired_versions_but_never_the_promoted_one(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    from encode_pipeline.__main__ import VERBS
    from encode_pipeline.latents.command import main

    old, new = (encode_and_seal(configure(views=1, limit=1, seed=seed)) for seed in (0, 1))
    shard = next(iter(new.done()))
    new.storage.create(f"data/{shard}/lost-attempt/view0.tar", b"x" * 10)
    store = str(Path(new.storage.root).parent)

    def gc(*words: str) -> dict[str, object]:
        capsys.readouterr()
        assert main("encode_pipeline", VERBS, ["gc", store, *words, "--json"]) == 0
        told: dict[str, object] = json.loads(capsys.readouterr().out)
        return told

    assert gc("dry_run=true")["bytes"] == 10 and new.storage.exists(f"data/{shard}/lost-attempt/view0.tar")
    assert gc()["freed"] == {f"{new.fingerprint}/data/{shard}/lost-attempt": 10}
    assert gc()["freed"] == {} and Store(store).versions() == sorted([old.fingerprint, new.fingerprint])
    assert list(gc("--keep", "1")["freed"]) == []
    assert list(gc("--keep", "0")["freed"]) == [old.fingerprint]
    assert Store(store).versions() == [new.fingerprint]
