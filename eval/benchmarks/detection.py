"""The objects in a picture: transformers' Mask2Former, asked and read as mmdet does for GenEval.

Transformers' own way reads pictures and masks at 384 pixels; here a picture is 800 pixels high, as mmdet has it, and
its masks are the picture's own size. Published weights are Meta's, where GenEval has mmdet's of the same design.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from encode_pipeline.latents.command import RequestError
from eval.benchmarks.geneval_rules import THRESHOLD, Found
from eval.benchmarks.judges import Judge, open_judge

SHORT, LONG, STEP = 800, 1333, 32
"""Sides of a picture as the detector sees it, and what they are made a multiple of, by black below and to the right."""
MEAN, SPREAD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
MOST = 100
"""Objects in a picture."""
CLASSES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign parking_meter "
    "bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee "
    "skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle wine_glass "
    "cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch "
    "potted_plant bed dining_table toilet tv laptop computer_mouse tv_remote computer_keyboard cell_phone microwave "
    "oven toaster sink refrigerator book clock vase scissors teddy_bear hair_drier toothbrush"
)
NAMES = tuple(name.replace("_", " ") for name in CLASSES.split())
"""COCO's 80 classes in their order, as GenEval's prompts call them."""
NOT_MMDET = "objects found by transformers' Mask2Former, whose weights are not those of mmdet that GenEval's scorer has"


@dataclass(frozen=True)
class Detector:
    """A Mask2Former that was taught COCO's objects."""

    judge: Judge

    def objects(self, picture: Image.Image) -> dict[str, list[Found]]:
        """All that it takes for an object and that might count, by class, the surest first."""
        pixels_hwc = torch.from_numpy(np.array(picture.convert("RGB"))).to(self.judge.device)
        own_height, own_width, _ = pixels_hwc.shape
        seen_bchw, height, width = prepared(pixels_hwc)
        output = self.judge.model(pixel_values=seen_bchw)
        masks_qhw = F.interpolate(
            output.masks_queries_logits.float(), size=seen_bchw.shape[2:], mode="bilinear", align_corners=False
        )[0, :, :height, :width]
        return instances(output.class_queries_logits[0].float(), masks_qhw, (own_height, own_width))


def open_detector(address: str) -> Detector:
    """The detector at an address; refuses one of other classes."""
    judge = open_judge("Mask2FormerForUniversalSegmentation", address)
    labels = [str(name) for _, name in sorted(judge.model.config.id2label.items())]
    shared = set(labels) & set(NAMES)
    strange = next((name for name in shared if labels.index(name) != NAMES.index(name)), None)
    if len(labels) != len(NAMES) or len(shared) < len(NAMES) // 2 or strange:
        odd = f"{strange!r} is not where COCO has it" if strange else f"{len(shared)} of {len(labels)} are COCO's 80"
        raise RequestError(f"{address}: not a detector of COCO's classes: {odd}")
    judge.not_comparable.append(NOT_MMDET)
    return Detector(judge)


def prepared(pixels_hwc: Tensor) -> tuple[Tensor, int, int]:
    """A picture as the detector reads it, and how much of it is picture: its height and width."""
    height, width = pixels_hwc.shape[:2]
    scale = min(LONG / max(height, width), SHORT / min(height, width))
    high, wide = int(height * scale + 0.5), int(width * scale + 0.5)
    pixels_bchw = pixels_hwc.permute(2, 0, 1)[None].float()
    sized = F.interpolate(pixels_bchw, size=(high, wide), mode="bilinear", align_corners=False).round()
    mean, spread = (sized.new_tensor(value).reshape(1, 3, 1, 1) for value in (MEAN, SPREAD))
    return F.pad((sized - mean) / spread, (0, -wide % STEP, 0, -high % STEP)), high, wide


def instances(classes_qc: Tensor, masks_qhw: Tensor, size: tuple[int, int]) -> dict[str, list[Found]]:
    """Objects by class from what each query says: logits of its classes, the last of which is none, and of its mask.

    A score is the class's probability times the mean probability of the pixels in the mask. A query may stand for
    several classes; of the hundred surest pairs those that might count are objects.
    """
    chances = classes_qc.softmax(dim=-1)[:, :-1]
    surest, places = chances.flatten().topk(min(MOST, chances.numel()))
    found: dict[str, list[Found]] = {}
    for chance, place in zip(surest.tolist(), places.tolist(), strict=True):
        if chance <= THRESHOLD:  # and so never an object that counts, for masks only take away
            break
        query, number = divmod(place, chances.shape[1])
        logits_hw = F.interpolate(masks_qhw[query][None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        mask_hw = logits_hw > 0
        if mask_hw.any():
            score = chance * logits_hw[mask_hw].sigmoid().mean().item()
            box = (*_ends(mask_hw.any(dim=0)), *_ends(mask_hw.any(dim=1)))
            left, right, top, bottom = box
            found.setdefault(NAMES[number], []).append(Found(score, (left, top, right, bottom), mask_hw.cpu().numpy()))
    return {name: sorted(objects, key=lambda one: one.score, reverse=True) for name, objects in found.items()}


def _ends(line: Tensor) -> tuple[float, float]:
    """Where the first true value is, and where the last one ends."""
    places = line.nonzero()
    return float(places[0].item()), float(places[-1].item() + 1)
