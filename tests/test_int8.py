"""Latents in a byte a number: how near they are, what their bytes are, and what is said of damaged ones."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from encode_pipeline.latents import spec as latent_spec
from encode_pipeline.latents.quantised import LEAST, MOST, Quantised, dequantise, quantise, scales_fault, values_fault
from encode_pipeline.latents.reader import LatentShard, ShardError
from encode_pipeline.latents.spec import LatentSpec, SpecError
from encode_pipeline.latents.writer import Latent, ShardWriter
from train.quantised import dequantise_rows
from train.zero_shot import check_latents

LARGEST = 65504
SMALLEST = 2.0**-24
FINITE = st.floats(-LARGEST, LARGEST, width=16)
SPREADS = st.one_of(
    arrays(np.float16, (3, 4, 5), elements=FINITE),
    arrays(np.float16, (3, 4, 5), elements=st.floats(-4, 4, width=16)),
    arrays(np.float16, (3, 4, 5), elements=st.integers(-40, 40).map(lambda number: number * SMALLEST)),
    FINITE.map(lambda number: np.full((3, 4, 5), number, np.float16)),
    st.tuples(FINITE, arrays(np.uint16, (3, 4, 5), elements=st.integers(0, 3))).map(
        lambda drawn: (np.float16(drawn[0]).view(np.uint16) // 4 * 4 + drawn[1]).astype(np.uint16).view(np.float16)
    ),  # neighbours, whose steps are far below what float16 can tell apart there
)


@pytest.fixture
def int8(spec: LatentSpec) -> LatentSpec:
    return spec.model_copy(update={"dtype": "int8"})


def latents_of(spec: LatentSpec, count: int, seed: int = 0) -> list[Latent]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(spec.shape).astype(np.float16) for _ in range(count)]


def write(path: Path, spec: LatentSpec, count: int = 5) -> list[Latent]:
    latents = latents_of(spec, count)
    with ShardWriter(path, spec) as writer:
        for number, latent in enumerate(latents):
            writer.add(f"{number:09d}", latent, f"caption {number} – ünïcode", {"number": number})
    return latents


def read(stored: Quantised) -> Latent:
    return dequantise(stored.values, stored.zero, stored.step)


# --- one latent -----------------------------------------------------------------------------------


@given(SPREADS)
def test_every_number_is_within_half_a_step(latent: Latent) -> None:
    stored = quantise(latent)
    error = np.abs(read(stored).astype(np.float64) - latent.astype(np.float64))
    size = np.abs(latent).astype(np.float64)
    float16_rounding = np.maximum(size * 2.0**-11, SMALLEST / 2)
    float32_rounding = np.maximum(np.abs(stored.zero), 128 * stored.step)[:, None, None] * 2.0**-21
    assert (error <= stored.step[:, None, None] / 2 * (1 + 2.0**-10) + float16_rounding + float32_rounding).all()
    assert scales_fault(stored.zero[None], stored.step[None]).tolist() == [None] and values_fault(stored) is None


@given(SPREADS)
def test_it_is_read_as_the_formula_says(latent: Latent) -> None:
    """What a plain reader does with the three fields, in float32; so do the trainer's batches."""
    stored = quantise(latent)
    formula = (stored.values * stored.step[:, None, None] + stored.zero[:, None, None]).astype(np.float16)
    assert read(stored).tobytes() == formula.tobytes()
    out = np.empty(latent.shape, np.float16)
    assert dequantise(stored.values, stored.zero, stored.step, out) is out and out.tobytes() == formula.tobytes()
    rows = torch.empty((2, *latent.shape), dtype=torch.float16)
    dequantise_rows(np.frombuffer(stored.to_bytes() * 2, np.uint8).reshape(2, -1).copy(), rows)
    assert rows.numpy().tobytes() == 2 * formula.tobytes()


@pytest.mark.parametrize("number", [0.0, -0.0, SMALLEST, -SMALLEST, 0.1, LARGEST, -LARGEST])
def test_a_constant_channel_comes_back_exactly(number: float) -> None:
    stored = quantise(np.full((2, 3, 3), number, np.float16))
    assert not stored.values.any() and not stored.step.any()
    assert (read(stored) == np.float16(number)).all()


