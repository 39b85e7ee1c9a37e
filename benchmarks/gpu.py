"""On a GPU: the encoder alone in each way of computing it, the whole pipeline around it, and a step of training.

The VAE has SDXL's size and random weights: its speed is that of the real one, its latents mean nothing.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from pydantic import Field

from benchmarks import training
from benchmarks.one_decode import accepted, good_samples
from benchmarks.paired import paired
from benchmarks.pictures import PictureSet, write_tars
from benchmarks.settings import BenchmarkConfig
from benchmarks.training import TrainingConfig
from encode_pipeline.augment import ViewMaker
from encode_pipeline.config import EncodeConfig, PositiveInt
from encode_pipeline.devices import Kernels
from encode_pipeline.encode_shard import BATCHES_IN_FLIGHT, ShardEncoder
from encode_pipeline.encoder import LatentEncoder, StartedBatch
from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.status import Tally
from encode_pipeline.latents.store import Store
from encode_pipeline.listener import Listener
from encode_pipeline.randomness import posterior_noise
from encode_pipeline.recipe import ViewRecipe
from encode_pipeline.records import Sample, ShardReport
from encode_pipeline.run import spec_of
from encode_pipeline.run_local import run_local
from encode_pipeline.sources import find_sources
from encode_pipeline.vae import LoadedVae, identify

SIDE, BATCHES = 512, 12
ENCODE_TFLOP = 1.117
"""Of one 512-pixel picture by SDXL's encoder."""
MODELS = ("latent-vit-b-8", "latent-vit-b-4-plus")


class GpuConfig(BenchmarkConfig):
    batch_size: PositiveInt = Field(16, description="views encoded at once")
    pictures: PositiveInt = Field(600, description="pictures in each of four tars that the pipeline encodes")
    side: PositiveInt = Field(768, description="side of those pictures, JPEGs")
    train_batch: PositiveInt = Field(1024, description="samples in a step of training")
    kernels: tuple[Kernels, ...] = Field(("plain", "compiled", "fused"), description="ways of computing the encoder")


def measure(config: GpuConfig) -> dict[str, Any]:
    """Encoder, pipeline and training step on this machine's GPU; random weights of SDXL's size."""
    if not torch.cuda.is_available():
        raise RequestError("benchmark gpu: there is no GPU here")
    vae = sdxl_sized_vae()
    content: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "cores": os.cpu_count(),
        "weights": "random: speeds are comparable, latents are not",
    }
    content["encoder"] = measure_encoder(vae, config)
    content["bits"] = measure_bits(vae, config)
    content["pipeline"] = measure_pipeline(vae, config)
    content["decode"] = measure_decode(config)
    for name in MODELS:
        of_model = TrainingConfig(
            model=name, batch_size=config.train_batch, precision="bfloat16", compile=True, rounds=config.rounds
        )
        content[f"train {name}"] = training.measure(of_model)
    return content


def sdxl_sized_vae() -> LoadedVae:
    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.13025,
    )
    model.requires_grad_(False).eval()
    return LoadedVae(model, identify("random weights of SDXL's size", model), True, 4, 8)


def encode_config(**changes: Any) -> EncodeConfig:
    return EncodeConfig(**{"vae": "random", "source": "none", "store": "none", "image_size": SIDE, **changes})


