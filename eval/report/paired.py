"""Two models on the same pictures: which of them is better, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.intervals import Difference, paired_difference
from eval.report.evaluations import Evaluation

SEED = 0


@dataclass(frozen=True)
class Pair:
    """A model of latents against one of pixels, picture by picture."""

    latent: Evaluation
    pixel: Evaluation
    top1: Difference
    top5: Difference

    @property
    def reasons(self) -> list[str]:
        """Why no number of the paper can stand beside it."""
        found = [*self.latent.reasons, *self.pixel.reasons]
        if self.latent.result.templates_sha256 != self.pixel.result.templates_sha256:
            found.append("the two were asked with different prompts")
        return list(dict.fromkeys(found))


def in_points(difference: Difference) -> str:
    """With its sign and its interval."""
    value, low, high = (100 * number for number in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")


def same_pictures(one: Evaluation, other: Evaluation) -> bool:
    """Whether two runs were asked about the same pictures.

    Those of one kind must come from one place: other pictures may bear the same names, as those of ImageNet-C do.
    """
    a, b = one.result.data, other.result.data
    if a.generated != b.generated or a.view != b.view:
        return False
    if a.kind == b.kind == "pictures":
        return a.identity == b.identity
    if one.answers is None or other.answers is None:
        return one.captions_sha256 == other.captions_sha256
    if a.kind == b.kind:
        return one.answers.shards_sha256 == other.answers.shards_sha256
    return one.answers.pictures_sha256 == other.answers.pictures_sha256


def pairs_of(sets: Sequence[Sequence[Evaluation]]) -> list[Pair]:
    """Every model of latents against every model of pixels that saw the same pictures."""
    return [
        _pair(latent, pixel)
        for some in sets
        for latent in some
        if latent.reads_latents
        for pixel in some
        if not pixel.reads_latents and _have_one_order(latent, pixel)
    ]


def _have_one_order(one: Evaluation, other: Evaluation) -> bool:
    assert one.answers is not None and other.answers is not None
    return one.answers.pictures_sha256 == other.answers.pictures_sha256


def _pair(latent: Evaluation, pixel: Evaluation) -> Pair:
    assert latent.answers is not None and pixel.answers is not None
    a, b = latent.answers, pixel.answers
    top1 = paired_difference(a.first[a.order].tolist(), b.first[b.order].tolist(), SEED)
    top5 = paired_difference(a.five[a.order].tolist(), b.five[b.order].tolist(), SEED)
    return Pair(latent, pixel, top1, top5)
