"""Image tars to measure on: pictures with the spectrum of photographs, as hard to decode as those."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from demo.drawing import Pixels
from demo.image_tar import Members, jpeg_bytes, json_bytes, key_of, write_tar

QUALITY = 90
SHAPES = 12
FALL = 1.25
"""Power of frequency by which amplitude falls: 1 to 1.4 in photographs; this gives the usual 300 KB at 1024 pixels."""
SPREAD = 52.0
"""Of brightness, in steps of 255: about that of a photograph."""


@dataclass(frozen=True)
class PictureSet:
    """How many pictures of what size. The same set has the same bytes."""

    tars: int
    pictures_per_tar: int
    side: int = 1024
    distinct: int = 48
    """Pictures drawn; beyond these they come again under other keys, which no decoder can tell."""
    seed: int = 0


def write_tars(folder: Path, pictures: PictureSet) -> list[Path]:
    """The tars of a set, in img2dataset's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    count = min(pictures.distinct, pictures.tars * pictures.pictures_per_tar)
    drawn = [jpeg_bytes(picture, QUALITY) for picture in draw(count, pictures.side, pictures.seed)]
    endless = cycle(drawn)
    paths = []
    for number in range(pictures.tars):
        path = folder / f"{number:05d}.tar"
        write_tar(path, _samples(number, islice(endless, pictures.pictures_per_tar), pictures.side))
        paths.append(path)
    return paths


def _samples(tar: int, jpegs: Iterator[bytes], side: int) -> Iterator[tuple[str, Members]]:
    for index, jpeg in enumerate(jpegs):
        key = key_of(tar, index)
        about = {"url": f"https://pictures.example/{key}.jpg", "key": key, "width": side, "height": side}
        yield (
            key,
            {"jpg": jpeg, "txt": f"a picture of about the usual detail, {key}".encode(), "json": json_bytes(about)},
        )


def draw(count: int, side: int, seed: int) -> Iterator[Pixels]:
    """Pictures of 1/f noise, as photographs have, with sharp-edged shapes upon it."""
    rng = np.random.default_rng(seed)
    field = _noise(rng, 2 * side)  # drawn once: every picture is another window of it, in other colours
    for _ in range(count):
        planes = [_window(rng, field, side) for _ in range(3)]
        brightness, warmth, tint = planes[0] * SPREAD, planes[1] * SPREAD / 4, planes[2] * SPREAD / 4
        light = rng.uniform(90, 165)
        rgb = np.stack([brightness + warmth, brightness + tint, brightness - warmth], axis=2) + light
        picture = np.clip(rgb, 0, 255).astype(np.uint8)
        for _ in range(SHAPES):
            centre, axes = rng.integers(0, side, 2).tolist(), rng.integers(side // 40, side // 6, 2).tolist()
            colour = rng.integers(0, 256, 3).tolist()
            shape = picture.copy()
            cv2.ellipse(shape, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
            cv2.addWeighted(shape, 0.6, picture, 0.4, 0, dst=picture)  # texture shows through, as it does on things
        yield picture


def _noise(rng: np.random.Generator, side: int) -> npt.NDArray[np.float32]:
    """Periodic noise whose amplitude falls with frequency, of mean 0 and spread 1."""
    across, down = np.fft.rfftfreq(side), np.fft.fftfreq(side)
    frequency = np.hypot(across[None, :], down[:, None])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / frequency**FALL
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(side, side))
    return np.asarray(field / field.std(), dtype=np.float32)


def _window(rng: np.random.Generator, field: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    top, left = rng.integers(0, field.shape[0] - side, 2)
    window = field[top : top + side, left : left + side]
    return window[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
