"""The demo's world: the same bytes every time, balanced, truthful; its warts are those of the plan."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from demo.drawing import COLORS
from demo.warts import WARTS, write_warty_tar
from demo.world import CLASS_NAMES, TEMPLATES_ZERO_SHOT, WorldSpec, render, write_world

TINY = WorldSpec(seed=3, train_pictures=24, test_pictures=48, pictures_per_tar=24)


def members_of(path: Path) -> list[tuple[str, str, bytes]]:
    """(key, extension, content) of each member, split as WebDataset splits a name."""
    found = []
    with tarfile.open(path) as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            file = tar.extractfile(member)
            assert file is not None
            found.append((f"{folder}/{stem}" if folder else stem, extension, file.read()))
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    write_world(out, TINY)
    return out


def test_the_same_spec_gives_the_same_bytes(world: Path, tmp_path: Path) -> None:
    again = write_world(tmp_path, TINY)
    assert again.tars == json.loads((world / "world.json").read_text())["tars"]
    for name in again.tars:
        assert (tmp_path / name).read_bytes() == (world / name).read_bytes()


def test_a_finished_world_is_not_written_again_and_another_is_refused(world: Path) -> None:
    before = (world / "train" / "00000.tar").stat().st_mtime_ns
    assert write_world(world, TINY).spec == TINY
    assert (world / "train" / "00000.tar").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds another world"):
        write_world(world, WorldSpec(seed=4))


def test_an_interrupted_world_is_finished(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path, TINY)
    record = json.loads((tmp_path / "world.json").read_text())
    (tmp_path / "world.json").unlink()
    (tmp_path / "test" / "00001.tar").unlink()
    (tmp_path / "world.begun.json").write_text(json.dumps({"spec": record["spec"]}))
    assert write_world(tmp_path, TINY).tars == record["tars"]
    assert not (tmp_path / "world.begun.json").exists()


def test_bad_specs_are_refused_at_birth() -> None:
    for wrong in ({"test_pictures": 50}, {"seed": -1}, {"pictures_per_tar": 0}, {"two_object_share": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            WorldSpec(**wrong)


def test_tars_are_in_the_layout_of_img2dataset(world: Path) -> None:
    members = members_of(world / "train" / "00000.tar")
    assert [extension for _, extension, _ in members[:3]] == ["jpg", "txt", "json"]
    for index in range(24):
        (key, _, jpg), (_, _, txt), (_, _, raw) = members[3 * index : 3 * index + 3]
        metadata = json.loads(raw)
        assert key == metadata["key"] == f"00000{index:04d}"
        assert Image.open(io.BytesIO(jpg)).size == (metadata["width"], metadata["height"])
        assert metadata["caption"] == txt.decode()
        assert metadata["status"] == "success" and 0.2 < metadata["similarity"] < 0.5
        assert metadata["url"] == f"https://demo.invalid/train/{index:09d}.jpg"
        assert metadata["class_name"] == metadata["truth"]["class_name"]
    assert (world / "test" / "classnames.txt").read_text().split("\n")[:-1] == list(CLASS_NAMES)
    templates = (world / "test" / "zeroshot_classification_templates.txt").read_text().splitlines()
    assert templates == TEMPLATES_ZERO_SHOT and all("{c}" in template for template in templates)


def test_every_class_comes_as_often() -> None:
    names = [render(0, "test", index).truth["class_name"] for index in range(96)]
    assert names != sorted(names)
    assert Counter(names) == dict.fromkeys(CLASS_NAMES, 2)
    trained = Counter(render(0, "train", index).truth["class_name"] for index in range(113))
    assert trained.pop(None) == 16  # 15 % of 113 show two objects
    assert set(trained) == set(CLASS_NAMES) and max(trained.values()) - min(trained.values()) <= 1


def test_captions_tell_the_truth_in_many_words() -> None:
    captions = []
    for index in range(80):
        picture = render(0, "train", index)
        captions.append(picture.caption)
        objects = picture.truth["objects"]
        assert all(thing["class_name"] in picture.caption for thing in objects)
        assert sum(picture.caption.count(name) for name in CLASS_NAMES) == len(objects)
        height, width = picture.image.shape[:2]
        for thing in objects:
            left, top, right, bottom = thing["box"]
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
        if picture.truth["relation"] is not None:
            axis = {"left of": 0, "above": 1}[picture.truth["relation"]]
            assert objects[0]["box"][axis + 2] <= objects[1]["box"][axis]
            assert picture.caption.index(objects[0]["class_name"]) <= picture.caption.rindex(objects[1]["class_name"])
    assert len(set(captions)) > 70


def test_objects_have_the_colour_their_caption_says() -> None:
    for index in range(48):
        picture = render(0, "test", index)
        left, top, right, bottom = picture.truth["objects"][0]["box"]
        across = picture.image[(top + bottom) // 2, left:right].astype(int)
        nearest = {color: np.abs(across - rgb).sum(axis=1).min() for color, rgb in COLORS.items()}
        assert min(nearest, key=lambda color: nearest[color]) == picture.truth["color"]


def test_splits_seeds_and_pictures_differ() -> None:
    pictures = [render(0, "train", 0), render(0, "test", 0), render(1, "train", 0), render(0, "train", 1)]
    for one, other in itertools.combinations(pictures, 2):
        assert one.image.shape != other.image.shape or (one.image != other.image).mean() > 0.5
    assert min(min(picture.image.shape[:2]) for picture in pictures) >= 512


def test_the_plan_says_what_is_in_a_warty_tar(tmp_path: Path) -> None:
    path = tmp_path / "00007.tar"
    plan = write_warty_tar(path, seed=5, good=6, shard=7)
    samples: list[tuple[str, dict[str, bytes]]] = []
    for key, extension, content in members_of(path):
        if not samples or samples[-1][0] != key or extension in samples[-1][1]:
            samples.append((key, {}))
        samples[-1][1][extension] = content

    assert plan.samples == len(samples) == 6 + len(WARTS) + 2
    assert plan.samples == len(plan.expected_accepted) + sum(plan.expected_rejected.values())
    accepted: list[str] = []
    rejected: Counter[str] = Counter()
    seen: set[str] = set()
    for key, members in samples:
        reason = why_rejected(key, members, seen)
        seen.add(key)
        if reason is None:
            accepted.append(key)
        else:
            rejected[reason] += 1
    assert tuple(accepted) == plan.expected_accepted
    assert rejected == plan.expected_rejected
    assert write_warty_tar(tmp_path / "again.tar", seed=5, good=6, shard=7) == plan
    assert (tmp_path / "again.tar").read_bytes() == path.read_bytes()

    modes = {}
    for key, members in samples:
        if key in plan.expected_accepted:
            image = Image.open(io.BytesIO(members.get("jpg") or members["png"]))
            modes[key] = image.mode
            if key in plan.upright_sizes:
                assert image.getexif()[0x0112] == 6
                assert ImageOps.exif_transpose(image).size == plan.upright_sizes[key]
    wanted = {"cmyk_jpeg": "CMYK", "gray_jpeg": "L", "rgba_png": "RGBA", "palette_png": "P"}
    assert {wart: modes[plan.planted[wart]] for wart in wanted} == wanted


def why_rejected(key: str, members: dict[str, bytes], seen: set[str]) -> str | None:
    """A strict reader in small, written from the table of reasons and not from the generator."""
    image = members.get("jpg", members.get("png"))
    if ".." in key:
        return "unsafe_key"
    if key in seen:
        return "duplicate_key"
    if image is None:
        return "missing_image"
    try:
        if not members.get("txt", b"").decode().strip():
            return "missing_caption"
    except UnicodeDecodeError:
        return "caption_not_utf8"
    try:
        json.loads(members["json"])
    except ValueError:
        return "bad_metadata"
    try:
        size = Image.open(io.BytesIO(image)).convert("RGB").size
    except OSError:
        return "undecodable_image"
    return "too_small" if min(size) < 64 else None


def test_warts_mix_into_a_world_and_are_recorded(tmp_path: Path) -> None:
    spec = WorldSpec(train_pictures=5, test_pictures=0, pictures_per_tar=3, warts=True)
    summary = write_world(tmp_path, spec)
    assert write_world(tmp_path, spec) == summary
    assert set(summary.warts) == {"train/00000.tar", "train/00001.tar"}
    recorded = json.loads((tmp_path / "world.json").read_text())["warts"]
    for name, plan in recorded.items():
        groups = [key for key, _ in itertools.groupby(members_of(tmp_path / name), key=lambda m: m[0])]
        assert plan["samples"] == len(groups) + 1  # groupby cannot tell the neighbouring duplicate
        assert plan == summary.warts[name]
