"""The four ways from a data set to a model: which one it is, and the feed that goes it.

pixels   a model of pixels looks at pictures
encoded  a model of latents looks at pictures through a VAE, or at a store of such
direct   a model of latents looks at generated latents as they are
decoded  latents are decoded to pictures, and for a model of latents encoded again
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import Store
from eval.class_names import ClassList, listed_classes
from eval.evaluation import EvaluationConfig
from eval.feed import Damage, Feed, Item, as_they_are
from eval.models import LatentClip, PixelClip
from eval.picture_set import Part, PictureSet
from eval.pictures import open_pictures
from eval.stored import StoredPictures
from train.distributed import Ranks
from train.zero_shot import check_latents

Way = Literal["pixels", "encoded", "direct", "decoded"]


@dataclass(frozen=True)
class Subject:
    """The data of an evaluation as its model sees them."""

    way: Way
    feed: Feed
    parts: list[Part]
    classes: ClassList | None
    """None where nobody asked for labels."""
    about: dict[str, Any]
    """What a result says of its data."""
    not_comparable: list[str]


def open_subject(
    config: EvaluationConfig,
    model: LatentClip | PixelClip,
    ranks: Ranks,
    label: str | None = None,
    classes: Path | None = None,
) -> Subject:
    """The data that were asked for; with labels, under which key of a store they stand, or with captions."""
    store = Store(config.data)
    if not store.versions():
        return _of_pictures(config, model, ranks, label is not None, classes)
    stored = StoredPictures(store.version(config.version), config.view, config.cache)
    listed = None if label is None else stored.classify(label, listed_classes(classes, config.data))
    way = _way(config, model, stored)
    prepare, embed = _reading(config, model, stored, way)
    left_out = len(stored.version.left_out())
    return Subject(
        way=way,
        feed=Feed(stored.read, prepare, embed, config.batch_size),
        parts=stored.parts,
        classes=listed,
        about=_about_store(stored, {"kind": "store", "layout": None, "identity": stored.identity}),
        not_comparable=[f"{left_out} tars were left out when the store was sealed"] if left_out else [],
    )


def _way(config: EvaluationConfig, model: LatentClip | PixelClip, stored: StoredPictures) -> Way:
    if isinstance(model, PixelClip) and config.way == "direct":
        raise RequestError(f"way=direct: {model.name} reads pictures, and {stored.where} holds latents")
    if isinstance(model, PixelClip) or config.way == "decoded":
        return "decoded"
    return "encoded" if stored.generated is None else "direct"


def _reading(config, model, stored, way):
    spec = stored.version.spec
    if way != "decoded":
        check_latents(model.spec, spec, stored.where)
        return as_they_are, partial(model.embed_latents, spec=spec)
    from eval.decoded import decoded_for_latents, decoded_for_pixels, find_vae  # needs what encoding needs

    vae = find_vae(spec.vae, config.vae)
    if isinstance(model, PixelClip):
        return decoded_for_pixels(spec, vae, model), model.embed_pixels
    is_same = model.spec.vae.weights_sha256 == spec.vae.weights_sha256
    own = vae if is_same else find_vae(model.spec.vae, config.vae)
    return decoded_for_latents(spec, vae, model.spec, own), partial(model.embed_latents, spec=model.spec)
