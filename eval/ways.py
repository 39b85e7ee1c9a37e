"""The four ways from a data set to a model: which one it is, and the feed that goes it.

pixels   a model of pixels looks at pictures
encoded  a model of latents looks at pictures through a VAE, or at a store of such
direct   a model of latents looks at generated latents as they are
decoded  latents are decoded to pictures, and for a model of latents encoded again
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.lease import leased
from encode_pipeline.latents.spec import VaeIdentity
from encode_pipeline.latents.store import Store
from eval.class_names import ClassList, listed_classes
from eval.clip import LatentClip, PixelClip
from eval.evaluation import EvaluationConfig
from eval.feed import Embed, Feed, Item, Prepare, Subject, Way, as_they_are
from eval.latent_models import unlike_sdxl
from eval.picture_set import Part, PictureSet
from eval.pictures import open_pictures
from eval.stored import EncodedPictures, StoredPictures
from train.distributed import Ranks
from train.zero_shot import check_latents


@dataclass(frozen=True)
class Labels:
    """That pictures are to be classified: where a store has their labels, and a list of classes if one was given."""

    key: str
    classes: Path | None


@contextmanager
def open_subject(
    config: EvaluationConfig, model: LatentClip | PixelClip, ranks: Ranks, labels: Labels | None
) -> Iterator[Subject]:
    """The data that were asked for; without labels, they have captions. A store's version is held meanwhile."""
    # A web server lists no folders, so no store lies on one.
    if not config.data.startswith(("http://", "https://")) and (store := Store(config.data)).versions():
        # The first one's choice: another version may be promoted between one process's look and the next's.
        version = store.version(ranks.collect(store.version(config.version).fingerprint)[0])
        holder = config.out or f"process-{os.getpid()}"
        with leased(version, "eval", holder) if ranks.is_first else nullcontext():
            stored = StoredPictures(version, config.view, config.cache)
            yield _of_store(config, model, stored, labels)
        return
    pictures = open_pictures(config.data, labels.classes if labels else None)
    if labels is not None:
        pictures.require_labels()
    else:
        pictures.require_captions()
    if config.way or config.view or config.version:
        raise RequestError(f"{config.data}: way, view and version are of latent stores, and these are pictures")
    yield _of_pictures(config, model, pictures, ranks)


def _of_store(
    config: EvaluationConfig, model: LatentClip | PixelClip, stored: StoredPictures, labels: Labels | None
) -> Subject:
    classes = None
    if labels is not None:
        classes = stored.classify(labels.key, listed_classes(labels.classes, config.data))
    if isinstance(model, PixelClip) and config.way == "direct":
        raise RequestError(f"way=direct: {model.name} reads pictures, and {stored.where} holds latents")
    way: Way = "encoded" if stored.generated is None else "direct"
    prepare: Prepare = as_they_are
    embed: Embed
    if isinstance(model, PixelClip) or config.way == "decoded":
        way = "decoded"
        prepare, embed = _by_decoding(config, model, stored)
    else:
        check_latents(model.spec, stored.version.spec, stored.where)
        embed = partial(model.embed_latents, spec=stored.version.spec)
    return Subject(
        way=way,
        feed=Feed(stored.read, prepare, embed, config.batch_size),
        parts=stored.parts,
        classes=classes,
        about={
            "kind": "store",
            "layout": None,
            "identity": stored.identity,
            "fingerprint": stored.version.fingerprint,
            "view": config.view,
            "vae": _named(stored.version.spec.vae),
            "generated": stored.generated,
        },
        identity=stored.identity,
        not_comparable=_reasons(config, model, stored, way),
    )


def _reasons(config: EvaluationConfig, model: LatentClip | PixelClip, stored: StoredPictures, way: Way) -> list[str]:
    """Why what a store holds is not what the paper's models were shown."""
    reasons = [f"view {config.view} of the pictures, not the plain one"] if config.view else []
    if left_out := len(stored.version.left_out()):
        reasons.append(f"{left_out} tars were left out when the store was sealed")
    if stored.generated is not None:
        reasons += stored.generated.get("not_comparable", ["what its generator is worth is not recorded"])
        if dtype := stored.generated.get("from_dtype"):
            reasons.append(f"generated from latents stored as {dtype}, where the paper's are float16")
    elif stored.version.spec.dtype != "float16":
        reasons.append(f"latents stored as {stored.version.spec.dtype}, where the paper's are float16")
    if stored.generated is None and way == "decoded":
        reasons.append("pictures decoded from latents, where the paper has the pictures themselves")
    if isinstance(model, PixelClip):  # a model of latents says it of its own
        reasons += unlike_sdxl(stored.version.spec)
    if lacking := len(stored.lacking):
        reasons.append(f"{lacking} pictures are not among the generated ones, as they had no latent to start from")
    return reasons


def _by_decoding(
    config: EvaluationConfig, model: LatentClip | PixelClip, stored: StoredPictures
) -> tuple[Prepare, Embed]:
    from eval.decoded import decoded_for_latents, decoded_for_pixels, find_vae

    spec = stored.version.spec
    vae = find_vae(spec.vae, config.vae)
    if isinstance(model, PixelClip):
        return decoded_for_pixels(spec, vae, model), model.embed_pixels
    is_same = model.spec.vae.weights_sha256 == spec.vae.weights_sha256
    own = vae if is_same else find_vae(model.spec.vae, config.vae)
    return decoded_for_latents(spec, vae, model.spec, own), partial(model.embed_latents, spec=model.spec)


def _of_pictures(
    config: EvaluationConfig, model: LatentClip | PixelClip, pictures: PictureSet, ranks: Ranks
) -> Subject:
    about: dict[str, Any] = {
        "kind": "pictures",
        "layout": pictures.layout,
        "identity": pictures.identity,
        "fingerprint": None,
        "vae": None,
        "generated": None,
    }
    identity = pictures.identity
    if isinstance(model, PixelClip):  # each way imports what it needs: latents are evaluated without the encoder
        from eval.decoded import files_for

        def read(part: Part) -> Iterator[tuple[Item, bytes]]:
            for picture in pictures.read(part):
                yield Item(picture.key, picture.label, picture.captions), picture.image

        feed = Feed(read, files_for(model), model.embed_pixels, config.batch_size)
    else:
        from eval.encoded import damaged, encoded

        version = encoded(pictures, model.spec, config.vae, config.cache, ranks)
        latents = EncodedPictures(version, config.cache, damaged(version, pictures))
        feed = Feed(latents.read, as_they_are, partial(model.embed_latents, spec=version.spec), config.batch_size)
        about |= {"fingerprint": version.fingerprint, "vae": _named(version.spec.vae)}
        identity = latents.stored.identity
    return Subject(
        way="pixels" if isinstance(model, PixelClip) else "encoded",
        feed=feed,
        parts=pictures.parts,
        classes=ClassList(pictures.names, pictures.templates, pictures.address),
        about=about,
        identity=identity,
        not_comparable=[],
    )


def _named(vae: VaeIdentity) -> dict[str, str]:
    return {"name": vae.name, "weights_sha256": vae.weights_sha256}
