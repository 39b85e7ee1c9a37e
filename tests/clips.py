"""Small CLIPs with random weights on disk, in the forms that users have them in."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch

from encode_pipeline.latents.spec import LatentSpec
from tests.test_export import write_checkpoint
from tests.test_train_models import architecture
from train.model import build_model

PIXEL_CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def pixel_clip(folder: Path, seed: int = 0) -> Path:
    """A folder of OpenCLIP's with a model that looks at pictures."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**PIXEL_CONFIG)
    folder.mkdir(parents=True)
    preprocess = {"size": 32, "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic"}
    config = {"model_cfg": PIXEL_CONFIG, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


def latent_clip(path: Path, spec: LatentSpec, seed: int = 0) -> Path:
    """A checkpoint with a model that looks at such latents."""
    torch.manual_seed(seed)
    channels, grid, _ = spec.shape
    settings = architecture({"patch_size": 2})
    return write_checkpoint(path, build_model(settings, channels, grid), settings, spec=spec.to_dict())
