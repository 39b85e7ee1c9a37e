"""A CLIP of the transformers library, in OpenCLIP's manner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from encode_pipeline.latents.command import RequestError
from eval.clip import Loaded, PixelClip
from train.model import NO_CODE

POSITIONS = (".position_ids", ".relative_position_index")
"""What is counted and not learned, which old versions of transformers kept with the weights."""


class Towers(nn.Module):
    """A `CLIPModel` behind the two methods that OpenCLIP's models have."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip
        self.logit_scale = clip.logit_scale

    def encode_image(self, images_bchw: Tensor, normalize: bool = False) -> Tensor:
        return _features(self.clip.get_image_features(pixel_values=images_bchw), normalize)

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        return _features(self.clip.get_text_features(input_ids=tokens), normalize)

    @property
    def visual(self) -> Any:
        return self.clip.vision_model

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As OpenCLIP's. The library does it only while training, which without dropout is the same computation."""
        if self.clip.config.vision_config.attention_dropout:
            return
        (self.clip.gradient_checkpointing_enable if enable else self.clip.gradient_checkpointing_disable)()
        self.clip.vision_model.train(enable)


def _features(output: Any, normalize: bool) -> Tensor:
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return F.normalize(features, dim=-1) if normalize else features


def open_transformers_clip(folder: Path, address: str) -> PixelClip:
    """A folder as `save_pretrained` leaves it: model, preprocessing and tokenizer."""
    try:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
        from transformers.utils import logging
    except ImportError:
        raise RequestError(f"{address}: needs `pip install transformers`") from None
    for name in ("model.safetensors", "preprocessor_config.json"):
        if not any(folder.glob(f"{name}*")):  # a large model has an index and many files of weights
            raise RequestError(f"{folder / name}: no such file, and a transformers CLIP needs it")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        clip, found = CLIPModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, **NO_CODE)
        words = AutoTokenizer.from_pretrained(folder, local_files_only=True, **NO_CODE)
    except Exception as error:  # configs and weights of strangers fail in many ways
        told = " ".join(str(error).split())
        raise RequestError(f"{folder}: cannot be opened: {type(error).__name__}: {told}") from None
    check_weights(found, str(folder))
    text = clip.config.text_config
    if len(words) != text.vocab_size:  # without its files, the library makes a tokenizer of two words
        raise RequestError(f"{folder}: its tokenizer knows {len(words):,} words, its text tower {text.vocab_size:,}")

    def tokenize(texts: list[str]) -> Tensor:
        length = text.max_position_embeddings
        tokens: Tensor = words(
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids
        return tokens

    def prepare(picture: Image.Image) -> Tensor:
        pixels: Tensor = processor(images=picture, return_tensors="pt")["pixel_values"][0]
        return pixels

    size = clip.config.vision_config.image_size
    made = tuple(prepare(Image.new("RGB", (size + 8, size + 16))).shape)
    if made != (3, size, size):
        told = "x".join(map(str, made))
        raise RequestError(
            f"{folder}/preprocessor_config.json: makes {told} of a picture, the model reads 3x{size}x{size}"
        )
    provenance = {"kind": "transformers", "preprocessing": processor.to_dict()}
    reasons = ["weights of a local folder, not one of OpenCLIP's published"]
    image_side = [*clip.vision_model.parameters(), *clip.visual_projection.parameters()]
    image_parameters = sum(parameter.numel() for parameter in image_side)
    name = folder.resolve().name
    return PixelClip(Loaded(name, address, Towers(clip), tokenize, image_parameters, provenance, reasons), prepare)


def check_weights(found: Any, where: str) -> None:
    """Refuses a model of transformers to which not every weight was given, and to which others were."""
    odd = [f"{name} is missing" for name in sorted(found["missing_keys"])]
    odd += [f"{name} is unexpected" for name in sorted(found["unexpected_keys"]) if not name.endswith(POSITIONS)]
    odd += [f"{name} is {tuple(theirs)}, not {tuple(ours)}" for name, theirs, ours in sorted(found["mismatched_keys"])]
    if odd or found["error_msgs"]:
        told = ", ".join([*odd, *found["error_msgs"]][:4])
        raise RequestError(f"{where}: missing or unexpected weights: {told}")
