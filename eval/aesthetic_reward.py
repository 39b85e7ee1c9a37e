"""How pleasing a picture is, by LAION's aesthetic predictor, as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.benchmarks.aesthetic import CLIP, AestheticHead
from eval.rewards import PixelClipReward, Reward


class AestheticReward(Reward):
    """About 1 to 10, whatever the prompt. `clip` is the model whose features the head was trained on."""

    name = "aesthetic"
    reads = "pixels"

    def __init__(self, head: str | Path, clip: Any = CLIP) -> None:
        self._pixels = PixelClipReward(clip)
        self.clip = self._pixels.clip
        self._head = AestheticHead.load(head).to(self.clip.device)
        self.provenance = {**self._head.provenance, "clip": self.clip.provenance}
        self.not_comparable = [*self._head.not_comparable, *self.clip.not_comparable]

    def score(self, images_bchw: Tensor, prompts: Sequence[str]) -> Tensor:
        features_bd = self._pixels.embed(images_bchw)
        # In bfloat16, scores of about 5 would come in steps of a thirtieth.
        with torch.autocast(features_bd.device.type, enabled=False):
            scores_b: Tensor = self._head(features_bd)
        return scores_b

    def loss(self, scores_b: Tensor) -> Tensor:
        return 10 - scores_b
