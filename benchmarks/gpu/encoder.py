"""The encoder alone, pictures in host memory to latents in host memory, in each way of computing it.

"diffusers" is the loop of its manual: a batch is copied, encoded with `vae.encode`, and copied back before the next
one. "ours" is the encoder of this project, kept busy from memory: uint8 over the bus, two batches under way, and on a
GPU one CUDA graph a batch, of kernels as diffusers has them (plain), torch's compiler (compiled) or our own (fused).
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.figures import Figure
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.ceiling import matmul
from benchmarks.gpu.notes import Clock, Notes
from benchmarks.gpu.ways import Way, Work, opened, rate_figures, rates_of, share_figure
from encode_pipeline.devices import Kernels
from encode_pipeline.encode_shard import BATCHES_IN_FLIGHT
from encode_pipeline.encoder import DTYPES, LatentEncoder, StartedBatch
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.randomness import posterior_noise

CEILING = "matmul ceiling"
LOOP = "diffusers"
COMPILING = 45.0
"""Seconds that torch may take to compile an encoder."""
DIFFERENCE = 0.05
"""How far the ways' latents may be from diffusers', relative to them all; bfloat16 alone makes 0.02 of it."""
WAYS = (
    LOOP,
    f"{LOOP}, channels_last",
    f"{LOOP}, channels_last, torch.compile",
    "ours, plain",
    "ours, compiled",
    "ours, fused",
)
SWEPT = (LOOP, "ours, fused")
"""At other batch sizes, where it is to be seen which is the best for each of the two."""
Batch = npt.NDArray[np.uint8]
"""Pictures, channels last."""


def measure_encoder(
    bench: Bench, notes: Notes, clock: Clock, dtype: str, batch_size: int, names: Sequence[str] = WAYS
) -> None:
    """Views a second of every way, its share of the matmul ceiling in the same round, and its memory."""
    part, device = f"encoder {dtype}, batch {batch_size}", bench.device
    batch = pictures(batch_size, bench.config.image_size)
    batches = max(1, bench.config.views_a_turn // batch_size)
    expected = diffusers_means(bench, dtype, batch)
    side = bench.config.matmul
    ceiling = opened(part, CEILING, lambda: matmul(side, DTYPES[dtype], device), notes, device)
    ways: list[Way] = []
    for name in names:
        if device.type == "cpu" and name in ("ours, compiled", "ours, fused"):
            notes.left_out[f"{part}: {name}"] = "needs a GPU"
            continue
        if "compile" in name and not _may_compile(bench, f"{part}: {name}", notes, clock):
            continue
        if name.startswith("ours"):
            kernels = name.removeprefix("ours, ")
            open_it: Callable[[], Work] = partial(open_ours, bench, dtype, batch, batches, kernels, expected)
        else:
            open_it = partial(open_diffusers, bench, dtype, batch, batches, name)
        ways += opened(part, name, open_it, notes, device)
    rates = rates_of(part, [*ceiling, *ways], bench.config.rounds, notes, clock, device)
    notes.add(part, rate_figures(ways, rates, "views a second"))
    if (best := rates.pop(CEILING, None)) is not None:
        notes.add(part, [Figure(CEILING, "TFLOP a second", best)])
        tflops = {name: tuple(rate * bench.view_tflop for rate in found) for name, found in rates.items()}
        notes.add(part, (share_figure(f"{name}: share of the ceiling", done, best) for name, done in tflops.items()))


def _may_compile(bench: Bench, name: str, notes: Notes, clock: Clock) -> bool:
    if not bench.config.compile:
        notes.left_out[name] = "compile=false"
    return bench.config.compile and clock.has(COMPILING, name, notes)


def pictures(count: int, side: int, seed: int = 0) -> Batch:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def own_model(bench: Bench, dtype: str) -> Any:
    """The VAE on the device, for a way of its own."""
    return copy.deepcopy(bench.vae.model).to(bench.device, DTYPES[dtype])


def open_diffusers(bench: Bench, dtype: str, batch: Batch, batches: int, name: str = LOOP) -> Work:
    """`vae.encode` of a batch after the other, every copy waited for."""
    model, layout = own_model(bench, dtype), torch.contiguous_format
    if "channels_last" in name:
        layout = torch.channels_last
        model.to(memory_format=layout)
    if "compile" in name:
        model.encoder.compile()
    images = torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))

    def work() -> int:
        with torch.inference_mode():
            for _ in range(batches):
                scaled = (images.to(bench.device).float() / 127.5 - 1).to(DTYPES[dtype], memory_format=layout)
                model.encode(scaled).latent_dist.sample().half().cpu().numpy()
        return batches * len(batch)

    return work


def diffusers_means(bench: Bench, dtype: str, batch: Batch) -> npt.NDArray[np.float64]:
    """The latents that all ways have to give, but for their noise."""
    model = own_model(bench, dtype)
    images = torch.from_numpy(batch).permute(0, 3, 1, 2).to(bench.device)
    with torch.inference_mode():
        rows = [model.encode((row.float() / 127.5 - 1).to(DTYPES[dtype])).latent_dist.mean for row in images.split(4)]
    return torch.cat(rows).double().cpu().numpy()


def open_ours(
    bench: Bench, dtype: str, batch: Batch, batches: int, kernels: str, expected: npt.NDArray[np.float64]
) -> Work:
    """This project's encoder, if it gives what is expected."""
    encoder = open_encoder(bench, dtype, len(batch), kernels)
    silence = [np.zeros(encoder.spec.shape, np.float32)] * len(batch)
    found = encoder.encode(list(batch), silence).latents
    difference = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    if not difference <= DIFFERENCE:
        raise CheckFailed(f"kernels={kernels}: latents differ from diffusers' by {difference:.3f}")
    noise = [posterior_noise(number, encoder.spec.shape) for number in range(len(batch))]
    return partial(encode_batches, encoder, [list(batch)] * batches, noise)


def open_encoder(bench: Bench, dtype: str, batch_size: int, kernels: str) -> LatentEncoder:
    known: dict[str, Kernels] = {word: word for word in get_args(Kernels)}
    return LatentEncoder(bench.vae, bench.spec(dtype), batch_size, bench.device, known[kernels])


def encode_batches(encoder: LatentEncoder, batches: Sequence[list[Any]], noise: list[Any]) -> int:
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
