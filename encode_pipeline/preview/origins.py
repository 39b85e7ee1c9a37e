"""Where stored samples came from: their pictures, and their views made again as the encoder made them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from encode_pipeline.augment import ViewMaker
from encode_pipeline.decode import decode as decode_picture
from encode_pipeline.latents.command import REMOTE_LIBRARIES, CheckFailed, RequestError, build, one_line
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.preview.stored import StoredSample
from encode_pipeline.read import TarError, read_samples
from encode_pipeline.recipe import ViewRecipe
from encode_pipeline.records import Pixels, Rejected, Sample
from encode_pipeline.sources import SourceChanged, open_source


@dataclass(frozen=True)
class Origin:
    """What a sample's source gave, and why if that is not all."""

    picture: Pixels | None = None
    views: tuple[Pixels, ...] = ()
    """Those that are shown, as they were encoded; empty if they are not to be had."""
    missing: str | None = None


def source_samples(source: SourceShard, keys: Collection[str], caption_field: str | None) -> dict[str, Sample]:
    """Those of the samples that the source tar still holds, by key. What is wrong with the tar raises."""
    found: dict[str, Sample] = {}
    with open_source(source) as tar:
        for sample in read_samples(tar, source.uri, source.size, caption_field):
            if isinstance(sample, Sample) and sample.key in keys:
                found[sample.key] = sample
                if len(found) == len(keys):
                    break
    return found


def find_origins(samples: Sequence[StoredSample], views: Collection[int], spec: LatentSpec) -> list[Origin]:
    """The origin of each sample, in their order; a source that cannot be read says why."""
    by_shard: dict[str, list[StoredSample]] = {}
    for sample in samples:
        by_shard.setdefault(sample.shard, []).append(sample)
    found = {shard: _origins_of(stored, views, spec) for shard, stored in by_shard.items()}
    return [found[sample.shard][sample.key] for sample in samples]


def _origins_of(stored: Sequence[StoredSample], views: Collection[int], spec: LatentSpec) -> dict[str, Origin]:
    """The origins of samples of one shard, by key."""
    if spec.is_generated:
        missing = Origin(missing="generated from the latents of another store, so there is no picture")
        return dict.fromkeys((sample.key for sample in stored), missing)
    try:
        recipe = build(ViewRecipe, spec.recipe)
        samples = source_samples(stored[0].source, {sample.key for sample in stored}, spec.caption_field)
    except Exception as error:
        if not _is_unreachable(error):
            raise
        said = one_line(error) if isinstance(error, OSError) else " ".join(str(error).split())
        missing = Origin(missing=f"source not readable: {said}")
        return dict.fromkeys((sample.key for sample in stored), missing)
    make_views = ViewMaker(recipe, spec.views, spec.image_size, spec.seed, stored[0].shard)
    return {sample.key: _origin(sample, samples.get(sample.key), views, recipe, make_views) for sample in stored}


def _origin(
    stored: StoredSample, sample: Sample | None, views: Collection[int], recipe: ViewRecipe, make_views: ViewMaker
) -> Origin:
    if sample is None:
        return Origin(missing=f"{stored.source.uri} holds no sample {stored.key} now")
    picture = decode_picture(sample, recipe)
    viewed = make_views.some(sample, views)
    if isinstance(picture, Rejected) or isinstance(viewed, Rejected):
        refusal = picture if isinstance(picture, Rejected) else viewed
        assert isinstance(refusal, Rejected)
        return Origin(missing=f"{refusal.reason} now, encoded before: {refusal.detail}")
    if [view.parameters for view in viewed.views] != [record.get("augmentation") for record in stored.records]:
        return Origin(picture, missing="its views made again are not those that the store has")
    return Origin(picture, tuple(view.pixels for view in viewed.views))


def _is_unreachable(error: Exception) -> bool:
    known = (OSError, RequestError, CheckFailed, SourceChanged, TarError)
    return isinstance(error, known) or type(error).__module__.split(".")[0] in REMOTE_LIBRARIES
