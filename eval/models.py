"""A checkpoint as a thing that embeds latents and texts, and refuses latents that are not its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from encode_pipeline.latents.spec import LatentSpec, SpecError, convert_scale
from train.checkpoint import load_checkpoint
from train.model import restore_model, tokenizer_for


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

    def check(self, spec: LatentSpec) -> None:
        """Refuses latents of another VAE or shape; another scale of the same VAE is converted."""
        if spec.vae.weights_sha256 != self.spec.vae.weights_sha256 or spec.shape != self.spec.shape:
            raise SpecError(f"these latents are not the model's: {self.spec.difference(spec)}")

    @torch.inference_mode()
    def embed_latents(self, latents_bchw: Tensor, spec: LatentSpec) -> Tensor:
        """Unit embeddings of latents that lie in the scale of `spec`."""
        values = convert_scale(latents_bchw.to(self.device, torch.float32), spec.vae, spec.scale, self.spec.scale)
        embedding: Tensor = self.model.encode_image(values, normalize=True)
        return embedding.float()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings of texts."""
        embedding: Tensor = self.model.encode_text(self.tokenizer(list(texts)).to(self.device), normalize=True)
        return embedding.float()

    def embed_classes(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """One unit embedding a class: the mean over the templates, as OpenCLIP's classifier has it."""
        rows = [self.embed_texts([template.format(c=name) for template in templates]).mean(dim=0) for name in names]
        return F.normalize(torch.stack(rows), dim=-1)
