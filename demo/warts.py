"""Tars with the real web's warts, each planted on purpose, and what a reader must make of them."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo.image_tar import Members, json_bytes, key_of, metadata_of, sample_of, write_tar
from demo.scene import Picture, render

FIRST_WART_INDEX = 9000  # in a tar's keys: above every good picture's

Sample = tuple[str, Members]


@dataclass(frozen=True)
class WartPlan:
    """What a strict reader must find. A sample is a run of neighbouring members with one key.

    A repeated extension within a run begins a new sample; a key seen before in the tar is a duplicate.
    """

    samples: int
    expected_accepted: tuple[str, ...]  # keys, in the order of the tar
    expected_rejected: dict[str, int]  # reason -> samples
    planted: dict[str, str]  # wart -> key
    upright_sizes: dict[str, tuple[int, int]]  # key -> width, height once EXIF is obeyed

    def as_dict(self) -> dict[str, Any]:
        """The plan as it comes back from JSON: lists where there were tuples."""
        return dict(json.loads(json.dumps(asdict(self))))


# wart -> the reason a reader must give, or None where it must accept
WARTS: dict[str, str | None] = {
    "truncated_jpeg": "undecodable_image",
    "empty_image": "undecodable_image",
    "not_an_image": "undecodable_image",
    "tiny_image": "too_small",
    "no_caption": "missing_caption",
    "blank_caption": "missing_caption",
    "caption_not_utf8": "caption_not_utf8",
    "no_image": "missing_image",
    "broken_json": "bad_metadata",
    "escaping_key": "unsafe_key",
    "cmyk_jpeg": None,
    "gray_jpeg": None,
    "exif_rotated_jpeg": None,
    "rgba_png": None,
    "palette_png": None,
}


def write_warty_tar(path: Path, seed: int, good: int, shard: int = 0) -> WartPlan:
    """Writes `good` sound pictures with every wart among them; returns what a reader must find."""
    if not 1 <= good <= FIRST_WART_INDEX:
        raise ValueError(f"good must lie in 1..{FIRST_WART_INDEX}, got {good}")
    samples = []
    for index in range(good):
        key = key_of(shard, index)
        url = f"https://demo.invalid/train/{index:09d}.jpg"
        samples.append((key, sample_of(render(seed, "train", index), key, url)))
    mixed, plan = mix_in_warts(samples, seed, shard)
    write_tar(path, mixed)
    return plan


def mix_in_warts(sound: list[Sample], seed: int, shard: int) -> tuple[list[Sample], WartPlan]:
    """The sound samples with one of each wart at random places, and what a reader must find."""
    rng = np.random.default_rng([seed, shard, 11])
    mixed = list(sound)
    reason_of: dict[str, str | None] = {key: None for key, _ in sound}
    planted, sizes = {}, {}
    for number, (wart, reason) in enumerate(WARTS.items()):
        key = key_of(shard, FIRST_WART_INDEX + number)
        if wart == "escaping_key":
            key = f"../../{key}"
        picture = render(seed, "warts", shard * len(WARTS) + number)
        members, size = _plant(wart, picture, key)
        if size is not None:
            sizes[key] = size
        planted[wart] = key
        reason_of[key] = reason
        mixed.insert(int(rng.integers(len(mixed) + 1)), (key, members))

    rejected = Counter(reason for reason in reason_of.values() if reason)
    accepted = tuple(key for key, _ in mixed if reason_of[key] is None)
    # Duplicates last, so that nothing can come between the neighbours or move the far one near.
    original = next(sample for sample in mixed if sample[0] == sound[len(sound) // 2][0])
    mixed.insert(mixed.index(original) + 1, original)
    first = next(sample for sample in mixed if sample[0] == sound[0][0])
    mixed.append(first)
    rejected["duplicate_key"] += 2
    planted |= {"neighbouring_duplicate": original[0], "far_duplicate": first[0]}
    return mixed, WartPlan(len(mixed), accepted, dict(sorted(rejected.items())), planted, sizes)


def _plant(wart: str, picture: Picture, key: str) -> tuple[Members, tuple[int, int] | None]:
    """The members of one wart, and the upright size where its file says another."""
    members = sample_of(picture, key, f"https://demo.invalid/warts/{wart}.jpg")
    metadata = metadata_of(picture, key, f"https://demo.invalid/warts/{wart}.jpg")
    image = Image.fromarray(picture.image)
    if wart == "truncated_jpeg":
        members["jpg"] = members["jpg"][: len(members["jpg"]) // 2]
    elif wart == "empty_image":
        members["jpg"] = b""
    elif wart == "not_an_image":
        members["jpg"] = b"<!doctype html><title>403 Forbidden</title>" * 8
    elif wart == "tiny_image":
        members["jpg"] = _file_bytes(image.resize((16, 16)), "JPEG")
        members["json"] = json_bytes(metadata | {"width": 16, "height": 16})
    elif wart == "no_caption":
        del members["txt"]
        members["json"] = json_bytes({k: v for k, v in metadata.items() if k != "caption"})
    elif wart == "blank_caption":
        members["txt"] = b" \n\t"
        members["json"] = json_bytes(metadata | {"caption": ""})
    elif wart == "caption_not_utf8":
        members["txt"] = "une étoile".encode("latin-1")
        members["json"] = json_bytes(metadata | {"caption": None})
    elif wart == "no_image":
        del members["jpg"]
    elif wart == "broken_json":
        members["json"] = members["json"][: len(members["json"]) // 2]
    elif wart == "cmyk_jpeg":
        members["jpg"] = _file_bytes(image.convert("CMYK"), "JPEG")
    elif wart == "gray_jpeg":
        members = _gray(picture, image, metadata)
    elif wart == "exif_rotated_jpeg":
        members["jpg"] = _lying_on_its_side(image)
        return members, image.size
    elif wart == "rgba_png":
        translucent = image.convert("RGBA")
        translucent.putalpha(Image.linear_gradient("L").resize(image.size).point(lambda level: 128 + level // 2))
        members = {"png": _file_bytes(translucent, "PNG")} | _without_image(members)
    elif wart == "palette_png":
        members = {"png": _file_bytes(image.quantize(64), "PNG")} | _without_image(members)
    return members, None


def _gray(picture: Picture, image: Image.Image, metadata: dict[str, Any]) -> Members:
    """A one-channel picture whose caption claims no colour: a lie would teach a model nonsense."""
    caption = f"a black and white photo of a {picture.truth['shape']}"
    metadata |= {"caption": caption, "class_name": None}
    return {
        "jpg": _file_bytes(image.convert("L"), "JPEG"),
        "txt": caption.encode(),
        "json": json_bytes(metadata),
    }


def _lying_on_its_side(image: Image.Image) -> bytes:
    """A JPEG stored turned a quarter, with the EXIF note (6) that tells viewers to turn it back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", quality=92, exif=exif)
    return buffer.getvalue()


def _file_bytes(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def _without_image(members: Members) -> Members:
    return {extension: content for extension, content in members.items() if extension != "jpg"}
