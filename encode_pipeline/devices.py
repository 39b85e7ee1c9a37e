"""Where latents are computed: on the cores of a CPU, or on a GPU that is never left waiting for the bus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import LatentSpec, convert_scale
from encode_pipeline.latents.writer import Latent
from encode_pipeline.records import Pixels
from encode_pipeline.vae import posterior

Noise = npt.NDArray[np.float32]
Moments = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
"""From images in [-1, 1] to the mean and the standard deviation of their latents."""
Kernels = Literal["auto", "fused", "compiled", "plain"]
FUSED_ERROR = 0.02
"""How far fused kernels may be from diffusers' own, relative to the latents: float16 and bfloat16 stay well below."""


def latents_of(
    moments: Moments, spec: LatentSpec, dtype: torch.dtype, pixels_bhwc: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """What the store holds for uint8 pictures: the one way from pixels to a latent, whatever the device."""
    images = pixels_bhwc.permute(0, 3, 1, 2)  # channels_last as it lies
    mean, std = moments((images.float() / 127.5 - 1).to(dtype))
    latents = mean.float()
    if spec.posterior == "sample" and std is not None:
        latents = latents + std.float() * noise
    return convert_scale(latents, spec.vae, "raw", spec.scale).to(torch.float16)


class OnCpu:
    """One picture by one, a thread each: the same bits however many threads, and none spins waiting for another."""

    def __init__(self, model: Any, spec: LatentSpec, dtype: torch.dtype) -> None:
        self._moments = partial(posterior, model.to(memory_format=torch.channels_last))
        self._spec, self._dtype = spec, dtype
        self._threads = ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,))
        self.kernels = "plain"

    def start(self, pictures: Sequence[Pixels], noise: Sequence[Noise]) -> Callable[[], Latent]:
        rows = [self._threads.submit(self._one, *pair) for pair in zip(pictures, noise, strict=True)]
        return lambda: np.concatenate([row.result() for row in rows])

    def _one(self, picture: Pixels, noise: Noise) -> Latent:
        with torch.inference_mode():
            pixels, spread = torch.from_numpy(picture[None]), torch.from_numpy(noise[None])
            return np.array(latents_of(self._moments, self._spec, self._dtype, pixels, spread).numpy(), order="C")


class OnGpu:
    """A batch at a time, padded to a fixed shape: the same kernels, so the same bits, for every batch.

    The whole way from uint8 to float16 latents is one CUDA graph: a single launch, which Python threads that decode
    cannot hold up. Bytes cross the bus from pinned memory on a stream of their own, beside the batch being computed.
    """

    def __init__(
        self,
        model: Any,
        spec: LatentSpec,
        dtype: torch.dtype,
        batch_size: int,
        device: torch.device,
        kernels: Kernels = "auto",
    ) -> None:
        self._batch_size, self._device = batch_size, device
        self._copying, self._computing = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self.kernels, moments = choose_kernels(model, dtype, kernels)
        side = spec.image_size
        with torch.inference_mode():
            self._pixels = torch.randint(0, 256, (batch_size, side, side, 3), dtype=torch.uint8, device=device)
            self._noise = torch.zeros((batch_size, *spec.shape), device=device)
            compute = partial(latents_of, moments, spec, dtype, self._pixels, self._noise)
            if self.kernels == "fused":
                self._check(compute(), latents_of(partial(posterior, model), spec, dtype, self._pixels, self._noise))
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(self._computing):
                for _ in range(3):  # kernels are compiled and chosen before the capture
                    compute()
                self._computing.synchronize()
                with torch.cuda.graph(self._graph, stream=self._computing, capture_error_mode="thread_local"):
                    self._latents = compute()

    def start(self, pictures: Sequence[Pixels], noise: Sequence[Noise]) -> Callable[[], Latent]:
        count = len(pictures)
        with torch.inference_mode():
            with torch.cuda.stream(self._copying):
                pixels, spread = self._send(pictures), self._send(noise)
            with torch.cuda.stream(self._computing):
                self._computing.wait_stream(self._copying)
                for sent, place in ((pixels, self._pixels), (spread, self._noise)):
                    place.copy_(sent)
                    sent.record_stream(self._computing)
                self._graph.replay()
                out = torch.empty(self._latents.shape, dtype=torch.float16, pin_memory=True)
                out.copy_(self._latents, non_blocking=True)
                done = torch.cuda.Event(blocking=True)
                done.record()

        def wait() -> Latent:
            done.synchronize()
            return np.array(out[:count].numpy(), order="C")

        return wait

    def _send(self, rows: Sequence[npt.NDArray[Any]]) -> torch.Tensor:
        """Rows as one tensor on the device; a short batch is filled up with its last row."""
        first = torch.from_numpy(rows[0])
        staged = torch.empty((self._batch_size, *first.shape), dtype=first.dtype, pin_memory=True)
        as_numpy = staged.numpy()
        for place in range(self._batch_size):
            as_numpy[place] = rows[min(place, len(rows) - 1)]
        return staged.to(self._device, non_blocking=True)

    def _check(self, fused: torch.Tensor, own: torch.Tensor) -> None:
        good = torch.isfinite(own).flatten(1).all(1) & torch.isfinite(fused).flatten(1).all(1)
        difference = (fused[good].float() - own[good].float()).norm() / own[good].float().norm().clamp(min=1e-6)
        if difference > FUSED_ERROR:
            raise RequestError(
                f"kernels=fused: latents differ from the VAE's own by {float(difference):.3f}; set kernels=plain"
            )


def choose_kernels(model: Any, dtype: torch.dtype, kernels: Kernels) -> tuple[Kernels, Moments]:
    """How to compute on a GPU: fused by us where the model allows it, compiled by torch, or as diffusers does."""
    if kernels in ("auto", "fused"):
        from encode_pipeline.fused import FusedEncoder, fits

        problem = "computes in float32" if dtype is torch.float32 else fits(model)
        if problem is None:
            return "fused", FusedEncoder(model.to(memory_format=torch.channels_last)).moments
        if kernels == "fused":
            raise RequestError(f"kernels=fused: this VAE {problem}; set kernels=compiled or kernels=plain")
    moments: Moments = partial(posterior, model)
    if kernels == "compiled":
        model.to(memory_format=torch.channels_last)
        return "compiled", torch.compile(moments, dynamic=False)
    return "plain", moments  # in float16 and without fusion, the usual memory layout is a third faster
