"""Pixels from numbers: six shapes in eight colours on muted, textured backgrounds."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Mask = NDArray[np.float32]

# No name starts with a vowel, so "a {c}" is right in every caption and every zero-shot prompt.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "yellow": (240, 210, 35),
    "green": (40, 165, 60),
    "cyan": (50, 205, 215),
    "blue": (40, 70, 215),
    "purple": (145, 50, 190),
    "white": (245, 245, 245),
    "black": (22, 22, 24),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
BACKGROUNDS: tuple[str, ...] = ("plain", "striped", "checked", "cloudy", "dotted")

SUBPIXEL_BITS = 4  # cv2 takes fixed-point corners: edges then move smoothly, not by whole pixels
RING_HOLE = 0.52


@dataclass(frozen=True)
class Placement:
    """One object as it is to be drawn: what, where (pixels), how large, how turned."""

    color: str
    shape: str
    center_x: float
    center_y: float
    radius: float
    rotation_degrees: float
    stretch: float  # width over height

    def box(self) -> list[int]:
        """The object's bounding box: left, top, right, bottom."""
        corners = np.concatenate(outlines(self))
        return [round(float(v)) for v in (*corners.min(axis=0), *corners.max(axis=0))]


def outlines(placement: Placement) -> list[NDArray[np.float64]]:
    """The polygons of an object, N×2 in pixels; a ring's second polygon is its hole."""
    angle = np.deg2rad(placement.rotation_degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    stretch = np.sqrt(placement.stretch)
    scale = placement.radius * np.array([stretch, 1 / stretch])
    center = np.array([placement.center_x, placement.center_y])
    return [(unit * scale) @ turn + center for unit in _unit_outlines(placement.shape)]


def _unit_outlines(shape: str) -> list[NDArray[np.float64]]:
    if shape == "circle":
        return [_regular_polygon(72)]
    if shape == "ring":
        return [_regular_polygon(72), _regular_polygon(72) * RING_HOLE]
    if shape == "square":
        return [_regular_polygon(4, start=45.0)]
    if shape == "triangle":
        return [_regular_polygon(3)]
    if shape == "star":
        points = np.empty((10, 2))
        points[0::2] = _regular_polygon(5)
        points[1::2] = _regular_polygon(5, start=36.0) * 0.40
        return [points]
    if shape == "cross":
        arm, end = 0.30, 0.95
        quarter = np.array([[arm, -end], [arm, -arm], [end, -arm]])
        turns = [np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) for a in np.arange(4) * np.pi / 2]
        return [np.concatenate([quarter @ turn for turn in turns])]
    raise ValueError(f"no shape called {shape!r}; there are {', '.join(SHAPES)}")


def _regular_polygon(corners: int, start: float = 0.0) -> NDArray[np.float64]:
    angles = np.deg2rad(start - 90.0) + np.arange(corners) * 2 * np.pi / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def draw_background(kind: str, width: int, height: int, rng: np.random.Generator) -> Pixels:
    """A muted texture of two related colours; never as bright, dark or saturated as an object."""
    first = rng.uniform(80, 165) + rng.uniform(-22, 22, 3)
    second = first + rng.choice([-1, 1]) * rng.uniform(14, 38) + rng.uniform(-10, 10, 3)
    pattern = _pattern(kind, width, height, rng)
    ramp = np.linspace(0.0, 1.0, 256)[:, None]
    palette = np.clip(first + ramp * (second - first), 60, 195).astype(np.uint8)
    return np.asarray(cv2.LUT(cv2.merge([pattern] * 3), palette[None]), dtype=np.uint8)


