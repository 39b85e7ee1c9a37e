"""The README of an exported model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encode_pipeline.latents.spec import LatentSpec

TOLD = (
    *("loss", "repeated_captions", "batch_size", "samples", "steps", "lr", "warmup", "weight_decay", "beta1"),
    *("beta2", "eps", "clip_grad", "precision", "views", "text_tower", "seed"),
)
"""Settings that shaped the weights; the others name places on somebody's machine."""

HEAD = """---
# license: yours to choose
library_name: {library}
pipeline_tag: zero-shot-image-classification
tags: [clip, latent-clip]
---

# {name}

A CLIP whose vision tower reads the latents of a diffusion model's VAE instead of pixels
([Latent-CLIP](https://arxiv.org/abs/2503.08455)). {counts[total]:,} parameters: {counts[image]:,} for latents,
{counts[text]:,} for text. {training}

## The latents it reads

| | |
|---|---|
| VAE | {vae.name} |
| its weights | sha256 `{vae.weights_sha256}` |
| shape | {shape} (channels, height, width), of pictures of {spec.image_size} pixels |
| scale | {scale} |
| posterior | {posterior} |

`spec.json` says it all. Latents of another VAE, or in another scale, give features without meaning and no error.

## How to use it

"""

OPEN_CLIP = """With `pip install open_clip_torch` and nothing else:

```python
import json, open_clip, torch

folder = "."  # where this folder is
vision = json.load(open(f"{{folder}}/open_clip_config.json"))["model_cfg"]["vision_cfg"]
vision["timm_model_name"] = f"local-dir:{{folder}}"
model = open_clip.create_model(f"local-dir:{{folder}}", vision_cfg=vision).eval()
tokenizer = open_clip.get_tokenizer(f"local-dir:{{folder}}")
with torch.inference_mode():
    image = model.encode_image(torch.randn(1, {shape_words}), normalize=True)  # your latents, float32
    text = model.encode_text(tokenizer(["a red circle"]), normalize=True)
    print(model.logit_scale.exp() * image @ text.T)
```

`open_clip.create_model("local-dir:PATH")` alone does the same as long as `timm_model_name` in `open_clip_config.json`
says where this folder is, which it did when it was made. The path is looked up from the current directory, so it is an
absolute one; after moving the folder, say in it:

```sh
{after_moving}
```

Before putting it on the Hugging Face hub as ORG/NAME, write `hf-hub:ORG/NAME` there. The transforms that
`create_model_and_transforms` returns are for pictures and of no use here.
"""

NATIVE = """`model.pt` holds the weights, the architecture and the spec of the latents, for the program that made it:

```sh
python -m eval zero-shot checkpoint=. data=STORE
python -m train export checkpoint=. out=DIR form=open-clip
```
"""

AFTER_MOVING = (
    """python -c "import json, os; path = 'open_clip_config.json'; config = json.load(open(path)); """
    """config['model_cfg']['vision_cfg']['timm_model_name'] = 'local-dir:' + os.getcwd(); """
    """json.dump(config, open(path, 'w'), indent=2)\""""
)
"""Run inside the folder."""


def model_card(content: Mapping[str, Any], spec: LatentSpec, counts: Mapping[str, int], form: str) -> str:
    """Markdown that tells strangers what the model is, what it reads and how to call it."""
    vae = spec.vae
    scales = {
        "raw": f"raw, as the encoder gives them: a diffusion model's latents must be divided by {vae.scaling_factor}"
        + (f", then have {vae.shift_factor} added" if vae.shift_factor else ""),
        "model": "as the diffusion model has them: "
        + (f"{vae.shift_factor} taken away, then " if vae.shift_factor else "")
        + f"multiplied by {vae.scaling_factor}",
    }
    head = HEAD.format(
        library="open_clip" if form == "open-clip" else "pytorch",
        name=title(content["name"]),
        counts=counts,
        training=_training(content),
        vae=vae,
        spec=spec,
        shape="×".join(map(str, spec.shape)),
        scale=scales[spec.scale],
        posterior="sampled" if spec.posterior == "sample" else "its mean",
    )
    shape_words = ", ".join(map(str, spec.shape))
    use = OPEN_CLIP.format(shape_words=shape_words, after_moving=AFTER_MOVING) if form == "open-clip" else NATIVE
    return head + use + _settings(content.get("settings", {}))


def title(model: str) -> str:
    """A recipe's name, or that of a user's file without where it is."""
    return Path(model).stem if model.endswith((".yaml", ".yml", ".json")) else model


def _training(content: Mapping[str, Any]) -> str:
    step, batch_size = content["step"], content.get("settings", {}).get("batch_size")
    if step == 0 and not content.get("imported_from"):
        return "**Its weights are random: it was never trained.**"
    came = (
        f"Imported from `{content['imported_from']}`, epoch {content['epoch']}. " if "imported_from" in content else ""
    )
    seen = f" of {batch_size:,} samples: {step * batch_size:,} samples seen" if batch_size else ""
    return (
        f"{came}Trained for {step:,} steps{seen}." if step else f"{came}How many steps it was trained is not recorded."
    )


def _settings(settings: Mapping[str, Any]) -> str:
    rows = [f"| {key} | {settings[key]} |" for key in TOLD if settings.get(key) is not None]
    return "\n## How it was trained\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n" if rows else ""
