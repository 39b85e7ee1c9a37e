"""A picture set as a latent store: every picture whatever its shape, once for each VAE, by any number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import LatentSpec, SpecError
from encode_pipeline.latents.store import Version
from encode_pipeline.run import load
from eval.encoded import Damaged, damaged, encoded
from eval.picture_set import PictureSet
from eval.pictures import open_pictures
from tests.conftest import SIDE, build_vae, payload_hashes
from tests.picture_sets import captioned, class_list, numbered, picture, wds, write
from tests.test_boundaries import ROOT
from tests.test_train_ranks import torchrun

HOW = {"batch_size": 8, "threads": 2}


def spec_of(vae: str | Path, **changes: object) -> LatentSpec:
    """The spec of a model that was trained on latents of a VAE."""
    values = {"vae": str(vae), "source": "none", "store": "none", "image_size": SIDE, "views": 4, "seed": 5}
    return load(EncodeConfig(**{**values, **changes}))[1]


@pytest.fixture(scope="session")
def model_spec(small_vae: Path) -> LatentSpec:
    return spec_of(small_vae)


@pytest.fixture
def pictures(tmp_path: Path) -> PictureSet:
    """Five pictures of three classes, in two tars."""
    first = [member for number in range(3) for member in numbered(number, f"s{number}", number)]
    return open_pictures(str(wds(tmp_path / "cars", first, numbered(2, "s3", 3) + numbered(2, "s4", 4))))


def samples(version: Version, tmp_path: Path) -> dict[str, dict[str, object]]:
    """What the store says of every sample, by its key."""
    found = {}
    for row in version.manifest().to_pylist():
        with ShardCache(version, tmp_path / "copies").open(row) as shard:
            found.update({key: shard.metadata(index)["metadata"] for index, key in enumerate(shard.keys)})
    return found


def attempts(version: Version) -> dict[str, str]:
    return {commit.shard: commit.attempt for commit in version.commits()}


def test_pictures_become_a_sealed_store_with_their_labels(
    pictures: PictureSet, model_spec: LatentSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = encoded(pictures, model_spec, None, tmp_path / "cache", how=HOW)
    assert version.sealed and version.spec.views == 1
    spec = version.spec
    assert (spec.vae, spec.shape, spec.image_size) == (model_spec.vae, model_spec.shape, SIDE)
    assert (spec.scale, spec.posterior) == (model_spec.scale, model_spec.posterior)
    assert sum(row["samples"] for row in version.manifest().to_pylist()) == len(pictures) == 5
    about = samples(version, tmp_path)
    assert about["s1"] == {"key": "s1", "captions": [], "label": 1, "class_name": "hot dog"}
    assert [about[f"s{number}"]["label"] for number in range(5)] == [0, 1, 2, 2, 2]
    assert damaged(version, pictures) == []
    folder = tmp_path / "cache" / f"cars-{pictures.identity[:16]}" / version.fingerprint
    assert str(folder) == version.storage.url() and not (folder / "source").exists(), "the copies are gone"
    said = capsys.readouterr().err
    assert (
        f"cars: 5 pictures to latents of {model_spec.vae.name}\n" in said and "shard 2/2  5 encoded, 0 rejected" in said
    )


def test_the_second_model_of_a_vae_costs_nothing(
    pictures: PictureSet, small_vae: Path, model_spec: LatentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encoded(pictures, model_spec, None, tmp_path, how=HOW)
    done = attempts(first)
    other_model = spec_of(small_vae, views=2, seed=9, recipe="open-clip", caption_field="alt")
    moved = other_model.model_copy(update={"vae": other_model.vae.model_copy(update={"name": "/gone"})})
    monkeypatch.setattr("eval.encoded.load_vae", lambda name: pytest.fail("loads the VAE again"))
    for spec in (model_spec, other_model, moved):
        again = encoded(pictures, spec, None, tmp_path)
        assert again.fingerprint == first.fingerprint and attempts(again) == done
    monkeypatch.undo()
    for spec in (spec_of(small_vae, posterior="mean"), spec_of(small_vae, scale="model"), spec_of("pixels")):
        other = encoded(pictures, spec, None, tmp_path, how=HOW)
        assert (other.spec.posterior, other.spec.scale, other.spec.vae) == (spec.posterior, spec.scale, spec.vae)
        assert other.fingerprint != first.fingerprint and attempts(other) != done
    assert attempts(first) == done


def test_another_vae_gets_a_version_of_its_own_and_never_the_models(
    pictures: PictureSet, small_vae: Path, model_spec: LatentSpec, tmp_path: Path
) -> None:
    other = build_vae(tmp_path / "other", seed=1)
    message = rf"^vae: {other}: other weights \(\w{{12}}\) than the VAE of the model, {small_vae} \(\w{{12}}\)$"
    with pytest.raises(SpecError, match=message):
        encoded(pictures, model_spec, str(other), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    one = encoded(pictures, model_spec, str(small_vae), tmp_path / "cache", how=HOW)
    two = encoded(pictures, spec_of(other), None, tmp_path / "cache", how=HOW)
    assert one.fingerprint != two.fingerprint
    gone = model_spec.model_copy(update={"vae": model_spec.vae.model_copy(update={"name": "/nowhere/vae"})})
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(
        RequestError, match=r"/nowhere/vae: no such directory; say with vae= where the VAE of the model"
    ):
        encoded(pictures, gone, None, elsewhere)
    assert encoded(pictures, gone, str(small_vae), elsewhere, how=HOW).fingerprint == one.fingerprint


def test_pictures_of_any_shape_are_encoded(model_spec: LatentSpec, tmp_path: Path) -> None:
    """In training those that are tiny or very long are left out; of an evaluation nothing may be."""
    sizes = {"dot": (1, 1), "tiny": (20, 31), "line": (1200, 3), "pillar": (40, 900)}
    files = {f"cat/{name}.png": picture(0, size) for name, size in sizes.items()}
    pictures = open_pictures(str(write(tmp_path / "set", {**files, "cat/photo.jpg": picture(1, (600, 400), "JPEG")})))
    version = encoded(pictures, model_spec, None, tmp_path / "cache", how=HOW)
    assert sorted(samples(version, tmp_path)) == sorted([*(f"cat/{name}" for name in sizes), "cat/photo"])


def test_what_cannot_be_encoded_is_named(model_spec: LatentSpec, tmp_path: Path) -> None:
    dotted = "img.0001.v2"
    root = write(
        tmp_path / "set",
        {
            "bird/empty.png": b"",
            "bird/good.png": picture(0),
            "cat/broken.jpg": b"no picture",
            f"cat/{dotted}.png": picture(1),
            f"cat/{dotted}-broken.png": picture(2)[:300],
            f"cat/{'long' * 30}.png": picture(3),
        },
    )
    pictures = open_pictures(str(root))
    version = encoded(pictures, model_spec, None, tmp_path / "cache", how=HOW)
    about = samples(version, tmp_path)
    assert {str(record["key"]) for record in about.values()} == {"bird/good", f"cat/{dotted}", f"cat/{'long' * 30}"}
    assert "bird/good" in about and "00000/000004" in about, "a name that no tar can have is a number"
    (shard,) = attempts(version)
    found = damaged(version, pictures)
    assert [(one.key, one.label) for one in found] == [
        ("bird/empty", 0),
        ("cat/broken", 1),
        (f"cat/{dotted}-broken", 1),
    ]
    assert found[0] == Damaged(shard, "bird/empty", 0, (), "undecodable_image: zero bytes")
    assert len(found) + len(about) == len(pictures) == 6


def test_captions_come_along(model_spec: LatentSpec, tmp_path: Path) -> None:
    root = wds(tmp_path / "set", captioned("a cat\nit sits", "s0"), classes=())
    version = encoded(open_pictures(str(root)), model_spec, None, tmp_path / "cache", how=HOW)
    assert samples(version, tmp_path) == {"s0": {"key": "s0", "captions": ["a cat", "it sits"]}}
    bare = wds(tmp_path / "bare", [("s0.png", picture(0))], classes=())
    with pytest.raises(RequestError, match=r"bare/test/0\.tar: s0: no caption"):
        encoded(open_pictures(str(bare)), model_spec, None, tmp_path / "cache")


def test_a_set_that_has_changed_is_another_one(pictures: PictureSet, model_spec: LatentSpec, tmp_path: Path) -> None:
    before = encoded(pictures, model_spec, None, tmp_path / "cache", how=HOW)
    write(Path(pictures.address), class_list(("cat", "sausage", "bird")))
    after = encoded(open_pictures(pictures.address), model_spec, None, tmp_path / "cache", how=HOW)
    assert after.storage.url() != before.storage.url()
    assert samples(after, tmp_path)["s1"]["class_name"] == "sausage"


def test_nothing_is_encoded_where_the_settings_are_wrong(
    pictures: PictureSet, model_spec: LatentSpec, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="unknown key 'batchsize'; did you mean 'batch_size'"):
        encoded(pictures, model_spec, None, tmp_path / "cache", how={"batchsize": 8})
    (Path(pictures.address) / "test" / "0.tar").unlink()
    with pytest.raises(OSError, match=r"0\.tar"):
        encoded(pictures, model_spec, None, tmp_path / "cache", how=HOW)
    assert not list(tmp_path.glob("cache/*/*/source/*")), "no half copy is left"


PROGRAM = """
import sys
from pathlib import Path
from encode_pipeline.latents.spec import LatentSpec
from eval.encoded import encoded
from eval.pictures import open_pictures
from train.distributed import ranks_of_torchrun

