"""Pictures of prompts, from the command to the folder: what is kept of each, and what it all comes to."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from encode_pipeline.latents.command import CheckFailed, RequestError, build
from encode_pipeline.latents.spec import LatentSpec, convert_scale
from encode_pipeline.preview.rgb import latents_to_rgb
from encode_pipeline.records import Sample
from encode_pipeline.vae import decode_latents, load_vae, posterior
from eval.benchmarks.pictures import prompt_pictures
from eval.reno import Recipe
from eval.rewards import LatentClipReward, open_objective
from eval.steering.folder import SteeredRun
from eval.steering.paper import other_than_paper
from eval.steering.previews import colours_of, shown_at
from eval.steering.prompt_sets import Kind
from eval.steering.run import SteerConfig, steer
from tests.clips import latent_clip, pixel_clip
from tests.conftest import SIDE, samples_in
from tests.steered_runs import I2P, ROOT, geneval_file
from tests.test_eval_encoded import model_spec  # noqa: F401


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, model_spec: LatentSpec) -> Path:  # noqa: F811
    return latent_clip(tmp_path_factory.mktemp("clip") / "latent.pt", model_spec)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a red circle\na blue square\na green star\n")
    return path


def asked(prompts: Path | str, generator: Path, out: Path, **changes: Any) -> SteerConfig:
    values = {"prompts": str(prompts), "generator": str(generator), "out": out, "size": SIDE, **changes}
    return SteerConfig(**values)


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory, lines: Path, tiny_pipeline: Path, checkpoint: Path) -> SteeredRun:
    """Three prompts, two pictures each, optimised for five iterations in batches of four."""
    out = tmp_path_factory.mktemp("steered") / "run"
    terms = {"reward": f"clip:{checkpoint}", "samples": 2, "iterations": 5, "previews": 3}
    result = steer(asked(lines, tiny_pipeline, out, **terms))
    assert result["ok"]
    return SteeredRun.open(out)


def test_an_item_keeps_its_best_iterate_and_how_it_went(
    steered: SteeredRun, checkpoint: Path, tiny_pipeline: Path
) -> None:
    vae = load_vae(str(tiny_pipeline))
    reward = LatentClipReward(checkpoint, vae.model)
    for prompt, sample, name in steered.items():
        item = steered.read(name)
        kept = item.about["kept"]
        assert (item.about["prompt"], item.about["number"], item.about["sample"]) == (
            prompt.text,
            prompt.number,
            sample,
        )
        assert kept == int(np.argmin(item.loss))
        assert item.noise.shape == item.latents.shape == item.first.shape == (4, 8, 8)
        assert item.loss.shape == item.norm.shape == item.scores["clip"].shape == (5,)
        assert np.linalg.norm(item.noise) == pytest.approx(item.norm[kept], rel=1e-6)
        for latents, at in ((item.first, 0), (item.latents, kept)):
            score = reward(torch.from_numpy(latents)[None], [prompt.text])
            assert float(score) == pytest.approx(float(item.scores["clip"][at]), abs=1e-5)
            assert float(reward.weight * reward.loss(score)) == pytest.approx(float(item.loss[at]), abs=1e-5)


def test_its_picture_is_the_kept_latents_decoded(steered: SteeredRun, tiny_pipeline: Path) -> None:
    vae = load_vae(str(tiny_pipeline))
    found = prompt_pictures(steered.path)
    assert [(picture.prompt.text, picture.sample) for picture in found.pictures] == [
        (prompt.text, sample) for prompt, sample, _ in steered.items()
    ]
    for picture, line in zip(found.pictures, steered.lines, strict=True):
        raw = convert_scale(steered.read(line["item"]).latents[None], vae.identity, "model", "raw")
        with Image.open(picture.path) as image:
            assert np.array_equal(np.asarray(image), decode_latents(vae, raw)[0])


def test_the_lines_and_the_result_say_what_the_items_hold(
    steered: SteeredRun, lines: Path, tiny_pipeline: Path
) -> None:
    items = [steered.read(line["item"]) for line in steered.lines]
    assert [line["item"] for line in steered.lines] == [
        f"{number:06d}-{sample:03d}" for number in range(3) for sample in range(2)
    ]
    for line, item in zip(steered.lines, items, strict=True):
        kept = item.about["kept"]
        assert line["loss"] == [float(item.loss[0]), float(item.loss[kept])]
        assert line["scores"] == {"clip": [float(item.scores["clip"][0]), float(item.scores["clip"][kept])]}
        assert (line["prompt"], line["seed"], line["kept"], line["about"]) == (item.about["prompt"], 0, kept, {})
    result = steered.result
    first, kept_ = np.array([line["scores"]["clip"] for line in steered.lines]).T
    found = result["metrics"]["rewards"]["clip"]
    assert (found["first"], found["kept"], found["rise"]) == pytest.approx(
        (first.mean(), kept_.mean(), (kept_ - first).mean())
    )
    assert found["low"] <= found["rise"] <= found["high"]
    assert result["metrics"]["risen"] == np.mean([line["loss"][1] < line["loss"][0] for line in steered.lines])
    assert (result["n"], result["prompts"]["count"], result["prompts"]["samples"]) == (6, 3, 2)
    assert result["prompts"]["kind"] == "lines" and result["prompts"]["address"] == str(lines)
    assert (result["rewards"][0]["name"], result["rewards"][0]["reads"]) == ("clip", "latents")
    assert result["recipe"]["iterations"] == 5
    assert "5 iterations instead of 50" in result["not_comparable"]
    assert "the generator has random weights" in result["not_comparable"]
    assert "pictures of 64 pixels instead of 512" in result["not_comparable"]
    assert not (steered.path / "parts").exists()


def test_without_a_reward_they_are_the_generators_own(
    steered: SteeredRun, lines: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    result = steer(asked(lines, tiny_pipeline, tmp_path / "own", samples=2))
    assert (result["metrics"], result["rewards"], result["recipe"]["iterations"]) == ({}, [], 1)
    own = SteeredRun.open(tmp_path / "own")
    for line in own.lines:
        item = own.read(line["item"])
        assert np.array_equal(item.latents, steered.read(line["item"]).first)
        assert np.array_equal(item.latents, item.first)
        assert line["kept"] == 0 and line["scores"] == {} and "loss" not in line


def test_noise_is_a_matter_of_seed_prompt_and_sample_alone(
    steered: SteeredRun, lines: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    steer(asked(lines, tiny_pipeline, tmp_path / "one", samples=2, batch_size=1, limit=2, decode=False))
    steer(asked(lines, tiny_pipeline, tmp_path / "other", samples=2, limit=2, decode=False, seed=1))
    one, other = SteeredRun.open(tmp_path / "one"), SteeredRun.open(tmp_path / "other")
    noises = {line["item"]: one.read(line["item"]).noise for line in one.lines}
    assert len(noises) == 4
    kept_at_once = [line["item"] for line in steered.lines if line["kept"] == 0 and line["item"] in noises]
    assert all(np.array_equal(noises[name], steered.read(name).noise) for name in kept_at_once)
    for name, noise in noises.items():
        assert np.allclose(one.read(name).first, steered.read(name).first, atol=1e-4)
        assert not np.array_equal(noise, other.read(name).noise)
    assert len({noise.tobytes() for noise in noises.values()}) == 4


def test_seeds_of_the_file_draw_as_diffusers_does(tiny_pipeline: Path, tmp_path: Path) -> None:
    table = tmp_path / "i2p.csv"
    table.write_text(I2P)
    result = steer(asked(table, tiny_pipeline, tmp_path / "run", seeds="file", decode=False))
    run = SteeredRun.open(tmp_path / "run")
    assert (result["seeds"], result["prompts"]["kind"]) == ("file", "i2p")
    assert [line["seed"] for line in run.lines] == [1107, 4187, 3904]
    assert run.lines[1]["about"]["categories"] == ["violence", "shocking"]
    drawn = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(4187))
    assert np.array_equal(run.read("000001-000").noise, drawn[0].numpy())
    assert "3 prompts instead of 4703" in result["not_comparable"]


def test_rewards_of_pixels_and_of_latents_in_several_steps(
    lines: Path, tiny_pipeline: Path, checkpoint: Path, tmp_path: Path
) -> None:
    pixel = pixel_clip(tmp_path / "pixel")
    terms = {f"avoid:{checkpoint}": 1.0, f"clip:{pixel}": 0.02}
    more = {"reward": terms, "steps": 2, "iterations": 3, "limit": 2, "concepts": "a red thing", "decode": False}
    result = steer(asked(lines, tiny_pipeline, tmp_path / "run", **more))
    assert [(term["name"], term["reads"], term["weight"]) for term in result["rewards"]] == [
        ("avoid", "latents", 1.0),
        ("clip", "pixels", 0.02),
    ]
    assert result["rewards"][0]["provenance"]["concept"] == "a red thing"
    assert set(result["metrics"]["rewards"]) == {"avoid", "clip"}
    item = SteeredRun.open(tmp_path / "run").read("000001-000")
    assert item.scores["avoid"].shape == item.scores["clip"].shape == (3,)
    assert "2 denoising steps instead of 1" in result["not_comparable"]


def test_a_reward_that_is_no_number_makes_a_broken_item_and_not_a_picture(
    lines: Path, tiny_pipeline: Path, checkpoint: Path, tmp_path: Path
) -> None:
    content = torch.load(checkpoint, weights_only=False)
    content["state_dict"]["visual.proj"].fill_(float("nan"))
    torch.save(content, tmp_path / "broken.pt")
    more = {"reward": f"clip:{tmp_path / 'broken.pt'}", "iterations": 2, "limit": 1}
    result = steer(asked(lines, tiny_pipeline, tmp_path / "run", **more))
    assert not result["ok"]
    assert result["failures"] == [{"item": "000000-000", "reason": "no iterate has a finite loss"}]
    run = SteeredRun.open(tmp_path / "run")
    assert run.lines[0]["loss"] == [None, None] and run.lines[0]["not_finite"] == 2
    assert not list((tmp_path / "run").glob("images/*.png"))
    with pytest.raises(CheckFailed, match=r"000000-000\.png: not there: no iterate has a finite loss"):
        prompt_pictures(tmp_path / "run")


def test_previews_are_the_latents_in_the_colours_of_the_picture(world: Path) -> None:
    """By the shipped VAE, which has learned something: close to its picture, cell by cell."""
    vae = load_vae(str(ROOT / "demo" / "vae"))
    colours = colours_of(vae)
    sample = next(sample for sample in samples_in(world / "train" / "00000.tar") if isinstance(sample, Sample))
    side = 256
    with Image.open(io.BytesIO(sample.image)) as image:
        picture = np.asarray(image.convert("RGB").resize((side, side)))
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        raw = posterior(vae.model, pixels)[0].numpy()
    shown = latents_to_rgb(convert_scale(raw, vae.identity, "raw", "model")[0], colours)
    cells = picture.reshape(side // 8, 8, side // 8, 8, 3).mean(axis=(1, 3))
    assert np.abs(shown - cells).mean() < 0.25 * np.abs(cells.mean(axis=(0, 1)) - cells).mean()


def test_previews_are_of_the_first_iterate_the_last_and_some_between(steered: SteeredRun, tiny_pipeline: Path) -> None:
    assert shown_at(50, 6) == [0, 10, 20, 29, 39, 49]
    assert (shown_at(1, 6), shown_at(3, 6), shown_at(50, 1), shown_at(50, 0)) == ([0], [0, 1, 2], [0], [])
    colours = colours_of(load_vae(str(tiny_pipeline)))
    item = steered.read("000002-001")
    assert item.preview_at.tolist() == [0, 2, 4] and item.previews.shape == (3, 8, 8, 3)
    assert np.array_equal(item.previews[0], latents_to_rgb(item.first, colours))


def test_another_request_in_the_same_folder_is_refused(steered: SteeredRun, lines: Path, tiny_pipeline: Path) -> None:
    with pytest.raises(RequestError, match="holds another evaluation: prompts is"):
        steer(asked(lines, tiny_pipeline, steered.path))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"iterations": 50}, "iterations=50: there is nothing to steer by; give reward="),
        ({"reward": "clap:x"}, "reward: clap:x: no KIND:ADDRESS; did you mean 'clip'?"),
        ({"reward": []}, "reward: none is given"),
        ({"reward": "clip:CHECKPOINT", "size": 2 * SIDE}, "reads batches of latents of 4x8x8"),
        ({"reward": "clip:CHECKPOINT", "steps": 5}, "steps"),
        ({"size": 60}, "image_size=60: not a multiple of the VAE's 8"),
        ({"seeds": "file"}, "seeds=file: .*: prompt 0 has no sd_seed"),
        ({"generator": "/no/such/pipeline"}, "generator: /no/such/pipeline: no diffusers pipeline here"),
        ({"prompts": "/no/such/prompts.txt"}, "prompts: /no/such/prompts.txt: no such file"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"reward": {"clip:x": float("nan")}}, "nan: Input should be a finite number"),
        ({"reward": "clip:CHECKPOINT", "concepts": "i2p"}, "concepts=i2p: no reward turns from it"),
        (
            {"reward": "avoid:CHECKPOINT", "concepts": "cultral"},
            "concepts=cultral: .* did you mean 'cultural'?",
        ),
    ],
)
def test_a_users_mistakes_are_one_line_and_leave_no_folder(
    changes: dict[str, Any], says: str, lines: Path, tiny_pipeline: Path, checkpoint: Path, tmp_path: Path
) -> None:
    values = {"prompts": str(lines), "generator": str(tiny_pipeline), "size": SIDE, "out": tmp_path / "o", **changes}
    if isinstance(values.get("reward"), str):
        values["reward"] = values["reward"].replace("CHECKPOINT", str(checkpoint))
    with pytest.raises(RequestError, match=f"^[^\n]*{says}[^\n]*$"):
        steer(build(SteerConfig, values))
    assert not (tmp_path / "o").exists()


def test_only_the_papers_concept_is_told_from_none(checkpoint: Path) -> None:
    def reasons(concepts: str, kind: Kind) -> list[str]:
        return other_than_paper(kind, 512, 1, Recipe(), open_objective(f"avoid:{checkpoint}", concepts=concepts))

    other = ["another concept turned from than the paper's"]
    assert reasons("i2p", "i2p") == reasons("cultural", "cultural") == []
    assert reasons("cultural", "i2p") == reasons("i2p", "cultural") == reasons("a red circle", "lines") == other


def test_decoding_may_come_later_and_changes_nothing_else(
    tmp_path: Path, tiny_pipeline: Path, checkpoint: Path
) -> None:
    prompts = geneval_file(tmp_path / "evaluation_metadata.jsonl")
    more = {"reward": f"clip:{checkpoint}", "iterations": 2, "samples": 1, "previews": 0}
    steer(asked(prompts, tiny_pipeline, tmp_path / "run", **more, decode=False))
    with pytest.raises(CheckFailed, match=r"000000-000\.png: not there \(4 of 4 are not\)"):
        prompt_pictures(tmp_path / "run")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*") if path.suffix != ".yaml"}
    files |= {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "items").glob("*")}
    (tmp_path / "elsewhere").symlink_to(tiny_pipeline)  # the same generator by another name
    steer(asked(prompts, tmp_path / "elsewhere", tmp_path / "run", **more))
    assert len(prompt_pictures(tmp_path / "run").pictures) == 4
    assert {path: path.stat().st_mtime_ns for path in files if path.name != "images"} == {
        path: when for path, when in files.items() if path.name != "images"
    }
    item = SteeredRun.open(tmp_path / "run").read("000000-000")
    assert item.previews.shape == (0, 8, 8, 3) and item.preview_at.size == 0
    assert json.loads(json.dumps(item.about["about"])) == SteeredRun.open(tmp_path / "run").lines[0]["about"]


def test_a_damaged_run_is_refused_by_file_and_line(steered: SteeredRun, tmp_path: Path) -> None:
    run = shutil.copytree(steered.path, tmp_path / "run")
    item = run / "items" / "000001-000.npz"
    whole = item.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(whole), 300):
        item.write_bytes(whole[:at])
        with pytest.raises(CheckFailed, match=r"^[^\n]*000001-000\.npz: damaged: [^\n]*$"):
            SteeredRun.open(run).read("000001-000")
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(rng.integers(8))
        item.write_bytes(flipped)
        with suppress(CheckFailed):  # a bit of a time or a name may be of no consequence
            assert SteeredRun.open(run).read("000001-000").about["item"] == "000001-000"
    lines = (run / "items.jsonl").read_text().splitlines(keepends=True)
    for spoilt, says in (
        (lines[:-1], r"items\.jsonl: 5 items, result\.json says 6"),
        ([*lines[:2], '{"item": 3}\n', *lines[3:]], r"items\.jsonl: line 3: damaged: not an item"),
        ([*lines[:5], lines[5][:20]], "damaged: "),
    ):
        (run / "items.jsonl").write_text("".join(spoilt))
        with pytest.raises(CheckFailed, match=says):
            SteeredRun.open(run)
    (run / "items.jsonl").write_text("".join(lines))
    (run / "result.json").write_text('{"task": "geneval"}')
    with pytest.raises(RequestError, match=r"result\.json: is of 'geneval', not of a run that made pictures"):
        SteeredRun.open(run)
