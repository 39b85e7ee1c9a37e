"""What the CPU benchmarks compare does the same work, at sizes where their times mean nothing."""

from __future__ import annotations

import io
import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch

from benchmarks import augment, commit, decode, driver, resume, writer
from benchmarks.figures import Figure
from benchmarks.object_store import ObjectStore, kind_of, object_store
from benchmarks.one_decode import good_samples
from benchmarks.pictures import draw
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.storage import Storage
from encode_pipeline.latents.store import Store
from encode_pipeline.recipe import ViewRecipe
from encode_pipeline.transforms import build_steps, seed_steps
from tests.conftest import SIDE
from tests.test_benchmarks import contents

SMALL = augment.AugmentConfig(rounds=2, pictures=2, width=160, height=120, image_size=SIDE)


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


def of_part(figures: tuple[Figure, ...], part: str) -> list[str]:
    return [figure.name.removeprefix(f"{part}: ") for figure in figures if figure.name.startswith(f"{part}: ")]


# --- the server that counts ---------------------------------------------------------------------------


def test_requests_are_counted_by_kind(store: ObjectStore) -> None:
    storage = Storage(store.bucket())
    assert store.asked_by(lambda: storage.create("folder/one", b"content")) == {
        "PUT if none is there": 1,
        "HEAD": 1,
        "GET": 1,
    }
    assert store.asked_by(lambda: storage.create("folder/one", b"other")) == {"PUT if none is there": 1, "HEAD": 1}
    assert store.asked_by(lambda: storage.replace("two", b"content"))["PUT"] == 1
    assert store.asked_by(lambda: list(storage.names("folder"))) == {"LIST": 1}
    assert store.asked_by(lambda: storage.read("two"))["GET"] == 1 and store.asked_by(lambda: None) == Counter()


@pytest.mark.parametrize(
    ("method", "query", "kind"),
    [
        ("PUT", "partNumber=3&uploadId=abc", "PUT of a part"),
        ("POST", "uploads", "POST to begin an upload"),
        ("POST", "uploadId=abc", "POST to end an upload"),
        ("POST", "delete", "POST to delete"),
        ("DELETE", "", "DELETE"),
    ],
)
def test_requests_of_uploads_in_parts_are_told_apart(method: str, query: str, kind: str) -> None:
    assert kind_of({"REQUEST_METHOD": method, "QUERY_STRING": query, "PATH_INFO": "/bucket/key"}) == kind


def test_the_server_ends_with_its_block_and_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with object_store() as store:
        assert os.environ["AWS_ENDPOINT_URL"] == store.endpoint
    assert os.environ["AWS_ACCESS_KEY_ID"] == "somebody" and "AWS_ENDPOINT_URL" not in os.environ
    address = urlsplit(store.endpoint)
    assert address.hostname and address.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.hostname, address.port), timeout=5)


# --- writer and commit --------------------------------------------------------------------------------


def test_writers_write_the_same_samples(tmp_path: Path) -> None:
    samples = writer.latent_samples(5)
    ours = contents(writer.ours(samples, tmp_path / "ours.tar"))
    writer.write_by_webdataset(samples, tmp_path / "webdataset.tar")
    writer.write_by_torch(samples, tmp_path / "torch.tar")
    theirs, by_torch = contents(tmp_path / "webdataset.tar"), contents(tmp_path / "torch.tar")
    assert list(ours) == list(theirs) == list(by_torch) == [sample.key for sample in samples]
    for key, parts in ours.items():
        assert parts["npy"] == theirs[key]["npy"] and parts["txt"] == theirs[key]["txt"] == by_torch[key]["txt"]
        assert np.array_equal(torch.load(io.BytesIO(by_torch[key]["latent.pt"])), np.load(io.BytesIO(parts["npy"])))
        record = json.loads(parts["json"])
        assert record.pop("spec") == writer.spec_of(views=1).fingerprint
        assert record == json.loads(theirs[key]["json"]) == json.loads(by_torch[key]["json"])


def test_writer_benchmark_names_its_ways() -> None:
    figures = writer.measure(writer.WriterConfig(rounds=2, samples=3)).figures
    assert [figure.name for figure in figures] == [
        "webdataset",
        "webdataset, a torch.save a sample",
        "webdataset, then fsync and sha256",
        "this pipeline, with fsync and sha256",
        "limit: the bytes and fsync",
        "limit: sha256",
    ]
    assert all(figure.against == "webdataset" and len(figure.rounds) == 2 for figure in figures)


