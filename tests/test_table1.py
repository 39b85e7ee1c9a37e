"""`make table1-demo` at a fiftieth of its size: from pictures to the report, and what is kept of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from demo import train_generator as trainer
from demo.ship_model import keep_results
from demo.table1 import READINGS, TableConfig, make_table
from demo.train_generator import GeneratorConfig, train_generator
from encode_pipeline.latents.store import Version
from eval.generator import load_generator
from tests.conftest import SIDE
from tests.test_train import store_of


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> TableConfig:
    out = tmp_path_factory.mktemp("table1")
    config = TableConfig(out=out, train_pictures=60, test_pictures=48, steps=2, generator_steps=2)
    make_table(config)
    return config


def test_both_towers_are_judged_on_the_same_pictures_real_and_generated_both_ways(table: TableConfig) -> None:
    results = {path.parent.name: json.loads(path.read_text()) for path in table.out.glob("results/*/result.json")}
    assert {name: result["way"] for name, result in results.items()} == {
        "latent": "encoded",
        "pixel": "encoded",
        **{f"latent-{reading}-{way}": way for reading in READINGS for way in ("direct", "decoded")},
        **{f"pixel-{reading}-decoded": "decoded" for reading in READINGS},
    }
    assert {result["n"] for result in results.values()} == {48}
    assert {result["classes"] for result in results.values()} == {48}
    assert all(result["not_comparable"] for result in results.values())
    keys = {
        tuple(sorted(json.loads(line)["key"] for line in (path.parent / "predictions.jsonl").open()))
        for path in table.out.glob("results/*/result.json")
    }
    assert len(keys) == 1
    report = (table.out / "report" / "report.md").read_text()
    for words in ("t=499.5 σ=1.616", "t=659 σ=2.841", "(1) latent-vit-demo", "(2) latent-vit-demo", "on pixels"):
        assert words in report


def test_a_second_run_has_nothing_to_do(table: TableConfig) -> None:
    before = {path: path.stat().st_mtime_ns for path in table.out.rglob("*") if path.is_file()}
    make_table(table)
    assert {path: path.stat().st_mtime_ns for path in table.out.rglob("*") if path.is_file()} == before


def test_what_is_kept_names_the_command_the_times_and_every_number(table: TableConfig, tmp_path: Path) -> None:
    keep_results(table.out, tmp_path)
    kept = json.loads((tmp_path / "table1-demo.json").read_text())
    assert kept["command"] == "make table1-demo" and len(kept["results"]) == 8 and kept["seconds"]["generator"] > 0
    assert str(table.out) not in json.dumps(kept["asked"])


@pytest.mark.parametrize("one_step", [False, True])
def test_a_broken_training_of_the_generator_goes_on_to_the_same_weights(
    sealed: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_step: bool
) -> None:
    assert sealed.spec.image_size == SIDE
    monkeypatch.setattr(trainer, "SAVE_EVERY", 2)
    asked = {"data": store_of(sealed), "steps": 4, "batch_size": 2, "one_step": one_step}
    whole = train_generator(GeneratorConfig(out=tmp_path / "whole", **asked))
    name = "_one_step_loss" if one_step else "_loss"
    loss_of = getattr(trainer, name)

    def break_off(*words: object, **more: object) -> torch.Tensor:
        if words[-1] == 3:
            raise KeyboardInterrupt
        return loss_of(*words, **more)  # type: ignore[no-any-return]

    config = GeneratorConfig(out=tmp_path / "broken", **asked)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, name, break_off)
        train_generator(config)
    assert not config.out.exists()
    assert train_generator(config)["loss"] == whole["loss"]
    one, other = (load_generator(str(tmp_path / name)) for name in ("whole", "broken"))
    assert one.weights_sha256 == other.weights_sha256
    assert [path.name for path in tmp_path.glob("*.pt")] == []


def test_the_noise_of_a_latent_is_like_any_other_but_tells_its_coarse_picture() -> None:
    """Whitened over all latents, so that plain noise at the time of drawing is nothing new to the generator."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(4 * 4, 4 * 4, generator=generator)
    coarse = (torch.randn(4000, 16, generator=generator) @ mixed + 3).unflatten(1, (4, 2, 2))
    latents = coarse.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    codes = trainer._codes(latents).flatten(1)
    assert codes.mean(dim=0).abs().max() < 1e-4
    covariance = codes.T @ codes / len(codes)
    assert (covariance.diagonal() <= 1.001).all() and covariance.diagonal().median() > 0.9
    assert (covariance - covariance.diagonal().diag()).abs().max() < 0.3