def test_the_ends_of_a_channel_come_back_exactly() -> None:
    latent = np.array([[[-LARGEST, 1, LARGEST]], [[-SMALLEST, 0, SMALLEST]], [[-3, 0.5, 7]]], np.float16)
    stored = quantise(latent)
    assert stored.values[:, 0, 0].tolist() == [LEAST] * 3 and stored.values[:, 0, 2].tolist() == [MOST] * 3
    assert np.array_equal(read(stored)[:, 0, [0, 2]], latent[:, 0, [0, 2]])


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_refused(number: float) -> None:
    latent = np.zeros((2, 3, 3), np.float16)
    latent[1, 2, 2] = number
    with pytest.raises(SpecError, match="not finite"):
        quantise(latent)


def test_the_bytes_are_the_same_everywhere(int8: LatentSpec) -> None:
    """As written once; another machine, or another numpy, has to give the same."""
    (latent,) = latents_of(int8.model_copy(update={"shape": (4, 64, 64)}), 1)
    assert (
        sha256(quantise(latent).to_bytes()).hexdigest()
        == "78b9e0862d008af7dfeb3edfdf21e04cfd09d1ee8eddfeb52415f487f4a9948b"
    )


# --- a shard --------------------------------------------------------------------------------------


def test_a_float16_store_is_what_it_was_before_there_was_another(spec: LatentSpec, tmp_path: Path) -> None:
    assert (spec.fingerprint, spec.format_version) == ("051dc6f5f99bd29f", 1)
    written = sha256(spec.to_json()).hexdigest()
    assert written == "98e5200c6accc3ddf5dcd143ee2006da0ba56db2d27e76088bc68c2fb86d53a6"
    write(tmp_path / "a.tar", spec)
    shard = sha256((tmp_path / "a.tar").read_bytes()).hexdigest()
    assert shard == "19a369c4dfd4d21702c569e2244fdec40f5ce40bd3e00ff66adb7661476ece5c"


def test_the_reader_gives_the_nearest_float16(int8: LatentSpec, tmp_path: Path) -> None:
    latents = write(tmp_path / "a.tar", int8)
    write(tmp_path / "b.tar", int8)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with LatentShard(tmp_path / "a.tar", int8) as shard:
        for index in (4, 0, 2):
            assert shard.latent(index).dtype == np.float16
            assert shard.latent(index).tobytes() == read(quantise(latents[index])).tobytes()
            assert shard.metadata(index) == {"number": index, "spec": int8.fingerprint}


def test_plain_webdataset_reads_it(int8: LatentSpec, tmp_path: Path) -> None:
    latents = write(tmp_path / "a.tar", int8)
    samples = wds.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode().to_tuple("npy", "txt", "json")
    for latent, (stored, caption, record) in zip(latents, samples, strict=True):
        numbers = stored["values"] * stored["step"][:, None, None] + stored["zero"][:, None, None]
        assert numbers.astype(np.float16).tobytes() == read(quantise(latent)).tobytes()
        assert caption.startswith("caption") and record["spec"] == int8.fingerprint


def test_half_the_bytes(spec: LatentSpec, tmp_path: Path) -> None:
    sizes = {}
    for dtype in ("float16", "int8"):
        real = spec.model_copy(update={"dtype": dtype, "shape": (4, 64, 64)})
        write(tmp_path / dtype, real, count=20)
        sizes[dtype] = (tmp_path / dtype).stat().st_size
        assert real.bytes_per_latent == {"float16": 32768, "int8": 16384 + 32}[dtype]
    assert sizes["int8"] == sizes["float16"] - 20 * 16384


