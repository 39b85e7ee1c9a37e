"""A checkpoint as a thing that embeds latents and class names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
from torch import Tensor

from encode_pipeline.latents.spec import LatentSpec, convert_scale
from train.checkpoint import load_checkpoint
from train.model import restore_model, tokenizer_for
from train.zero_shot import embed_classes


class LatentClip:
    """A trained model with the spec of the latents that it was trained on."""

    def __init__(self, path: Path) -> None:
        content = load_checkpoint(path)
        self.name = str(content["name"])
        self.step = int(content["step"])
        model, architecture, self.spec = restore_model(content, path)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: open_clip.CLIP = model.to(self.device).eval()
        self.tokenizer = tokenizer_for(architecture)

    @torch.inference_mode()
    def embed_latents(self, latents_bchw: Tensor, spec: LatentSpec) -> Tensor:
        """Unit embeddings of latents that lie in the scale of `spec`."""
        values = convert_scale(latents_bchw.to(self.device, torch.float32), spec.vae, spec.scale, self.spec.scale)
        embedding: Tensor = self.model.encode_image(values, normalize=True)
        return embedding.float()

    @torch.inference_mode()
    def embed_classes(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """One unit embedding a class: the mean over the templates."""
        return embed_classes(self.model, self.tokenizer, self.device, names, templates)
