"""Someone else's opinion of `make steer-demo`'s pictures: that of the pixel tower of `make table1-demo`.

It took no part in the steering: what it sees too is in the pictures, and what it does not is the steering tower's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from encode_pipeline.latents.command import RequestError, Settings


class JudgeConfig(Settings):
    """Which pictures, and who is asked."""

    out: Path = Field(Path("runs/steer-demo"), description="folder of the finished demonstration")
    checkpoint: Path = Field(Path("runs/table1-demo/pixel/train"), description="a tower of `vae=pixels`")


def judge(config: JudgeConfig) -> dict[str, Any]:
    """Of each run: its mean cosine to the prompts, how many classes are named, and how many pictures are called red."""
    from demo.world import CLASS_NAMES, TEMPLATES_ZERO_SHOT
    from encode_pipeline.vae import PIXELS, AveragedPixels
    from eval.models import LatentClip, open_model
    from eval.steering.folder import SteeredRun

    tower = open_model(config.checkpoint)
    if not isinstance(tower, LatentClip) or tower.spec.vae.name != PIXELS:
        raise RequestError(f"{config.checkpoint}: not a tower of vae={PIXELS}")
    names = list(CLASS_NAMES)
    classes = tower.embed_classes(names, TEMPLATES_ZERO_SHOT)
    found = {}
    for folder in ("plain", "clip", "red", "not-red"):
        run = SteeredRun.open(config.out / "runs" / folder)
        pictures = np.stack([np.asarray(Image.open(run.image(line["item"])).convert("RGB")) for line in run.lines])
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        prompts = [line["prompt"] for line in run.lines]
        with torch.inference_mode():
            seen = tower.embed_latents(AveragedPixels().encode(images), tower.spec)
            cosines = (seen * tower.embed_texts(prompts)).sum(dim=-1)
            guesses = (seen @ classes.T).topk(5).indices.tolist()
        wanted = [next(number for number, name in enumerate(names) if text.endswith(name)) for text in prompts]
        found[folder] = {
            "pictures": len(prompts),
            "cosine": round(cosines.mean().item(), 3),
            "named": sum(guess[0] == right for guess, right in zip(guesses, wanted, strict=True)),
            "named_in_five": sum(right in guess for guess, right in zip(guesses, wanted, strict=True)),
            "called_red": sum(names[guess[0]].startswith("red ") for guess in guesses),
        }
    return found
