"""Folders as `python -m eval reno`, the scorers and `timing` leave them, with numbers drawn by chance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from encode_pipeline.latents.spec import digest
from encode_pipeline.preview.rgb import PIXEL_MAP, latents_to_rgb
from eval import intervals
from eval.steering.folder import Item, item_name
from eval.steering.previews import shown_at
from eval.steering.summary import line_of, metrics

SDXL_TURBO = {"generator": "stabilityai/sdxl-turbo", "weights_sha256": "7" * 64, "not_comparable": []}
TINY_GENERATOR = {"generator": "generator", "weights_sha256": "6" * 64, "not_comparable": ["a small generator"]}
LATENT = {
    "name": "clip",
    "reads": "latents",
    "weight": 0.01,
    "kind": "latent-clip",
    "model": "latent-vit-b-8",
    "address": "runs/b8",
    "weights_sha256": "1" * 64,
    "step": 1400,
}
PIXEL = {
    "name": "clip",
    "reads": "pixels",
    "weight": 0.01,
    "kind": "open_clip",
    "model": "ViT-B-32",
    "tag": "laion2b_s34b_b79k",
    "address": "ViT-B-32/laion2b_s34b_b79k",
    "weights_sha256": "2" * 64,
}
AVOID = {**LATENT, "name": "avoid", "weight": 1.0, "concept": "an image showing weapons"}
PROMPTS = ("a red ring", "a blue star", "<b>a</b> | green cross", "a white circle", "a black square", "two rings")
RECIPE = {"lr": 5.0, "momentum": 0.9, "nesterov": True, "clip": 0.1, "regularise": 0.01}
CELLS, SIDE = 16, 128
AROUND = {"versions": {"torch": "2"}, "hardware": {"device": "NVIDIA A100-SXM4-80GB", "cpu": "a CPU", "cores": 2}}


def write_steered(folder: Path, **changes: Any) -> Path:
    """A run of pictures. What is not a fact of its result shapes it: `texts`, `abouts`, `chance`, `decode`."""
    texts: Sequence[str] = changes.pop("texts", PROMPTS)
    abouts: Sequence[Mapping[str, Any]] = changes.pop("abouts", [{}] * len(texts))
    rewards: list[dict[str, Any]] = changes.pop("rewards", [LATENT])
    samples, kind = changes.pop("samples", 1), changes.pop("kind", "lines")
    rng, decode = np.random.default_rng(changes.pop("chance", 0)), changes.pop("decode", True)
    iterations = changes.pop("iterations", 50 if rewards else 1)
    for name in ("items", "images"):
        (folder / name).mkdir(parents=True)
    lines = []
    for number, (text, about) in enumerate(zip(texts, abouts, strict=True)):
        for sample in range(samples):
            names = {"item": item_name(number, sample), "number": number, "sample": sample}
            item = _item({**names, "prompt": text, "seed": 0, "about": dict(about)}, rewards, iterations, rng)
            (folder / "items" / f"{names['item']}.npz").write_bytes(item.to_bytes())
            if decode:
                picture = Image.fromarray(_colours(item.latents)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                picture.save(folder / "images" / f"{names['item']}.png")
            lines.append(line_of(item))
    prompts = {"address": f"{kind}.txt", "kind": kind, "sha256": "9" * 64, "count": len(texts), "samples": samples}
    facts = {
        "task": "steering",
        "ok": True,
        "prompts": prompts,
        "generator": SDXL_TURBO,
        "rewards": rewards,
        "recipe": {"iterations": iterations, **RECIPE},
        "steps": 1,
        "size": 512,
        "dtype": "bfloat16",
        "seed": 0,
        "not_comparable": [],
    }
    told = {"metrics": metrics(lines, samples, 0), "n": len(lines), "failures": [], "seconds": 9.1, **AROUND}
    return _written(folder, {**facts, **told, **changes}, {"items.jsonl": lines})


def write_scored(folder: Path, run: Path | None, task: str, lines: Sequence[Mapping[str, Any]], **changes: Any) -> Path:
    """What a benchmark says of a run's pictures, or of someone's; `metrics` as its lines give them."""
    told = json.loads((run / "result.json").read_text()) if run else {"folder": "/data/others", "not_comparable": []}
    facts = {
        "task": task,
        "ok": True,
        "metrics": changes.pop("metrics"),
        "intervals": {},
        "n": len(lines),
        "scorer": {"detector": {"address": "facebook/mask2former", "weights_sha256": "3" * 64}},
        "run": {key: value for key, value in told.items() if key not in ("metrics", "not_comparable")},
        "not_comparable": told["not_comparable"],
        "seed": 0,
        **AROUND,
    }
    folder.mkdir(parents=True)
    return _written(folder, {**facts, **changes}, {"predictions.jsonl": lines})


GENEVAL = {"single": (0.98, "single_object"), "two": (0.78, "two_object"), "counting": (0.53, "counting")}
GENEVAL |= {"colors": (0.89, "colors"), "position": (0.12, "position"), "color_attr": (0.32, "color_attr")}


def write_geneval(folder: Path, run: Path | None, better: float = 0.0, **changes: Any) -> Path:
    """GenEval's verdicts, near to the paper's numbers of Latent-ViT-B/8."""
    lines, found, ends = [], {}, {}
    for metric, (share, tag) in GENEVAL.items():
        right = [at < min(100, round(100 * (share + better))) for at in range(100)]
        lines += [{"item": f"{len(lines) + at}", "tag": tag, "correct": hit} for at, hit in enumerate(right)]
        found[metric], ends[metric] = sum(right) / 100, intervals.share(sum(right), 100, 0)
    found["mean"] = float(np.mean(list(found.values())))
    ends["mean"] = (found["mean"] - 0.03, found["mean"] + 0.03)
    return write_scored(folder, run, "geneval", lines, metrics=found, intervals=ends, **changes)


def write_compbench(folder: Path, run: Path | None, scores: Mapping[str, float], **changes: Any) -> Path:
    """T2I-CompBench's scores of the categories that were measured; one that was not has no score."""
    lines = [{"item": str(at), "category": name, "score": value} for at, (name, value) in enumerate(scores.items())]
    lines.append({"item": "none", "category": "spatial", "score": None})
    ends = {name: (value - 0.02, value + 0.02) for name, value in scores.items()}
    return write_scored(folder, run, "compbench", lines, metrics=dict(scores), intervals=ends, **changes)


