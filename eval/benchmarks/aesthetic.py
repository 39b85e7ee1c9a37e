"""How pleasing a picture is: LAION's improved aesthetic predictor, a small network over a CLIP's unit features.

Its published weights, `sac+logos+ava1-l14-linearMSE.pth`, are of ViT-L-14/openai.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encode_pipeline.latents.command import RequestError
from encode_pipeline.vae import weights_sha256
from train.import_checkpoint import read_foreign, weights_of

CLIP = "ViT-L-14/openai"
PLACES = (0, 2, 4, 6, 7)
"""Of the linear layers among `layers`: between the first four was dropout, and nowhere a nonlinearity."""
WIDTHS = (768, 1024, 128, 64, 16, 1)


class AestheticHead(nn.Module):
    """Linear layers from features to one score, about 1 to 10; differentiable, weights never change."""

    def __init__(self, widths: tuple[int, ...], provenance: dict[str, Any]) -> None:
        super().__init__()
        linear = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.layers = nn.ModuleDict({str(place): layer for place, layer in zip(PLACES, linear, strict=True)})
        self.width = widths[0]
        """Of the features that it reads."""
        self.provenance = provenance
        self.not_comparable: list[str] = []

    @classmethod
    def load(cls, path: str | Path) -> AestheticHead:
        """The head in a .pth or .safetensors file; no code in it runs, and every weight is accounted for."""
        file = Path(path).expanduser()
        state = weights_of(read_foreign(file), file)
        expected = [f"layers.{place}.{kind}" for place in PLACES for kind in ("weight", "bias")]
        if odd := sorted(set(state) ^ set(expected)):
            told = f"{odd[0]} is {'unexpected' if odd[0] in state else 'missing'}"
            raise RequestError(f"{file}: not LAION's aesthetic predictor: {told}")
        weights = [state[f"layers.{place}.weight"] for place in PLACES]
        if any(weight.ndim != 2 for weight in weights):
            raise RequestError(f"{file}: not LAION's aesthetic predictor: its layers are not linear")
        widths = (*(weight.shape[1] for weight in weights), weights[-1].shape[0])
        head = cls(widths, {"kind": "aesthetic", "file": file.name})
        try:
            head.load_state_dict(state)
        except RuntimeError as error:
            told = " ".join(str(error).split())
            raise RequestError(f"{file}: not LAION's aesthetic predictor: {told}") from None
        if widths != WIDTHS:
            head.not_comparable.append(f"an aesthetic predictor of widths {widths}, not LAION's of {WIDTHS}")
        head.provenance["weights_sha256"] = weights_sha256(head)
        return head.eval().requires_grad_(False)

    def forward(self, features_bd: Tensor) -> Tensor:
        """A score for each unit row."""
        if features_bd.shape[1] != self.width:
            raise RequestError(
                f"{self.provenance['file']}: reads features of {self.width} numbers, as those of {CLIP}, "
                f"and these are of {features_bd.shape[1]}"
            )
        values = features_bd.to(next(self.parameters()).device, torch.float32)
        for place in PLACES:
            values = self.layers[str(place)](values)
        return values.squeeze(1)
