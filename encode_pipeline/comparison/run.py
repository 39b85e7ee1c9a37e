"""The comparison in order: draw, decode, measure, count, judge; numbers and page go into the new version's folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encode_pipeline.comparison.checks import Checks, Contest, Errors, Numbers, failures, remarks
from encode_pipeline.comparison.counts import count
from encode_pipeline.comparison.page import Comparison, Pair, page_of
from encode_pipeline.comparison.samples import VIEWS, Decoded, Name, Side, look_at, places_of
from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.spec import LatentSpec, canonical_json, digest
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.preview.channels import no_further_off
from encode_pipeline.preview.decoder import load_decoder
from encode_pipeline.preview.stored import random_places
from encode_pipeline.vae import PIXELS, LoadedVae

FOLDER = "comparison"


def compare(contest: Contest, checks: Checks) -> dict[str, Any]:
    """What was found, what of it fails, and where the report is; the same findings are one report."""
    store = Store(contest.store)
    new = store.version(contest.new)
    old = None if contest.old is None else store.version(contest.old)
    vae = None if _are_pixels(new.spec) else load_decoder(new.spec, contest.vae)
    counts, old_shards = count(new, old)
    notes = [] if vae else ["averaged pixels have no decoder: only channels and counts are checked"]
    with tempfile.TemporaryDirectory(prefix="comparison-", dir=contest.scratch) as scratch:
        cache = ShardCache(new, Path(scratch) / "new")
        places = random_places(new, checks.compare_samples, VIEWS, new.spec.seed)
        ours = look_at(new, places, cache, vae, new.spec.seed)
        twins: dict[Name, Name] = {}
        theirs = None
        if old is not None:
            shards = {place.commit.shard: old_shards.get(place.commit.source_sha256) for place in places}
            twins = {s.name: (shard, s.name[1]) for s in ours.samples if (shard := shards[s.name[0]]) is not None}
            theirs, more = _look_at_old(old, new, ours, twins, Path(scratch) / "old", checks)
            notes += more
    if vae is not None and not any(sample.psnr is not None for sample in ours.samples):
        why = next((sample.origin.missing for sample in ours.samples if sample.origin.missing), "no source")
        raise CheckFailed(f"{new.storage.url()}: nothing to compare decoded latents with: {why}")
    pairs = _pairs(ours, theirs, twins)
    both = [(pair.old_psnr, pair.new_psnr) for pair in pairs if pair.old_psnr is not None and pair.new_psnr is not None]
    comparable = old is not None and old.spec.image_size == new.spec.image_size
    if both and not comparable:
        notes.append("pictures of another size than the promoted version's, which decode otherwise: no max_psnr_loss")
    if unseen := [sample.origin.missing for sample in ours.samples if vae is not None and sample.psnr is None]:
        notes.append(f"{len(unseen)} of {len(ours.samples)} samples have no picture to be compared with: {unseen[0]}")
    numbers = Numbers(
        new=Errors.of([pair.new_psnr for pair in pairs if pair.new_psnr is not None]),
        old=Errors.of([before for before, _ in both]),
        loss=sum(before - after for before, after in both) / len(both) if both and comparable else None,
        stds=[channel.std for channel in ours.channels],
        drift=ours.drift,
        old_drift=theirs.drift if theirs and no_further_off(ours.channels, theirs.channels) else (),
        counts=counts,
    )
    found = Comparison(
        new=new.spec,
        old=None if old is None else old.spec,
        where=store.storage.url(),
        checks=checks,
        numbers=numbers,
        failures=failures(numbers, checks),
        notes=[*notes, *remarks(numbers, checks)],
        pairs=pairs,
        channels=ours.channels,
        old_channels=theirs.channels if theirs else None,
        latents=ours.latents,
    )
    return {**found.to_dict(), "report": _keep(new, found)}


def _look_at_old(
    old: Version, new: Version, ours: Side, twins: Mapping[Name, Name], folder: Path, checks: Checks
) -> tuple[Side | None, list[str]]:
    """The same samples in the old version, and what there is to say if they are not all to be had."""
    cache = ShardCache(old, folder)
    places = places_of(set(twins.values()), old, cache)
    if not places:
        return None, ["the promoted version has none of the samples drawn: absolute limits only"]
    vae: LoadedVae | None = None
    notes = []
    if _are_pixels(old.spec) or _are_pixels(new.spec):
        notes.append("averaged pixels have no decoder: absolute limits only")
    else:
        try:
            vae = load_decoder(old.spec, checks.old_vae)
        except RequestError as error:
            if checks.old_vae is not None:
                raise
            notes.append(f"the promoted version's VAE is not to be had ({error}): absolute limits only")
    origins = {twins[sample.name]: sample.origin for sample in ours.samples if sample.name in twins}
    same_size = old.spec.image_size == new.spec.image_size  # else its own plain view is what it must give back
    return look_at(old, places, cache, vae, new.spec.seed, origins if same_size else None), notes


def _pairs(ours: Side, theirs: Side | None, twins: Mapping[Name, Name]) -> list[Pair]:
    """Every sample drawn, with the old version's if there is one; what became worst comes first."""
    known: dict[Name, Decoded] = {sample.name: sample for sample in theirs.samples} if theirs else {}
    pairs = [
        Pair.of(sample, known.get(twins[sample.name]) if sample.name in twins else None) for sample in ours.samples
    ]
    return sorted(pairs, key=lambda pair: pair.rank)


def _keep(version: Version, found: Comparison) -> str:
    """Writes numbers and page under a name made of the numbers, so that nothing is ever overwritten."""
    content = found.to_dict()
    name = f"{FOLDER}/{digest(content)[:12]}"
    version.storage.create(f"{name}.json", canonical_json(content, indent=1))
    version.storage.create(f"{name}.html", page_of(found).encode(errors="replace"))
    return version.storage.url(f"{name}.html")


def _are_pixels(spec: LatentSpec) -> bool:
    return spec.vae.config.get("class") == PIXELS