def test_every_way_brings_the_same_shard_to_the_store(tmp_path: Path) -> None:
    views = [writer.latent_samples(4, view) for view in range(2)]
    shards = commit.Shards(tmp_path / "scratch", str(tmp_path / "place"), views)
    ways = shards.ways()
    put = {}
    for name in (commit.PUT, commit.CAREFUL, commit.ALONE):
        ways[name]()
        put[name] = [contents(tmp_path / "place" / "tars" / f"view{view}.tar") for view in range(2)]
        for view in range(2):
            (tmp_path / "place" / "tars" / f"view{view}.tar").unlink()
    assert put[commit.PUT] == put[commit.CAREFUL] == put[commit.ALONE]
    ways[commit.OURS]()
    version = Store(tmp_path / "place" / "store").version()
    (committed,) = version.commits()
    for payload in committed.views:
        local = version.storage.local_path(payload.path)
        assert local is not None and payload.view is not None
        for key, parts in contents(local).items():
            theirs = put[commit.PUT][payload.view][key]
            assert (parts["npy"], parts["txt"]) == (theirs["npy"], theirs["txt"])


def test_commit_benchmark_counts_the_requests_of_a_shard() -> None:
    measured = commit.measure(commit.CommitConfig(rounds=1, samples=2, views=2))
    names = [commit.PUT, commit.CAREFUL, commit.OURS, commit.ALONE]
    for place in ("disk", "S3 on loopback"):
        assert of_part(measured.figures, place) == names
    assert of_part(measured.figures, "S3") == [f"{name}: requests" for name in names]
    requests = measured.details["requests"]
    assert requests[commit.ALONE] == requests[commit.PUT] == {"PUT": 2}
    assert requests[commit.OURS]["PUT"] == 2 and requests[commit.OURS]["PUT if none is there"] == 1
    last = {figure.name: figure.rounds for figure in measured.figures}[f"S3: {commit.OURS}: requests"]
    assert last == (sum(requests[commit.OURS].values()),)


# --- augment and decode -------------------------------------------------------------------------------


def test_plain_views_of_all_ways_show_the_same() -> None:
    """Of a picture whose centre square begins at a whole pixel, whether it is cut or resized first."""
    looks = augment.Pictures(SMALL.model_copy(update={"width": 192, "height": 96})).plain()
    limit = "limit: OpenCV's bilinear resize alone"
    views = {name: as_array(look(0)) for name, look in looks.items() if name != limit}
    first = views["torchvision v2, uint8 tensors"]
    assert len(views) == 4 and all(np.abs(view - first).mean() < 4 for view in views.values())


def test_albumentations_own_draws_as_this_pipeline_does() -> None:
    """The same seed gives the same crop and colours; only the interpolation is another."""
    pixels = augment.Pictures(SMALL).arrays[0]
    ours, theirs = build_steps(ViewRecipe(), SIDE), augment.by_albumentations(SIDE)
    for seed in range(4):
        views = []
        for compose in (ours, theirs):
            seed_steps(compose, seed)
            views.append(compose(image=pixels)["image"].astype(float))
        assert np.abs(views[0] - views[1]).mean() < 8


def as_array(view: object) -> np.ndarray:
    """Height x width x RGB, of a tensor too."""
    array = np.asarray(view).astype(float)
    return array.transpose(1, 2, 0) if array.shape[0] == 3 else array


def test_augmented_views_are_crops_in_other_colours() -> None:
    looks = augment.Pictures(SMALL).augmented()
    assert all(as_array(look(0)).shape == (SIDE, SIDE, 3) for look in looks.values())
    for name in ("torchvision v2, uint8 tensors", "albumentations", "open_clip's image_transform, PIL"):
        assert not np.array_equal(as_array(looks[name](0)), as_array(looks[name](0)))


def test_augment_benchmark_names_its_ways() -> None:
    figures = augment.measure(SMALL).figures
    assert of_part(figures, "plain") == of_part(figures, "augmented") and len(figures) == 10
    assert {figure.unit for figure in figures} == {"views a CPU second"}


