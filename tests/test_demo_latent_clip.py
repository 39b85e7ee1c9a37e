"""The model that comes with the demo: it is what its card says, and it knows the demo's world."""

from __future__ import annotations

from pathlib import Path

from demo.image_tar import sha256_of
from demo.run import SHIPPED, VAE
from demo.ship_model import CARD, MOST_BYTES, WEIGHTS
from encode_pipeline.config import EncodeConfig
from eval.models import open_model
from eval.zero_shot import ZeroShotConfig, zero_shot
from tests.conftest import encode_and_seal


def test_its_card_names_its_hash_and_it_is_small() -> None:
    card = (SHIPPED / CARD).read_text()
    assert sha256_of(SHIPPED / WEIGHTS) in card and "not comparable" in card
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= MOST_BYTES


def test_it_says_where_it_is_from_and_nothing_of_any_machine() -> None:
    model = open_model(str(SHIPPED))
    assert model.spec is not None and model.spec.vae.name == str(VAE)
    assert model.not_comparable
    for file in (SHIPPED / "spec.json", SHIPPED / CARD):
        assert str(Path.cwd()) not in file.read_text()
    assert str(Path.cwd()).encode() not in (SHIPPED / WEIGHTS).read_bytes()


def test_it_names_most_pictures_of_a_world_it_has_never_seen(world: Path, tmp_path: Path) -> None:
    source, store = str(world / "test"), str(tmp_path / "store")
    encode_and_seal(EncodeConfig(source=source, store=store, vae=str(VAE), views=1, batch_size=8, threads=2))
    config = ZeroShotConfig(checkpoint=str(SHIPPED), data=store, classes=world / "test", out=tmp_path / "out")
    result = zero_shot(config)
    assert (result["classes"], result["n"]) == (48, 48)
    assert result["metrics"]["acc1"] >= 0.8
