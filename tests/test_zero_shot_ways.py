"""The four ways from data to a model: each against the algorithm that it stands for, re-derived here, item by item."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from encode_pipeline.augment import ViewMaker
from encode_pipeline.encoder import LatentEncoder
from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.commit import ShardBuild, SourceShard
from encode_pipeline.latents.spec import LatentSpec, SpecError
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.randomness import posterior_noise, seed_of
from encode_pipeline.recipe import read_recipe
from encode_pipeline.records import Sample
from encode_pipeline.vae import decode_latents, load_vae
from eval.encoded import encoded
from eval.models import open_model
from eval.pictures import open_pictures
from eval.zero_shot import ZeroShotConfig, distinct, zero_shot
from tests.clips import latent_clip, pixel_clip
from tests.conftest import build_vae
from tests.picture_sets import class_list, numbered, picture, wds, write
from tests.test_eval_encoded import spec_of
from tests.test_train import store_of

CLASSES = ("cat", "hot dog", "bird", "missile", "lamp", "missile")
"""Two of one name, as in ImageNet's list."""
GENERATED = {"generator": "tiny", "noise": "full", "not_comparable": ["the generator has random weights"]}


@pytest.fixture(scope="module")
def pixel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pixel_clip(tmp_path_factory.mktemp("pixel") / "clip")


@pytest.fixture(scope="module")
def spec(small_vae: Path) -> LatentSpec:
    return spec_of(small_vae)


