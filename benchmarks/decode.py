"""Compressed pictures into RGB on one core, and tars into samples: with every check, and by the libraries alone."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import webdataset as wds
from PIL import Image, ImageCms, ImageOps
from pydantic import Field
from torchvision.io import ImageReadMode, decode_image

from benchmarks import straightforward
from benchmarks.figures import Figure, Measured, under
from benchmarks.one_decode import good_samples
from benchmarks.paired import paired
from benchmarks.pictures import QUALITY, draw
from benchmarks.settings import BenchmarkConfig
from demo.image_tar import json_bytes, key_of, write_tar
from encode_pipeline.config import PositiveInt
from encode_pipeline.decode import decode
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.recipe import ViewRecipe
from encode_pipeline.records import Pixels, Rejected, Sample

OURS = "this pipeline, with every check"
SRGB = ImageCms.createProfile("sRGB")
TURNED = 6
"""The EXIF orientation of a picture that a phone took upright."""
Decoder = Callable[[bytes], Any]


class DecodeConfig(BenchmarkConfig):
    sides: list[PositiveInt] = Field([512, 1024, 2048], description="sides of the JPEGs")
    other_side: PositiveInt = Field(1024, description="side of the pictures in other formats")
    megapixels: PositiveInt = Field(6, description="of each kind in a turn: more small pictures than large ones")
    tar_samples: PositiveInt = Field(2000, description="samples in the tar that is read and not decoded")
    image_bytes: PositiveInt = Field(
        60_000, description="of a picture in that tar; LAION at 512 pixels has about so many"
    )


def measure(config: DecodeConfig) -> Measured:
    """Megapixels and samples a second of one core's time."""
    sides = {*config.sides, config.other_side}
    drawn = {side: list(draw(max(1, round(config.megapixels * 1e6 / side**2)), side, seed=2)) for side in sides}
    kinds = {
        **{f"JPEG, {side} pixels": [compressed(picture, "JPEG") for picture in drawn[side]] for side in config.sides},
        **{
            f"{name}, {config.other_side} pixels": [compressed(each, kind, **how) for each in drawn[config.other_side]]
            for name, kind, how in (
                ("progressive JPEG", "JPEG", {"progressive": True}),
                ("PNG", "PNG", {}),
                ("WebP", "WEBP", {"quality": QUALITY}),
            )
        },
    }
    figures: list[Figure] = []
    with straightforward.torch_threads(1):
        for name, files in kinds.items():
            figures += under(name, paired(turns(PLAIN, files), config.rounds, unit="megapixels", by="cpu"))
        name = f"JPEG with a profile and turned, {config.other_side} pixels"
        files = [compressed(each, "JPEG", **photographed()) for each in drawn[config.other_side]]
        figures += under(name, paired(turns(UPRIGHT, files), config.rounds, unit="megapixels", by="cpu"))
        with tempfile.TemporaryDirectory() as folder:
            tar = write_samples(Path(folder) / "00000.tar", config)
            figures += under("tar", paired(reading(tar), config.rounds, by="cpu"))
    sizes = {name: round(sum(map(len, files)) / len(files)) for name, files in kinds.items()}
    return Measured(tuple(figures), {"bytes_a_picture": sizes, "tar_samples": config.tar_samples})


def turns(decoders: dict[str, Decoder], files: Sequence[bytes]) -> dict[str, Callable[[], int]]:
    """A turn of each decoder over all the files: how many megapixels came of it."""

    def turn(decoder: Decoder) -> int:
        return max(1, round(sum(float(np.prod(decoder(data).shape)) for data in files) / 3e6))

    return {name: lambda decoder=decoder: turn(decoder) for name, decoder in decoders.items()}  # type: ignore[misc]


def compressed(picture: Pixels, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **({"quality": QUALITY} if kind == "JPEG" else {}), **how)
    return buffer.getvalue()


def photographed() -> dict[str, Any]:
    """What a camera adds to its pictures."""
    exif = Image.Exif()
    exif[0x0112] = TURNED
    return {"exif": exif, "icc_profile": ImageCms.ImageCmsProfile(SRGB).tobytes()}


# --- decoders ---------------------------------------------------------------------------------------


def by_pil(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def by_pil_upright(data: bytes) -> Pixels:
    """Turned upright and in sRGB, as Pillow's documentation does both."""
    with Image.open(io.BytesIO(data)) as image:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        shown = ImageCms.profileToProfile(ImageOps.exif_transpose(image), profile, SRGB, outputMode="RGB")
        assert shown is not None  # it is only when working in place
        return np.asarray(shown)


def by_opencv(data: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def by_torchvision(data: bytes) -> Any:
    return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


def by_ours(data: bytes) -> Pixels:
    pixels = decode(Sample("key", data, "caption", {}), ViewRecipe())
    if isinstance(pixels, Rejected):
        raise CheckFailed(f"{pixels.reason}: {pixels.detail}")
    return pixels


PLAIN: dict[str, Decoder] = {"PIL": by_pil, "OpenCV": by_opencv, "torchvision": by_torchvision, OURS: by_ours}
UPRIGHT: dict[str, Decoder] = {"PIL, its colours and turn": by_pil_upright, OURS: by_ours}


# --- tars -------------------------------------------------------------------------------------------


def write_samples(path: Path, config: DecodeConfig) -> Path:
    """A tar of pictures that nobody will decode, in img2dataset's layout."""
    noise = np.random.default_rng(0).bytes(2 * config.image_bytes)

    def members() -> Iterator[tuple[str, dict[str, bytes]]]:
        for number in range(config.tar_samples):
            key = key_of(0, number)
            about = {"url": f"https://pictures.example/{key}.jpg", "key": key, "width": 512, "height": 512}
            start = number * 97 % config.image_bytes
            image = noise[start : start + config.image_bytes]
            yield key, {"jpg": image, "txt": f"a caption of a dozen words, {key}".encode(), "json": json_bytes(about)}

    write_tar(path, members())
    return path


def reading(tar: Path) -> dict[str, Callable[[], int]]:
    """Ways of reading a tar into pictures still compressed, captions and records; each says how many samples."""

    def bytes_alone() -> int:
        with tar.open("rb") as file:
            while file.read(1 << 20):
                pass
        return samples

    ways = {
        "webdataset": lambda: sum(1 for _ in by_webdataset(tar)),
        "tarfile": lambda: sum(1 for _ in by_tarfile(tar)),
        OURS: lambda: sum(1 for _ in good_samples(tar)),
        "limit: the bytes alone": bytes_alone,
    }
    samples = ways[OURS]()
    return ways


def by_webdataset(tar: Path) -> Iterator[Any]:
    dataset = wds.WebDataset(str(tar), shardshuffle=False, empty_check=False)
    yield from dataset.map_dict(txt=bytes.decode, json=json.loads).to_tuple("__key__", "jpg", "txt", "json")


def by_tarfile(tar: Path) -> Iterator[Any]:
    """Python's own reader, members gathered by their key."""
    with tarfile.open(tar) as file:
        key, parts = "", dict[str, bytes]()
        for member in file:
            name, _, part = member.name.partition(".")
            if name != key and parts:
                yield key, parts["jpg"], parts["txt"].decode(), json.loads(parts["json"])
                parts = {}
            stream = file.extractfile(member)
            assert stream is not None
            key, parts[part] = name, stream.read()
        yield key, parts["jpg"], parts["txt"].decode(), json.loads(parts["json"])
