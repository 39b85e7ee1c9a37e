"""The judges of pictures, small and with random weights, as `save_pretrained` leaves them; and pictures to judge."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from eval.benchmarks.detection import NAMES

COCO = {**{name: name for name in NAMES}, "computer mouse": "mouse", "tv remote": "remote"}
"""Two of the names that COCO itself has otherwise than GenEval."""


def small_detector(folder: Path, seed: int = 0, labels: Sequence[str] = tuple(COCO.values())) -> Path:
    """A Mask2Former that sees objects everywhere: the logits of its classes are stretched."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    torch.manual_seed(seed)
    backbone = SwinConfig(
        patch_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=12,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        model.class_predictor.weight *= 40
    model.save_pretrained(folder)
    return folder


WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "a", "an", "the", "and", "green", "blue", "red"),
    *("bench", "bowl", "square", "round", "apple", "?", ","),
)


def small_blip(folder: Path, seed: int = 0, words: Sequence[str] = WORDS) -> Path:
    """A BLIP that answers by chance, with a tokenizer of a few words."""
    from transformers import BertTokenizer, BlipConfig, BlipForQuestionAnswering

    torch.manual_seed(seed)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(words) + 2, "bos_token_id": len(words), "pad_token_id": 0, "sep_token_id": 3}
    vision = {**small, "image_size": 32, "patch_size": 8}
    config = BlipConfig(
        text_config={**text, "encoder_hidden_size": 16, "max_position_embeddings": 40}, vision_config=vision
    )
    model = BlipForQuestionAnswering(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    return folder


def aesthetic_state(widths: Sequence[int] = (16, 12, 8, 6, 4, 1), seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights under the names that LAION's file has."""
    torch.manual_seed(seed)
    places = zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False)
    return {
        f"layers.{place}.{kind}": value
        for place, inside, outside in places
        for kind, value in (("weight", torch.randn(outside, inside)), ("bias", torch.randn(outside)))
    }


def write_picture(path: Path, seed: int, size: tuple[int, int] = (64, 64)) -> Path:
    """Some blots of colour."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def geneval_folder(folder: Path, records: Sequence[Mapping[str, Any]], samples: int = 4) -> Path:
    """Pictures in GenEval's layout."""
    for number, record in enumerate(records):
        place = folder / f"{number:05d}"
        for sample in range(samples):
            write_picture(place / "samples" / f"{sample:05d}.png", 10 * number + sample)
        (place / "metadata.jsonl").write_text(json.dumps(record) + "\n")
    return folder


def compbench_folder(folder: Path, prompts: Mapping[str, Sequence[str]]) -> Path:
    """Pictures in T2I-CompBench's layout, ten of each prompt."""
    for category, texts in prompts.items():
        for number in range(10 * len(texts)):
            name = f"{texts[number // 10]}_{number:06d}.png"
            write_picture(folder / category / "samples" / name, number)
    return folder
