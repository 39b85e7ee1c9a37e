"""Zero-shot classification of a labelled latent store: which class name fits a latent best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import LatentSpec, SpecError, convert_scale
from encode_pipeline.latents.storage import Storage
from encode_pipeline.latents.store import Store

CLASSES_FILE, TEMPLATES_FILE = "classnames.txt", "zeroshot_classification_templates.txt"


@dataclass(frozen=True)
class LabelledBatch:
    """Some samples of one shard."""

    shard: str
    keys: list[str]
    labels: list[int]
    """Number of each one's class."""
    latents_bchw: Tensor
    """In the scale that the model was trained on."""


class ZeroShotSet:
    """One view of a labelled store, with its class names and the prompts to put them in."""

    def __init__(
        self,
        store: str,
        classes: Path | None,
        trained_on: LatentSpec,
        cache: Path,
        label: str = "class_name",
        view: int = 0,
        version: str | None = None,
    ) -> None:
        self.version = Store(store).version(version)
        spec = self.version.spec
        check_latents(trained_on, spec, self.version.storage.url())
        if view >= spec.views:
            raise RequestError(f"view={view}: {self.version.storage.url()} has {spec.views} views, from 0")
        self._trained_on, self._label = trained_on, label
        self._cache = ShardCache(self.version, cache)
        self._rows = [row for row in self.version.manifest().to_pylist() if row["view"] == view]
        self.samples = sum(row["samples"] for row in self._rows)
        if not self.samples:
            raise RequestError(f"{self.version.storage.url()}: no samples to evaluate")
        if classes is not None:
            self.names, self.templates = read_classes(classes)
            if len(set(self.names)) != len(self.names):
                raise RequestError(f"{classes / CLASSES_FILE}: a class stands twice")
        found = self._names_in_data()
        if classes is not None:
            if strange := sorted(set(found) - set(self.names)):
                url = self.version.storage.url()
                raise RequestError(f"{url}: label {strange[0]!r} is not in {classes / CLASSES_FILE}")
        else:
            self.names = found
            self.templates = [template("{c}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES]
        self._number = {name: number for number, name in enumerate(self.names)}

    def batches(self, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[LabelledBatch]:
        """All samples, or one rank's share of them: every `world`-th batch."""
        spec, number = self.version.spec, 0
        for row in self._rows:
            starts = range(0, row["samples"], batch_size)
            mine = [start for place, start in enumerate(starts, number) if place % world == rank]
            number += len(starts)
            if not mine:
                continue
            with self._cache.open(row) as shard:
                for start in mine:
                    some = range(start, min(start + batch_size, len(shard)))
                    keys = [shard.keys[index] for index in some]
                    labels = [self._label_of(shard.metadata(index), shard.keys[index], row["path"]) for index in some]
                    latents = torch.from_numpy(np.stack([shard.latent(index) for index in some])).float()
                    latents = convert_scale(latents, spec.vae, spec.scale, self._trained_on.scale)
                    yield LabelledBatch(row["shard"], keys, [self._number[label] for label in labels], latents)

    @torch.no_grad()
    def count(
        self,
        model: open_clip.CLIP,
        tokenizer: open_clip.SimpleTokenizer,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        batch_size: int = 256,
    ) -> dict[str, int]:
        """How many of a rank's share the model has right; the shares of all ranks add up to the store.

        The towers run under whatever autocast the caller has set.
        """
        was_training = model.training
        model.eval()
        right = {"right_at_1": 0, "right_at_5": 0, "n": 0}
        try:
            class_rows = embed_classes(model, tokenizer, device, self.names, self.templates)
            for batch in self.batches(batch_size, rank, world):
                image: Tensor = model.encode_image(batch.latents_bchw.to(device), normalize=True)
                found = best_classes(image.float(), class_rows).cpu() == torch.tensor(batch.labels)[:, None]
                right["right_at_1"] += int(found[:, 0].sum())
                right["right_at_5"] += int(found.sum())
                right["n"] += len(batch.labels)
        finally:
            model.train(was_training)
        return right

    def _names_in_data(self) -> list[str]:
        names: set[str] = set()
        for row in self._rows:
            with self._cache.open(row) as shard:
                names |= {
                    self._label_of(shard.metadata(index), key, row["path"]) for index, key in enumerate(shard.keys)
                }
        return sorted(names)

    def _label_of(self, metadata: dict[str, Any], key: str, path: str) -> str:
        label = metadata.get("metadata", {}).get(self._label)
        if not isinstance(label, str):
            raise RequestError(f"{path}: {key}: no {self._label} in its metadata")
        return label


def check_latents(trained_on: LatentSpec, given: LatentSpec, where: str) -> None:
    """Refuses latents of another VAE or shape; another scale is converted, and how they are stored is no matter."""
    if given.vae.weights_sha256 != trained_on.vae.weights_sha256 or given.shape != trained_on.shape:
        unfit = trained_on.model_copy(update={"vae": given.vae, "shape": given.shape})
        raise SpecError(
            f"{where}: these latents are not the model's: {trained_on.difference(unfit)} here; "
            "take a version that was made as the model's were, or another model"
        )


def embed_classes(
    model: open_clip.CLIP,
    tokenizer: open_clip.SimpleTokenizer,
    device: torch.device,
    names: Sequence[str],
    templates: Sequence[str],
) -> Tensor:
    """One unit embedding a class: the mean over the templates, as OpenCLIP's classifier has it."""
    rows = []
    for name in names:
        tokens = tokenizer([template.format(c=name) for template in templates])
        rows.append(model.encode_text(tokens.to(device), normalize=True).float().mean(dim=0))
    return F.normalize(torch.stack(rows), dim=-1)


def best_classes(image: Tensor, class_rows: Tensor) -> Tensor:
    """The numbers of the five best classes of each picture, best first; all of them if there are fewer."""
    with torch.autocast(image.device.type, enabled=False):  # in bfloat16 many classes would be equally near
        return (image @ class_rows.T).topk(min(5, len(class_rows))).indices


def read_classes(folder: str | Path) -> tuple[list[str], list[str]]:
    """Class names and prompt templates from the two files that CLIP_benchmark uses.

    A name may stand twice, as two do in ImageNet's: such classes are told apart by their numbers alone.
    """
    names, templates = (_lines(folder, file) for file in (CLASSES_FILE, TEMPLATES_FILE))
    if unfit := [template for template in templates if "{c}" not in template]:
        raise RequestError(f"{folder}/{TEMPLATES_FILE}: {unfit[0]!r} has no {{c}} for the class name")
    if unfit := [template for template in templates if set("{}") & set(template.replace("{c}", ""))]:
        raise RequestError(f"{folder}/{TEMPLATES_FILE}: {unfit[0]!r} has more in braces than {{c}}, the class name")
    return names, templates


def _lines(folder: str | Path, name: str) -> list[str]:
    try:
        text = Storage(folder).read(name).decode("utf-8")
    except FileNotFoundError:
        raise RequestError(f"{folder}/{name}: no such file") from None
    except UnicodeDecodeError:
        raise RequestError(f"{folder}/{name}: not UTF-8") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise RequestError(f"{folder}/{name}: empty")
    return lines
