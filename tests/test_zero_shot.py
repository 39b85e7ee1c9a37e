"""Zero-shot evaluation: OpenCLIP's algorithm, on labelled latents, refusing what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import SpecError
from encode_pipeline.latents.store import Version
from eval.models import open_model
from eval.zero_shot import ZeroShotConfig, zero_shot
from tests.conftest import Configure, build_vae, encode_and_seal
from tests.test_train import store_of, tiny_model
from train.config import TrainConfig
from train.loop import train
from train.zero_shot import check_latents, read_classes

__all__ = ["tiny_model"]


@pytest.fixture
def checkpoint(sealed: Version, tiny_model: str, tmp_path: Path) -> Path:
    train(TrainConfig(model=tiny_model, data=store_of(sealed), out=tmp_path / "run", steps=2))
    return tmp_path / "run"


@pytest.fixture
def test_store(configure: Configure, world: Path, tmp_path: Path) -> Version:
    return encode_and_seal(configure(source=str(world / "test"), store=str(tmp_path / "test-store"), views=1))


def test_accuracy_equals_open_clips_algorithm_item_by_item(
    checkpoint: Path, test_store: Version, world: Path, tmp_path: Path
) -> None:
    config = ZeroShotConfig(
        checkpoint=checkpoint, data=store_of(test_store), classes=world / "test", out=tmp_path / "zs"
    )
    result = zero_shot(config)
    names, templates = read_classes(world / "test")
    assert (len(names), result["n"]) == (48, 48)
    model = open_model(checkpoint)
    functions = [lambda name, text=text: text.format(c=name) for text in templates]
    classifier = open_clip.build_zero_shot_classifier(model.model, model.tokenizer, names, functions)
    ours = model.embed_classes(names, templates)
    assert torch.allclose(ours.T, classifier, atol=1e-6)
    told = [json.loads(line) for line in (tmp_path / "zs" / "predictions.jsonl").read_text().splitlines()]
    shards = [ShardCache(test_store, tmp_path).open(row) for row in test_store.manifest().to_pylist()]
    latents = torch.from_numpy(np.concatenate([[shard.latent(i) for i in range(len(shard))] for shard in shards]))
    with torch.inference_mode():
        logits = model.model.encode_image(latents.float(), normalize=True) @ classifier
    expected = [names[number] for number in logits.argmax(dim=1).tolist()]
    assert [item["top5"][0] for item in told] == expected
    right = [item["label"] == said for item, said in zip(told, expected, strict=True)]
    assert result["metrics"]["acc1"] == pytest.approx(np.mean(right))
    assert result["metrics"]["mean_per_class_recall"] == pytest.approx(np.mean(right))  # one picture a class
    assert json.loads((tmp_path / "zs" / "result.json").read_text()) == result


def test_without_class_files_the_labels_of_the_data_are_the_classes(
    checkpoint: Path, test_store: Version, world: Path
) -> None:
    result = zero_shot(ZeroShotConfig(checkpoint=checkpoint, data=store_of(test_store)))
    assert (result["classes"], result["templates"], result["n"]) == (48, 7, 48)


def test_latents_of_another_scale_are_converted(
    checkpoint: Path, test_store: Version, configure: Configure, world: Path, tmp_path: Path
) -> None:
    def embed(version: Version) -> torch.Tensor:
        model = open_model(checkpoint)
        check_latents(model.spec, version.spec, store_of(version))
        shard = ShardCache(version, tmp_path).open(version.manifest().to_pylist()[0])
        return model.embed_latents(torch.from_numpy(shard.latent(0)[None].copy()), version.spec)

    scaled = configure(source=str(world / "test"), store=str(tmp_path / "scaled"), views=1, scale="model")
    assert torch.allclose(embed(test_store), embed(encode_and_seal(scaled)), atol=5e-3)


def test_latents_of_another_vae_are_refused(
    checkpoint: Path, configure: Configure, world: Path, tmp_path: Path
) -> None:
    vae = build_vae(tmp_path / "other-vae", seed=5)
    config = configure(source=str(world / "test"), store=str(tmp_path / "foreign"), views=1, vae=str(vae))
    foreign = encode_and_seal(config)
    with pytest.raises(SpecError, match="these latents are not the model's: vae: .* against .*other-vae"):
        zero_shot(ZeroShotConfig(checkpoint=checkpoint, data=store_of(foreign), classes=world / "test"))


def test_what_does_not_fit_is_refused(checkpoint: Path, test_store: Version, world: Path, tmp_path: Path) -> None:
    classes = tmp_path / "classes"
    classes.mkdir()
    (classes / "classnames.txt").write_text("red circle\n")
    templates = classes / "zeroshot_classification_templates.txt"
    data = store_of(test_store)
    for unfit in ("a {c} in {city}", "a {c} {", "{c} of {c.__class__}"):
        templates.write_text(f"{unfit}\n")
        with pytest.raises(RequestError, match="has more in braces than {c}, the class name"):
            zero_shot(ZeroShotConfig(checkpoint=checkpoint, data=data, classes=classes))
    templates.write_text("a {c}\n")
    with pytest.raises(RequestError, match=r"label '.*' is not in .*classnames\.txt"):
        zero_shot(ZeroShotConfig(checkpoint=checkpoint, data=data, classes=classes))
    with pytest.raises(RequestError, match="no wrong in its metadata"):
        zero_shot(ZeroShotConfig(checkpoint=checkpoint, data=data, classes=world / "test", label="wrong"))
    with pytest.raises(RequestError, match="no such file"):
        zero_shot(ZeroShotConfig(checkpoint=checkpoint, data=data, classes=tmp_path))
    with pytest.raises(RequestError, match="no checkpoint in this folder"):
        zero_shot(ZeroShotConfig(checkpoint=tmp_path, data=data, classes=world / "test"))
    path = tmp_path / "x.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(RequestError, match="not a checkpoint"):
        zero_shot(ZeroShotConfig(checkpoint=path, data=data, classes=world / "test"))


def test_missing_weights_are_an_error(checkpoint: Path, tmp_path: Path) -> None:
    path = next((checkpoint / "checkpoints").glob("*.pt"))
    content = torch.load(path, weights_only=True)
    content["state_dict"].pop("visual.proj")
    torch.save(content, tmp_path / "lame.pt")
    with pytest.raises(RequestError, match="missing or unexpected weights: visual.proj"):
        open_model(tmp_path / "lame.pt")
