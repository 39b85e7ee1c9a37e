"""OpenCLIP's contrastive loss, with an eye for captions that stand in a batch more than once."""

from __future__ import annotations

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor


class SoftClipLoss(open_clip.ClipLoss):
    """OpenCLIP's loss, except that all pictures of one caption in a batch are equally right for it.

    Without that, the other pictures of the same words are counted as wrong answers. In a batch without equal
    captions it is OpenCLIP's loss to the last bit.
    """

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, tokens: Tensor) -> Tensor:
        _, caption = torch.unique(tokens, dim=0, return_inverse=True)
        if caption.max() + 1 == len(caption):
            loss: Tensor = super().forward(image_features, text_features, logit_scale)
            return loss
        logits_per_image, logits_per_text = self.get_logits(image_features, text_features, logit_scale)
        same = (caption[:, None] == caption[None, :]).to(logits_per_image.dtype)
        targets = same / same.sum(dim=1, keepdim=True)
        return (F.cross_entropy(logits_per_image, targets) + F.cross_entropy(logits_per_text, targets)) / 2


class HardClipLoss(open_clip.ClipLoss):
    """OpenCLIP's loss as it is, called the same way."""

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, tokens: Tensor) -> Tensor:
        loss: Tensor = super().forward(image_features, text_features, logit_scale)
        return loss
