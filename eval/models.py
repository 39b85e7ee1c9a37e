"""Every CLIP behind one door: `open_model(address)`."""

from __future__ import annotations

import difflib
from pathlib import Path

import open_clip

from encode_pipeline.latents.command import RequestError
from eval.baselines import baselines
from eval.clip import Clip, LatentClip, PixelClip
from eval.latent_models import open_checkpoint, open_export
from eval.open_clip_models import CONFIG, HUB, LOCAL, open_folder, open_from_hub, open_published, read_json
from eval.transformers_clip import open_transformers_clip

__all__ = ["Clip", "LatentClip", "PixelClip", "open_model"]


def open_model(address: str | Path) -> LatentClip | PixelClip:
    """The model at an address, on the GPU if there is one; `python -m eval models` lists what an address can be."""
    address = str(address)
    path = Path(address.removeprefix(LOCAL)).expanduser()
    if address.startswith(HUB):
        return open_from_hub(address)
    if path.is_dir():
        return _open_folder(path, address)
    if path.exists():
        return open_checkpoint(path, address)
    model, _, source = address.partition("/")
    if model in open_clip.list_models():
        if source:
            return open_published(model, source, address)
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise RequestError(f"{address}: which weights? Say {model}/TAG or {model}/FILE; its tags: {tags}")
    known = [*(baseline["open_clip"] for baseline in baselines()), *open_clip.list_models()]
    close = difflib.get_close_matches(address, known, n=1) or difflib.get_close_matches(model, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "`python -m eval models` lists what can stand here"
    raise RequestError(f"{address}: no such file or folder, and no model of OpenCLIP; {hint}")


def _open_folder(folder: Path, address: str) -> LatentClip | PixelClip:
    if (folder / CONFIG).is_file():
        return open_export(folder, address) if (folder / "spec.json").is_file() else open_folder(folder, address)
    if (folder / "config.json").is_file():
        kind = read_json(folder / "config.json").get("model_type")
        if kind != "clip":
            raise RequestError(f"{folder}/config.json: a model of type {kind}; of transformers' models only clip fits")
        return open_transformers_clip(folder, address)
    return open_checkpoint(folder, address)
