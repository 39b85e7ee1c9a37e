"""Latent models behind the one door: every form they come in, and every way their latents reach them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from diffusers import AutoencoderKL

from encode_pipeline.augment import ViewMaker
from encode_pipeline.encoder import LatentEncoder
from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import CheckFailed, RequestError, main
from encode_pipeline.latents.spec import LatentSpec, SpecError, convert_scale
from encode_pipeline.latents.store import Version
from encode_pipeline.read import read_samples
from encode_pipeline.recipe import read_recipe
from encode_pipeline.records import Sample, ViewedSample
from encode_pipeline.vae import identify, load_vae
from eval.__main__ import VERBS
from eval.clip import MEASURED
from eval.models import LatentClip, open_model
from eval.rewards import LatentClipReward
from tests.conftest import SIDE, Configure, build_vae, encode_and_seal
from tests.test_export import SPEC, authors_layout, write_checkpoint
from tests.test_import import Bomb
from tests.test_train import store_of, tiny_model
from tests.test_train_models import architecture
from train.config import ExportConfig, TrainConfig
from train.export import export
from train.loop import train
from train.model import build_model, tokenizer_for

__all__ = ["tiny_model"]

NAMES = ["red circle", "blue square", "two green rings"]
TEMPLATES = ["a {c}", "a picture of a {c}.", "{c}"]
SDXL = SPEC.model_copy(update={"vae": SPEC.vae.model_copy(update={"config": {"block_out_channels": list(MEASURED)}})})


def classifier(model: Any, tokenizer: Any) -> torch.Tensor:
    """OpenCLIP's own class embeddings."""
    functions = [lambda name, text=text: text.format(c=name) for text in TEMPLATES]
    return open_clip.build_zero_shot_classifier(model, tokenizer, NAMES, functions).T


def of_spec(path: Path, spec: LatentSpec = SPEC, **more: Any) -> Path:
    """A checkpoint with random weights for such latents."""
    torch.manual_seed(0)
    channels, grid, _ = spec.shape
    vision = {"patch_size": 2} if grid < 64 else {}
    model = build_model(architecture(vision), channels, grid)
    return write_checkpoint(path, model, architecture(vision), **{"spec": spec.to_dict(), **more})


def test_a_run_and_its_exports_are_one_model(sealed: Version, tiny_model: str, tmp_path: Path) -> None:
    train(TrainConfig(model=tiny_model, data=store_of(sealed), out=tmp_path / "run", steps=2))
    for form in ("native", "open-clip"):
        export(ExportConfig(checkpoint=tmp_path / "run", out=tmp_path / form, form=form))
    moved = tmp_path / "moved"
    (tmp_path / "open-clip").rename(moved)
    file = next((tmp_path / "run" / "checkpoints").glob("*.pt"))
    run, *others = [open_model(place) for place in (tmp_path / "run", file, tmp_path / "native", moved)]
    assert torch.equal(run.embed_classes(NAMES, TEMPLATES), run.embed_classes(NAMES, TEMPLATES))
    assert torch.allclose(run.embed_classes(NAMES, TEMPLATES), classifier(run.model, run.tokenizer), atol=1e-6)
    latents = torch.randn(3, *sealed.spec.shape)
    told = run.provenance
    for other in others:
        assert torch.allclose(run.embed_latents(latents, run.spec), other.embed_latents(latents, other.spec), atol=1e-5)
        assert torch.allclose(run.embed_texts(NAMES), other.embed_texts(NAMES), atol=1e-5)
        assert (other.name, other.spec, other.not_comparable) == ("tiny", run.spec, run.not_comparable)
        for key in ("step", "samples", "epoch", "imported_from", "latents", "parameters"):
            assert other.provenance[key] == told[key], key
    assert [other.provenance["weights_sha256"] == told["weights_sha256"] for other in others] == [True, True, False]
    assert (told["step"], told["samples"]) == (2, 20) and told["address"] == str(tmp_path / "run")
    assert told["latents"]["fingerprint"] == sealed.fingerprint
    assert told["latents"]["vae"]["weights_sha256"] == sealed.spec.vae.weights_sha256
    assert json.loads(json.dumps(told)) == told
    assert run.logit_scale == pytest.approx(1 / 0.07, rel=0.01)


@pytest.fixture
def plain_store(configure: Configure) -> Version:
    return encode_and_seal(configure(views=1, posterior="mean", limit=1))


