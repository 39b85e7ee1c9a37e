"""The trainer: the models of the paper, batches that do not depend on the past, resume that changes nothing."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import open_clip
import pytest
import torch

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.store import Version
from train.__main__ import VERBS
from train.checkpoint import checkpoints, load_checkpoint
from train.config import TrainConfig, architecture_of
from train.loop import learning_rate, train
from train.loss import HardClipLoss, SoftClipLoss
from train.model import build_model, parameter_counts

TABLE_6 = {
    "latent-vit-b-8": {"image": 85_698_048, "text": 63_428_097, "total": 149_126_145},
    "latent-vit-b-4-plus": {"image": 85_796_352, "text": 91_163_521, "total": 176_959_873},
}


@pytest.fixture
def tiny_model(tmp_path: Path) -> str:
    """A user's own model file: small enough for 8x8 latents and seconds of training."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "architecture:\n"
        "  embed_dim: 16\n"
        "  vision_cfg: {width: 32, layers: 1, head_width: 16, patch_size: 2}\n"
        "  text_cfg: {context_length: 16, vocab_size: 49408, width: 16, heads: 2, layers: 1}\n"
        "settings: {steps: 8, batch_size: 10, lr: 1.0e-3, warmup: 2, precision: float32, log_every: 1}\n"
    )
    return str(path)


def store_of(version: Version) -> str:
    return str(Path(version.storage.root).parent)


@pytest.mark.parametrize("name", TABLE_6)
def test_parameter_counts_are_the_papers(name: str) -> None:
    with torch.device("meta"):
        model = build_model(architecture_of(name), 4, 64)
    assert parameter_counts(model) == TABLE_6[name]


def test_describe_by_command(capsys: pytest.CaptureFixture[str]) -> None:
    from encode_pipeline.latents.command import main

    assert main("train", VERBS, ["describe", "model=latent-vit-b-8", "--json"], default="run") == 0
    described = json.loads(capsys.readouterr().out)
    assert {key: described[key] for key in ("image", "text", "total")} == TABLE_6["latent-vit-b-8"]


def test_the_stem_takes_the_latents_channels() -> None:
    model = build_model(architecture_of("latent-vit-demo"), 16, 64).eval()
    features = model.encode_image(torch.zeros(2, 16, 64, 64))
    assert features.shape == (2, 128)


def test_resumed_equals_uninterrupted(sealed: Version, tiny_model: str, tmp_path: Path) -> None:
    def config(out: str, every: int) -> TrainConfig:
        values = {"model": tiny_model, "data": store_of(sealed), "out": tmp_path / out, "checkpoint_every": every}
        return TrainConfig(**values)

    whole = train(config("whole", 100))
    train(config("cut", 3))
    folder = tmp_path / "cut" / "checkpoints"
    for path in checkpoints(folder)[1:]:
        path.unlink()  # as if killed after step 6
    assert [path.name for path in checkpoints(folder)] == ["step_00000006.pt"]
    resumed = train(config("cut", 3))
    assert (whole["steps"], resumed["steps"], resumed["steps_now"]) == (8, 8, 2)
    a, b = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "cut")
    assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])

    def lines(out: str) -> list[dict[str, float]]:
        text = (tmp_path / out / "metrics.jsonl").read_text().splitlines()
        timed = ("samples_per_second", "data_wait")
        return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in text]

    assert lines("whole") == lines("cut") and len(lines("cut")) == 8


def test_a_finished_run_says_so_and_a_changed_one_is_refused(sealed: Version, tiny_model: str, tmp_path: Path) -> None:
    values = {"model": tiny_model, "data": store_of(sealed), "out": tmp_path / "out", "steps": 2}
    assert train(TrainConfig(**values))["steps_now"] == 2
    assert train(TrainConfig(**values))["steps_now"] == 0
    with pytest.raises(RequestError, match=r"was begun with lr=0.001, not 0.5; use another out="):
        train(TrainConfig(**values, lr=0.5))


def test_the_checkpoint_has_open_clips_shape_and_the_spec(sealed: Version, tiny_model: str, tmp_path: Path) -> None:
    train(TrainConfig(model=tiny_model, data=store_of(sealed), out=tmp_path / "out", steps=1))
    content = load_checkpoint(tmp_path / "out")
    assert {"epoch", "name", "state_dict", "optimizer"} <= set(content)
    assert content["spec"]["fingerprint"] == sealed.fingerprint
    assert (tmp_path / "out" / "config.yaml").exists()


def test_the_loss_is_open_clips_where_captions_differ() -> None:
    image, text = (torch.nn.functional.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    scale, tokens = torch.tensor(10.0), torch.arange(6)[:, None].expand(6, 4)
    expected = open_clip.ClipLoss()(image, text, scale)
    assert torch.equal(SoftClipLoss()(image, text, scale, tokens), expected)
    assert torch.equal(HardClipLoss()(image, text, scale, tokens), expected)


def test_equal_captions_are_equally_right() -> None:
    """Which of two pictures of one caption stands in which row is chance, and must not matter."""
    tokens = torch.tensor([[1], [1], [2]])
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(3, 8), dim=-1) for _ in range(2))
    swapped, scale = image[[1, 0, 2]], torch.tensor(20.0)
    soft = [SoftClipLoss()(pictures, text, scale, tokens) for pictures in (image, swapped)]
    hard = [HardClipLoss()(pictures, text, scale, tokens) for pictures in (image, swapped)]
    assert torch.isclose(soft[0], soft[1], atol=1e-5)
    assert abs(hard[0] - hard[1]) > 0.1


def test_the_schedule_warms_up_and_ends_at_zero(tmp_path: Path) -> None:
    config = TrainConfig(model="latent-vit-demo", data="x", out=tmp_path, steps=100, warmup=10)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[9] == max(rates) == config.lr and rates[0] == config.lr / 10
    assert rates[100] == pytest.approx(0) and all(a >= b for a, b in itertools.pairwise(rates[9:]))


def test_an_unsealed_store_and_a_damaged_shard_are_refused(sealed: Version, tiny_model: str, tmp_path: Path) -> None:
    tar = sealed.storage.local_path(sealed.manifest().column("path").to_pylist()[0])
    assert tar is not None
    tar.write_bytes(tar.read_bytes()[:-1024])
    config = TrainConfig(model=tiny_model, data=store_of(sealed), out=tmp_path / "out")
    with pytest.raises(CheckFailed, match=r"view0\.tar: .* bytes, .* in the manifest"):
        train(config)
    sealed.storage.delete("manifest.parquet")
    with pytest.raises(RequestError, match="not sealed"):
        train(config)


def test_a_recipe_fills_in_what_is_not_said(tmp_path: Path) -> None:
    paper = TrainConfig(model="latent-vit-b-8", data="x", out=tmp_path)
    assert (paper.samples, paper.batch_size, paper.warmup, paper.weight_decay) == (34_000_000_000, 81_920, 3000, 0.2)
    assert paper.total_steps == 415_040
    assert TrainConfig(model="latent-vit-b-8", data="x", out=tmp_path, steps=5).samples is None
    with pytest.raises(RequestError, match="there are latent-vit-b-4-plus, latent-vit-b-8, latent-vit-demo"):
        TrainConfig(model="resnet", data="x", out=tmp_path)
