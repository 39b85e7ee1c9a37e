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

    @torch.no_grad()
    def __call__(
        self, image_nd: Tensor, text_nd: Tensor, scale: Tensor, bias: Tensor | None, tokens_nl: Tensor
    ) -> Contrast:
        """The features are this process's, of unit length. Their slopes are worked out here, without a graph."""
        count, first, device = len(image_nd), self.ranks.rank * len(image_nd), image_nd.device
        features = [self.ranks.gather(image_nd), self.ranks.gather(text_nd)]
        grads = [torch.zeros_like(side) for side in features]
        scale_grad, bias_grad = torch.zeros_like(scale), None if bias is None else torch.zeros_like(bias)
        total = len(features[0])
        words = _numbered(self.ranks.gather(tokens_nl)) if self.soft else torch.arange(total, device=device)
        loss, right = image_nd.new_zeros(()), torch.zeros((), dtype=torch.long, device=device)
        step = max(1, self.block_logits // total)
        for start in range(first, first + count, step):
            rows = slice(start, min(start + step, first + count))
            for own, other in ((0, 1), (1, 0))[: 1 if self.kind == "siglip" else 2]:
                queries, columns = features[own][rows], features[other]
                logits = (scale * queries) @ columns.T
                if bias is not None:
                    logits += bias
                with torch.enable_grad():
                    part = self._of_block(logits.requires_grad_(), words[rows], words) / count
                (slope,) = torch.autograd.grad(part, logits)
                pull = slope @ columns
                grads[own][rows] += scale * pull
                grads[other].addmm_(slope.T, scale * queries)
                scale_grad += (queries * pull).sum()
                if bias_grad is not None:
                    bias_grad += slope.sum()
                loss += part.detach()
                if own == 0:
                    right += (words[logits.argmax(dim=1)] == words[rows]).sum()
        mine = [self.ranks.sum_of_mine(grad) for grad in grads]
        return Contrast(loss, right, mine[0], mine[1], scale_grad, bias_grad)

    def _of_block(self, logits: Tensor, own_words: Tensor, words: Tensor) -> Tensor:
        """A block of rows; `own_words` says which caption is theirs, `words` that of each column."""
        if self.kind == "clip" and not self.soft:  # each column has a caption of its own: its number
            return F.cross_entropy(logits, own_words, reduction="sum") / 2
        same = own_words[:, None] == words[None, :]
        if self.kind == "siglip":
            return -F.logsigmoid(torch.where(same, logits, -logits)).sum()
        right: Tensor = same / same.sum(dim=1, keepdim=True)
        return F.cross_entropy(logits, right, reduction="sum") / 2


def _numbered(tokens_nl: Tensor) -> Tensor:
    """A number for every different caption."""
    number: Tensor = torch.unique(tokens_nl, dim=0, return_inverse=True)[1]
    return number
