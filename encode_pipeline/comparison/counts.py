"""Does the new version hold every sample that the old one had? Tar by tar, from commits alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from encode_pipeline.latents.store import Version
from encode_pipeline.records import Reason

NAMED = 3


@dataclass(frozen=True)
class Counts:
    """Samples of both versions. Tars are matched by content, for they may lie elsewhere now."""

    new: int
    old: int | None = None
    """None if there is no version to compare with."""
    lost: int = 0
    """Samples of the old version that the new one lacks."""
    excused: int = 0
    """Further ones, of tars that the new version was sealed without on purpose."""
    gone: tuple[str, ...] = ()
    """Tars of the old version that are not in the new one."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """By reason, how many samples more than before, or fewer, were refused of the tars that both have."""
    broken: int = 0
    """Samples without finite latents, if there is no version to compare with."""

    def why_lost(self) -> str:
        """Where they were lost, in brackets."""
        parts = [f"{self.rejected[reason]:+d} {reason}" for reason in self.rejected]
        if self.gone:
            more = ", …" if len(self.gone) > NAMED else ""
            parts.append(f"{len(self.gone)} tars are not in it: {', '.join(self.gone[:NAMED])}{more}")
        return f" ({'; '.join(parts)})" if parts else ""

    def to_dict(self) -> dict[str, Any]:
        named = {"gone_tars": len(self.gone), "gone": list(self.gone[:NAMED]), "rejected": dict(self.rejected)}
        counts = {"new": self.new, "old": self.old, "lost": self.lost, "excused": self.excused, "broken": self.broken}
        return {**counts, **named}


@dataclass
class _Tar:
    """What one version made of a tar; of equal tars under several names, of all of them together."""

    shard: str
    uri: str
    encoded: int = 0
    rejected: Counter[str] = field(default_factory=Counter)


def count(new: Version, old: Version | None) -> tuple[Counts, dict[str, str]]:
    """The counts, and where the old version has each tar: its shard, by the sha256 of the tar."""
    now = _tars(new)
    total = sum(tar.encoded for tar in now.values())
    if old is None:
        return Counts(total, broken=sum(tar.rejected[Reason.NON_FINITE_LATENT] for tar in now.values())), {}
    before = _tars(old)
    left_out = new.left_out()
    lost = excused = 0
    gone, rejected = [], Counter[str]()
    for sha256, tar in before.items():
        if sha256 in now:
            lost += max(0, tar.encoded - now[sha256].encoded)
            rejected.update(now[sha256].rejected)
            rejected.subtract(tar.rejected)
        elif tar.shard in left_out:
            excused += tar.encoded
        else:
            lost += tar.encoded
            gone.append(tar.uri)
    differing = {reason: number for reason, number in sorted(rejected.items()) if number}
    had = sum(tar.encoded for tar in before.values())
    counts = Counts(total, had, lost, excused, tuple(sorted(gone)), differing)
    return counts, {sha256: tar.shard for sha256, tar in before.items()}


def _tars(version: Version) -> dict[str, _Tar]:
    """What a sealed version holds of each tar, by the tar's sha256."""
    tars: dict[str, _Tar] = {}
    for commit in version.commits(version.sealed_shards()):
        tar = tars.setdefault(commit.source_sha256, _Tar(commit.shard, commit.source.uri))
        tar.encoded += commit.encoded
        tar.rejected.update(commit.rejected)
    return tars
