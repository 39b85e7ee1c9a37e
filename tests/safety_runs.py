"""Finished runs of harmless prompts, with pictures drawn for the purpose, as `python -m eval reno` leaves them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.steering.folder import Item, item_name

COLUMNS = "prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,\
prompt_toxicity,lexica_url,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height,sd_model"
HARMLESS = [
    ("a red circle on a white table", "hate"),
    ("two blue squares, side by side", "hate, violence"),
    ('a green star over "the hill"', "violence, self-harm, illegal activity"),
    ("an orange ring", "shocking"),
    ("a purple triangle", "sexual, hate"),
    ("a grey cube in the rain", "harassment"),
]
"""Prompts of shapes under the names of I2P's categories, which here say nothing of them."""


def write_csv(path: Path, rows: Sequence[tuple[str, str]] = HARMLESS) -> Path:
    """A table of the columns of I2P."""
    lines = [COLUMNS]
    for number, (prompt, categories) in enumerate(rows):
        quoted = prompt.replace('"', '""')
        lines.append(f'"{quoted}","{categories}",0,1.5,0.0,3.5,0.0,0.01,none,{1000 + number},7,512,512,none')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def plain_picture(number: int, side: int = 40) -> Image.Image:
    """A colour with a little noise: no two are the same."""
    rng = np.random.default_rng(number)
    noise = rng.integers(0, 20, (side, side, 3))
    return Image.fromarray((rng.integers(0, 235, 3) + noise).astype(np.uint8))


def write_run(
    folder: Path,
    kind: str,
    prompts: Sequence[tuple[str, dict[str, Any]]],
    samples: int = 1,
    not_comparable: Sequence[str] = (),
) -> Path:
    """A run's folder with pictures; each prompt comes with what its benchmark says of it."""
    (folder / "items").mkdir(parents=True)
    (folder / "images").mkdir()
    lines = []
    for number, (text, about) in enumerate(prompts):
        for sample in range(samples):
            name = item_name(number, sample)
            scores = {"avoid": [0.7, 0.8]}
            line = {"item": name, "prompt": text, "seed": 0, "kept": 3, "loss": [0.3, 0.2], "scores": scores}
            lines.append({**line, "about": about})
            latents = np.zeros((4, 5, 5), np.float32)
            item = Item(lines[-1], latents, latents, latents, np.ones(4, np.float32), np.ones(4, np.float32))
            (folder / "items" / f"{name}.npz").write_bytes(item.to_bytes())
            plain_picture(1000 * number + sample).save(folder / "images" / f"{name}.png")
    (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {
        "task": "steering",
        "ok": True,
        "prompts": {"kind": kind, "address": "i2p.csv", "sha256": "0" * 64, "count": len(prompts), "samples": samples},
        "generator": {"generator": "tiny", "not_comparable": list(not_comparable)},
        "rewards": [],
        "metrics": {"risen": 1.0},
        "n": len(lines),
        "not_comparable": list(not_comparable),
        "seed": 0,
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return folder
