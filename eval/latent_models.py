"""The models of this project: checkpoints, runs, exports, imports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.vae import PIXELS
from eval.clip import MEASURED, LatentClip, Loaded
from eval.open_clip_models import CONFIG, load_folder, read_json
from train.checkpoint import history, load_checkpoint
from train.import_checkpoint import AUTHORS_FACTOR, AUTHORS_SHAPE, AUTHORS_TOWER, read_foreign, weights_of
from train.model import parameter_counts, restore_model, tokenizer_for
from train.model_card import title

PAPER_SAMPLES = 34_000_000_000
ENOUGH = 0.99
"""Of the paper's samples: whole batches do not add up to a round number."""


def open_checkpoint(path: Path, address: str) -> LatentClip:
    """A checkpoint file, or the latest of a run, or a native export, or what `train import` made."""
    content = _load(path)
    model, architecture, spec = restore_model(content, path)
    told = {"name": title(content["name"]), **history(content)}
    return _latent_clip(address, model, tokenizer_for(architecture), parameter_counts(model)["image"], spec, told)


def open_export(folder: Path, address: str) -> LatentClip:
    """What `train export form=open-clip` made, wherever it lies now."""
    spec = LatentSpec.from_json((folder / "spec.json").read_bytes(), str(folder / "spec.json"))
    config = read_json(folder / CONFIG)
    model_config = config.get("model_cfg")
    vision = model_config.get("vision_cfg") if isinstance(model_config, dict) else None
    if not isinstance(vision, dict):
        raise RequestError(f"{folder / CONFIG}: no model_cfg with a vision_cfg in it")
    # The config says where the folder was when it was made.
    vision = {**vision, "timm_model_name": f"local-dir:{folder.resolve()}"}
    model, tokenizer, _ = load_folder(folder, vision_cfg=vision)
    told = config.get("history")
    name = told["name"] if told else folder.resolve().name
    return _latent_clip(
        address, model, tokenizer, parameter_counts(model)["image"], spec, {"name": name, **(told or {})}
    )


def _latent_clip(
    address: str, model: Any, tokenizer: Any, image_parameters: int, spec: LatentSpec, told: Mapping[str, Any]
) -> LatentClip:
    latents = {
        "fingerprint": spec.fingerprint,
        "vae": {"name": spec.vae.name, "weights_sha256": spec.vae.weights_sha256},
        "shape": list(spec.shape),
        "image_size": spec.image_size,
        "scale": spec.scale,
        "posterior": spec.posterior,
        "dtype": spec.dtype,
    }
    provenance = {"kind": "latent-clip", **told, "latents": latents}
    reasons = [*_training(told), *unlike_sdxl(spec)]
    if spec.dtype != "float16":
        reasons.append(f"trained on latents stored as {spec.dtype}, where the paper's are float16")
    return LatentClip(Loaded(str(told["name"]), address, model, tokenizer, image_parameters, provenance, reasons), spec)


def _training(told: Mapping[str, Any]) -> list[str]:
    """What the paper's training has over this one."""
    if "step" not in told:
        return ["how it was trained is not recorded"]
    if told["fine_tuned_from"]:
        return ["fine-tuned on preferences", "how it was trained before it was fine-tuned is not recorded"]
    if told["imported_from"]:
        is_trained = told["step"] or told["epoch"]
        return [] if is_trained else [f"{told['imported_from']} does not say how long it was trained"]
    if not told["step"]:
        return ["random weights: it was never trained"]
    if told["samples"] is None:
        return ["how many samples it was trained on is not recorded"]
    if told["samples"] < ENOUGH * PAPER_SAMPLES:
        return [f"trained on {told['samples']:,} of the paper's 34 billion samples"]
    return []


def unlike_sdxl(spec: LatentSpec) -> list[str]:
    """What these are that the paper's are not. SDXL's VAE is known by its shape, as it has several weights."""
    if spec.vae.config.get("class") == PIXELS:
        return ["averaged pixels, no latents"]
    is_sdxl = (
        spec.shape == AUTHORS_SHAPE
        and spec.vae.scaling_factor == AUTHORS_FACTOR
        and tuple(spec.vae.config.get("block_out_channels", ())) == MEASURED
    )
    shape = "x".join(map(str, spec.shape))
    vae = Path(spec.vae.name).name if Path(spec.vae.name).is_absolute() else spec.vae.name
    return [] if is_sdxl else [f"latents of {shape} by {vae}, not of 4x64x64 by a VAE like SDXL's"]


def _load(path: Path) -> dict[str, Any]:
    """A checkpoint of the trainer; of a stranger's it is said how it becomes one."""
    try:
        return load_checkpoint(path)
    except RequestError:
        if not path.is_file():
            raise
        foreign = read_foreign(path)  # says by name what would run
        if {"spec", "architecture"} & set(foreign):
            raise
        state = weights_of(foreign, path)
    command = f"`python -m train import checkpoint={path} model=latent-vit-b-8 data=STORE out=DIR`"
    if any(name.startswith(AUTHORS_TOWER) for name in state):
        what = (
            f"weights of the Latent-CLIP authors: {command} makes a model of this project of them, to be opened as DIR"
        )
    else:
        what = f"weights without their architecture: say MODEL/{path} with a model of OpenCLIP; if latents, {command}"
    raise RequestError(f"{path}: {what}") from None
