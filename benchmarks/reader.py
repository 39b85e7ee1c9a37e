"""Reading latents to train on: webdataset's decoding pipeline against the trainer's own batches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import webdataset as wds

from benchmarks.figures import Measured
from benchmarks.paired import compare, in_turns
from benchmarks.settings import BenchmarkConfig
from encode_pipeline.latents.commit import ShardBuild, SourceShard
from encode_pipeline.latents.spec import LatentSpec, VaeIdentity
from encode_pipeline.latents.store import Store, Version
from train import order
from train.config import TrainConfig
from train.data import LatentData, open_data
from train.tokenizer import BoundedTokenizer

TARS, SAMPLES_PER_TAR = 4, 2000
SAMPLES = TARS * SAMPLES_PER_TAR
BATCH = 256
CAPTION_WORDS = 12
SHAPE = (4, 64, 64)


class NoTokens:
    """In the place of a tokenizer, to measure without one."""

    context_length = 1
    encoder: dict[str, int] = {}  # noqa: RUF012

    def __call__(self, captions: list[str]) -> torch.Tensor:
        return torch.zeros((len(captions), 1), dtype=torch.int64)


def measure(config: BenchmarkConfig) -> Measured:
    """Samples a second from the page cache, in batches of 256, one process; over an epoch each time."""
    plain_tokenizer, tokenizer = open_clip.SimpleTokenizer(context_length=77), BoundedTokenizer(context_length=77)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        version = write_store(folder / "store", folder / "scratch")
        plain, tokenised = (reader(folder, cache, by) for cache, by in (("plain", NoTokens()), ("tokens", tokenizer)))

        def first_epoch() -> None:
            with tempfile.TemporaryDirectory() as cache:
                read(reader(folder, cache, tokenizer))

        def in_order() -> None:
            with unshuffled():
                read(reader(folder, "plain", NoTokens()))

        without: dict[str, Callable[[], object]] = {
            "webdataset decode": lambda: by_webdataset(version, None),
            "batches, tars in order": in_order,
            "batches, random order": lambda: read(plain),
        }
        with_tokens: dict[str, Callable[[], object]] = {
            "webdataset decode, tokenise": lambda: by_webdataset(version, plain_tokenizer),
            "batches with tokens, random order": lambda: read(tokenised),
            "first epoch: check, index, tokenise": first_epoch,
        }
        spent = in_turns({**without, **with_tokens}, config.rounds)
    items = SAMPLES // BATCH * BATCH
    parts = [{way: spent[way] for way in ways} for ways in (without, with_tokens)]
    return Measured(tuple(figure for part in parts for figure in compare(items, part, "samples")))


def read(data: LatentData) -> None:
    """An epoch, as the training loop reads it."""
    for batch in data.batches(0, SAMPLES // BATCH, range(BATCH)):
        assert len(batch.latents_bchw) == BATCH


def reader(folder: Path, cache: str, tokenizer: Any) -> LatentData:
    values = {"model": "latent-vit-b-8", "data": str(folder / "store"), "out": folder, "cache": folder / cache}
    return open_data(TrainConfig(**values, batch_size=BATCH, steps=1, workers=0), tokenizer)


def by_webdataset(version: Version, tokenizer: Any) -> None:
    """The same samples into the same batches, as a loop on webdataset has them."""
    dataset = wds.WebDataset(version.addresses(), shardshuffle=False).decode().to_tuple("npy", "txt")
    latents, captions = np.empty((BATCH, *SHAPE), np.float16), []
    for number, (latent, caption) in enumerate(dataset):
        latents[number % BATCH] = latent
        captions.append(caption)
        if len(captions) == BATCH:
            if tokenizer is not None:
                tokenizer(captions)
            captions = []


@contextmanager
def unshuffled() -> Iterator[None]:
    """Takes the chance out of the order of samples, to see what it costs."""
    shuffled = order.permutation
    order.permutation = lambda count, seed: np.arange(count)
    try:
        yield
    finally:
        order.permutation = shuffled


def write_store(store: Path, scratch: Path) -> Version:
    """A sealed store of noise with captions of the usual length."""
    vae = VaeIdentity(name="none", weights_sha256="0" * 64, config={}, scaling_factor=1.0)
    spec = LatentSpec(vae=vae, shape=SHAPE, image_size=512, views=1, recipe={}, seed=0)
    version = Store(store).create(spec)
    rng = np.random.default_rng(0)
    words = sorted({word for name in open_clip.IMAGENET_CLASSNAMES for word in name.split()})
    chances = 1 / np.arange(1, len(words) + 1)  # as in language: few words make most of the text
    for tar in range(TARS):
        source = SourceShard(f"{tar:05d}.tar", 1)
        with ShardBuild(scratch / str(tar), spec, source) as build:
            for number in range(SAMPLES_PER_TAR):
                latent = rng.standard_normal(SHAPE, dtype=np.float32).astype(np.float16)
                caption = " ".join(rng.choice(words, CAPTION_WORDS, p=chances / chances.sum()))
                record = {"source": source.uri, "view": 0, "original_size": [512, 512]}
                build.add(f"{tar:05d}{number:05d}", [latent], caption, [record])
            version.publish(*build.finish("0" * 64, {}))
    version.seal()
    return version
