"""The benchmarks run and count right, at sizes where their times mean nothing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import memory, one_decode, overhead, pipeline, steering, straightforward
from benchmarks.__main__ import VERBS, main
from benchmarks.paired import Spent, compare, in_turns, paired
from benchmarks.pictures import PictureSet, draw, write_tars
from demo.image_tar import jpeg_bytes
from encode_pipeline.augment import ViewMaker
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.store import Store
from encode_pipeline.recipe import ViewRecipe
from encode_pipeline.records import Sample, ViewedSample
from encode_pipeline.run import run
from encode_pipeline.vae import load_vae
from tests.conftest import SIDE, Configure, samples_in
from tests.steering import latent_checkpoint

SMALL: dict[str, Any] = {"rounds": 1, "side": 96, "image_size": SIDE, "batch_size": 4}


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_tars(tmp_path_factory.mktemp("tars"), PictureSet(tars=2, pictures_per_tar=5, side=96))


def test_pictures_are_the_same_every_time_and_read_without_complaint(tars: list[Path], tmp_path: Path) -> None:
    again = write_tars(tmp_path, PictureSet(tars=2, pictures_per_tar=5, side=96))
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in tars]
    samples = [sample for path in tars for sample in samples_in(path)]
    assert all(isinstance(sample, Sample) for sample in samples)
    assert len({sample.key for sample in samples}) == 10


def test_pictures_have_the_spectrum_of_photographs() -> None:
    """A slope of amplitude over frequency between those of a blur and of white noise."""
    (picture,) = draw(1, 256, seed=1)
    spectrum = np.abs(np.fft.rfft2(picture.mean(axis=2)))[1:100, 1:100]
    near, far = (spectrum[low:high, low:high].mean() for low, high in ((4, 8), (32, 64)))
    assert 0.8 < np.log(near / far) / np.log(8) < 2.5


def test_pictures_beyond_the_drawn_ones_come_again_under_other_keys(tmp_path: Path) -> None:
    (path,) = write_tars(tmp_path, PictureSet(tars=1, pictures_per_tar=5, side=64, distinct=2))
    samples = [sample for sample in samples_in(path) if isinstance(sample, Sample)]
    assert len({sample.key for sample in samples}) == 5 and len({sample.image for sample in samples}) == 2


def test_both_ways_make_the_same_views_of_the_same_samples(
    tars: list[Path], configure: Configure, tmp_path: Path
) -> None:
    config = configure(source=[str(path) for path in tars], views=3)
    encode = straightforward.by_vae(load_vae(config.vae).model)
    out = tmp_path / "straightforward"
    out.mkdir()
    assert straightforward.encode_tars(tars, out, encode, views=3, image_size=SIDE, batch_size=4, workers=2) == 30
    assert run(config)["samples"]["encoded"] == 10
    version = Store(config.store).version()
    for view in range(3):
        theirs = contents(out / f"view{view}.tar")
        keys = set()
        for payload in (payload for commit in version.commits() for payload in commit.views if payload.view == view):
            local = version.storage.local_path(payload.path)
            assert local is not None
            with LatentShard(local, version.spec) as shard:
                for index, key in enumerate(shard.keys):
                    assert theirs[key]["txt"].decode() == shard.caption(index)
                    latent = torch.load(io.BytesIO(theirs[key]["latent.pt"]))
                    assert latent.dtype == torch.float16 and tuple(latent.shape) == shard.latent(index).shape
                    keys.add(key)
        assert keys == theirs.keys()


def contents(path: Path) -> dict[str, dict[str, bytes]]:
    """The samples of a plain webdataset tar."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, part = member.name.partition(".")
            stream = tar.extractfile(member)
            assert stream is not None
            found.setdefault(key, {})[part] = stream.read()
    return found


def test_plain_view_of_both_shows_the_same_part_of_a_picture() -> None:
    """Or they would be doing different work."""

    (picture,) = draw(1, 256, seed=2)
    wide = Image.fromarray(picture).resize((320, 200))

    sample = Sample("a", jpeg_bytes(np.asarray(wide), 100), "caption", {})
    ours = ViewMaker(ViewRecipe(), 1, SIDE, 0, "shard")(sample)
    assert isinstance(ours, ViewedSample)
    theirs = straightforward.plain(SIDE)(wide).permute(1, 2, 0).numpy().astype(float)
    assert np.abs(theirs - ours.views[0].pixels).mean() < 4


def test_pixels_are_averaged_over_the_latent_grid() -> None:
    images = torch.arange(2 * 3 * 16 * 16, dtype=torch.float32).reshape(2, 3, 16, 16)
    latents = straightforward.pixels(images)
    assert latents.shape == (2, 3, 2, 2) and latents[0, 0, 0, 0] == images[0, 0, :8, :8].mean()