def _pattern(kind: str, width: int, height: int, rng: np.random.Generator) -> Pixels:
    if kind == "cloudy":
        cells = rng.integers(0, 256, (int(rng.integers(4, 10)), int(rng.integers(4, 10))), dtype=np.uint8)
        return np.asarray(cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    x = np.arange(width, dtype=np.float32)[None]
    y = np.arange(height, dtype=np.float32)[:, None]
    angle = rng.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    if kind == "plain":
        slope = x / width * cos + y / height * sin
        return np.asarray((slope - slope.min()) * (255 / (np.ptp(slope) + 1e-6)), dtype=np.uint8)
    pitch = np.float32(rng.uniform(36, 90))
    along, across = (x * cos + y * sin) / pitch, (y * cos - x * sin) / pitch
    if kind == "striped":
        wave = np.sin(along * np.float32(2 * np.pi))
    elif kind == "checked":
        wave = np.sin(along * np.float32(np.pi)) * np.sin(across * np.float32(np.pi))
    elif kind == "dotted":
        wave = np.cos(along * np.float32(2 * np.pi)) + np.cos(across * np.float32(2 * np.pi)) - np.float32(0.9)
    else:
        raise ValueError(f"no background called {kind!r}; there are {', '.join(BACKGROUNDS)}")
    edge = np.float32(rng.uniform(2, 10))
    return np.asarray(np.clip(wave * edge + 0.5, 0, 1) * 255, dtype=np.uint8)


def draw_object(pixels: Pixels, placement: Placement, rng: np.random.Generator) -> None:
    """Paint one object and its soft shadow into `pixels`."""
    polygons = outlines(placement)
    height, width = pixels.shape[:2]
    reach = placement.radius * 0.22
    corners = polygons[0]
    left, top = np.maximum(np.floor(corners.min(axis=0) - reach), 0).astype(int)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0) + reach), (width, height)).astype(int)
    region = pixels[top:bottom, left:right]
    coverage = _coverage([p - (left, top) for p in polygons], region.shape[1], region.shape[0])

    shadow = _shadow(coverage, offset=rng.uniform(-0.08, 0.08, 2) * placement.radius, blur=reach / 3)
    canvas = region.astype(np.float32) * (1 - np.float32(rng.uniform(0, 0.45)) * shadow)[..., None]

    color = np.clip(np.array(COLORS[placement.color]) + rng.uniform(-14, 14, 3), 0, 255)
    paint = color.astype(np.float32) * _shading(region.shape[1], region.shape[0], rng)
    if rng.random() < 0.4:
        _draw_rim(paint, [p - (left, top) for p in polygons], color, placement.radius, rng)
    canvas += coverage[..., None] * (paint - canvas)
    region[:] = np.clip(canvas, 0, 255)


def _fixed_point(polygons: list[NDArray[np.float64]]) -> list[NDArray[np.int32]]:
    return [np.round(p * (1 << SUBPIXEL_BITS)).astype(np.int32) for p in polygons]


def _coverage(polygons: list[NDArray[np.float64]], width: int, height: int) -> Mask:
    mask = np.zeros((height, width), np.uint8)
    for polygon, value in zip(_fixed_point(polygons), (255, 0), strict=False):  # the second one is a hole
        cv2.fillPoly(mask, [polygon], value, lineType=cv2.LINE_AA, shift=SUBPIXEL_BITS)
    return np.asarray(mask / np.float32(255), dtype=np.float32)


def _shadow(coverage: Mask, offset: NDArray[np.float64], blur: float) -> Mask:
    height, width = coverage.shape
    small = cv2.resize(coverage, (max(width // 4, 1), max(height // 4, 1)), interpolation=cv2.INTER_AREA)
    move = np.array([[1, 0, offset[0] / 4], [0, 1, offset[1] / 4]])
    small = cv2.warpAffine(small, move, (small.shape[1], small.shape[0]))
    small = cv2.GaussianBlur(small, (0, 0), max(blur / 4, 0.5))
    return np.asarray(cv2.resize(small, (width, height)), dtype=np.float32)


def _shading(width: int, height: int, rng: np.random.Generator) -> Mask:
    """Light that falls off across the object: H×W×1, around 1."""
    slope_x, slope_y = rng.uniform(-0.13, 0.13, 2)
    x = np.linspace(-slope_x, slope_x, width, dtype=np.float32)[None]
    y = np.linspace(-slope_y, slope_y, height, dtype=np.float32)[:, None]
    return np.asarray((1 + x + y)[..., None], dtype=np.float32)


def _draw_rim(
    paint: NDArray[np.float32],
    polygons: list[NDArray[np.float64]],
    color: NDArray[np.float64],
    radius: float,
    rng: np.random.Generator,
) -> None:
    rim = tuple(float(v) for v in color * rng.uniform(0.55, 0.8))
    thickness = max(2, round(radius * rng.uniform(0.04, 0.10)))
    # Drawn into the paint and not into the picture: the rim is inside the silhouette and keeps its shape.
    fixed = _fixed_point(polygons)
    cv2.polylines(paint, fixed, True, rim, thickness, lineType=cv2.LINE_8, shift=SUBPIXEL_BITS)


def add_grain(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """The picture with grey sensor noise of about `strength` levels."""
    height, width = pixels.shape[:2]
    grain = rng.standard_normal((height, width), dtype=np.float32) * np.float32(strength)
    grain_rgb = cv2.merge([grain.astype(np.int16)] * 3)
    return np.asarray(cv2.add(pixels, grain_rgb, dtype=cv2.CV_8U), dtype=np.uint8)
