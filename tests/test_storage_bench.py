"""The storage benchmarks count what is really written, lose no bit where they say so, and compare like with like."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import storage, storage_accuracy
from benchmarks.lossless import LAYOUTS, Packing, write_packed
from benchmarks.reader import NoTokens
from benchmarks.reconstruction import psnrs, there_and_back
from benchmarks.storage_accuracy import AccuracyConfig, difference_of_seeds, int8_copy, name_of
from benchmarks.storage_bytes import Sizes
from benchmarks.world_latents import encode_world, made_up, spec_for
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.latents.writer import END_OF_TAR, ShardWriter
from encode_pipeline.vae import load_vae
from tests.conftest import SIDE, Configure, encode_and_seal
from train.config import TrainConfig
from train.data import LatentData, open_data

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(4, 128, 128)
"""Every number that float16 has, those that are none included."""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_bit_comes_back(layout: str) -> None:
    packing = Packing(LAYOUTS[layout], 3)
    for latent in (EVERY, np.ascontiguousarray(EVERY[:, ::-1]), made_up((4, 8, 8), 7.7, 1.0, seed=0)):
        again = packing.unpack(packing.pack(latent), latent.shape)
        assert again.shape == latent.shape and again.tobytes() == latent.tobytes()


def test_sizes_are_those_of_real_tars(small_vae: Path, tmp_path: Path) -> None:
    vae = load_vae(str(small_vae))
    spec = spec_for(vae, SIDE)
    samples = storage.repeated(list(encode_world(vae, spec, 3)), 6)
    latents = [latent for _, latent, _, _ in samples]
    sizes = {figure.name: figure.rounds[0] for figure in Sizes(spec, samples).of(latents, [3])}
    for dtype in ("float16", "int8"):
        with ShardWriter(tmp_path / dtype, spec.model_copy(update={"dtype": dtype})) as writer:
            for sample in samples:
                writer.add(*sample)
        assert (tmp_path / dtype).stat().st_size == pytest.approx(6 * sizes[dtype] + len(END_OF_TAR))
    records = [(key, latent, caption, {**record, "spec": spec.fingerprint}) for key, latent, caption, record in samples]
    write_packed(tmp_path / "packed", records, Packing(LAYOUTS["bytes apart"], 3))
    packed = 6 * sizes["bytes apart, zstd 3"] + len(END_OF_TAR)
    assert (tmp_path / "packed").stat().st_size == pytest.approx(packed)


def test_storage_benchmark_measures_every_part(small_vae: Path) -> None:
    config = storage.StorageConfig(
        rounds=2, vae=str(small_vae), image_size=SIDE, pictures=2, samples=20, batch_size=8, levels=[1, 3]
    )
    figures = {figure.name: figure for figure in storage.measure(config).figures}
    for part in ("written", "read"):
        ways = [name.removeprefix(f"{part}: ") for name in figures if name.startswith(f"{part}: ")]
        assert ways == ["float16", "int8", *storage.PACKINGS]
        assert all(len(figures[f"{part}: {way}"].ratios) == 2 for way in ways)
    assert figures["in batches: int8"].against == "in batches: float16"
    assert figures["bytes: int8"].rounds < figures["bytes: float16"].rounds
    assert figures["PSNR between the two"].rounds > figures["PSNR to the picture: int8"].rounds
    assert 0 < figures["usual error of a latent"].rounds[0] < figures["largest error of a latent"].rounds[0] < 0.1


def test_a_reader_that_gives_something_else_is_not_measured(
    small_vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = load_vae(str(small_vae))
    specs = {"float16": spec_for(vae, SIDE)}
    samples = storage.repeated(list(encode_world(vae, specs["float16"], 2)), 7)
    monkeypatch.setattr(Packing, "unpack", lambda self, data, shape: np.zeros(shape, np.float16))
    with pytest.raises(storage.CheckFailed, match="read otherwise than written"):
        storage._reading(tmp_path, specs, samples, 4)


def test_made_up_latents_have_the_spread_and_the_smoothness() -> None:
    white, smooth = (made_up((4, 64, 64), 7.68, fall, seed=1).astype(np.float32) for fall in (0.0, 1.0))
    assert white.std() == pytest.approx(7.68, rel=0.02) and smooth.std() == pytest.approx(7.68, rel=0.02)
    assert np.abs(np.diff(smooth)).mean() < 0.6 * np.abs(np.diff(white)).mean()


def test_decibels() -> None:
    flat = np.zeros((2, 2, 3), np.float32)
    assert psnrs([flat], [flat + 25.5]) == [pytest.approx(20)]


def data_of(version: Version, out: Path) -> LatentData:
    store = version.storage.url().rpartition("/")[0]
    return open_data(TrainConfig(model="latent-vit-demo", data=store, out=out, steps=2, batch_size=16), NoTokens())


def test_an_int8_copy_gives_the_same_batches_through_int8(configure: Configure, tmp_path: Path) -> None:
    original = encode_and_seal(configure(views=2))
    copy = int8_copy(original, tmp_path / "int8")
    assert copy.spec.dtype == "int8" and Store(tmp_path / "int8").version().sealed
    assert int8_copy(original, tmp_path / "int8").fingerprint == copy.fingerprint
    pairs = zip(
        *(data_of(version, tmp_path / version.spec.dtype).batches(0, 2, range(16)) for version in (original, copy)),
        strict=True,
    )
    for ours, theirs in pairs:
        assert np.array_equal(ours.ids, theirs.ids)
        for latent, again in zip(ours.latents_bchw.numpy(), theirs.latents_bchw.numpy(), strict=True):
            assert np.array_equal(there_and_back(latent), again) and not np.array_equal(latent, again)


def test_accuracy_of_towers_of_both_kinds_on_both_kinds(configure: Configure, world: Path, tmp_path: Path) -> None:
    table1 = tmp_path / "table1"
    for split, name in (("train", "store"), ("test", "test-store")):
        encode_and_seal(configure(source=str(world / split), store=str(table1 / "latent" / name), views=1))
    shutil.copytree(world / "test", table1 / "world" / "test")
    config = AccuracyConfig(table1=table1, folder=tmp_path / "runs", steps=2, seeds=[3], at_once=2)
    storage_accuracy._train("float16", 3, table1 / "latent" / "store", config)
    shutil.copytree(config.folder / "float16-3", table1 / "latent" / "train")
    found = storage_accuracy.measure(config)
    shares = {figure.name: figure.rounds for figure in found.figures}
    ways = [(trained, read) for trained in ("float16", "int8", "table1") for read in ("float16", "int8")]
    assert shares.keys() == {name_of(*way) for way in ways}
    assert all(0 <= value <= 1 for values in shares.values() for value in values)
    # The tower that stands for that of `make table1-demo` is the float16 one, so it has to answer as that does.
    assert shares[name_of("table1", "int8")] == shares[name_of("float16", "int8")]
    assert found.details["pictures"] == 48 and "not comparable" in found.details["weights"]


def test_accuracy_wants_what_make_table1_leaves(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="make table1-demo"):
        storage_accuracy.measure(AccuracyConfig(table1=tmp_path, folder=tmp_path / "runs"))


def test_differences_are_taken_picture_by_picture_over_all_seeds() -> None:
    mine, first = [[True, True, False, False]] * 2, [[True, False, False, False], [True, True, True, False]]
    found = difference_of_seeds(mine, first)
    assert found["value"] == pytest.approx((1 - 1) / 8) and found["low"] < 0 < found["high"]
