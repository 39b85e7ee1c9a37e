"""A store of int8 latents, from the encoder to the evaluation: the same as one of the float16 latents it stands for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encode_pipeline.config import ReplayRequest
from encode_pipeline.estimate import PlanRequest, estimate
from encode_pipeline.latents.commit import ShardBuild, SourceShard
from encode_pipeline.latents.quantised import as_read, quantise
from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.latents.verify import verify
from encode_pipeline.latents.writer import Latent, npy_header
from encode_pipeline.replay import replay
from eval.generated_imagenet import GenerateConfig, generate_imagenet
from eval.zero_shot import ZeroShotConfig, zero_shot
from tests.conftest import Bucket, Configure, encode_and_seal
from tests.latent_stores import latent_store
from tests.test_generated_imagenet import samples_of
from tests.test_reencode import ALL_STEPS, Schedule, begin, schedule
from tests.test_train import store_of, tiny_model
from tests.test_train_data import SIZES, config_of, joined, opened, read, same, tar_paths
from tests.test_verify_deep import member, problems_of, rewrite, small_store
from train.checkpoint import load_checkpoint
from train.config import TrainConfig
from train.loop import train
from train.preferences import PreferencePairs

__all__ = ["begin", "schedule", "tiny_model"]


@pytest.fixture
def int8(spec: LatentSpec) -> LatentSpec:
    return spec.model_copy(update={"dtype": "int8"})


def shards_of(version: Version) -> list[LatentShard]:
    return [LatentShard(path, version.spec) for path in tar_paths(version)]


def float16_copy(version: Version, address: Path, scratch: Path) -> Version:
    """A float16 store of what readers of an int8 one are given."""
    copy = Store(address).create(version.spec.model_copy(update={"dtype": "float16"}))
    for commit in version.commits():
        tars = [LatentShard(Path(version.storage.url(payload.path)), version.spec) for payload in commit.views]
        with ShardBuild(scratch / commit.shard, copy.spec, commit.source) as build:
            for index, key in enumerate(tars[0].keys):
                latents, records = [tar.latent(index) for tar in tars], [tar.metadata(index) for tar in tars]
                build.add(key, latents, tars[0].caption(index), records)
            copy.publish(*build.finish(commit.source_sha256, commit.made_by))
    copy.seal()
    return copy


# --- encode, verify, replay, estimate, re-encode ------------------------------------------------------


def test_the_encoder_stores_what_float16_would_hold_quantised(configure: Configure, tmp_path: Path) -> None:
    plain = encode_and_seal(configure(store=str(tmp_path / "plain"), views=2))
    small = encode_and_seal(configure(store=str(tmp_path / "small"), views=2, latent_dtype="int8"))
    assert small.spec == plain.spec.model_copy(update={"dtype": "int8"})
    assert verify(small, deep=True).problems == []
    for one, other in zip(shards_of(plain), shards_of(small), strict=True):
        assert one.keys == other.keys
        for index in range(len(one)):
            assert other.quantised(index).to_bytes() == quantise(one.latent(index)).to_bytes()
            assert other.latent(index).tobytes() == as_read(one.latent(index), small.spec).tobytes()
    told = replay(ReplayRequest(store=store_of(small), key="000010003", out=tmp_path / "again"))
    assert told["latents"] == "identical" and [view["float16_steps"] for view in told["views"]] == [0, 0]


def scale(number: int, value: float) -> Callable[[bytes], bytes]:
    """Another float32 in an `.npy`: zeros of the channels first, then the steps."""

    def change(data: bytes) -> bytes:
        place = data.index(b"\n") + 1 + 4 * number
        return data[:place] + np.float32(value).tobytes() + data[place + 4 :]

    return change


def without_scales(data: bytes) -> bytes:
    """The values alone, as a plain array of int8."""
    header = {"descr": "|i1", "fortran_order": False, "shape": (4, 8, 8)}
    text = str(header).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data[-256:]


def as_float16(data: bytes) -> bytes:
    spec = LatentSpec.model_validate(
        {
            "vae": {"name": "", "weights_sha256": "", "config": {}, "scaling_factor": 1.0},
            "shape": (4, 8, 8),
            "image_size": 64,
            "views": 2,
            "recipe": {},
            "seed": 0,
        }
    )
    return npy_header(spec) + bytes(512)


WRONG = {
    "a step that is no number": (scale(6, np.nan), "002.npy: damaged: a scale that is not finite"),
    "a zero without end": (scale(1, -np.inf), "002.npy: damaged: a scale that is not finite"),
    "another step": (scale(5, 0.5), "002.npy: damaged: a scale that no latent has"),
    "no scale": (without_scales, "002.npy: not an int8 latent of shape (4, 8, 8)"),
    "float16": (as_float16, "002.npy: not an int8 latent of shape (4, 8, 8)"),
    "other values": (lambda data: data[:-256] + bytes(256), "002: values that do not go with its scale"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_deep_names_what_was_written_wrong(kind: str, int8: LatentSpec, tmp_path: Path) -> None:
    change, says = WRONG[kind]
    version = small_store(str(tmp_path / "store"), int8, tmp_path / "scratch")
    path = rewrite(version, 1, member("002.npy", change))
    assert problems_of(version) == []  # every byte is as committed
    (problem,) = problems_of(version, deep=True)
    assert (problem.path, problem.problem) == (path, says)


def test_a_scale_that_changed_on_the_disk_is_named(int8: LatentSpec, tmp_path: Path) -> None:
    version = small_store(str(tmp_path / "store"), int8, tmp_path / "scratch")
    tar = Path(version.storage.url(version.commit(sorted(version.done())[0]).payloads[0].path))
    with LatentShard(tar, int8) as shard:
        place = int(shard.offsets[3]) + 4 * 4 + 2
    data = bytearray(tar.read_bytes())
    data[place] ^= 0x08
    tar.write_bytes(data)
    (problem,) = problems_of(version)
    assert problem.path == str(tar) and "is not the committed" in problem.problem
    assert "(003.npy: damaged: a scale that no latent has)" in problem.problem


def test_an_estimate_is_of_the_bytes_asked_for() -> None:
    asked = {"estimate": True, "images": 2.7e9}
    plain, small = (estimate(PlanRequest(**asked, latent_dtype=dtype)) for dtype in ("float16", "int8"))
    assert plain["gpu_hours"] == small["gpu_hours"]
    assert plain["store_bytes"] - small["store_bytes"] == pytest.approx(10.8e9 * (16384 - 32))


def test_reencode_takes_it_for_another_version(schedule: Schedule) -> None:
    before = Store(schedule.store).current()
    status, result = schedule.tick(latent_dtype="int8")
    assert (status, result["outcome"], result["before"]) == (0, "promoted", before), result
    assert "dtype: float16 against int8" in result["why"] and schedule.trail[-1][0] == ALL_STEPS[-1]
    assert abs(result["compared"]["psnr"]["loss"]) < 0.1
    assert schedule.tick("--if-changed", latent_dtype="int8")[1]["outcome"] == "unchanged"


# --- training -----------------------------------------------------------------------------------------


def test_batches_hold_what_the_reader_gives(int8: LatentSpec, spec: LatentSpec, tmp_path: Path) -> None:
    small = latent_store(tmp_path / "small", tmp_path / "a", int8, SIZES)
    plain = latent_store(tmp_path / "plain", tmp_path / "b", spec, SIZES)
    one, other = (opened(version, tmp_path / version.fingerprint) for version in (small, plain))
    batches, shards = read(one, 0, 9), shards_of(small)
    for batch, float16 in zip(batches, read(other, 0, 9), strict=True):
        assert np.array_equal(batch.ids, float16.ids) and torch.equal(batch.tokens_bl, float16.tokens_bl)
        for row, (_, tar, sample) in zip(batch.latents_bchw, batch.ids.tolist(), strict=True):
            assert row.dtype == torch.float16 and row.numpy().tobytes() == shards[tar].latent(sample).tobytes()
    assert same(read(one, 4, 9), batches[4:])
    ranks = [joined(read(one, 2, 3, rows)) for rows in (range(3), range(3, 8))]
    assert same([joined(ranks)], batches[2:3])


@pytest.mark.parametrize("shape", [(4, 64, 64), (3, 5, 7)])
def test_batches_of_any_shape_and_size(shape: tuple[int, int, int], int8: LatentSpec, tmp_path: Path) -> None:
    version = latent_store(tmp_path / "store", tmp_path / "a", int8.model_copy(update={"shape": shape}), [40, 30])
    shards = shards_of(version)
    (batch,) = read(opened(version, tmp_path / "out", batch_size=67), 0, 1, range(67))
    for row, (_, tar, sample) in zip(batch.latents_bchw, batch.ids.tolist(), strict=True):
        assert row.numpy().tobytes() == shards[tar].latent(sample).tobytes()


def test_both_kinds_in_one_run(int8: LatentSpec, spec: LatentSpec, tmp_path: Path, bucket: Bucket) -> None:
    """Of the same VAE: how a latent is stored is not what it means. One store is remote, and read by processes."""
    small = latent_store(f"{bucket.url}/small", tmp_path / "a", int8, SIZES)
    plain = latent_store(tmp_path / "plain", tmp_path / "b", spec, SIZES)
    local = latent_store(tmp_path / "local", tmp_path / "c", int8, SIZES)
    data = {f"{bucket.url}/small": 1.0, str(tmp_path / "plain"): 1.0}
    mixed = opened(data, tmp_path / "out", workers=1)
    shards = [shards_of(local), shards_of(plain)]
    seen = set()
    for batch in read(mixed, 0, 6):
        for row, (store, tar, sample) in zip(batch.latents_bchw, batch.ids.tolist(), strict=True):
            assert row.numpy().tobytes() == shards[store][tar].latent(sample).tobytes()
            seen.add(store)
    assert seen == {0, 1} and small.fingerprint == local.fingerprint


def test_pairs_of_preferences(int8: LatentSpec, tmp_path: Path) -> None:
    version = Store(tmp_path / "store").create(int8.model_copy(update={"views": 1}))
    source, rng = SourceShard("pairs.tar", 1), np.random.default_rng(0)
    latents: list[Latent] = [rng.standard_normal(int8.shape).astype(np.float16) for _ in range(4)]
    with ShardBuild(tmp_path / "scratch", version.spec, source) as build:
        for number, latent in enumerate(latents):
            about = {"pair": number // 2, "side": number % 2, "label": number % 2, "num_example_per_prompt": 1}
            build.add(f"{number}", [latent], "a dog", [{"source": source.uri, "view": 0, "metadata": about}])
        version.publish(*build.finish("0" * 64, {}))
    version.seal()
    batch = PreferencePairs(str(tmp_path / "store"), tmp_path / "cache").batch([0, 1], lambda texts: torch.zeros(2))
    wanted = np.stack([as_read(latent, int8) for latent in latents]).reshape(2, 2, *int8.shape)
    assert batch.latents_bschw.numpy().tobytes() == wanted.tobytes()


# --- evaluation ---------------------------------------------------------------------------------------


@pytest.fixture
def stores(configure: Configure, world: Path, tmp_path: Path) -> tuple[Version, Version]:
    """Labelled latents in int8, and the same numbers in float16."""
    config = configure(source=str(world / "test"), store=str(tmp_path / "int8"), views=1, latent_dtype="int8")
    small = encode_and_seal(config)
    return small, float16_copy(small, tmp_path / "float16", tmp_path / "scratch")


def test_trained_on_one_and_evaluated_on_the_other(
    stores: tuple[Version, Version], tiny_model: str, world: Path, tmp_path: Path
) -> None:
    """Whichever a model was trained on: the same numbers give the same model, and the same answers."""
    told: dict[tuple[str, str], Any] = {}
    states = []
    for trained_on in stores:
        run = tmp_path / f"on-{trained_on.spec.dtype}"
        labelled = {"zero_shot": store_of(stores[0]), "classes": world / "test", "zero_shot_every": 2}
        train(TrainConfig(model=tiny_model, data=store_of(trained_on), out=run, steps=2, **labelled))
        states.append(load_checkpoint(run)["state_dict"])
        for evaluated_on in stores:
            out = tmp_path / f"{trained_on.spec.dtype}-{evaluated_on.spec.dtype}"
            config = ZeroShotConfig(checkpoint=run, data=store_of(evaluated_on), classes=world / "test", out=out)
            result = zero_shot(config)
            said = [
                {**json.loads(line), "shard": None} for line in (out / "predictions.jsonl").read_text().splitlines()
            ]
            told[trained_on.spec.dtype, evaluated_on.spec.dtype] = (result["metrics"], said)
            about = [reason for reason in result["not_comparable"] if "int8" in reason]
            model, data = (version.spec.dtype == "int8" for version in (trained_on, evaluated_on))
            assert (
                about
                == ["trained on latents stored as int8, where the paper's are float16"] * model
                + ["latents stored as int8, where the paper's are float16"] * data
            )
            assert result["provenance"]["latents"]["dtype"] == trained_on.spec.dtype
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert told["int8", "int8"] == told["int8", "float16"] == told["float16", "int8"] == told["float16", "float16"]


def test_what_is_generated_of_them_is_stored_in_float16(
    stores: tuple[Version, Version], tiny_pipeline: Path, tmp_path: Path
) -> None:
    made = []
    for version in stores:
        values = {"data": store_of(version), "generator": str(tiny_pipeline), "noise": "literal", "steps": 1}
        out = tmp_path / f"made-{version.spec.dtype}"
        result = generate_imagenet(GenerateConfig(**values, out=str(out), cache=tmp_path / "cache"))
        made.append(Store(result["store"]).version(result["fingerprint"]))
    assert [version.spec.dtype for version in made] == ["float16", "float16"]
    assert [version.spec.recipe["generated"].get("from_dtype") for version in made] == ["int8", None]
    one, other = (samples_of(version) for version in made)
    assert len(one) == 48 and all(np.array_equal(one[key][0], other[key][0]) for key in one.keys() | other.keys())


def test_an_index_of_before_is_made_again(int8: LatentSpec, tmp_path: Path) -> None:
    """An index that an older trainer left counts numbers, and is not taken for one of bytes."""
    version = latent_store(tmp_path / "store", tmp_path / "a", int8, SIZES)
    config = config_of(version, tmp_path / "out")
    first = read(opened(version, tmp_path / "out"), 0, 1)
    for index in (config.out / "cache").rglob("*.npy"):
        old = np.load(index)
        np.save(index, old.astype([("place", "<i8"), ("tokens", "<i4", (16,))]))
    assert same(read(opened(version, tmp_path / "out"), 0, 1), first)
