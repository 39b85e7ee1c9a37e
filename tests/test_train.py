"""The trainer as a whole: what it leaves behind, in the ways it can be asked to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.store import Version
from tests.conftest import Configure, encode_and_seal
from train.checkpoint import load_checkpoint
from train.config import TrainConfig
from train.loop import train
from train.metrics import read_metrics


@pytest.fixture
def tiny_model(tmp_path: Path) -> str:
    """A user's own model file: small enough for 8x8 latents and seconds of training."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "architecture:\n"
        "  embed_dim: 16\n"
        "  vision_cfg: {width: 32, layers: 1, head_width: 16, patch_size: 2}\n"
        "  text_cfg: {context_length: 16, vocab_size: 49408, width: 16, heads: 2, layers: 1}\n"
        "settings: {steps: 8, batch_size: 10, lr: 1.0e-3, warmup: 2, precision: float32, log_every: 1, workers: 0}\n"
    )
    return str(path)


def store_of(version: Version) -> str:
    return str(Path(version.storage.root).parent)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "siglip"},
        {"precision": "bfloat16", "grad_checkpointing": True},
        {"accum": 5, "workers": 1, "views": "mixed"},
        {"repeated_captions": "soft", "clip_grad": None, "mix": 1},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_way_learns(changes: dict[str, Any], sealed: Version, tiny_model: str, tmp_path: Path) -> None:
    values = {"model": tiny_model, "data": store_of(sealed), "out": tmp_path / "out", "steps": 40, **changes}
    train(TrainConfig(**values))
    losses = [line["loss"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl")]
    assert len(losses) == 40 and sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_compiled_it_learns_the_same(sealed: Version, tiny_model: str, tmp_path: Path) -> None:
    for name in ("plain", "compiled"):
        values = {"model": tiny_model, "data": store_of(sealed), "out": tmp_path / name, "steps": 6, "accum": 2}
        train(TrainConfig(**values, compile=name == "compiled"))
    plain, compiled = (load_checkpoint(tmp_path / name)["state_dict"] for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    assert all(torch.allclose(plain[key], compiled[key], atol=1e-4) for key in plain)


def test_two_stores_by_weight(sealed: Version, configure: Configure, tiny_model: str, tmp_path: Path) -> None:
    other = encode_and_seal(configure(store=str(tmp_path / "other"), seed=3, limit=1))
    data = {store_of(sealed): 4, store_of(other): 1}
    config = TrainConfig(model=tiny_model, data=data, out=tmp_path / "out", steps=3)
    assert train(config)["samples"] == 30
    assert train(config)["steps_now"] == 0
    turned = {store_of(sealed): 1, store_of(other): 4}
    with pytest.raises(RequestError, match="was begun on other samples than data= holds now; use another out="):
        train(TrainConfig(model=tiny_model, data=turned, out=tmp_path / "out", steps=3))


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
