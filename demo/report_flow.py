"""The way the data went, as stations with what arrived at each, and what was refused on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from demo.report_run import DemoRun, StoreFacts
from demo.warts import WARTS
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.records import Reason

MEANING = {
    Reason.UNSAFE_KEY: "the name would climb out of the folder, or cannot be stored",
    Reason.UNSAFE_MEMBER: "a link or a device where a file should be",
    Reason.DUPLICATE_KEY: "the name came before in the same tar",
    Reason.MISSING_IMAGE: "no picture beside the caption",
    Reason.MISSING_CAPTION: "no caption, or an empty one",
    Reason.CAPTION_NOT_UTF8: "the caption's bytes are not text",
    Reason.BAD_METADATA: "the metadata is not a JSON object",
    Reason.UNDECODABLE_IMAGE: "the picture is empty, cut short, or no picture",
    Reason.TOO_SMALL: "a side is shorter than the recipe allows",
    Reason.TOO_LARGE: "more pixels or bytes than the limit",
    Reason.EXTREME_ASPECT: "many times longer than wide",
    Reason.NON_FINITE_LATENT: "the VAE gave infinities, in float32 too",
}


@dataclass(frozen=True)
class Station:
    """A place on the way: how much arrived there."""

    name: str
    count: int
    size: int | None
    note: str
    kind: str = ""
    then: str = "→"
    """What stands between this station and the next."""


def way_of(facts: StoreFacts, verified: Mapping[str, Any]) -> list[Station]:
    """From the source tars to the sealed version."""
    spec = facts.version.spec
    channels, height, width = spec.shape
    refusals = sum(payload.size for commit in facts.commits for payload in commit.payloads if payload.view is None)
    view_bytes = 3 * spec.image_size**2
    views = f"{facts.encoded:,} × {spec.views}, " if spec.views > 1 else ""
    return [
        Station("source tars", len(facts.commits), facts.source_bytes, "pictures, captions, metadata"),
        Station("samples read", facts.read, None, "every run of members with one key", then="="),
        Station("rejected", facts.rejected.total(), refusals, "each listed with its reason", "rejected", "+"),
        Station("encoded", facts.encoded, None, "samples that became latents"),
        Station("views", facts.latents, facts.latents * view_bytes, f"{views}{spec.image_size}² pixels"),
        Station(
            "latents",
            facts.latents,
            facts.latents * spec.bytes_per_latent,
            f"{channels}×{height}×{width} {spec.dtype}, {spec.bytes_per_latent:,}\N{NO-BREAK SPACE}B each",
        ),
        Station("shard tars", len(facts.manifest), facts.tar_bytes, "one a view, captions beside the latents"),
        Station("commits", len(facts.commits), facts.commit_bytes, "one a source tar, written last"),
        Station(
            "sealed manifest",
            len(facts.manifest),
            facts.manifest_bytes,
            f"rows; {verified['checked']:,} files verified, {len(verified['problems'])} problems",
        ),
    ]


def training_stations(run: DemoRun, parameters: int) -> list[Station]:
    """From the sealed version to the checkpoint."""
    batch, steps = run.settings["batch_size"], run.zero_shot["step"]
    seen = batch * steps
    spec = run.store.version.spec
    return [
        Station("training batches", steps, seen * spec.bytes_per_latent, f"of {batch} latents: {seen:,} seen"),
        Station("checkpoint", 1, run.checkpoint.stat().st_size, f"{parameters:,} parameters, optimizer, latent spec"),
    ]


def zero_shot_station(run: DemoRun) -> Station:
    classes, templates = run.zero_shot["classes"], run.zero_shot["templates"]
    return Station("zero-shot", run.zero_shot["n"], None, f"named out of {classes} classes, {templates} prompts each")


@dataclass(frozen=True)
class RejectRow:
    """One reason: how often it was planted in the tars, and how often it was given."""

    reason: str
    meaning: str
    planted: int
    found: int


@dataclass(frozen=True)
class Rejects:
    """What was refused, against what was planted to be."""

    rows: list[RejectRow]
    tars_agree: int
    tars: int
    oddities: list[str]
    """What was planted to be accepted."""


def rejects(run: DemoRun) -> Rejects:
    """Found against planted, over all tars and tar by tar: reasons, and the very keys that were accepted."""
    plans = run.world["warts"]
    planted: Counter[str] = Counter()
    agree = 0
    keys = {row["shard"]: _keys(run.store, row) for row in run.store.rows(view=0)}
    for commit in run.store.commits:
        name = f"train/{commit.source.uri.rsplit('/', 1)[-1]}"
        if name not in plans:
            raise CheckFailed(f"{run.out / 'world' / 'world.json'}: says nothing of what was planted in {name}")
        plan = plans[name]
        planted.update(plan["expected_rejected"])
        same_reasons = commit.rejected == plan["expected_rejected"]
        agree += same_reasons and keys.get(commit.shard, []) == plan["expected_accepted"]
    found = run.store.rejected
    rows = [
        RejectRow(reason, MEANING[Reason(reason)], planted[reason], found[reason])
        for reason in sorted(planted | found, key=lambda reason: (-found[reason], reason))
    ]
    warts = {wart for plan in plans.values() for wart in plan["planted"]}
    accepted = [wart for wart, reason in WARTS.items() if reason is None and wart in warts]
    return Rejects(rows, agree, len(run.store.commits), [wart.replace("_", " ") for wart in accepted])


def _keys(facts: StoreFacts, row: Mapping[str, Any]) -> list[str]:
    with facts.open(row) as shard:
        return shard.keys
