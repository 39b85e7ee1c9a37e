"""The contrastive loss of large batches alone, with its gradients: OpenCLIP's against ours, which goes by blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contrast_way import Gradients, by_blocks, by_open_clip
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.notes import Clock, Notes
from benchmarks.gpu.ways import Way, Work, opened, rate_figures, rates_of
from encode_pipeline.latents.command import CheckFailed

WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Gradients]] = {
    "open_clip's ClipLoss": by_open_clip,
    "ours, in blocks": by_blocks,
}
ALIKE = 1e-3
"""How far gradients of the two may be apart, relative to the largest: they add up in another order."""


def measure_loss(bench: Bench, notes: Notes, clock: Clock) -> None:
    """Milliseconds and memory of a batch in float32. What does not fit into memory is named."""
    device = bench.device
    notes.details["loss"] = {"width": bench.config.embedding, "dtype": "float32"}
    for number, count in enumerate(sorted(bench.config.pairs)):
        part = f"loss, {count} pairs"
        if number and not clock.has(5, part, notes):
            continue
        image, text, scale = features(count, bench.config.embedding, device)
        if not number:
            check_alike(image, text, scale)
        ways: list[Way] = []
        for name, way in WAYS.items():
            ways += opened(part, name, lambda way=way: _turn(way, image, text, scale), notes, device)  # type: ignore[misc]  # noqa: B023
        rates = rates_of(part, ways, bench.config.rounds, notes, clock, device)
        times = {name: tuple(1000 / rate for rate in found) for name, found in rates.items()}
        notes.add(part, rate_figures(ways, times, "ms", "less"))


def features(count: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows of pictures and texts, and the scale of their products."""
    chance = torch.Generator(device).manual_seed(0)
    image, text = (
        F.normalize(torch.randn(count, width, generator=chance, device=device), dim=-1).requires_grad_()
        for _ in range(2)
    )
    return image, text, torch.tensor(20.0, device=device, requires_grad=True)


def check_alike(image: Tensor, text: Tensor, scale: Tensor) -> None:
    theirs, ours = (way(image, text, scale) for way in WAYS.values())
    for one, other in zip(theirs, ours, strict=True):
        difference = float((one - other).abs().max() / one.abs().max())
        if not difference <= ALIKE:
            raise CheckFailed(f"the two losses or their gradients differ by {difference:.1e}")


def _turn(way: Callable[[Tensor, Tensor, Tensor], Gradients], image: Tensor, text: Tensor, scale: Tensor) -> Work:
    def work() -> int:
        way(image, text, scale)
        return 1

    return work
