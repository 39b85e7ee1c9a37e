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

from demo.drawing import Pixels

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
