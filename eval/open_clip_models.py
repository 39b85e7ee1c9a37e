"""OpenCLIP's models: published weights, local files, folders, and those on the hub.

OpenCLIP itself makes up for what a file lacks: it begins a missing bias with zeros, stretches position embeddings of
another size, and takes any weights that lie in a folder. Here every weight is accounted for.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn

from encode_pipeline.latents.command import RequestError, nearest
from eval.clip import Loaded, PixelClip
from train.import_checkpoint import read_foreign, weights_of
from train.model import NO_CODE, load_weights, parameter_counts

CONFIG = HF_CONFIG_NAME
HUB = "hf-hub:"
LOCAL = "local-dir:"
"""How OpenCLIP marks a folder."""
POSITIONS = "text.transformer.embeddings.position_ids"
"""0, 1, 2, …, which old versions of transformers kept with the weights."""


def open_published(model: str, source: str, address: str) -> PixelClip:
    """`MODEL/TAG`, or `MODEL/FILE` if there is such a file."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    known: dict[str, Any] = get_pretrained_cfg(model, source)
    if not known:
        file = Path(source).expanduser()
        if not file.is_file():
            its = nearest(source, tags) if tags else ", which has none"
            raise RequestError(f"{address}: {source} is no file, and no tag of {model}{its}")
        loaded = _load(model, file, address)
        origin = {"model": model, "file": file.name}
        reasons = ["weights of a local file, not one of OpenCLIP's published"]
        return _pixel_clip(*loaded, address, f"{model}/{file.name}", origin, reasons)
    # Of ViT-B-16-plus-240/laion400m_e32 the list gives the hub repository of its neighbour laion400m_e31.
    hub, others = known.get("hf_hub", ""), (tag for tag in tags if tag != source)
    is_neighbours = source not in hub and any(tag in hub for tag in others)
    with _told(address):
        weights = Path(download_pretrained(known, prefer_hf_hub=not (known.get("url") and is_neighbours)))
    loaded = _load(
        model,
        weights,
        address,
        force_quick_gelu=bool(known.get("quick_gelu")),  # of ViT-B-32/openai only the tag says so
        force_preprocess_cfg=known,
    )
    return _pixel_clip(*loaded, address, address, {"model": model, "tag": source}, [])


def open_from_hub(address: str) -> PixelClip:
    """`hf-hub:ORG/NAME`."""
    name = address.removeprefix(HUB)
    with _told(address):
        weights = Path(download_pretrained_from_hf(name))
    homes = {get_pretrained_cfg(model, tag).get("hf_hub", "").rstrip("/") for model, tag in open_clip.list_pretrained()}
    reasons = [] if name in homes else [f"{name} is none of OpenCLIP's published models"]
    return _pixel_clip(*_load(address, weights, address), address, name, {"hub": name}, reasons)


def open_folder(folder: Path, address: str) -> PixelClip:
    """A folder as OpenCLIP's own export leaves it."""
    model, tokenizer, weights = load_folder(folder)
    reasons = ["weights of a local folder, not one of OpenCLIP's published"]
    return _pixel_clip(model, tokenizer, address, folder.resolve().name, {"file": weights.name}, reasons)


def load_folder(folder: Path, **changes: Any) -> tuple[Any, Any, Path]:
    """The model and the tokenizer in a folder with open_clip_config.json, and which file the weights were in."""
    weights = _weights_in(folder)
    return *_load(f"{LOCAL}{folder}", weights, str(folder), **changes), weights


def _weights_in(folder: Path) -> Path:
    preferred = [folder / name for name in (HF_SAFE_WEIGHTS_NAME, "open_clip_model.safetensors", HF_WEIGHTS_NAME)]
    found = [path for path in preferred if path.is_file()]
    if not found:
        found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth", ".pt"))
        if len(found) != 1:
            several = f"several: {', '.join(path.name for path in found)}" if found else "none"
            raise RequestError(f"{folder}: which weights? There are {several}; OpenCLIP's are {HF_SAFE_WEIGHTS_NAME}")
    return found[0]


def _pixel_clip(
    model: Any, tokenizer: Any, address: str, name: str, origin: dict[str, Any], reasons: list[str]
) -> PixelClip:
    channels = next(module.in_channels for module in model.visual.modules() if isinstance(module, nn.Conv2d))
    if channels != 3:
        raise RequestError(
            f"{address}: reads {channels} channels, no pictures; a model of latents is a folder with spec.json"
        )
    preparation = PreprocessCfg(**model.visual.preprocess_cfg)
    provenance = {"kind": "open_clip", **origin, "preprocessing": vars(preparation)}
    image_parameters = parameter_counts(model)["image"]
    loaded = Loaded(name, address, model, tokenizer, image_parameters, provenance, reasons)
    return PixelClip(loaded, image_transform_v2(preparation, is_train=False))


def _load(architecture: str, weights: Path, told: str, **settings: Any) -> tuple[Any, Any]:
    """OpenCLIP's model with exactly these weights, and its tokenizer."""
    with _told(told), _without_alarm():
        model = open_clip.create_model(architecture, load_weights=False, pretrained_text=False, **settings)
        tokenizer = _tokenizer(architecture)
    state = weights_of(read_foreign(weights), weights)
    with _told(told):
        state = _in_todays_names(state, model)
    load_weights(model, state, str(weights))
    return model, tokenizer


def _tokenizer(architecture: str) -> Any:
    """The model's tokenizer. Code that a folder or a hub has for one is not run, whatever their config asks for."""
    config = {}
    if architecture.startswith(HUB):
        config = read_json(Path(download_pretrained_from_hf(architecture.removeprefix(HUB), filename=CONFIG)))
    elif architecture.startswith(LOCAL):
        config = read_json(Path(architecture.removeprefix(LOCAL)) / CONFIG)
    text = config.get("model_cfg", {}).get("text_cfg", {})
    return open_clip.get_tokenizer(architecture, **NO_CODE if text.get("hf_tokenizer_name") else {})


def _in_todays_names(state: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """As OpenCLIP renames what older versions of it and Apple's MobileCLIP wrote; nothing is made up."""
    state = dict(convert_state_dict(model, state))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    own = model.state_dict()
    for name in ("logit_scale", "logit_bias"):  # a number, or a list of one
        if name in state and name in own and state[name].numel() == 1:
            state[name] = state[name].reshape(own[name].shape)
    if POSITIONS not in own:
        state.pop(POSITIONS, None)
    return state


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: no JSON: {error}") from None
    if not isinstance(content, dict):
        raise RequestError(f"{path}: a {type(content).__name__} where an object should be")
    return content


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Makes one line of what goes wrong: hubs, configs and libraries that are not there fail in many ways."""
    try:
        yield
    except (RequestError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        told = " ".join(str(error).split())
        raise RequestError(f"{address}: cannot be opened: {type(error).__name__}: {told}") from None


@contextmanager
def _without_alarm() -> Iterator[None]:
    """Keeps OpenCLIP from warning of random weights, which are on their way."""

    def is_news(record: logging.LogRecord) -> bool:
        return "initialized randomly" not in record.getMessage()

    logging.getLogger().addFilter(is_news)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(is_news)