def measure_encoder(vae: LoadedVae, config: GpuConfig) -> dict[str, Any]:
    """Pictures in host memory to latents in host memory, against diffusers' usual loop."""
    spec = spec_of(encode_config(), vae)
    size = config.batch_size
    pictures = np.random.default_rng(0).integers(0, 256, (size, SIDE, SIDE, 3), dtype=np.uint8)
    noise = [posterior_noise(number, spec.shape) for number in range(size)]
    own = AutoencoderKL.from_config(vae.model.config)
    own.load_state_dict(vae.model.state_dict())
    own = own.to("cuda", torch.float16).requires_grad_(False).eval()

    def usual() -> int:
        with torch.inference_mode():
            for _ in range(BATCHES):
                images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
                own.encode(images.to("cuda", torch.float16)).latent_dist.sample().cpu().numpy()
        return BATCHES * size

    ways: dict[str, Callable[[], int]] = {"diffusers' usual loop": usual}
    for kernels in config.kernels:
        encoder = LatentEncoder(vae, spec, size, kernels=kernels)
        ways[kernels] = partial(encode_batches, encoder, [list(pictures)] * BATCHES, noise)
    result = paired(ways, config.rounds, unit="views")
    for measured in result["ways"].values():
        measured["tflop_per_second"] = round(measured["per_second"]["median"] * ENCODE_TFLOP, 1)
    result["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return result


def encode_batches(encoder: LatentEncoder, batches: list[list[Any]], noise: list[Any]) -> int:
    """How many latents came of it, with two batches under way, as the pipeline does it."""
    started: deque[StartedBatch] = deque()
    count = 0

    def finish() -> int:
        encoded = encoder.finish(started.popleft())
        if encoded.rescued or not encoded.finite.all():
            raise CheckFailed(f"kernels={encoder.kernels}: latents that are not finite: this times the rescue of them")
        return len(encoded.latents)

    for batch in batches:
        if len(started) == BATCHES_IN_FLIGHT:
            count += finish()
        started.append(encoder.start(batch, noise[: len(batch)]))
    while started:
        count += finish()
    return count


def measure_bits(vae: LoadedVae, config: GpuConfig) -> dict[str, Any]:
    """What a latent's bits depend on: its place in the batch, its company, the encoder, the batch size."""
    spec = spec_of(encode_config(), vae)
    pictures = list(np.random.default_rng(1).integers(0, 256, (16, SIDE, SIDE, 3), dtype=np.uint8))
    noise = [posterior_noise(number, spec.shape) for number in range(16)]

    def in_fours(encoder: LatentEncoder) -> Any:
        cuts = [slice(at, at + 4) for at in range(0, 16, 4)]
        return np.concatenate([encoder.encode(pictures[cut], noise[cut]).latents for cut in cuts])

    wide = LatentEncoder(vae, spec_of(encode_config(dtype="float32"), vae), 4, kernels="plain")
    exact = in_fours(wide).astype(np.float64)
    result: dict[str, Any] = {}
    for kernels in config.kernels:
        first = LatentEncoder(vae, spec, 16, kernels=kernels)
        latents = first.encode(pictures, noise).latents
        reversed_latents = first.encode(pictures[::-1], noise[::-1]).latents[::-1]
        alone = first.encode(pictures[:1], noise[:1]).latents
        second = LatentEncoder(vae, spec, 16, kernels=kernels).encode(pictures, noise).latents
        fours = in_fours(LatentEncoder(vae, spec, 4, kernels=kernels))
        steps = np.abs(fours.astype(np.float64) - latents) / np.spacing(np.abs(latents)).astype(np.float64)
        result[kernels] = {
            "same_in_any_place": bool(np.array_equal(latents, reversed_latents)),
            "same_in_any_company": bool(np.array_equal(latents[:1], alone)),
            "same_from_another_encoder": bool(np.array_equal(latents, second)),
            "sha256": hashlib.sha256(latents.tobytes()).hexdigest()[:16],
            "batch_4_against_16": {
                "differing": round(float((fours != latents).mean()), 5),
                "most_float16_steps": float(steps.max()),
                "most": float(np.abs(fours.astype(np.float64) - latents).max()),
            },
            "relative_error_against_float32": float(np.linalg.norm(latents - exact) / np.linalg.norm(exact)),
        }
    return result


class Moments(Listener):
    """When how many views had been encoded."""

    def __init__(self) -> None:
        self.views = 0
        self.moments: list[tuple[float, int]] = []

    def tell(self, latents: int) -> None:
        self.views += latents
        self.moments.append((time.perf_counter(), self.views))


def measure_pipeline(vae: LoadedVae, config: GpuConfig) -> dict[str, Any]:
    """Tars on disk to committed shards, and what the encoder waited for."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_tars(root / "tars", PictureSet(4, config.pictures, config.side))
        settings = encode_config(source=(str(root / "tars"),), store=str(root / "store"), batch_size=config.batch_size)
        version = Store(root / "store").create(spec_of(settings, vae))
        sources = find_sources(settings.source)
        tally, listener = Tally(settings.views), Moments()
        for outcome in run_local(sources, ShardEncoder(vae, version, settings), settings, listener):
            assert isinstance(outcome, ShardReport), outcome
            tally.add(outcome.commit)
        moments = listener.moments
        steady = moments[len(moments) // 8 :]  # after the first fill of the queues
        rate = (steady[-1][1] - steady[0][1]) / (steady[-1][0] - steady[0][0])
        return {
            "views_per_second": round(rate, 1),
            "decode_threads": settings.decode_threads,
            "picture_side": config.side,
            **tally.to_dict(),
        }


def measure_decode(config: GpuConfig) -> dict[str, Any]:
    """Views a second that threads of one process decode and augment, and as many processes, which share nothing."""
    with tempfile.TemporaryDirectory() as folder:
        (tar,) = write_tars(Path(folder), PictureSet(1, 400, config.side))
        samples = list(good_samples(tar))
        views: dict[str, Any] = {"picture_side": config.side}
        pools: dict[str, Callable[[int], Executor]] = {
            "threads": ThreadPoolExecutor,
            "processes": partial(ProcessPoolExecutor, mp_context=get_context("spawn")),
        }
        for kind, pool_of in pools.items():
            for count in (1, 2, 4, 8, 16):
                with pool_of(count) as pool:
                    list(pool.map(count_views, samples[: 4 * count]))
                    began = time.perf_counter()
                    made = sum(pool.map(count_views, samples, chunksize=4))
                    views[f"{count} {kind}"] = round(made / (time.perf_counter() - began), 1)
        return views


MAKE_VIEWS = ViewMaker(ViewRecipe(), 4, SIDE, 0, "decode")


def count_views(sample: Sample) -> int:
    """How many views a sample gave; they stay where they were made."""
    return len(accepted(MAKE_VIEWS(sample)).views)
