"""What a new version has to show before readers get it, as settings, and what of it one fails, as sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from encode_pipeline.comparison.counts import Counts
from encode_pipeline.latents.command import Settings

PositiveInt = Annotated[int, Field(gt=0)]
DEAD = 0.01
"""A channel whose standard deviation is below this share of the widest one's carries nothing."""


class Checks(Settings):
    """The defaults let any VAE of SDXL's kind pass on photographs, far smaller ones too, and nothing that is broken.

    By the card of stabilityai/sdxl-vae it gives COCO's pictures back with 24.7 dB at 256 pixels, and SD 1's with 23.4,
    single ones with 3.9 more or less; at 512 it is more. The demo's VAE with random weights has 12 dB on the demo's.
    """

    verify_sample: PositiveInt | None = Field(
        None, description="verify so many shards only, drawn at random; by default every byte"
    )
    verify_deep: bool = Field(False, description="also look into every sample that is verified")
    compare_samples: int = Field(32, ge=1, le=200, description="samples that are decoded and compared, drawn at random")
    old_vae: str | None = Field(
        None, description="where the promoted version's VAE is now; by default where it was when it encoded"
    )
    min_psnr: float = Field(18.0, description="dB that decoded latents must have on average, against their pictures")
    min_worst_psnr: float = Field(10.0, description="dB that the worst of them must have")
    max_psnr_loss: float = Field(
        1.0, ge=0, description="dB that they may be worse on average than those of the promoted version"
    )
    max_lost: float = Field(
        0.001,
        ge=0,
        le=1,
        description="share of the promoted version's samples that the new one may lack; of a first version, share of "
        "samples that its VAE may have no finite latents of",
    )
    accept_drift: bool = Field(
        False, description="accept channels that are spread otherwise than the VAE's config promises"
    )


CHECKS = tuple(Checks.model_fields)
"""The keys that decide what a version is held to."""


@dataclass(frozen=True)
class Contest:
    """Which version is to take the place of which, by fingerprint, and where its VAE is."""

    store: str
    new: str
    old: str | None
    vae: str
    scratch: Path | None = None
    """Local folder for copies of shards; the system's by default."""


@dataclass(frozen=True)
class Errors:
    """Reconstruction errors of some samples, in dB of PSNR."""

    mean: float
    worst: float
    samples: int

    @classmethod
    def of(cls, psnrs: Sequence[float]) -> Errors | None:
        return cls(sum(psnrs) / len(psnrs), min(psnrs), len(psnrs)) if psnrs else None


@dataclass(frozen=True)
class Numbers:
    """What a comparison measured; None stands for what was not to be had."""

    new: Errors | None
    old: Errors | None
    loss: float | None
    """By how much the new version is worse, over the samples that both have; None for pictures of another size."""
    stds: Sequence[float]
    """Of the new version's channels."""
    drift: Sequence[str]
    """Channels of the new version that are not spread as its VAE promises."""
    old_drift: Sequence[str]
    """Those of the promoted version, if the new one's are no further off."""
    counts: Counts


def failures(found: Numbers, checks: Checks) -> list[str]:
    """A sentence for every limit that was missed; none is the good news."""
    lines = []
    if found.new is not None and found.new.mean < checks.min_psnr:
        lines.append(
            f"decoded, {found.new.samples} samples have {found.new.mean:.1f} dB on average, "
            f"and min_psnr is {checks.min_psnr:g}"
        )
    if found.new is not None and found.new.worst < checks.min_worst_psnr:
        lines.append(f"the worst sample has {found.new.worst:.1f} dB, and min_worst_psnr is {checks.min_worst_psnr:g}")
    if found.loss is not None and found.loss > checks.max_psnr_loss:
        lines.append(
            f"on average {found.loss:.2f} dB worse than the promoted version, "
            f"and max_psnr_loss is {checks.max_psnr_loss:g}"
        )
    widest = max(found.stds)
    dead = [str(number) for number, std in enumerate(found.stds) if not std > DEAD * widest]
    if dead:
        lines.append(
            f"channel {', '.join(dead)} carries nothing: its standard deviation is below {DEAD:.0%} "
            f"of the widest one's {widest:.3g}"
        )
    if found.drift and not (checks.accept_drift or found.old_drift):
        lines += found.drift
    counts = found.counts
    if counts.old and counts.lost > checks.max_lost * counts.old:
        lines.append(
            f"{counts.lost} of the promoted version's {counts.old} samples are missing"
            f"{counts.why_lost()}, and max_lost is {checks.max_lost:g}"
        )
    if counts.old is None and counts.broken > checks.max_lost * (counts.new + counts.broken):
        lines.append(
            f"{counts.broken} of {counts.new + counts.broken} samples have no finite latents, "
            f"and max_lost is {checks.max_lost:g}"
        )
    return lines


def remarks(found: Numbers, checks: Checks) -> list[str]:
    """What is worth a look and fails nothing."""
    lines = []
    if found.drift and found.old_drift:
        lines += [f"{line}; so are channels of the promoted version, so it may be the pictures" for line in found.drift]
    elif found.drift and checks.accept_drift:
        lines += [f"{line}; accepted" for line in found.drift]
    counts = found.counts
    if 0 < counts.lost <= checks.max_lost * (counts.old or 0):
        lines.append(f"{counts.lost} of the promoted version's samples are missing{counts.why_lost()}")
    if counts.excused:
        lines.append(f"{counts.excused} more were in tars that were given up on")
    return lines
