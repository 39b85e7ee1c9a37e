"""What a latent's bits depend on: its place in the batch, its company, the encoder, the batch size."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from benchmarks.figures import Figure
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.encoder import COMPILING, open_encoder, pictures
from benchmarks.gpu.notes import Clock, Notes
from encode_pipeline.encoder import LatentEncoder
from encode_pipeline.randomness import posterior_noise

SMALL = 4
"""Views in the other batch size."""


def measure_bits(bench: Bench, notes: Notes, clock: Clock) -> None:
    """The same pictures encoded in many ways by every kind of kernels, and all of it against float32."""
    size = bench.config.batch_size
    dtype = bench.config.dtypes[0]
    batch = list(pictures(size, bench.config.image_size, seed=1))
    wide = open_encoder(bench, "float32", min(SMALL, size), "plain")
    noise = [posterior_noise(number, wide.spec.shape) for number in range(size)]

    def in_fours(encoder: LatentEncoder) -> Any:
        cuts = [slice(at, at + encoder.batch_size) for at in range(0, size, encoder.batch_size)]
        return np.concatenate([encoder.encode(batch[cut], noise[cut]).latents for cut in cuts])

    exact = in_fours(wide).astype(np.float64)
    found: dict[str, Any] = {}
    notes.details["bits"] = found
    for kernels in ("plain", "fused", "compiled"):
        name = f"bits: {kernels}"
        if bench.device.type == "cpu" and kernels != "plain":
            notes.left_out[name] = "needs a GPU"
        elif kernels == "compiled" and not bench.config.compile:
            notes.left_out[name] = "compile=false"
        elif clock.has(2 * COMPILING if kernels == "compiled" else 0.0, name, notes):
            first = open_encoder(bench, dtype, size, kernels)
            latents = first.encode(batch, noise).latents
            reversed_latents = first.encode(batch[::-1], noise[::-1]).latents[::-1]
            alone = first.encode(batch[:1], noise[:1]).latents
            second = open_encoder(bench, dtype, size, kernels).encode(batch, noise).latents
            fours = in_fours(open_encoder(bench, dtype, min(SMALL, size), kernels))
            steps = np.abs(fours.astype(np.float64) - latents) / np.spacing(np.abs(latents)).astype(np.float64)
            error = float(np.linalg.norm(latents - exact) / np.linalg.norm(exact))
            found[kernels] = {
                "same_in_any_place": bool(np.array_equal(latents, reversed_latents)),
                "same_in_any_company": bool(np.array_equal(latents[:1], alone)),
                "same_from_another_encoder": bool(np.array_equal(latents, second)),
                "sha256": hashlib.sha256(latents.tobytes()).hexdigest()[:16],
                f"batch_{SMALL}_against_{size}": {
                    "differing": round(float((fours != latents).mean()), 5),
                    "most_float16_steps": float(steps.max()),
                    "most": float(np.abs(fours.astype(np.float64) - latents).max()),
                },
                "relative_error_against_float32": error,
            }
            notes.add("bits", [Figure(f"{kernels}: relative error against float32", "share", (error,), "less")])
