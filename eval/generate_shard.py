"""One tar of latents in, one committed shard of generated latents out: the work that engines are handed here.

What an item gets depends on the seed, its shard and its key, and on the generator; on a CPU to the bit, whatever the
batches and threads, for there each item goes alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encode_pipeline.encoder import DTYPES
from encode_pipeline.latents.commit import ShardBuild, SourceShard
from encode_pipeline.latents.failpoints import failpoint
from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.spec import SpecError, convert_scale
from encode_pipeline.latents.status import moment
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.latents.writer import Latent
from encode_pipeline.randomness import posterior_noise, seed_of
from encode_pipeline.records import Reason, ShardReport
from encode_pipeline.scratch import scratch_folder
from encode_pipeline.sources import open_source
from encode_pipeline.stages import Stopwatch
from encode_pipeline.tar import PIECE
from encode_pipeline.work import RunEnded
from eval.denoise import Level, denoise, guided
from eval.generated_imagenet import GenerateConfig, shard_of
from eval.generator import Generator, Prompts, load_generator
from eval.labelled_latents import Labels


def loaded(config: GenerateConfig) -> Generator:
    """The generator on this machine's device, in the dtype that was asked for."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    auto = "float16" if device.type == "cuda" else "float32"
    return load_generator(config.generator, device, DTYPES[auto if config.dtype == "auto" else config.dtype])


@dataclass(frozen=True)
class Item:
    """A latent to be gone over, with its prompt and all the noise that it will get."""

    key: str
    latent: Latent
    prompt: str
    noises: list[np.typing.NDArray[np.float32]]
    """One for each level: that of the first is what it is noised with."""
    record: dict[str, Any]


