"""`python -m benchmarks.contrast_way WAY SAMPLES WIDTH FILE`: one contrastive loss and its gradients, with what they
took as JSON, and the gradients themselves in the file."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.process import forget_peak, resident
from train.distributed import Ranks
from train.loss import ContrastiveLoss

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]
"""The loss, and how it changes with pictures, texts and the scale."""


def by_open_clip(image: Tensor, text: Tensor, scale: Tensor) -> Gradients:
    return _backward(open_clip.ClipLoss()(image, text, scale), image, text, scale)


def by_torch(image: Tensor, text: Tensor, scale: Tensor) -> Gradients:
    options, own = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=1024), torch.arange(len(image))
    one, other = (F.linear_cross_entropy(scale * a, b, own, options=options) for a, b in ((image, text), (text, image)))
    return _backward((one + other) / 2, image, text, scale)


def by_blocks(image: Tensor, text: Tensor, scale: Tensor) -> Gradients:
    loss_of = ContrastiveLoss(Ranks(0, 1, torch.device("cpu")))
    found = loss_of(image.detach(), text.detach(), scale.detach(), None, torch.empty(0))
    return found.loss, found.image_grad, found.text_grad, found.scale_grad


def _backward(loss: Tensor, *leaves: Tensor) -> Gradients:
    image, text, scale = torch.autograd.grad(loss, leaves)
    return loss.detach(), image, text, scale


WAYS = {"open_clip's ClipLoss": by_open_clip, "torch's linear_cross_entropy": by_torch, "blocks of rows": by_blocks}


def main(way: str, samples: int, width: int, out: Path) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(samples, width, generator=generator), dim=-1) for _ in range(2))
    scale = torch.tensor(20.0)
    few = [tensor.clone().requires_grad_() for tensor in (image[:64], text[:64], scale)]
    WAYS[way](few[0], few[1], few[2])  # once unmeasured: threads and libraries
    for tensor in (image, text, scale):
        tensor.requires_grad_()
    forget_peak()
    before, started = resident("VmRSS"), time.perf_counter()
    gradients = WAYS[way](image, text, scale)
    seconds, peak = time.perf_counter() - started, resident("VmHWM") - before
    torch.save(gradients, out)
    return {"seconds": seconds, "peak_bytes": peak}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))))