def test_the_same_pictures_by_store_by_pipeline_and_by_hand(
    plain_store: Version, world: Path, small_vae: Path, tmp_path: Path
) -> None:
    model = open_model(of_spec(tmp_path / "m.pt", plain_store.spec))
    shard = ShardCache(plain_store, tmp_path).open(plain_store.manifest().to_pylist()[0])
    stored = torch.from_numpy(np.stack([shard.latent(index) for index in range(len(shard))]))
    by_store = model.embed_latents(stored, plain_store.spec)

    with (world / "train" / "00000.tar").open("rb") as file:
        samples = [sample for sample in read_samples(file, "00000.tar") if isinstance(sample, Sample)]
    assert [sample.key for sample in samples] == list(shard.keys)
    maker = ViewMaker(read_recipe("paper"), 1, SIDE, 0, "any")
    viewed = [maker(sample) for sample in samples]
    views = [one.views[0].pixels for one in viewed if isinstance(one, ViewedSample)]
    spec = model.spec.model_copy(update={"posterior": "mean"})
    encoder = LatentEncoder(load_vae(str(small_vae)), spec, batch_size=16, device=torch.device("cpu"))
    noise = np.zeros((len(views), *spec.shape), np.float32)
    by_hand = model.embed_latents(torch.from_numpy(encoder.encode(views, list(noise)).latents), spec)

    vae = AutoencoderKL.from_pretrained(small_vae)
    pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    by_pipeline = model.embed_latents(latents, model.spec_of_pipeline(vae))

    assert by_store.std(dim=0).max() > 1e-3  # the pictures are told apart at all
    for other in (by_hand, by_pipeline):
        assert torch.allclose(by_store, other, atol=2e-3)
    assert not torch.allclose(by_store, model.embed_latents(latents, model.spec), atol=2e-3)  # in the wrong scale


def test_latents_of_others_are_refused_by_spec(plain_store: Version, tmp_path: Path) -> None:
    model = open_model(of_spec(tmp_path / "m.pt", plain_store.spec))
    latents, spec = torch.randn(2, *model.spec.shape), model.spec
    strange = AutoencoderKL.from_pretrained(build_vae(tmp_path / "vae", seed=5))
    foreign = spec.model_copy(update={"vae": identify("another", strange)})
    with pytest.raises(SpecError, match=r"m: these latents are not the model's: vae: .* against another"):
        model.embed_latents(latents, foreign)
    with pytest.raises(SpecError, match=r"shape: .*4, 8, 8.* against .*4, 16, 16"):
        model.embed_latents(torch.randn(2, 4, 16, 16), spec.model_copy(update={"shape": (4, 16, 16)}))
    for wrong in (latents[0], torch.randn(2, 4, 8, 4)):
        with pytest.raises(SpecError, match=r"m: reads batches of latents of 4x8x8, not "):
            model.embed_latents(wrong, spec)
    assert model.spec_of_pipeline(strange).scale == "model"  # another decoder of the same space
    strange.register_to_config(scaling_factor=0.3611, shift_factor=0.1159)
    with pytest.raises(SpecError, match=r"scaling_factor: 0.3611 against 0.18215 of"):
        model.spec_of_pipeline(strange)
    with pytest.raises(CheckFailed, match="m: latents that are not finite"):
        model.embed_latents(latents.fill_(torch.nan), spec)


@pytest.mark.parametrize("trained_on", ["raw", "model"])
def test_unscaled_and_doubly_scaled_latents_are_refused(trained_on: str, tmp_path: Path) -> None:
    model = open_model(of_spec(tmp_path / "m.pt", SDXL.model_copy(update={"scale": trained_on})))
    specs = {scale: SDXL.model_copy(update={"scale": scale}) for scale in ("raw", "model")}
    scaled = torch.randn(4, 4, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.9
    raw = convert_scale(scaled, SDXL.vae, "model", "raw")
    assert torch.allclose(
        model.embed_latents(raw, specs["raw"]), model.embed_latents(scaled, specs["model"]), atol=1e-5
    )
    with pytest.raises(
        SpecError, match=r"m: latents .* in model scale .* had not been multiplied by the VAE's 0.13025"
    ):
        model.embed_latents(raw, specs["model"])
    twice = convert_scale(scaled, SDXL.vae, "raw", "model")
    for latents, said in ((twice, "model"), (scaled, "raw"), (twice, "raw")):
        with pytest.raises(SpecError, match=rf"in {said} scale .* multiplied by the VAE's 0.13025 once too often"):
            model.embed_latents(latents, specs[said])
    for plain in (0.3, 2.5):  # pictures of one colour, from grey to black
        model.embed_latents(torch.full((1, 4, 64, 64), plain), specs["model"])


def test_gradients_reach_latents_and_no_weights(tmp_path: Path) -> None:
    model = open_model(of_spec(tmp_path / "m.pt"))
    latents = torch.randn(2, 4, 64, 64, requires_grad=True)
    (model.embed_latents(latents, SPEC) @ model.embed_texts(["a red circle"]).T).sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.model.parameters())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "random weights: it was never trained"),
        ({"step": 9}, "how many samples it was trained on is not recorded"),
        ({"step": 9, "settings": {"batch_size": 1000}}, "trained on 9,000 of the paper's 34 billion samples"),
        ({"step": 415_040, "settings": {"batch_size": 81_920}}, None),
        ({"imported_from": "epoch_34.pt", "epoch": 34}, None),
        ({"imported_from": "x.pt"}, "x.pt does not say how long it was trained"),
    ],
)
def test_what_keeps_a_number_from_the_papers(content: dict[str, Any], reason: str | None, tmp_path: Path) -> None:
    found = open_model(of_spec(tmp_path / "m.pt", SDXL, **content)).not_comparable
    assert found == [*([reason] if reason else []), "a small model (0.8 M parameters)"]


