"""Views into latents: a VAE on its device, kept busy, and every latent finite or refused."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from encode_pipeline.devices import Kernels, Noise, OnCpu, OnGpu, latents_of
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import LatentSpec, SpecError
from encode_pipeline.latents.writer import Latent
from encode_pipeline.records import Pixels
from encode_pipeline.stages import Stopwatch
from encode_pipeline.vae import PIXELS, LoadedVae, posterior
from encode_pipeline.work import RunEnded

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Turn:
    """The right to have batches encoded, which one shard has at a time, while the next one gets ready."""

    def __init__(self, encoder: LatentEncoder, clock: Stopwatch) -> None:
        self._encoder, self._clock = encoder, clock
        self._mine = False

    def take(self) -> None:
        """Waits until it is this shard's turn. What the device had nothing to do before counts as "between"."""
        if not self._mine:
            self._encoder.free.acquire()
            self._mine = True
            if self._encoder.free_since is not None:
                self._clock.seconds["between"] += time.perf_counter() - self._encoder.free_since

    def give(self) -> None:
        """Lets another shard have it, until `take`."""
        if self._mine:
            self._encoder.free_since = time.perf_counter()
            self._mine = False
            self._encoder.free.release()


@dataclass(frozen=True)
class EncodedBatch:
    latents: Latent
    finite: npt.NDArray[np.bool_]
    rescued: int


@dataclass(frozen=True)
class StartedBatch:
    """A batch on its way through the VAE, and what a second try at one of its views would need."""

    pictures: Sequence[Pixels]
    noise: Sequence[Noise]
    wait: Callable[[], Latent]


class LatentEncoder:
    """A VAE on its device, turning uint8 pictures into what the store holds.

    `start` returns at once, so that a caller prepares the next batch while the device works on this one.
    """

    def __init__(
        self,
        vae: LoadedVae,
        spec: LatentSpec,
        batch_size: int,
        device: torch.device | None = None,
        kernels: Kernels = "auto",
    ) -> None:
        if vae.identity.weights_sha256 != spec.vae.weights_sha256 or vae.identity.config != spec.vae.config:
            raise SpecError(
                f"the VAE {vae.identity.name} is not the one of version {spec.fingerprint}, {spec.vae.name}"
            )
        self.spec, self.batch_size = spec, batch_size
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        auto = "float32" if self.device.type == "cpu" or vae.identity.name == PIXELS else "float16"
        self.dtype_name = auto if spec.compute_dtype == "auto" else spec.compute_dtype
        self._dtype = DTYPES[self.dtype_name]
        self._vae = vae
        self._rescuing = threading.Lock()
        self.free = threading.Lock()
        """Held by the shard whose turn it is."""
        self.free_since: float | None = None
        self.closed = threading.Event()
        model = vae.model
        if self._dtype is not torch.float32 or self.device.type != "cpu":
            model = copy.deepcopy(model).to(device=self.device, dtype=self._dtype)  # rescues need the float32 original
        self._backend: OnCpu | OnGpu
        if self.device.type == "cpu":
            if kernels in ("fused", "compiled"):
                raise RequestError(f"kernels={kernels}: needs a GPU; there is none here")
            self._backend = OnCpu(model, spec, self._dtype)
        else:
            self._backend = OnGpu(model, spec, self._dtype, batch_size, self.device, kernels)
        self.kernels = self._backend.kernels

    @contextmanager
    def turn(self, clock: Stopwatch) -> Iterator[Turn]:
        """A shard's turn to have its batches encoded, given back at the end whatever happens."""
        turn = Turn(self, clock)
        try:
            yield turn
        finally:
            turn.give()

    def start(self, pictures: Sequence[Pixels], noise: Sequence[Noise]) -> StartedBatch:
        """Sends up to a batch of pictures on their way."""
        self.check_open()
        return StartedBatch(pictures, noise, self._backend.start(pictures, noise))

    def finish(self, batch: StartedBatch) -> EncodedBatch:
        """The batch's latents. One that is not finite is tried again, alone, in float32."""
        latents = batch.wait()
        finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(latents).all(axis=(1, 2, 3)))
        rescued = 0
        for index in np.flatnonzero(~finite):
            again = self._in_float32(batch.pictures[int(index)], batch.noise[int(index)])
            if np.isfinite(again).all():
                latents[index], finite[index] = again, True
                rescued += 1
        return EncodedBatch(latents, finite, rescued)

    def encode(self, pictures: Sequence[Pixels], noise: Sequence[Noise]) -> EncodedBatch:
        return self.finish(self.start(pictures, noise))

    def check_open(self) -> None:
        """Raises if the run has ended."""
        if self.closed.is_set():
            raise RunEnded

    def close(self) -> None:
        """Encodes nothing more."""
        self.closed.set()

    def _in_float32(self, picture: Pixels, noise: Noise) -> Latent:
        with self._rescuing, torch.inference_mode():
            wide = self._vae.model.to(self.device)
            pixels, spread = (torch.from_numpy(array[None]).to(self.device) for array in (picture, noise))
            again = latents_of(partial(posterior, wide), self.spec, torch.float32, pixels, spread)
            return np.array(again[0].cpu().numpy(), order="C")