DAMAGED = {
    "a zero that is infinite": (0, np.inf, "000000001.npy: damaged: a scale that is not finite"),
    "a step that is no number": (5, np.nan, "000000001.npy: damaged: a scale that is not finite"),
    "a step below zero": (4, -0.01, "000000001.npy: damaged: a scale that no latent has"),
    "a step doubled": (4, 2.0, "000000001.npy: damaged: a scale that no latent has"),
    "a step out of float16": (6, 1e6, "000000001.npy: damaged: a scale that no latent has"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_scale_is_named(kind: str, int8: LatentSpec, tmp_path: Path) -> None:
    number, value, says = DAMAGED[kind]
    write(tmp_path / "a.tar", int8)
    with LatentShard(tmp_path / "a.tar", int8) as shard:
        offset = int(shard.offsets[1]) + 4 * number
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[offset : offset + 4] = np.float32(value).tobytes()
    (tmp_path / "broken.tar").write_bytes(data)
    with pytest.raises(ShardError) as error:
        LatentShard(tmp_path / "broken.tar", int8)
    assert str(error.value) == f"{tmp_path / 'broken.tar'}: {says}"


@pytest.mark.parametrize("shape", [(1, 6, 10), (16, 4, 4), (600, 2, 2)])
def test_any_number_of_channels(shape: tuple[int, int, int], int8: LatentSpec, tmp_path: Path) -> None:
    """Of many, the scales are longer than what else is read of a tar at once."""
    other = int8.model_copy(update={"shape": shape})
    latents = write(tmp_path / "a.tar", other)
    with LatentShard(tmp_path / "a.tar", other) as shard:
        for index, latent in enumerate(latents):
            assert shard.latent(index).tobytes() == read(quantise(latent)).tobytes() and shard.fault(index) is None


@pytest.mark.parametrize("sample", [511, 512, 1029])
def test_a_damaged_scale_is_named_in_a_long_tar(sample: int, int8: LatentSpec, tmp_path: Path) -> None:
    """Headers are checked many at a time: the sample stands at the end of some, at the beginning, among the last."""
    small = int8.model_copy(update={"shape": (2, 2, 3)})
    write(tmp_path / "a.tar", small, count=1030)
    with LatentShard(tmp_path / "a.tar", small) as shard:
        offset = int(shard.offsets[sample])
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[offset : offset + 4] = np.float32(np.nan).tobytes()
    (tmp_path / "broken.tar").write_bytes(data)
    with pytest.raises(ShardError, match=rf": {sample:09d}\.npy: damaged: a scale that is not finite$"):
        LatentShard(tmp_path / "broken.tar", small)


def test_most_flips_of_a_scale_are_seen_without_a_hash(int8: LatentSpec) -> None:
    seen = []
    for latent in latents_of(int8.model_copy(update={"shape": (4, 64, 64)}), 20):
        stored = quantise(latent)
        for bit in range(32):
            step: npt.NDArray[np.float32] = stored.step.copy()
            step.view(np.uint32)[2] ^= np.uint32(1 << bit)
            seen.append(scales_fault(stored.zero[None], step[None])[0] is not None)
    assert np.mean(seen) > 0.7


def test_values_that_do_not_go_with_their_scale() -> None:
    stored = quantise(np.array([[[1, 2, 3]], [[4, 4, 4]]], np.float16))
    for place, value in (((0, 0, 0), -127), ((0, 0, 2), 126), ((1, 0, 1), 1)):
        values = stored.values.copy()
        values[place] = value
        assert values_fault(Quantised(values, stored.zero, stored.step)) == "values that do not go with its scale"


def test_the_other_kind_of_latent_is_refused(spec: LatentSpec, int8: LatentSpec, tmp_path: Path) -> None:
    write(tmp_path / "a.tar", spec)
    write(tmp_path / "b.tar", int8)
    with pytest.raises(SpecError, match=r"000000000.npy: not an int8 latent of shape \(4, 8, 8\)"):
        LatentShard(tmp_path / "a.tar", int8)
    with pytest.raises(SpecError, match=r"000000000.npy: not a float16 latent of shape \(4, 8, 8\)"):
        LatentShard(tmp_path / "b.tar", spec)


# --- the spec -------------------------------------------------------------------------------------


def test_it_is_another_version_of_a_newer_format(spec: LatentSpec, int8: LatentSpec) -> None:
    assert int8.format_version == 2 and int8.fingerprint != spec.fingerprint
    assert LatentSpec.from_json(int8.to_json(), "here") == int8
    assert LatentSpec.from_dict(int8.to_dict(), "here") == int8
    assert spec.difference(int8) == "dtype: float16 against int8"
    edited = {**json.loads(int8.to_json()), "format_version": 1}
    with pytest.raises(SpecError, match=r"here: not a latent spec \(format 1, and int8 is 2\)"):
        LatentSpec.from_dict(edited, "here")


def test_a_reader_of_before_says_what_to_do(int8: LatentSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_spec, "FORMAT_VERSION", 1)
    with pytest.raises(SpecError, match=r"^here: written in format 2, this reader knows up to 1; update$"):
        LatentSpec.from_json(int8.to_json(), "here")


def test_a_model_takes_either_kind_and_is_told_what_else_is_wrong(spec: LatentSpec, int8: LatentSpec) -> None:
    check_latents(spec, int8, "here")
    check_latents(int8, spec, "here")
    with pytest.raises(SpecError, match=r"^here: these latents are not the model's: shape: \[4, 8, 8\] against"):
        check_latents(spec, int8.model_copy(update={"shape": (4, 16, 16)}), "here")