def test_of_a_model_tuned_on_preferences_nobody_knows_how_it_was_trained(tmp_path: Path) -> None:
    tuned = open_model(of_spec(tmp_path / "m.pt", SDXL, step=9, settings={"batch_size": 9, "checkpoint": "runs/b8"}))
    unknown = "how it was trained before it was fine-tuned is not recorded"
    assert tuned.not_comparable[:2] == ["fine-tuned on preferences", unknown]
    assert LatentClipReward(tuned, kind="pick").not_comparable[0] == unknown


def test_other_latents_keep_it_too(tmp_path: Path) -> None:
    told = open_model(of_spec(tmp_path / "m.pt", SPEC, imported_from="x", epoch=34)).not_comparable
    assert told[0] == "latents of 4x64x64 by an SDXL VAE, not of 4x64x64 by a VAE like SDXL's"
    pixels = SPEC.model_copy(update={"vae": load_vae("pixels").identity, "shape": (3, 8, 8)})
    told = open_model(of_spec(tmp_path / "p.pt", pixels, imported_from="x", epoch=34)).not_comparable
    assert told[0] == "averaged pixels, no latents"


def test_what_is_no_model_of_ours_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = build_model(architecture(), 4, 64).state_dict()
    raw = tmp_path / "epoch_34.pt"
    torch.save({"epoch": 34, "name": "x", "state_dict": authors_layout(state)}, raw)
    assert main("eval", VERBS, ["zero-shot", f"checkpoint={raw}", "data=x"]) == 2
    told = capsys.readouterr().err
    assert (
        f"of the Latent-CLIP authors: `python -m train import checkpoint={raw} model=" in told and told.count("\n") == 1
    )
    torch.save(state, raw)
    with pytest.raises(RequestError, match=r"weights without their architecture: say MODEL/.*epoch_34.pt with a model"):
        open_model(raw)
    torch.save({"state_dict": state, "optimizer": Bomb(tmp_path / "ran")}, raw)
    with pytest.raises(RequestError, match=r"epoch_34.pt: not a checkpoint that can be read safely: .*posix.system"):
        open_model(raw)
    assert not (tmp_path / "ran").exists()
    raw.write_bytes(b"nothing of the kind")
    with pytest.raises(RequestError, match=r"epoch_34.pt: not a checkpoint that can be read safely"):
        open_model(raw)
    lame = of_spec(tmp_path / "lame.pt")
    content = torch.load(lame, weights_only=True)
    del content["spec"]
    torch.save(content, lame)
    with pytest.raises(RequestError, match=r"lame.pt: not a checkpoint of this trainer: no spec"):
        open_model(lame)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="empty: no checkpoint in this folder"):
        open_model(tmp_path / "empty")


def test_an_export_with_a_weight_less_or_more_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    export(ExportConfig(checkpoint=of_spec(tmp_path / "m.pt"), out=tmp_path / "out"))
    weights = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    weights["visual.extra"] = weights.pop("visual.trunk.norm.bias")
    shutil.copytree(tmp_path / "out", tmp_path / "lame")
    save_file(weights, tmp_path / "lame" / "open_clip_model.safetensors")
    with pytest.raises(RequestError, match=r"visual.trunk.norm.bias is missing, visual.extra is unexpected"):
        open_model(tmp_path / "lame")
    assert isinstance(open_model(f"local-dir:{tmp_path / 'out'}"), LatentClip)
    (tmp_path / "out" / "spec.json").unlink()
    with pytest.raises(RequestError, match=r"reads 4 channels, no pictures; a model of latents is a folder with spec"):
        open_model(tmp_path / "out")


def test_tokens_are_the_trainers(tmp_path: Path) -> None:
    model = open_model(of_spec(tmp_path / "m.pt"))
    assert torch.equal(model.tokenizer(NAMES), tokenizer_for(architecture())(NAMES))
