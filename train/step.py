"""The gradient of one global batch, exact in however many pieces and on however many GPUs it is computed.

A contrastive loss needs the features of the whole batch at once, but not the activations. So with more pieces than one
the features come first, without activations; the loss says how it changes with each of them; then every piece is
computed again and that change is followed back through the towers (Gao et al. 2021, "GradCache").
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.loss import Contrast, ContrastiveLoss


@dataclass(frozen=True)
class Piece:
    """Rows of a batch that go through the towers together."""

    latents_bchw: Tensor
    tokens_bl: Tensor
    seed: int
    """Of whatever chance is in the towers: the same when they are computed a second time."""


Features = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Of pictures, of texts; the scale of their products, and SigLIP's bias."""


@dataclass(frozen=True)
class Towers:
    """A model as the step needs it: for one process or as part of many, with its precision."""

    model: nn.Module
    bfloat16: bool

    def features(self, piece: Piece, own: bool = False) -> Features:
        """The features of a piece; of this process's `own` model, the others need not follow."""
        torch.manual_seed(piece.seed)
        model = self.model.module if own and isinstance(self.model, DistributedDataParallel) else self.model
        with torch.autocast(piece.latents_bchw.device.type, torch.bfloat16, enabled=self.bfloat16):
            out = model(piece.latents_bchw.float(), piece.tokens_bl)
        return out["image_features"], out["text_features"], out["logit_scale"], out.get("logit_bias")

    def alone(self) -> Any:
        """While it holds, gradients are not yet exchanged."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()


def in_pieces(latents_bchw: Tensor, tokens_bl: Tensor, count: int, seed: int, position: int) -> list[Piece]:
    """A process's rows in so many pieces. `position` is that of its first row in the stream of all samples."""
    parts = zip(latents_bchw.chunk(count), tokens_bl.chunk(count), strict=True)
    rows = len(latents_bchw) // count
    seeds = [np.random.SeedSequence([seed, position + number * rows]) for number in range(count)]
    return [Piece(*part, int(seq.generate_state(1)[0])) for part, seq in zip(parts, seeds, strict=True)]


def backward(towers: Towers, pieces: Sequence[Piece], loss_of: ContrastiveLoss) -> Contrast:
    """Adds the gradient of the batch's loss to the model's parameters, averaged over the processes."""
    if len(pieces) == 1:
        known = [towers.features(pieces[0])]
    else:
        with torch.no_grad():
            known = [towers.features(piece, own=True) for piece in pieces]
    images = torch.cat([image.detach().float() for image, _, _, _ in known])
    texts = torch.cat([text.detach().float() for _, text, _, _ in known])
    tokens = torch.cat([piece.tokens_bl for piece in pieces])
    contrast = loss_of(images, texts, known[0][2].float(), _float(known[0][3]), tokens)
    sizes = [len(piece.tokens_bl) for piece in pieces]
    grads = zip(contrast.image_grad.split(sizes), contrast.text_grad.split(sizes), strict=True)
    for number, (piece, (image_grad, text_grad)) in enumerate(zip(pieces, grads, strict=True), 1):
        is_last = number == len(pieces)
        with nullcontext() if is_last else towers.alone():
            image, text, scale, bias = known[0] if len(pieces) == 1 else towers.features(piece)
            # The scale and the bias belong to the batch: their gradient comes once, with the last piece.
            pairs = [(image, image_grad), (text, text_grad), (scale, contrast.scale_grad * is_last)]
            if bias is not None and bias.requires_grad and contrast.bias_grad is not None:
                pairs.append((bias, contrast.bias_grad * is_last))
            torch.autograd.backward([out for out, _ in pairs], [grad.to(out.dtype) for out, grad in pairs])
    return contrast


def _float(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.float()