data, spec, cache, out = sys.argv[1:]
spec = LatentSpec.from_json(Path(spec).read_bytes(), spec)
with ranks_of_torchrun() as ranks:
    version = encoded(open_pictures(data), spec, None, Path(cache), ranks, {"batch_size": 8, "threads": 2})
    Path(out, f"rank{ranks.rank}").write_text(version.storage.url())
"""


@pytest.fixture
def program(pictures: PictureSet, model_spec: LatentSpec, tmp_path: Path) -> list[str]:
    """The words that encode the pictures into `tmp_path/cache`, after the interpreter's name."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "spec.json").write_bytes(model_spec.to_json())
    return [
        str(tmp_path / "program.py"),
        pictures.address,
        *(str(tmp_path / name) for name in ("spec.json", "cache", "")),
    ]


def start(program: list[str], **trap: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LATENTS_FAILPOINTS": json.dumps([trap])}
    return subprocess.Popen([sys.executable, *program], env=environment, cwd=ROOT)


def test_processes_share_the_work(
    program: list[str], pictures: PictureSet, model_spec: LatentSpec, tmp_path: Path
) -> None:
    """And what they make is what one makes, wherever its cache is."""
    done = torchrun(2, *program, timeout=900)
    assert done.returncode == 0, done.stderr
    urls = {(tmp_path / f"rank{rank}").read_text() for rank in range(2)}
    assert len(urls) == 1 and "5 pictures to latents" in done.stderr
    together = encoded(pictures, model_spec, None, tmp_path / "cache")
    alone = encoded(pictures, model_spec, None, tmp_path / "elsewhere", how=HOW)
    assert {together.storage.url()} == urls and together.storage.url() != alone.storage.url()
    assert len(attempts(together)) == 2 and payload_hashes(together) == payload_hashes(alone)


def test_killed_and_called_again(
    program: list[str], pictures: PictureSet, model_spec: LatentSpec, tmp_path: Path
) -> None:
    process = start(program, at="before-commit", do="hold", shard="00001*", marks=str(tmp_path))
    while not (commits := list(tmp_path.glob("cache/*/*/commits/*.json"))):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    (commit,), (folder,) = commits, tmp_path.glob("cache/*/*/source")
    before = commit.read_bytes()
    assert len([*folder.glob("*.tar")]) == 2
    version = encoded(pictures, model_spec, None, tmp_path / "cache", how=HOW)
    assert not folder.exists() and len(attempts(version)) == 2
    assert commit.read_bytes() == before, "what was done before stays"
    undisturbed = encoded(pictures, model_spec, None, tmp_path / "elsewhere", how=HOW)
    assert payload_hashes(version) == payload_hashes(undisturbed)


def test_a_second_command_may_be_the_first_to_end(
    program: list[str], pictures: PictureSet, model_spec: LatentSpec, tmp_path: Path
) -> None:
    """The slower one finds the tars gone, and the work done."""
    process = start(program, at="before-read", do="hold", times=2, marks=str(tmp_path))
    while not (tmp_path / "before-read-1").exists():
        assert process.poll() is None
        time.sleep(0.01)
    version = encoded(pictures, model_spec, None, tmp_path / "cache", how=HOW)
    done = attempts(version)
    (tmp_path / "release").touch()
    assert process.wait() == 0
    assert (tmp_path / "rank0").read_text() == version.storage.url() and attempts(version) == done
