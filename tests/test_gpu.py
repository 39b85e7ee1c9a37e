"""On a real GPU: the same latents whatever the batch, the encoder or the threads. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu.busy import Busy
from encode_pipeline.config import EncodeConfig
from encode_pipeline.devices import Kernels
from encode_pipeline.encoder import LatentEncoder
from encode_pipeline.latents.command import RequestError
from encode_pipeline.randomness import posterior_noise
from encode_pipeline.run import spec_of
from encode_pipeline.vae import LoadedVae, load_vae
from tests.conftest import Configure, encode_and_seal, payload_hashes

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
KERNELS: tuple[Kernels, ...] = ("plain", "compiled", "fused")
BATCH = 8


@pytest.fixture(scope="module")
def vae(small_vae: Path) -> LoadedVae:
    return load_vae(str(small_vae))


def encoder(vae: LoadedVae, kernels: Kernels = "auto", batch_size: int = BATCH, **changes: Any) -> LatentEncoder:
    values = {"vae": "x", "source": "x", "store": "x", "image_size": 64, **changes}
    return LatentEncoder(vae, spec_of(EncodeConfig(**values), vae), batch_size, kernels=kernels)


def pictures(count: int, seed: int = 0) -> list[Any]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8))


def noise(count: int) -> list[Any]:
    return [posterior_noise(number, (4, 8, 8)) for number in range(count)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_every_way_of_computing_gives_the_latents_of_float32(vae: LoadedVae, kernels: Kernels, dtype: str) -> None:
    wide = LatentEncoder(vae, encoder(vae, dtype="float32").spec, BATCH, torch.device("cpu"))
    expected = wide.encode(pictures(5), noise(5)).latents.astype(np.float64)
    encoded = encoder(vae, kernels, dtype=dtype).encode(pictures(5), noise(5))
    assert encoded.latents.shape == (5, 4, 8, 8) and encoded.finite.all() and encoded.rescued == 0
    error = np.linalg.norm(encoded.latents - expected) / np.linalg.norm(expected)
    assert error < (0.003 if dtype == "float16" else 0.02)


@pytest.mark.parametrize("kernels", KERNELS)
def test_bits_depend_on_nothing_but_the_picture(vae: LoadedVae, kernels: Kernels) -> None:
    first = encoder(vae, kernels)
    latents = first.encode(pictures(BATCH), noise(BATCH)).latents
    assert np.array_equal(first.encode(pictures(BATCH)[::-1], noise(BATCH)[::-1]).latents[::-1], latents)
    assert np.array_equal(first.encode(pictures(BATCH)[:3], noise(BATCH)[:3]).latents, latents[:3])
    second = encoder(vae, kernels)
    assert np.array_equal(second.encode(pictures(BATCH), noise(BATCH)).latents, latents)


def test_memory_that_others_take_and_leave_does_not_reach_the_graph(vae: LoadedVae) -> None:
    first = encoder(vae)
    before = first.encode(pictures(BATCH), noise(BATCH)).latents
    for size in (1 << 10, 1 << 16, 1 << 20, 1 << 24):
        others = [torch.full((size,), float("nan"), device="cuda") for _ in range(32)]
        del others
    assert np.array_equal(first.encode(pictures(BATCH), noise(BATCH)).latents, before)


def test_batches_under_way_do_not_mix(vae: LoadedVae) -> None:
    first = encoder(vae)
    batches = [pictures(BATCH, seed) for seed in range(6)]
    alone = [first.encode(batch, noise(BATCH)).latents for batch in batches]
    started = [first.start(batches[0], noise(BATCH))]
    for number in range(1, 6):
        started.append(first.start(batches[number], noise(BATCH)))
        assert np.array_equal(first.finish(started[number - 1]).latents, alone[number - 1])
    with pytest.raises(RuntimeError, match="were asked for after"):
        first.finish(started[0])


def test_overflow_is_rescued_alone(small_vae: Path) -> None:
    vae = load_vae(str(small_vae))
    with torch.no_grad():
        vae.model.encoder.conv_in.weight.mul_(1e6)
    for kernels in KERNELS:
        encoded = encoder(vae, kernels, dtype="float16", posterior="mean").encode(pictures(3), noise(3))
        assert encoded.rescued == 3 and encoded.finite.all() and np.isfinite(encoded.latents).all()


def test_fusing_what_cannot_be_fused_is_refused(vae: LoadedVae) -> None:
    with pytest.raises(RequestError, match="computes in float32; set kernels"):
        encoder(vae, "fused", dtype="float32")


def test_the_gpu_notes_when_it_computes(vae: LoadedVae) -> None:
    """As the benchmark asks it to, and the latents are the same."""
    first = encoder(vae)
    before = first.encode(pictures(BATCH), noise(BATCH)).latents
    busy = Busy(first)
    for _ in range(3):
        assert np.array_equal(first.encode(pictures(BATCH), noise(BATCH)).latents, before)
    spans = busy.spans()
    assert len(spans) == 3 and all(begun < ended for begun, ended in spans) and spans == sorted(spans)


def test_a_run_commits_the_same_payloads_whatever_the_threads(configure: Configure, tmp_path: Path) -> None:
    one, four = (configure(store=str(tmp_path / str(threads)), threads=threads) for threads in (1, 4))
    first, second = encode_and_seal(one), encode_and_seal(four)
    assert payload_hashes(first) == payload_hashes(second)
    assert {commit.made_by["kernels"] for commit in first.commits()} == {"fused"}