def test_decoders_see_the_same_picture() -> None:
    (picture,) = draw(1, 128, seed=3)
    for kind in ("JPEG", "PNG", "WEBP"):
        data = decode.compressed(picture, kind)
        expected = decode.by_pil(data).astype(float)
        assert np.array_equal(decode.by_ours(data), expected)
        for decoder in decode.PLAIN.values():
            assert np.abs(as_array(decoder(data)) - expected).mean() < 1.5
    turned = decode.compressed(picture[:, :96], "JPEG", **decode.photographed())
    upright, ours = (decoder(turned) for decoder in decode.UPRIGHT.values())
    assert upright.shape == ours.shape == (96, 128, 3) and np.abs(upright.astype(float) - ours).mean() < 1.5


def test_readers_of_a_tar_find_the_same_samples(tmp_path: Path) -> None:
    tar = decode.write_samples(tmp_path / "a.tar", decode.DecodeConfig(tar_samples=4, image_bytes=700))
    ours = [(sample.key, sample.image, sample.caption, sample.metadata) for sample in good_samples(tar)]
    assert len(ours) == 4
    assert [tuple(sample) for sample in decode.by_webdataset(tar)] == list(decode.by_tarfile(tar)) == ours


def test_decode_benchmark_names_its_ways() -> None:
    config = decode.DecodeConfig(rounds=1, sides=[512], other_side=512, megapixels=1, tar_samples=3, image_bytes=700)
    figures = decode.measure(config).figures
    for kind in ("JPEG", "progressive JPEG", "PNG", "WebP"):
        assert of_part(figures, f"{kind}, 512 pixels") == ["PIL", "OpenCV", "torchvision", decode.OURS]
    assert of_part(figures, "tar") == ["webdataset", "tarfile", decode.OURS, "limit: the bytes alone"]


# --- the control plane --------------------------------------------------------------------------------


def test_a_resumed_run_gives_out_what_is_missing(tmp_path: Path) -> None:
    finished = resume.Finished(str(tmp_path / "store"), 6)
    questions = {"status": finished.status(), **finished.starts()}
    assert {way() for ways in questions.values() for way in ways.values()} == {6}
    version = Store(tmp_path / "store").version()
    done = [resume.tar_of(number) for number in range(6)]
    assert resume.first_given_out(done, version) == []
    (tmp_path / "store" / version.fingerprint / "commits" / f"{done[2].name}.json").unlink()
    assert resume.first_given_out(done, version) == [done[2]]
    for way in (resume.EXISTS, resume.OURS):
        with pytest.raises(CheckFailed, match="00000002"):
            questions["all done"][way]()
    for way in (resume.ONE_BY_ONE, resume.OURS):
        with pytest.raises(CheckFailed, match="50000 samples read"):
            questions["status"][way]()


def test_resume_benchmark_counts_the_requests_of_each_way() -> None:
    measured = resume.measure(resume.ResumeConfig(rounds=1, shards=12, s3_shards=8))
    names = [resume.EXISTS, resume.OURS, resume.LIST]
    assert of_part(measured.figures, "disk, half done") == of_part(measured.figures, "disk, all done") == names
    assert of_part(measured.figures, "disk, status") == [resume.ONE_BY_ONE, resume.OURS, resume.BYTES]
    assert of_part(measured.figures, "S3 on loopback, half done") == [resume.AT_ONCE, *names[1:]]
    requests = measured.details["requests"]
    assert requests[f"all done: {resume.AT_ONCE}"] == {"HEAD": 8}
    assert sum(requests[f"all done: {resume.OURS}"].values()) < 8 and requests[f"status: {resume.OURS}"]["GET"] >= 2


def test_driver_benchmark_gives_out_the_same_shards_in_both_ways() -> None:
    measured = driver.measure(driver.DriverConfig(rounds=2, shards=60, actors=1))
    theirs, ours, memory = measured.figures
    assert (theirs.name, ours.name) == ("Ray's ActorPool", "this driver") and len(ours.ratios) == 2
    assert measured.details["shards_a_turn"] == 20 and memory.rounds[0] > 0


def test_a_driver_that_fails_is_no_result() -> None:
    with pytest.raises(CheckFailed, match="driver: ended with exit status"):
        driver.apart("driver", driver.ScalingConfig(rounds=1))


def test_scaling_is_against_one_actor_and_the_sleep() -> None:
    figures = driver.measure_scaling(driver.ScalingConfig(rounds=1, seconds_a_shard=0.02, shards_an_actor=12)).figures
    assert [figure.name for figure in figures[:3]] == ["1 actor", "2 actors", "4 actors"]
    assert figures[-1].rounds == (200.0,) and {figure.against for figure in figures} == {"1 actor"}
