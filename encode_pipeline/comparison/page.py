"""The page on which a person sees what changes: each sample's picture, as it decodes now and as it will."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encode_pipeline.comparison.checks import Checks, Numbers
from encode_pipeline.comparison.samples import Decoded
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.preview.channels import Channel
from encode_pipeline.preview.page import page_environment
from encode_pipeline.preview.show import SHOWN_SIDE, thumbnail
from encode_pipeline.records import Pixels

TEMPLATE = "comparison.html.j2"


@dataclass(frozen=True)
class Pair:
    """One sample in both versions."""

    shard: str
    key: str
    tar: str
    caption: str
    view: Pixels | None
    old: Pixels | None
    new: Pixels | None
    old_psnr: float | None
    new_psnr: float | None
    missing: str | None
    """Why its picture is not shown."""

    @classmethod
    def of(cls, new: Decoded, old: Decoded | None) -> Pair:
        stored = new.stored
        return cls(
            shard=stored.shard,
            key=stored.key,
            tar=stored.source.uri.rsplit("/", 1)[-1],
            caption=stored.caption,
            view=_small(new.view),
            old=_small(old.picture) if old else None,
            new=_small(new.picture),
            old_psnr=old.psnr if old else None,
            new_psnr=new.psnr,
            missing=new.origin.missing,
        )

    @property
    def gain(self) -> float | None:
        """In dB; below zero if it became worse."""
        return None if self.new_psnr is None or self.old_psnr is None else self.new_psnr - self.old_psnr

    @property
    def rank(self) -> tuple[bool, float, str, str]:
        """By which the worst come first."""
        value = self.new_psnr if self.gain is None else self.gain
        return value is None, value or 0.0, self.shard, self.key


@dataclass(frozen=True)
class Comparison:
    """All that is on the page and in the numbers beside it."""

    new: LatentSpec
    old: LatentSpec | None
    where: str
    checks: Checks
    numbers: Numbers
    failures: Sequence[str]
    notes: Sequence[str]
    pairs: Sequence[Pair]
    channels: Sequence[Channel]
    old_channels: Sequence[Channel] | None
    latents: int

    @property
    def difference(self) -> str | None:
        return None if self.old is None else self.old.difference(self.new)

    def to_dict(self) -> dict[str, Any]:
        """What scripts see."""
        numbers = self.numbers
        return {
            "ok": not self.failures,
            "fingerprint": self.new.fingerprint,
            "against": None if self.old is None else self.old.fingerprint,
            "difference": self.difference,
            "failures": list(self.failures),
            "notes": list(self.notes),
            "psnr": {
                "new": None if numbers.new is None else vars(numbers.new),
                "old": None if numbers.old is None else vars(numbers.old),
                "loss": numbers.loss,
            },
            "channels": [channel.to_dict() for channel in self.channels],
            "old_channels": None if self.old_channels is None else [channel.to_dict() for channel in self.old_channels],
            "latents": self.latents,
            "counts": numbers.counts.to_dict(),
            "samples": [
                {"shard": pair.shard, "key": pair.key, "new": pair.new_psnr, "old": pair.old_psnr}
                for pair in self.pairs
            ],
            "checks": self.checks.model_dump(mode="json"),
        }


def page_of(found: Comparison) -> str:
    """The page, whole: it fetches nothing."""
    return page_environment(Path(__file__).parent).get_template(TEMPLATE).render(found=found)


def _small(pixels: Pixels | None) -> Pixels | None:
    return None if pixels is None else thumbnail(pixels, SHOWN_SIDE)
