"""What a generated data set starts from: labelled latents that the generator understands, and its class names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import open_clip

from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.vae import LoadedVae, load_vae
from eval.encoded import encoded
from eval.generator import Generator
from eval.pictures import open_pictures
from train.zero_shot import CLASSES_FILE, read_classes

if TYPE_CHECKING:
    from eval.generated_imagenet import GenerateConfig

CLASSES = "classes.json"
"""In the generated version's folder: the class names and the templates."""


@dataclass(frozen=True)
class Labels:
    """The class names, and the prompts to put them in."""

    names: list[str]
    templates: list[str]

    @classmethod
    def of(cls, version: Version) -> Labels:
        """Those that a generated version was made with."""
        about = json.loads(version.storage.read(CLASSES))
        return cls(about["names"], about["templates"])

    def to_dict(self) -> dict[str, Any]:
        return {"names": self.names, "templates": self.templates}


def labelled_latents(config: GenerateConfig, generator: Generator) -> tuple[Version, Labels]:
    """What to start from, as a sealed version of latents that the generator understands."""
    own = load_vae(config.vae) if config.vae else generator.load_vae()
    if own.channels != generator.channels:
        name = own.identity.name
        raise RequestError(f"vae: {name}: latents of {own.channels} channels; the generator makes {generator.channels}")
    store = Store(config.data)
    if not store.versions():
        return _encoded(config, own)
    version = store.version(config.version)
    where, theirs = version.storage.url(), version.spec.vae
    if theirs.weights_sha256 != own.identity.weights_sha256:
        hint = "" if config.vae else "; if they are in the generator's latent space all the same, name it with vae="
        raise RequestError(f"{where}: latents of the VAE {theirs.name}, not of {own.identity.name}{hint}")
    names = classes_in(version, config)
    if config.classes is None:
        return version, Labels(names, [template("{c}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES])
    labels = Labels(*read_classes(config.classes))
    if strange := sorted(set(names) - set(labels.names)):
        raise RequestError(f"{where}: label {strange[0]!r} is not in {config.classes / CLASSES_FILE}")
    return version, labels


def _encoded(config: GenerateConfig, vae: LoadedVae) -> tuple[Version, Labels]:
    try:
        pictures = open_pictures(config.data, config.classes)
    except RequestError as error:
        raise RequestError(f"{error}, or a latent store") from None
    pictures.require_labels()
    spec = LatentSpec(
        vae=vae.identity,
        posterior="sample" if vae.has_spread else "mean",
        shape=vae.latent_shape(config.image_size),
        image_size=config.image_size,
        views=1,
        recipe={},
        seed=0,
    )
    how = {name: getattr(config, name) for name in ("engine", "actors", "gpus_per_actor")}
    version = encoded(pictures, spec, config.vae or vae.identity.name, config.cache, how=how)
    return version, Labels(pictures.names, pictures.templates)


def rows_of(data: Version, view: int) -> list[dict[str, Any]]:
    """What the manifest says of the tars of one view."""
    if view >= data.spec.views:
        raise RequestError(f"view={view}: {data.storage.url()} has {data.spec.views} views, from 0")
    rows = [row for row in data.manifest().to_pylist() if row["view"] == view and row["samples"]]
    if not rows:
        raise RequestError(f"{data.storage.url()}: no samples to start from")
    return rows


def classes_in(data: Version, config: GenerateConfig) -> list[str]:
    """The class names that occur in the data. All of it is looked through before anything is made of it."""
    names: set[str] = set()
    cache = ShardCache(data, config.cache)
    for row in rows_of(data, config.view):
        with cache.open(row) as shard:
            for index, key in enumerate(shard.keys):
                name = shard.metadata(index).get("metadata", {}).get("class_name")
                if not isinstance(name, str):
                    where = f"{data.storage.url(row['path'])}: {key}"
                    raise RequestError(f"{where}: no class_name in its metadata, so there is no prompt for it")
                names.add(name)
    return sorted(names)