class ShardGenerator:
    """A generator on its device, going over shards of latents."""

    def __init__(self, generator: Generator, version: Version, config: GenerateConfig) -> None:
        self.version, self._generator, self._config = version, generator, config
        self._made = version.spec.recipe["generated"]
        for fact, value in generator.identity().items():
            if self._made[fact] != value and fact != "generator":  # its name decides nothing
                was = f"the generator {generator.name} is not the one of version {version.fingerprint}"
                raise SpecError(f"{was}, {self._made['generator']}: another {fact}")
        self._data = Store(config.data).version(self._made["from"])
        labels = Labels.of(version)
        self._templates, self._numbers = labels.templates, {name: number for number, name in enumerate(labels.names)}
        self._levels = [Level(**level) for level in self._made["levels"]]
        self.device = generator.device.type
        self._closed = threading.Event()
        self._turn = threading.Lock()
        # On a CPU an item a thread: the same bits however many threads. A GPU has one batch after the other.
        threads = torch.get_num_threads() if self.device == "cpu" else 1
        self._pool = ThreadPoolExecutor(threads, "denoise", torch.set_num_threads, (1,))
        self._negative = self._pool.submit(self._embedded, [self._made["negative"]]).result()

    def do(self, source: SourceShard, tell: Callable[[int], None]) -> ShardReport:
        """Generates, writes, publishes and commits what comes of one tar of latents."""
        clock, began = Stopwatch(), time.time()
        failpoint("before-read", source.name)
        with (
            scratch_folder(self._config.scratch) as scratch,
            ShardBuild(scratch / "made", self.version.spec, source) as build,
        ):
            with clock("input"):
                sha256 = _fetch(source, scratch / "data.tar")
            with LatentShard(scratch / "data.tar", self._data.spec) as shard:
                for start in range(0, len(shard), self._config.batch_size):
                    stop = min(start + self._config.batch_size, len(shard))
                    items = [self._item(shard, index, source) for index in range(start, stop)]
                    with clock("denoise"):
                        latents = self._generated(items)
                    tell(len(items))
                    for item, latent in zip(items, latents, strict=True):
                        if np.isfinite(latent).all():
                            build.add(item.key, [latent], item.prompt, [item.record])
                        else:
                            build.reject(item.key, Reason.NON_FINITE_LATENT, f"of the prompt {item.prompt!r}")
                        failpoint("mid-shard", source.name)
            commit, files = build.finish(sha256, self._made_by(clock, began))
            failpoint("after-build", source.name)
            return ShardReport(commit, won=self.version.publish(commit, files))

    def close(self) -> None:
        self._closed.set()

    def _item(self, shard: LatentShard, index: int, source: SourceShard) -> Item:
        key, record, origin = shard.keys[index], shard.metadata(index), shard_of(source)
        about, seed = record["metadata"], self._made["seed"]

        def chance(purpose: str) -> int:
            return seed_of(seed, origin, key, self._made["view"], purpose)

        template = chance("template") % len(self._templates)
        prompt = self._templates[template].format(c=about["class_name"])
        metadata = {
            "class_name": about["class_name"],
            "label": about.get("label", self._numbers[about["class_name"]]),  # two classes may have one name
            "prompt": prompt,
            "template": template,
            "noise": self._made["noise"],
            **{fact: self._made["levels"][0][fact] for fact in ("t", "sigma")},
            "seed": seed,
            "original": {"key": key, "shard": origin, "fingerprint": self._data.fingerprint},
        }
        made = {
            "source": source.uri,
            "view": 0,
            "original_size": record.get("original_size"),
            "augmentation": {},
            "metadata": metadata,
        }
        noises = [
            posterior_noise(chance(f"noise {number}"), self.version.spec.shape) for number in range(len(self._levels))
        ]
        return Item(key, shard.latent(index), prompt, noises, made)

    def _generated(self, items: Sequence[Item]) -> list[Latent]:
        if self._closed.is_set():
            raise RunEnded
        if self.device == "cpu":
            return [latent for made in self._pool.map(self._batch, ([item] for item in items)) for latent in made]
        # Always of one size, so of one kind of arithmetic: a short batch is filled up with its last item.
        full = [*items, *[items[-1]] * (self._config.batch_size - len(items))]
        with self._turn:
            return list(self._batch(full))[: len(items)]

    def _batch(self, items: Sequence[Item]) -> Latent:
        """What comes of some items, computed together, as the store holds it."""
        spec, data, guidance = self.version.spec, self._data.spec, self._made["guidance"]
        with torch.inference_mode():
            raw_or_model = self._on_device([item.latent.astype(np.float32) for item in items])
            z = convert_scale(raw_or_model, data.vae, data.scale, "model")
            noises = [
                self._on_device(list(of_level)) for of_level in zip(*(item.noises for item in items), strict=True)
            ]
            prompts = self._embedded([item.prompt for item in items])

            def predict(x_bchw: Tensor, level: Level) -> Tensor:
                conditional = self._generator.eps(x_bchw, level.t, prompts)
                if guidance <= 1:
                    return conditional
                negative = self._negative.repeated(len(items))
                return guided(conditional, self._generator.eps(x_bchw, level.t, negative), guidance)

            made = denoise(z + self._levels[0].sigma * noises[0], self._levels, predict, noises[1:])
            latents = convert_scale(made, spec.vae, "model", spec.scale).to(torch.float16)
            return np.array(latents.cpu().numpy(), order="C")

    def _embedded(self, prompts: list[str]) -> Prompts:
        with torch.inference_mode():
            return self._generator.embed_prompts(prompts)

    def _on_device(self, rows: Sequence[np.typing.NDArray[np.float32]]) -> Tensor:
        return torch.from_numpy(np.stack(rows)).to(self._generator.device)

    def _made_by(self, clock: Stopwatch, began: float) -> dict[str, Any]:
        """Which software and device made a shard, when and in what time, for people who wonder later."""
        device = torch.cuda.get_device_name(self._generator.device) if self.device == "cuda" else "cpu"
        return {
            "versions": {name: version_of(name) for name in ("torch", "diffusers", "transformers", "numpy")},
            "device": device,
            "compute_dtype": str(self._generator.dtype).removeprefix("torch."),
            "batch_size": self._config.batch_size,
            "began": moment(began),
            "ended": moment(time.time()),
            "seconds": {stage: round(seconds, 3) for stage, seconds in clock.seconds.items()},
        }


def _fetch(source: SourceShard, local: Path) -> str:
    """Copies a tar that must be the one that was planned; returns its hash."""
    with open_source(source) as tar, local.open("xb") as file:
        while piece := tar.read(PIECE):
            file.write(piece)
        return tar.sha256()