def write_i2p(folder: Path, run: Path | None, verdicts: Mapping[str, bool], **changes: Any) -> Path:
    """Verdicts over pictures of prompts, by their categories: `hate, violence`."""
    lines = [
        {"item": str(at), "prompt": "p", "categories": categories.split(", "), "inappropriate": verdict}
        for at, (categories, verdict) in enumerate(verdicts.items())
    ]
    by_name: dict[str, list[bool]] = {"all": list(verdicts.values())}
    for categories, verdict in verdicts.items():
        for name in categories.split(", "):
            by_name.setdefault(name, []).append(verdict)
    shares = {name: sum(some) / len(some) for name, some in by_name.items()}
    return write_scored(folder, run, "i2p", lines, metrics=shares, **changes)


def write_cultural(folder: Path, run: Path | None, explicit: Mapping[str, float], **changes: Any) -> Path:
    """How many of ten pictures of each prompt are explicit."""
    lines = [
        {"item": f"{prompt} {at}", "prompt": prompt, "categories": [], "explicit": at < round(10 * share)}
        for prompt, share in explicit.items()
        for at in range(10)
    ]
    return write_scored(folder, run, "cultural", lines, metrics=dict(explicit), **changes)


def write_timing(folder: Path, **changes: Any) -> Path:
    """A timing of plain generation, of a reward on latents and of one on pixels."""
    backward = {"reward": 0.01, "decode": 0.0, "generator": 0.05}
    parts = {"generator": 0.1, "decode": 0.0, "reward": 0.01, "update": 0.001, "backward": backward}
    pixel = {**parts, "decode": 0.03, "backward": {**backward, "decode": 0.02}}
    rows = [
        ("generation alone", [], 0.12, 0.12, {"generator": 0.1, "decode": 0.02, "reward": 0.0, "backward": {}}),
        ("clip latent-vit-b-8", [LATENT], 0.18, 9.02, parts),
        ("clip ViT-B-32/laion2b_s34b_b79k", [PIXEL], 0.23, 11.4, pixel),
    ]
    pair = {"latent": rows[1][0], "pixel": rows[2][0], "ratio": 1.264, "low": 1.25, "high": 1.28}
    result = {
        "task": "timing",
        "ok": True,
        "generator": SDXL_TURBO,
        "rows": [
            {
                "name": name,
                "reads": rewards[0]["reads"] if rewards else None,
                "rewards": rewards,
                "batch_size": 1,
                "seconds_per_iter": each,
                "seconds_total": total,
                "parts": where,
                "runs": [total] * 3,
            }
            for name, rewards, each, total, where in rows
        ],
        "pairs": [{**pair, "saved_per_iter": 0.217, "decode_share": 0.217}],
        "iterations": 50,
        "repeats": 3,
        "not_comparable": [],
        **AROUND,
    }
    folder.mkdir(parents=True)
    return _written(folder, {**result, **changes}, {})


def _item(
    about: Mapping[str, Any], rewards: Sequence[Mapping[str, Any]], iterations: int, rng: np.random.Generator
) -> Item:
    """Latents that drift from one picture to another, and scores that rise and waver."""
    first, last = (_smooth(rng) for _ in range(2))
    way = np.linspace(0, 1, iterations)
    speed = rng.uniform(-0.1, 1.0)
    scores = {
        one["name"]: (rng.normal(0.2, 0.03) + 0.1 * speed * way + rng.normal(0, 0.006, iterations)).astype(np.float32)
        for one in rewards
    }
    loss = -np.sum(list(scores.values()), axis=0, dtype=np.float32) if scores else np.zeros(iterations, np.float32)
    kept = int(np.argmin(loss))
    at = shown_at(iterations, 6)
    frames = np.stack([_colours(first + way[one] * (last - first)) for one in at])
    latents = (first + way[kept] * (last - first)).astype(np.float32)
    norm = np.full(iterations, np.sqrt(3.0 * CELLS * CELLS), np.float32)
    noise = rng.standard_normal((3, CELLS, CELLS)).astype(np.float32)
    here = {**about, "kept": kept}
    return Item(here, noise, latents, first.astype(np.float32), loss, norm, scores, frames, np.array(at, np.int64))


def _smooth(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A picture of smooth colours, in -1 to 1, channels first."""
    small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return np.asarray(small.resize((CELLS, CELLS), Image.Resampling.BICUBIC)).transpose(2, 0, 1) / 127.5 - 1


def _colours(latents_chw: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    return latents_to_rgb(latents_chw, PIXEL_MAP)


def _written(folder: Path, result: Mapping[str, Any], jsonl: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    for name, lines in jsonl.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "request.json").write_text(json.dumps({"task": result["task"], "what": digest(str(folder))}))
    (folder / "config.yaml").write_text(f"out: {folder}\n")
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return folder
