"""Pictures in class folders: ImageNet's and others; whatever does not fit into them is named."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest

from encode_pipeline.latents.command import CheckFailed, RequestError
from eval.pictures import open_pictures
from tests.picture_sets import all_of, class_list, fails, picture, write


def test_class_folders(tmp_path: Path) -> None:
    files = {"hot_dog/b.png": picture(1), "bird/a.JPEG": picture(2), "bird/.DS_Store": b"x", "cat/x.webp": picture(3)}
    root = write(tmp_path / "set", {**files, ".git/x.png": b"x", "notes.md": "x"})
    pictures = open_pictures(str(root))
    assert (pictures.layout, pictures.names) == ("folder", ["bird", "cat", "hot dog"])
    assert len(pictures.templates) == 7 and len(pictures) == 3
    expected = [("bird/a", picture(2), 0), ("cat/x", picture(3), 1), ("hot_dog/b", picture(1), 2)]
    assert [(found.key, found.image, found.label) for found in all_of(pictures)] == expected
    write(root, class_list())
    assert [found.label for found in all_of(open_pictures(str(root)))] == [2, 0, 1]
    with pytest.raises(RequestError, match="/set: pictures in class folders have no captions"):
        pictures.require_captions()


def test_imagenet_folders_are_numbered_by_their_word_net_ids(tmp_path: Path) -> None:
    wnids = {"n01440764": 0, "n02123045": 281, "n15075141": 999}
    root = write(tmp_path, {f"val/{wnid}/ILSVRC2012_val_{n:08d}.JPEG": picture(n) for wnid, n in wnids.items()})
    write(root, {"train/n01440764/x.JPEG": b"x"})
    pictures = open_pictures(str(root))
    assert pictures.names == [*open_clip.IMAGENET_CLASSNAMES] and len(pictures.templates) == 80
    assert pictures.templates[0] == "a bad photo of a {c}."
    found = all_of(pictures)
    assert [picture.label for picture in found] == [0, 281, 999] and pictures.names[281] == "tabby cat"
    assert found[1].key == "n02123045/ILSVRC2012_val_00000281"
    assert [picture.label for picture in all_of(open_pictures(str(root / "val")))] == [0, 281, 999]
    listed = write(tmp_path / "list", class_list(tuple(f"class {number}" for number in range(1000))))
    assert open_pictures(str(root), listed).names[281] == "class 281"
    short = write(tmp_path / "short", class_list())
    fails(
        root, f"{short}/classnames.txt: 3 names; folders named by WordNet ids, as {root}/val/n01440764,", classes=short
    )
    write(root, {"val/n00000001/x.JPEG": picture(5)})
    fails(root, f"{root}/val/n00000001: not the WordNet id of one of ImageNet's 1000 classes")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"cat/notes.txt": b"x"}, "cat/notes.txt: not a picture by its ending; known are jpg,"),
        ({"cat/picture": b"x"}, "cat/picture: not a picture by its ending"),
        ({"cat/more/b.png": b"x"}, "cat/more: a folder within a class folder"),
        ({"cat/a.jpg": b"x"}, "cat/a.png: a second picture of the name cat/a"),
        ({"b.png": b"x"}, "b.png: a picture beside the class folders, and so of no class"),
        ({"cow/a.png": b"x"}, "cow: not a class of "),
        ({"hot_dog/a.png": b"x", "hot dog/a.png": b"x"}, ": two folders for one class of "),
        ({"empty/.keep": b""}, "empty: not a class of "),
    ],
)
def test_what_does_not_fit_into_class_folders_is_named(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    root = write(tmp_path, {"cat/a.png": picture(0), **files, **class_list()})
    fails(root, f"{root}{message}" if message.startswith(":") else f"{root}/{message}")


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    root = write(tmp_path, {"cat/a.png": picture(0), "dog/.keep": b""})
    fails(root, f"{root}/dog: a class folder without a picture")


def test_a_picture_that_changes_after_the_listing_is_named(tmp_path: Path) -> None:
    root = write(tmp_path, {"cat/a.png": picture(0)})
    pictures = open_pictures(str(root))
    (root / "cat" / "a.png").write_bytes(b"x")
    with pytest.raises(CheckFailed, match=r"cat/a\.png: not the bytes that it had when it was listed"):
        all_of(pictures)
