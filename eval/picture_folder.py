"""Pictures in a folder for each class, as ImageNet comes: `DIR/n01440764/ILSVRC2012_val_00000293.JPEG`."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.spec import digest
from encode_pipeline.read import IMAGE_PARTS
from eval.class_names import ClassList, imagenet_classes, imagenet_numbers, listed_classes, own_classes
from eval.picture_set import Part, Picture, PictureSet, part_sizes
from train.zero_shot import CLASSES_FILE

_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    """Relative to the root: `CLASS/NAME.jpg`."""
    label: int

    @property
    def key(self) -> str:
        return self.name.rpartition(".")[0]


def class_root(folder: Path) -> Path | None:
    """The folder with the class folders, `DIR/val` or `DIR` itself; None if there are no pictures in any."""
    for root in (folder / "val", folder):
        if root.is_dir() and any(_is_picture(entry.name) for name in _folders(root) for entry in _entries(root / name)):
            return root
    return None


def open_folder(address: str, root: Path, classes: Path | None) -> PictureSet:
    """The set of a root's class folders. What is no picture in one of them is an error, unless it is hidden."""
    for entry in _entries(root):
        if _is_picture(entry.name):
            raise RequestError(f"{entry.path}: a picture beside the class folders, and so of no class")
    folders = _folders(root)
    own = root if classes or (root / CLASSES_FILE).is_file() else Path(address)
    listed, labels = _labels(root, folders, listed_classes(classes, own))
    files = [file for folder in folders for file in _files_of(root, folder, labels[folder])]
    # By content, as of tars: pictures of one size and name, as uncompressed ones are, may be others.
    with ThreadPoolExecutor() as threads:
        hashes = list(threads.map(lambda file: _sha256(root / file.name), files))
    parts = [Part(f"{number:05d}", size) for number, size in enumerate(part_sizes(len(files)))]
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + part.size)
    stretches = {part.name: range(*ends) for part, ends in zip(parts, pairwise(ends), strict=True)}

    def read(part: Part) -> Iterator[Picture]:
        for number in stretches[part.name]:
            file = files[number]
            image = (root / file.name).read_bytes()
            if hashlib.sha256(image).hexdigest() != hashes[number]:
                raise CheckFailed(f"{root / file.name}: not the bytes that it had when it was listed")
            yield Picture(file.key, image, file.label, ())

    return PictureSet(
        address=address,
        layout="folder",
        names=listed.names,
        templates=listed.templates,
        identity=digest(
            [listed.names, [[file.name, sha256, file.label] for file, sha256 in zip(files, hashes, strict=True)]]
        ),
        parts=parts,
        no_label=None,
        no_caption=f"{address}: pictures in class folders have no captions",
        reader=read,
    )


def _labels(root: Path, folders: list[str], listed: ClassList | None) -> tuple[ClassList, dict[str, int]]:
    """The classes, and which one each folder is: by its WordNet id, or by its name, where _ may stand for a space."""
    if any(_WNID.fullmatch(folder) for folder in folders):
        numbers = imagenet_numbers()
        listed = listed or imagenet_classes()
        if len(listed.names) != len(numbers):
            raise RequestError(
                f"{listed.where}: {len(listed.names)} names; folders named by WordNet ids, as {root / folders[0]}, "
                f"are classes by their number among ImageNet's {len(numbers)}"
            )
        if strange := [folder for folder in folders if folder not in numbers]:
            raise RequestError(f"{root / strange[0]}: not the WordNet id of one of ImageNet's {len(numbers)} classes")
        return listed, {folder: numbers[folder] for folder in folders}
    spaced = {folder: folder.replace("_", " ") for folder in folders}
    listed = listed or own_classes([spaced[folder] for folder in folders])
    if repeated := [name for name, next_name in pairwise(sorted(listed.names)) if name == next_name]:
        raise RequestError(f"{root}: {repeated[0]!r} names two classes of {listed.where}, and folders say them by name")
    known = {name: number for number, name in enumerate(listed.names)}
    if strange := [folder for folder in folders if not {folder, spaced[folder]} & known.keys()]:
        raise RequestError(f"{root / strange[0]}: not a class of {listed.where}")
    labels = {folder: known[folder if folder in known else spaced[folder]] for folder in folders}
    if len(set(labels.values())) != len(labels):
        raise RequestError(f"{root}: two folders for one class of {listed.where}")
    return listed, labels


def _files_of(root: Path, folder: str, label: int) -> Iterator[_File]:
    """The pictures of a class, in order of name."""
    keys: set[str] = set()
    for entry in sorted(_entries(root / folder), key=lambda entry: entry.name):
        if entry.is_dir():
            raise RequestError(f"{entry.path}: a folder within a class folder")
        if not _is_picture(entry.name):
            raise RequestError(f"{entry.path}: not a picture by its ending; known are {', '.join(IMAGE_PARTS)}")
        file = _File(f"{folder}/{entry.name}", label)
        if file.key in keys:
            raise RequestError(f"{entry.path}: a second picture of the name {file.key}")
        keys.add(file.key)
        yield file
    if not keys:
        raise RequestError(f"{root / folder}: a class folder without a picture")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(root) if entry.is_dir())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as listing:
        return [entry for entry in listing if not entry.name.startswith(".")]


def _is_picture(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_PARTS and "." in name
