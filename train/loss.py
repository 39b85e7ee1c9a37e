"""The contrastive loss over the batches of all processes, a block of rows at a time.

The matrix of all pictures against all captions is never there: at 16,384 pairs it would take a gigabyte, four times
over. Each process compares its own rows with all columns; the mean over the processes is the loss of the whole batch.
Captions that stand in a batch more than once can be right for each other's pictures (`soft`), for else the other
pictures of the same words are counted as wrong answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from train.distributed import Ranks

BLOCK_LOGITS = 1 << 22
"""Of which a few copies are in memory at once."""


@dataclass(frozen=True)
class Contrast:
    """What the loss says of a batch, and how it changes with this process's features."""

    loss: Tensor
    """Of this process's rows; the mean over the processes is the batch's."""
    right: Tensor
    """How many of this process's pictures are nearest to a right caption."""
    image_grad: Tensor
    text_grad: Tensor
    scale_grad: Tensor
    bias_grad: Tensor | None


@dataclass(frozen=True)
class ContrastiveLoss:
    """OpenCLIP's ClipLoss or SigLipLoss in value and gradient."""

    ranks: Ranks
    kind: Literal["clip", "siglip"] = "clip"
    soft: bool = False
    block_logits: int = BLOCK_LOGITS

    @torch.enable_grad()
    def __call__(
        self, image_nd: Tensor, text_nd: Tensor, scale: Tensor, bias: Tensor | None, tokens_nl: Tensor
    ) -> Contrast:
        count, first = len(image_nd), self.ranks.rank * len(image_nd)
        images, texts = _leaf(self.ranks.gather(image_nd)), _leaf(self.ranks.gather(text_nd))
        mine, my_texts = torch.zeros_like(image_nd), torch.zeros_like(text_nd)
        scale, bias = _leaf(scale), None if bias is None else _leaf(bias)
        words = (
            _numbered(self.ranks.gather(tokens_nl)) if self.soft else torch.arange(len(images), device=images.device)
        )
        loss, right = image_nd.new_zeros(()), torch.zeros((), dtype=torch.long, device=image_nd.device)
        step = max(1, self.block_logits // len(images))
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            own_words = words[first + rows.start : first + rows.stop]
            directions = [(image_nd, texts, mine), (text_nd, images, my_texts)]
            for features, others, grad in directions[: 1 if self.kind == "siglip" else 2]:
                queries = _leaf(features[rows])
                logits = scale * queries @ others.T
                if bias is not None:
                    logits = logits + bias
                part = self._of_block(logits, own_words, words) / count
                part.backward()
                assert queries.grad is not None
                grad[rows] = queries.grad
                loss += part.detach()
                if features is image_nd:
                    right += (words[logits.detach().argmax(dim=1)] == own_words).sum()
        return Contrast(
            loss,
            right,
            mine.add_(self.ranks.sum_of_mine(_grad(images))),
            my_texts.add_(self.ranks.sum_of_mine(_grad(texts))),
            _grad(scale),
            None if bias is None else _grad(bias),
        )

    def _of_block(self, logits: Tensor, own_words: Tensor, words: Tensor) -> Tensor:
        """A block of rows; `own_words` says which caption is theirs, `words` that of each column."""
        if self.kind == "clip" and not self.soft:  # each column has a caption of its own: its number
            return F.cross_entropy(logits, own_words, reduction="sum") / 2
        same = own_words[:, None] == words[None, :]
        if self.kind == "siglip":
            return -F.logsigmoid(torch.where(same, logits, -logits)).sum()
        right: Tensor = same / same.sum(dim=1, keepdim=True)
        return F.cross_entropy(logits, right, reduction="sum") / 2


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _grad(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _numbered(tokens_nl: Tensor) -> Tensor:
    """A number for every different caption."""
    number: Tensor = torch.unique(tokens_nl, dim=0, return_inverse=True)[1]
    return number
