"""A checkpoint of the Latent-CLIP authors, or of OpenCLIP, becomes one of this project."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import Store
from train.config import ImportConfig, architecture_of
from train.export import write_native
from train.model import build_model, load_weights

NUMBERS = (np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_)
SCALAR: Any = np.float64(0).__reduce__()[0]
SCALARS: list[Any] = [
    (SCALAR, "numpy.core.multiarray.scalar"),  # as numpy 1 writes it
    (SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(number)) for number in NUMBERS),
]
"""All that a foreign checkpoint may make besides tensors: plain numbers, as OpenCLIP's `best metric` and the like."""

AUTHORS_TOWER = "visual.latent_vit."
AUTHORS_SHAPE = (4, 64, 64)
AUTHORS_FACTOR = 0.13025
"""Of the SDXL VAE, by which the authors did not multiply."""


def import_checkpoint(config: ImportConfig) -> dict[str, Any]:
    """Writes a native folder with the foreign weights, every one of them accounted for."""
    architecture = architecture_of(config.model).untrained()
    spec = _spec(config.data, config.version)
    foreign = read_foreign(config.checkpoint)
    state = weights_of(foreign, config.checkpoint)
    is_authors = any(name.startswith(AUTHORS_TOWER) for name in state)
    if is_authors and (spec.scale != "raw" or spec.shape != AUTHORS_SHAPE):
        shape = "x".join(map(str, spec.shape))
        raise RequestError(
            f"{config.data}: {spec.scale} latents of {shape}; the authors' models read raw ones of 4x64x64"
        )
    state = rename(state)
    model = build_model(architecture, spec.shape[0], spec.shape[1], "siglip" if "logit_bias" in state else "clip")
    load_weights(model, state, str(config.checkpoint))
    epoch = foreign.get("epoch")
    content = {
        "epoch": int(epoch) if isinstance(epoch, int | np.integer) else 0,
        "name": Path(config.model).stem,
        "step": _steps(foreign),
        "state_dict": model.state_dict(),
        "spec": spec.to_dict(),
        "architecture": architecture.model_dump(mode="json"),
        "imported_from": config.checkpoint.name,
    }
    write_native(config.out, content, model, spec)
    told = {key: content[key] for key in ("epoch", "step")}
    result = {
        "out": str(config.out),
        "model": content["name"],
        **told,
        "weights": len(state),
        "load": f"checkpoint={config.out}",
    }
    if is_authors and spec.vae.scaling_factor != AUTHORS_FACTOR:
        result["warning"] = f"{spec.vae.name} is not the SDXL VAE, on whose latents the authors trained"
    return result


def read_foreign(path: Path) -> dict[str, Any]:
    """What a stranger's checkpoint holds; nothing in it can run, and what would is refused by name."""
    if not path.is_file():
        raise RequestError(f"{path}: no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            return {"state_dict": load_file(path)}
        with torch.serialization.safe_globals(SCALARS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # unpicklers fail in many ways
        found = re.search(r"GLOBAL (\S+)|[Uu]nsupported (?:class|operand|global) (\S+)", str(error))
        why = f"it asks for {found[1] or found[2]}" if found else type(error).__name__
        raise RequestError(f"{path}: not a checkpoint that can be read safely: {why}") from None
    if not isinstance(content, dict):
        raise RequestError(f"{path}: not a checkpoint: holds a {type(content).__name__}")
    return content if "state_dict" in content else {"state_dict": content}


def weights_of(foreign: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights in a stranger's checkpoint by their names, without the mark of its parallel training."""
    state = foreign["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise RequestError(f"{path}: not a checkpoint: no weights by their names in it")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names as OpenCLIP's, without the VAE that they kept inside the model."""
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("visual.vae_")}
    return {name.replace(AUTHORS_TOWER, "visual.", 1): tensor for name, tensor in kept.items()}


def _steps(foreign: Mapping[str, Any]) -> int:
    """How many steps the optimiser took, which only its own state tells; 0 if it is not there."""
    optimizer = foreign.get("optimizer")
    states = optimizer.get("state") if isinstance(optimizer, dict) else None
    if not isinstance(states, dict):
        return 0
    known = [state.get("step") for state in states.values() if isinstance(state, dict)]
    steps = [float(step) for step in known if isinstance(step, int | float | torch.Tensor)]
    return max((int(step) for step in steps if math.isfinite(step)), default=0)


def _spec(data: str, version: str | None) -> LatentSpec:
    if not data.endswith(".json"):
        return Store(data).version(version).spec
    path = Path(data)
    if not path.is_file():
        raise RequestError(f"{path}: no such spec")
    return LatentSpec.from_json(path.read_bytes(), data)
