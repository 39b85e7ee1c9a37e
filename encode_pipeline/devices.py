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
FUSED_SIDE = 2048
"""Beyond this, places within a picture do not fit into the kernels' 32 bits."""
SLOTS = 4
"""Batches that have room on their way to the device and back; two are under way."""
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
        self._copying, self._computing = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self.kernels, moments = choose_kernels(model, dtype, kernels, spec.image_size)
        self._starts = 0
        try:
            self._slots = [_Slot(batch_size, spec, device) for _ in range(SLOTS)]
            self._capture(model, moments, spec, dtype, batch_size, device)
        except torch.cuda.OutOfMemoryError:
            raise RequestError(f"batch_size={batch_size}: more than this GPU has memory for") from None

    def _capture(
        self, model: Any, moments: Moments, spec: LatentSpec, dtype: torch.dtype, batch_size: int, device: torch.device
    ) -> None:
        side = spec.image_size
        with torch.inference_mode():
            self._pixels = torch.randint(0, 256, (batch_size, side, side, 3), dtype=torch.uint8, device=device)
            self._noise = torch.zeros((batch_size, *spec.shape), device=device)
            # Held for as long as the graph is: it has the addresses of the weights, and nothing else keeps those alive.
            self._compute = compute = partial(latents_of, moments, spec, dtype, self._pixels, self._noise)
            if self.kernels == "fused":
                self._check(compute(), latents_of(partial(posterior, model), spec, dtype, self._pixels, self._noise))
            self._graph = torch.cuda.CUDAGraph()
            self._computing.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(self._computing):
                for _ in range(3):  # kernels are compiled and chosen before the capture
                    compute()
                self._computing.synchronize()
                with torch.cuda.graph(self._graph, stream=self._computing, capture_error_mode="thread_local"):
                    self._latents = compute()

    def start(self, pictures: Sequence[Pixels], noise: Sequence[Noise]) -> Callable[[], Latent]:
        count, number = len(pictures), self._starts
        self._starts += 1
        slot = self._slots[number % SLOTS]
        slot.fill(pictures, noise)
        with torch.inference_mode():
            with torch.cuda.stream(self._copying):
                slot.send()
            with torch.cuda.stream(self._computing):
                self._computing.wait_stream(self._copying)
                self._pixels.copy_(slot.pixels)
                self._noise.copy_(slot.noise)
                self._graph.replay()
                slot.latents.copy_(self._latents, non_blocking=True)
                slot.done.record()

        def wait() -> Latent:
            slot.done.synchronize()
            if self._starts > number + SLOTS:
                raise RuntimeError(f"latents of batch {number} were asked for after {SLOTS} more were started")
            return np.array(slot.latents[:count].numpy(), order="C")

        return wait

    def _check(self, fused: torch.Tensor, own: torch.Tensor) -> None:
        good = torch.isfinite(own).flatten(1).all(1)  # what overflows in the VAE's own arithmetic is rescued later
        difference = (fused[good].float() - own[good].float()).norm() / own[good].float().norm().clamp(min=1e-6)
        if not difference <= FUSED_ERROR:
            raise RequestError(
                f"kernels=fused: latents differ from the VAE's own by {float(difference):.3f}; set kernels=plain"
            )


class _Slot:
    """Room for one batch on its way, pinned in host memory and on the device, used over and over."""

    def __init__(self, batch_size: int, spec: LatentSpec, device: torch.device) -> None:
        side = spec.image_size
        self._pixels = torch.empty((batch_size, side, side, 3), dtype=torch.uint8, pin_memory=True)
        self._noise = torch.empty((batch_size, *spec.shape), pin_memory=True)
        self.pixels, self.noise = (
            torch.empty_like(self._pixels, device=device),
            torch.empty_like(self._noise, device=device),
        )
        self.latents = torch.empty((batch_size, *spec.shape), dtype=torch.float16, pin_memory=True)
        self.done = torch.cuda.Event(blocking=True)

    def fill(self, pictures: Sequence[Pixels], noise: Sequence[Noise]) -> None:
        """Takes a batch in; a short one is filled up with its last picture."""
        self.done.synchronize()  # whoever used it before, and may have left without waiting
        for rows, staged in ((pictures, self._pixels.numpy()), (noise, self._noise.numpy())):
            for place in range(len(staged)):
                staged[place] = rows[min(place, len(rows) - 1)]

    def send(self) -> None:
        self.pixels.copy_(self._pixels, non_blocking=True)
        self.noise.copy_(self._noise, non_blocking=True)


def choose_kernels(model: Any, dtype: torch.dtype, kernels: Kernels, image_size: int) -> tuple[Kernels, Moments]:
    """How to compute on a GPU: fused by us where the model allows it, compiled by torch, or as diffusers does."""
    if kernels in ("auto", "fused"):
        from encode_pipeline.fused import FusedEncoder, fits

        problem = "computes in float32" if dtype is torch.float32 else fits(model)
        if problem is None and image_size > FUSED_SIDE:
            problem = f"encodes pictures beyond {FUSED_SIDE} pixels"
        if problem is None:
            return "fused", FusedEncoder(model.to(memory_format=torch.channels_last)).moments
        if kernels == "fused":
            raise RequestError(f"kernels=fused: this VAE {problem}; set kernels=compiled or kernels=plain")
    moments: Moments = partial(posterior, model)
    if kernels == "compiled":
        model.to(memory_format=torch.channels_last)
        return "compiled", torch.compile(moments, dynamic=False)
    return "plain", moments  # in float16 and without fusion, the usual memory layout is a third faster
