"""A data set of pictures by its address: which layout it has is looked up, and what fits none is refused."""

from __future__ import annotations

from pathlib import Path

from encode_pipeline.latents.command import RequestError
from eval.picture_folder import class_root, open_folder
from eval.picture_set import Part, Picture, PictureSet
from eval.picture_tars import open_tars, open_wds, split_of

__all__ = ["Part", "Picture", "PictureSet", "open_pictures"]

LAYOUTS = (
    "test/nshards.txt (a data set of CLIP_benchmark), tars whose samples have class_name in their .json, "
    "or pictures in a folder for each class, CLASS/*.jpg or val/CLASS/*.jpg"
)


def open_pictures(data: str, classes: Path | None = None) -> PictureSet:
    """The set at an address. `classes`, a folder with a class list and prompts, takes the place of the set's own."""
    address = data.removeprefix("file://").rstrip("/")
    is_remote = "://" in address
    if not is_remote:
        address = str(Path(address).expanduser())
    folder = Path(address)
    if not folder.is_dir() and (address.endswith(".tar") or any(letter in address for letter in "*{")):
        return open_tars(address, classes)
    if split := split_of(address):
        return open_wds(address, *split, classes)
    if is_remote or not folder.is_dir():
        raise RequestError(f"{data}: no picture set there; looked for {LAYOUTS}")
    root = class_root(folder)
    if any(folder.glob("*.tar")):
        if root is not None:
            raise RequestError(f"{data}: both tars and class folders; name one of them")
        return open_tars(address, classes)
    if root is None:
        raise RequestError(f"{data}: pictures in no known layout; looked for {LAYOUTS}")
    return open_folder(address, root, classes)