@pytest.fixture(scope="module")
def latent(spec: LatentSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return latent_clip(tmp_path_factory.mktemp("latent") / "clip.pt", spec)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Thirty pictures of six classes, in three tars of CLIP_benchmark's."""
    samples = [numbered(number % len(CLASSES), f"s{number:03d}", number) for number in range(30)]
    tars = [[member for sample in samples[start : start + 10] for member in sample] for start in (0, 10, 20)]
    return wds(tmp_path / "set", *tars, classes=CLASSES)


@pytest.fixture
def generated(spec: LatentSpec, small_vae: Path, tmp_path: Path) -> Version:
    """A labelled store of latents that say they were generated."""
    made = spec.model_copy(update={"views": 1, "recipe": {"generated": GENERATED}})
    version, rng = Store(tmp_path / "generated").create(made), np.random.default_rng(0)
    for shard in range(2):
        with ShardBuild(tmp_path / f"build-{shard}", made, SourceShard(f"{shard}.tar", 1)) as build:
            for number in range(7):
                about = {"class_name": CLASSES[number % 3], "label": number % 3}
                noise = rng.standard_normal(made.shape).astype(np.float16)
                build.add(f"g{shard}{number}", [noise], "a picture", [{"metadata": about, "view": 0}])
            version.publish(*build.finish("0" * 64, {}))
    version.seal()
    return version


def run(out: Path, checkpoint: Path, data: Path | str, **more: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The result and the predictions of an evaluation."""
    config = ZeroShotConfig(checkpoint=checkpoint, data=data, out=out, cache=out.parent / "cache", **more)
    result = zero_shot(config)
    assert json.loads((out / "result.json").read_text()) == result
    return result, [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def latents_in(version: Version, folder: Path) -> list[tuple[str, str, np.ndarray, dict[str, Any]]]:
    """Shard, key, latent and record of every sample, in order."""
    found = []
    for row in version.manifest().to_pylist():
        with ShardCache(version, folder).open(row) as shard:
            for index, key in enumerate(shard.keys):
                about = shard.metadata(index)["metadata"]
                found.append((row["shard"], key, np.array(shard.latent(index)), about))
    return found


def alike(named: Iterable[list[str]]) -> list[list[str]]:
    """Without their numbers: of two classes of one name, which have one prompt, it is chance who comes first."""
    return [[name.partition(" (")[0] for name in names] for names in named]


def agree(told: list[dict[str, Any]], features: torch.Tensor, rows: torch.Tensor, names: list[str]) -> None:
    """That the five best of every picture are those of the features, in order and by their scores."""
    best = (features @ rows.T).topk(min(5, len(names)))
    expected = [[names[number] for number in numbers] for numbers in best.indices.tolist()]
    assert alike(line["top5"] for line in told) == alike(expected)
    assert np.allclose([line["scores"] for line in told], best.values, atol=1e-5)


def test_a_model_of_pixels_is_judged_as_clip_benchmark_judges(pixel: Path, pictures: Path, tmp_path: Path) -> None:
    result, told = run(tmp_path / "out", pixel, pictures, batch_size=4)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{pixel}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{pixel}")
    templates = (pictures / "zeroshot_classification_templates.txt").read_text().splitlines()
    functions = [lambda name, text=text: text.format(c=name) for text in templates]
    with torch.no_grad():
        classifier = open_clip.build_zero_shot_classifier(model.eval(), tokenizer, CLASSES, functions)
        images = [Image.open(io.BytesIO(picture(number))).convert("RGB") for number in range(30)]
        features = F.normalize(model.encode_image(torch.stack([preprocess(image) for image in images])), dim=-1)
        logits = 100.0 * features @ classifier
    names, target = distinct(CLASSES), torch.arange(30) % len(CLASSES)
    assert [line["key"] for line in told] == [f"s{number:03d}" for number in range(30)]
    assert [line["label"] for line in told] == [names[number] for number in target]
    best = logits.topk(5).indices
    assert alike(line["top5"] for line in told) == [
        [CLASSES[number] for number in numbers] for numbers in best.tolist()
    ]
    assert np.allclose([line["scores"] for line in told], logits.topk(5).values / 100, atol=1e-6)
    hits = torch.tensor([[line["label"] == name for name in line["top5"]] for line in told])
    assert result["metrics"]["acc1"] == pytest.approx(hits[:, 0].float().mean().item())
    assert result["metrics"]["acc5"] == pytest.approx(hits.any(dim=1).float().mean().item())
    recalls = [hits[target == number, 0].float().mean().item() for number in range(len(CLASSES))]
    assert result["metrics"]["mean_per_class_recall"] == pytest.approx(np.mean(recalls))
    rows = open_model(pixel).embed_classes(CLASSES, templates)
    assert torch.allclose(rows, classifier.T, atol=1e-6)
    assert (result["n"], result["way"], result["classes"], result["templates"]) == (30, "pixels", 6, 2)
    for name, (low, high) in result["intervals"].items():
        assert 0 <= low <= result["metrics"][name] <= high <= 1


def test_a_model_of_latents_sees_pictures_through_its_vae_and_the_next_one_finds_them(
    latent: Path, spec: LatentSpec, pictures: Path, tmp_path: Path
) -> None:
    result, told = run(tmp_path / "out", latent, pictures, batch_size=7)
    assert (result["n"], result["way"], result["data"]["kind"]) == (30, "encoded", "pictures")
    assert result["data"]["vae"]["weights_sha256"] == spec.vae.weights_sha256
    (manifest,) = (tmp_path / "cache").rglob("manifest.parquet")
    version = Store(manifest.parents[1]).version(manifest.parent.name)
    assert result["data"]["fingerprint"] == version.fingerprint
    model, stored = open_model(latent), latents_in(version, tmp_path)
    parts = [part.name for part in open_pictures(str(pictures)).parts]
    assert [(line["shard"], line["key"]) for line in told] == [(parts[n // 10], f"s{n:03d}") for n in range(30)]
    features = model.embed_latents(torch.from_numpy(np.stack([latent for *_, latent, _ in stored])), version.spec)
    templates = (pictures / "zeroshot_classification_templates.txt").read_text().splitlines()
    agree(told, features, model.embed_classes(CLASSES, templates), distinct(CLASSES))
    attempts = {commit.attempt for commit in version.commits()}
    other = latent_clip(tmp_path / "other.pt", spec, seed=1)
    assert run(tmp_path / "second", other, pictures)[0]["data"]["fingerprint"] == version.fingerprint
    assert {commit.attempt for commit in version.commits()} == attempts
    again, _ = run(tmp_path / "third", latent, store_of(version), classes=pictures)  # labels by number, as a store
    assert (again["metrics"], again["way"], again["data"]["kind"]) == (result["metrics"], "encoded", "store")


def test_generated_latents_directly_and_decoded_and_encoded_again(
    latent: Path, spec: LatentSpec, small_vae: Path, generated: Version, tmp_path: Path
) -> None:
    direct, by_latent = run(tmp_path / "direct", latent, store_of(generated))
    decoded, by_picture = run(tmp_path / "decoded", latent, store_of(generated), way="decoded", batch_size=3)
    assert (direct["way"], decoded["way"], direct["n"], decoded["n"]) == ("direct", "decoded", 14, 14)
    assert direct["data"]["generated"] == GENERATED
    model, vae, stored = open_model(latent), load_vae(str(small_vae)), latents_in(generated, tmp_path)
    names = sorted(set(CLASSES[:3]))
    rows = model.embed_classes(names, [template("{c}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES])
    latents = np.stack([latent for *_, latent, _ in stored])
    agree(by_latent, model.embed_latents(torch.from_numpy(latents), generated.spec), rows, names)
    encoder, again = LatentEncoder(vae, spec, 1), []
    for (shard, key, *_), pixels in zip(stored, decode_latents(vae, latents.astype(np.float32)), strict=True):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        view = ViewMaker(read_recipe("paper"), 1, spec.image_size, 0, shard)(Sample(key, file.getvalue(), "x", {}))
        noise = posterior_noise(seed_of(spec.seed, shard, key, 0, "posterior"), spec.shape)
        again.append(encoder.encode([view.views[0].pixels], [noise]).latents[0])
    agree(by_picture, model.embed_latents(torch.from_numpy(np.stack(again)), spec), rows, names)


def test_a_model_of_pixels_sees_latents_decoded(
    pixel: Path, small_vae: Path, generated: Version, tmp_path: Path
) -> None:
    result, told = run(tmp_path / "out", pixel, store_of(generated))
    assert (result["n"], result["way"]) == (14, "decoded")
    model, stored = open_model(pixel), latents_in(generated, tmp_path)
    latents = np.stack([latent for *_, latent, _ in stored]).astype(np.float32)
    pictures = decode_latents(load_vae(str(small_vae)), latents)
    features = model.embed_pixels(torch.stack([model.prepare(Image.fromarray(pixels)) for pixels in pictures]))
    names = sorted(set(CLASSES[:3]))
    rows = model.embed_classes(names, [template("{c}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES])
    agree(told, features, rows, names)


def test_what_makes_a_store_unlike_the_papers_pictures_is_told(
    pixel: Path, latent: Path, generated: Version, spec: LatentSpec, pictures: Path, tmp_path: Path
) -> None:
    said = run(tmp_path / "pixel", pixel, store_of(generated))[0]["not_comparable"]
    made = f"{'x'.join(map(str, spec.shape))} by {Path(spec.vae.name).name}"
    assert said[-2:] == [
        "the generator has random weights",
        f"latents of {made}, not of 4x64x64 by a VAE like SDXL's",
    ]
    assert (
        "the generator has random weights" in run(tmp_path / "latent", latent, store_of(generated))[0]["not_comparable"]
    )
    plain = encoded(open_pictures(str(pictures)), spec, None, tmp_path / "cache")
    said = run(tmp_path / "decoded", pixel, store_of(plain), classes=pictures)[0]["not_comparable"]
    assert "pictures decoded from latents, where the paper has the pictures themselves" in said


def test_what_was_asked_for_cannot_be(pixel: Path, latent: Path, generated: Version, tmp_path: Path) -> None:
    data = store_of(generated)
    with pytest.raises(RequestError, match="way=direct: .* reads pictures, and .* holds latents"):
        run(tmp_path / "out", pixel, data, way="direct")
    with pytest.raises(RequestError, match=r"view=1: .* has 1 views, from 0"):
        run(tmp_path / "out", latent, data, view=1)
    foreign = latent_clip(tmp_path / "foreign.pt", spec_of(build_vae(tmp_path / "other-vae", seed=5)))
    with pytest.raises(SpecError, match="these latents are not the model's"):
        run(tmp_path / "out", foreign, data)
    assert run(tmp_path / "through", foreign, data, way="decoded")[0]["n"] == 14  # each by its own VAE
    (tmp_path / "other-vae").rename(tmp_path / "moved")
    with pytest.raises(RequestError, match="other-vae: no such directory; say vae="):
        run(tmp_path / "out", foreign, data, way="decoded")
    found = run(tmp_path / "found", foreign, data, way="decoded", vae=str(tmp_path / "moved"))
    assert found[1] == run(tmp_path / "through", foreign, data, way="decoded", vae=str(tmp_path / "moved"))[1]
    folder = write(tmp_path / "folder", {"cat/a.png": picture(0), "dog/b.png": picture(1)})
    with pytest.raises(RequestError, match="way, view and version are of latent stores, and these are pictures"):
        run(tmp_path / "out", pixel, folder, way="decoded")
    with pytest.raises(RequestError, match="label 'bird' is not in"):
        run(tmp_path / "out", latent, data, classes=write(tmp_path / "few", class_list(("cat", "hot dog"))))
