"""Small picture sets on disk, in each layout that evaluation reads."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encode_pipeline.latents.command import RequestError
from eval.pictures import Picture, PictureSet, open_pictures
from tests.tars import tar_of

Members = list[tuple[str, bytes]]
CLASSES = ("cat", "hot dog", "bird")


def picture(number: int, size: tuple[int, int] = (48, 40), format: str = "PNG") -> bytes:
    """A picture of noise, another one for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def write(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """A folder with these files in it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def class_list(names: tuple[str, ...] = CLASSES) -> dict[str, str]:
    """The two files of a class list."""
    text = "".join(f"{name}\n" for name in names)
    return {"classnames.txt": text, "zeroshot_classification_templates.txt": "a photo of a {c}.\na {c}\n"}


def numbered(label: int | str, key: str, number: int = 0) -> Members:
    """A sample of CLIP_benchmark's classification sets."""
    return [(f"{key}.cls", str(label).encode()), (f"{key}.png", picture(number))]


def captioned(captions: str, key: str, number: int = 0) -> Members:
    """A sample of CLIP_benchmark's retrieval sets."""
    return [(f"{key}.png", picture(number)), (f"{key}.txt", captions.encode())]


def named(name: str, key: str, number: int = 0) -> Members:
    """A sample that says its class by name."""
    return [(f"{key}.jpg", picture(number)), (f"{key}.json", json.dumps({"class_name": name}).encode())]


def wds(folder: Path, *tars: Members, classes: tuple[str, ...] = CLASSES) -> Path:
    """A data set of CLIP_benchmark."""
    files: dict[str, bytes | str] = {"test/nshards.txt": str(len(tars))}
    files |= {f"test/{number}.tar": tar_of(members) for number, members in enumerate(tars)}
    return write(folder, files | (class_list(classes) if classes else {}))


def all_of(pictures: PictureSet) -> list[Picture]:
    """The pictures of every part, in order."""
    return [picture for part in pictures.parts for picture in pictures.read(part)]


def fails(data: str | Path, message: str, kind: type[Exception] = RequestError, classes: Path | None = None) -> None:
    """What is wrong with a set is told in one line, at the latest when it is read."""
    with pytest.raises(kind, match=f"^{re.escape(str(message))}") as caught:
        all_of(open_pictures(str(data), classes))
    assert "\n" not in str(caught.value)
