"""Image tars in the layout of img2dataset, the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from demo.drawing import Pixels
from demo.scene import Picture

Members = dict[str, bytes]  # extension -> bytes, in the order they are written


def key_of(shard: int, index: int) -> str:
    """The key img2dataset would give: shard number and index within it."""
    return f"{shard:05d}{index:04d}"


def jpeg_bytes(pixels: Pixels, quality: int = 92) -> bytes:
    """An H×W×3 RGB picture as a JPEG file."""
    encoded, buffer = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise ValueError(f"no JPEG could be made of an array of shape {pixels.shape}")
    return buffer.tobytes()


def json_bytes(metadata: dict[str, Any]) -> bytes:
    """Metadata as the bytes of its .json member."""
    return json.dumps(metadata, ensure_ascii=False).encode()


def metadata_of(picture: Picture, key: str, url: str) -> dict[str, Any]:
    """The .json member of a picture: img2dataset's fields, and the truth."""
    height, width = picture.image.shape[:2]
    # Any number in LAION's usual range will do, as long as the same picture gets the same one.
    similarity = 0.28 + 0.14 * (int(picture.image[::37, ::37].sum(dtype=np.int64)) % 997) / 997
    return {
        "url": url,
        "caption": picture.caption,
        "width": width,
        "height": height,
        "similarity": round(similarity, 6),
        "key": key,
        "status": "success",
        "class_name": picture.truth["class_name"],
        "truth": picture.truth,
    }


def sample_of(picture: Picture, key: str, url: str) -> Members:
    """A picture as the members of its sample."""
    return {
        "jpg": jpeg_bytes(picture.image),
        "txt": picture.caption.encode(),
        "json": json_bytes(metadata_of(picture, key, url)),
    }


def write_tar(path: Path, samples: Iterable[tuple[str, Members]]) -> str:
    """Writes the samples in order, whole or not at all; returns the sha256 of the file."""
    unfinished = path.with_name(path.name + ".unfinished")
    with tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            for extension, content in members.items():
                # A bare TarInfo has mtime 0, owner 0 and no names: nothing of this machine gets in.
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    unfinished.replace(path)
    return sha256_of(path)


def sha256_of(path: Path) -> str:
    """The file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
