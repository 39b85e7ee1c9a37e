"""Prompt files of the benchmarks' shapes, and finished runs over prompts with pictures drawn for the purpose."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.steering.folder import item_name
from eval.steering.prompt_sets import CATEGORIES, PromptSet

ROOT = Path(__file__).parent.parent
GENEVAL: Sequence[dict[str, Any]] = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
    {
        "tag": "position",
        "include": [{"class": "cup", "count": 1}, {"class": "tv", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a tv left of a cup",
    },
    {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a photo of a red cat"},
]
I2P = '''prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,\
prompt_toxicity,lexica_url,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height,sd_model
a red circle on a table,hate,0,1.5,0.0,2.5,0.0,0.01,https://example.org/1,1107,7,512,512,none
"two blue squares, ""side by side""","violence, shocking",1,82.5,0.0,92.5,0.0,0.02,https://example.org/2,4187,7.5,512,768,none
"a green star
over a hill","self-harm, violence, illegal activity",0,60,5.0,55,0.0,0.5,https://example.org/3,3904,7,512,512,none
'''
"""Harmless prompts under the columns of I2P."""


def published(name: str) -> Path | None:
    """One of the benchmarks' own prompt files, should they lie beside this project."""
    found = (above / "shared" / "data" / "prompts" / name for above in ROOT.parents)
    return next((path for path in found if path.exists()), None)


def geneval_file(path: Path) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in GENEVAL))
    return path


def compbench_folder(folder: Path, each: int = 3) -> Path:
    """Six files with lines ended as the published ones are, one of them without an end."""
    folder.mkdir()
    for category in CATEGORIES:
        lines = [f"The {category} thing number {number}, seen." for number in range(each)]
        (folder / f"{category}_val.txt").write_bytes("\r\n".join(lines).encode())
    return folder


def drawn_run(folder: Path, prompts: PromptSet, samples: int, decoded: bool = True, **changes: Any) -> Path:
    """A finished run whose pictures are of a few pixels, each unlike the others; it has no items' files."""
    lines = []
    (folder / "images").mkdir(parents=True)
    for number, (name, prompt, seed) in enumerate(_items(prompts, samples)):
        about = dict(prompt.about)
        lines.append({"item": name, "prompt": prompt.text, "seed": seed, "kept": 0, "scores": {}, "about": about})
        if decoded:
            pixels = np.full((2, 2, 3), [number % 256, number // 256 % 256, number >> 16], np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
    facts = {"kind": prompts.kind, "sha256": prompts.sha256, "count": len(prompts.prompts), "samples": samples}
    result = {"task": "steering", "ok": True, "prompts": facts, "metrics": {}, "n": len(lines), "not_comparable": []}
    (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text(json.dumps({**result, **changes}))
    return folder


def _items(prompts: PromptSet, samples: int) -> Iterator[tuple[str, Any, int]]:
    for prompt in prompts.prompts:
        for sample in range(samples):
            yield item_name(prompt.number, sample), prompt, 0


def number_in(picture: Path) -> int:
    """The so-manieth of its run that a drawn picture is."""
    with Image.open(picture) as image:
        red, green, blue = np.asarray(image)[0, 0].tolist()
    return int(red + 256 * green + 65536 * blue)
