"""albumentations' colour jitter, its draws as they are, applied in half the time and without rounding hues."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from encode_pipeline.records import Pixels

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or it asks the network for its newest version
import albumentations as A
import cv2
from albumentations.augmentations.pixel import functional

SMALL_TURN = 1 / 12
"""Hues turned by no more than this stay within the next sector of the colour circle, where `turn_hue` is exact."""
GREY = np.array([0.299, 0.587, 0.114])
"""Brightness of red, green and blue."""


class Jitter(A.ColorJitter):
    """Brightness, contrast, saturation and hue in the drawn order, rounded to 8 bits after each as by torchvision."""

    def apply(
        self, img: Pixels, brightness: float, contrast: float, saturation: float, hue: float, order: list[int], **_: Any
    ) -> Pixels:
        for number in order:
            if number == 0:
                img = functional.adjust_brightness_torchvision(img, brightness)
            elif number == 1:
                img = _contrast(img, contrast)
            elif number == 2:
                img = _saturation(img, saturation)
            else:
                img = turn_hue(img, hue)
        return img


def turn_hue(pixels: Pixels, turn: float) -> Pixels:
    """Colours turned around the colour circle; brightest and darkest of each pixel's channels stay what they are.

    Within half a step of exact arithmetic, where a way over 8-bit HSV is off by up to 12 and knows 180 hues.
    """
    if abs(turn) > SMALL_TURN:
        return np.asarray(functional.adjust_hue_torchvision(pixels, turn))
    # Of a pixel's channels one is at the top, one at the bottom, and the third moves in between by `way`. Where it
    # would go beyond, another takes its place and the rest of the way. Subtraction stops at 0, so that no case
    # needs asking for: a channel falls by what its neighbour goes too far, and rises by what is left of the way.
    planes = cv2.split(pixels)
    top = cv2.max(cv2.max(planes[0], planes[1]), planes[2])
    low = cv2.min(cv2.min(planes[0], planes[1]), planes[2])
    way = cv2.convertScaleAbs(cv2.subtract(top, low), alpha=abs(6 * turn))
    turned = []
    for number, plane in enumerate(planes):
        neighbour = planes[(number + (1 if turn > 0 else -1)) % 3]
        falls = cv2.subtract(way, cv2.subtract(top, neighbour))
        rises = cv2.subtract(way, cv2.subtract(neighbour, low))
        fallen = cv2.max(cv2.subtract(plane, falls), low)
        turned.append(cv2.min(cv2.add(fallen, rises), top))
    return np.asarray(cv2.merge(turned))


def _contrast(pixels: Pixels, factor: float) -> Pixels:
    mean = cv2.mean(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[0]
    return np.asarray(functional.multiply_add(pixels, factor, mean * (1 - factor), inplace=False))


def _saturation(pixels: Pixels, factor: float) -> Pixels:
    return np.asarray(cv2.transform(pixels, factor * np.eye(3) + (1 - factor) * GREY))