def test_pipeline_benchmark_counts_the_same_views_both_ways(small_vae: Path) -> None:
    config = pipeline.PipelineConfig(vae=str(small_vae), tars=2, pictures_per_tar=3, views=2, **SMALL)
    names = [figure.name for figure in pipeline.measure(config).figures]
    assert names == ["straightforward", "this pipeline"]  # that both counted the same is asked for by `paired`


def test_one_decode_benchmark_makes_as_many_views_in_every_way() -> None:
    figures = one_decode.measure(one_decode.OneDecodeConfig(rounds=2, pictures=2, side=96, views=3)).figures
    assert len(figures) == 3 and {len(figure.ratios) for figure in figures} == {2}


def test_a_pass_sees_what_the_one_decode_sees(tars: list[Path]) -> None:

    make_views = ViewMaker(ViewRecipe(), 3, SIDE, one_decode.SEED, tars[0].stem)
    for sample in one_decode.good_samples(tars[0]):
        for number, view in enumerate(one_decode.accepted(make_views(sample)).views):
            assert np.array_equal(one_decode.one_view(make_views, sample, number).pixels, view.pixels)


def test_overhead_benchmark_encodes_what_it_compares(small_vae: Path) -> None:
    result = overhead.measure(overhead.OverheadConfig(vae=str(small_vae), pictures=3, views=2, **SMALL))
    parts = ["decode and augment", "VAE", "decode and augment, then VAE", "pipeline"]
    assert result.details["views"] == 6 and [figure.name for figure in result.figures] == parts
    one, other, both, pipeline_ = (figure.rounds[0] for figure in result.figures)
    assert both == pytest.approx(one + other) and result.figures[-1].ratios == (pytest.approx(pipeline_ / both),)


def test_memory_benchmark_looks_after_every_shard(small_vae: Path) -> None:
    config = memory.MemoryConfig(
        tar_bytes=100_000, shards=3, pictures_per_shard=4, side=96, vae=str(small_vae), views=2, image_size=SIDE
    )
    result = memory.measure(config)
    large, many, second, last = (figure.rounds[0] for figure in result.figures)
    assert (
        large > 0
        and many > 0
        and result.details["after_each_mib"][1:]
        == [
            pytest.approx(second, abs=0.1),
            pytest.approx(last, abs=0.1),
        ]
    )


def test_steering_benchmark_does_the_same_work_in_every_way(
    tiny_pipeline: Path, small_vae: Path, tmp_path: Path
) -> None:
    reward = f"clip:{latent_checkpoint(tmp_path / 'latent.pt', small_vae)}"
    config = steering.SteeringConfig(
        rounds=1, generator=str(tiny_pipeline), reward=reward, pictures=3, batch_sizes=[2], iterations=2, size=64
    )
    assert [figure.name for figure in steering.measure(config).figures] == ["one at a time", "2 at a time"]


def test_ratios_compare_rounds_with_rounds() -> None:
    spent = {"slow": [Spent(wall=4, cpu=8), Spent(wall=9, cpu=8)], "fast": [Spent(wall=2, cpu=2), Spent(wall=3, cpu=2)]}
    fast = compare(12, spent, "views")[1]
    assert fast.ratios == (2, 3) and fast.cpu_ratios == (4, 4) and fast.against == "slow"
    assert fast.rounds == (6, 4) and fast.unit == "views a second"
    by_cpu = compare(12, spent, "views", by="cpu")[1]
    assert by_cpu.ratios == (4, 4) and by_cpu.rounds == (6, 6)


def test_ways_that_did_not_do_the_same_work_are_not_compared() -> None:
    with pytest.raises(CheckFailed, match="'short' did 3 of 4"):
        paired({"whole": lambda: 4, "short": lambda: 3}, 1)


def test_the_work_of_worker_processes_is_counted() -> None:
    """A child's work is far more than starting it costs this process."""
    work = "sum(number * number for number in range(3_000_000))"
    (turn,) = in_turns({"child": lambda: subprocess.run([sys.executable, "-c", work], check=True)}, 1)["child"]
    assert turn.cpu > 0.05


def test_results_say_on_what_they_were_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "one-decode.json"
    assert main("benchmarks", VERBS, ["one-decode", "rounds=1", "pictures=1", "side=96", f"out={out}"]) == 0
    assert str(out) in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["format"] == 2 and written["machine"]["processor"] and written["software"]["torch"]
    assert written["benchmarks"]["one-decode"]["settings"]["pictures"] == 1
    assert out.with_suffix(".md").read_text().count("\n| ") == 4 and out.with_suffix(".png").stat().st_size > 10_000


def test_no_benchmark_at_all_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("benchmarks", VERBS, ["run", "only=[]"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: only=[]: ")
