"""The trainer's models: any OpenCLIP config over any latents, text towers from elsewhere, and what they cost."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from encode_pipeline.latents.command import RequestError, build, main
from encode_pipeline.latents.spec import LatentSpec
from tests.latent_stores import latent_store
from train.__main__ import VERBS
from train.checkpoint import load_checkpoint
from train.config import Architecture, ModelChoice, TrainConfig, architecture_of
from train.describe import describe
from train.flops import peak_flops
from train.loop import train
from train.model import build_model, parameter_groups, tokenizer_for
from train.text_tower import load_text_tower

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
TINY = {"embed_dim": 16, "vision_cfg": {"width": 32, "layers": 1, "head_width": 16, "patch_size": 8}, "text_cfg": TEXT}
OPEN_CLIPS = Path(open_clip.__file__).parent / "model_configs"


def architecture(vision: dict[str, Any] | None = None, **changes: Any) -> Architecture:
    return build(Architecture, {**TINY, "vision_cfg": {**TINY["vision_cfg"], **(vision or {})}, **changes})


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "my-vit.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.mark.parametrize(("name", "gflops"), [("latent-vit-b-8", 51.5), ("latent-vit-b-4-plus", 166.1)])
def test_describe_counts_the_flops_of_a_sample(name: str, gflops: float, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("train", VERBS, ["describe", f"model={name}", "--json"], default="run") == 0
    described = json.loads(capsys.readouterr().out)
    assert described["gflops_per_sample"] == pytest.approx(gflops, abs=0.05)
    assert described["training_state_gb"] == pytest.approx(16e-9 * described["total"])


def test_describe_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("train", VERBS, ["describe", "latent-vit-b-8"], default="run") == 0
    told = capsys.readouterr().out
    assert "85,698,048" in told and "63,428,097" in told and "149,126,145" in told and "51.5 GFLOP" in told


def test_a_users_json_is_a_model(config_file: Path) -> None:
    described = describe(ModelChoice(model=str(config_file), channels=16))
    model = build_model(architecture_of(str(config_file)), 16, 64)
    assert described["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert described["gflops_per_sample"] > 0
    wrapped = config_file.with_name("open_clip_config.json")
    wrapped.write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    assert architecture_of(str(wrapped)) == architecture_of(str(config_file))


def test_a_users_json_takes_its_settings_from_the_command_line(config_file: Path, tmp_path: Path) -> None:
    values = {"model": str(config_file), "data": "x", "out": tmp_path}
    assert build(TrainConfig, {**values, "lr": 1e-3, "batch_size": 8, "steps": 5}).total_steps == 5
    with pytest.raises(RequestError, match=r"lr is required; batch_size is required"):
        build(TrainConfig, values)
    with pytest.raises(RequestError, match="say steps or samples"):
        build(TrainConfig, {**values, "lr": 1e-3, "batch_size": 8})


def test_open_clips_own_json_is_refused_until_it_fits_the_latents(tmp_path: Path) -> None:
    pixels = json.loads((OPEN_CLIPS / "ViT-B-32.json").read_text())
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(pixels))
    with pytest.raises(
        RequestError, match=r"image_size 224 is not of these latents, which are 64x64: .* 64, with a pat"
    ):
        describe(ModelChoice(model=str(path)))
    pixels["vision_cfg"] |= {"image_size": 64, "patch_size": 7}
    path.write_text(json.dumps(pixels))
    with pytest.raises(RequestError, match=r"patch_size 7 does not divide a latent of 64x64; these do: 1, 2, 4, 8, 16"):
        describe(ModelChoice(model=str(path)))
    pixels["vision_cfg"]["patch_size"] = 8
    path.write_text(json.dumps(pixels))
    assert describe(ModelChoice(model=str(path)))["total"] == 149_126_145


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "mine.json: not JSON"),
        ("[1]", "mine.json: not an OpenCLIP config: expected keys and values"),
        ('{"embed_dim": 8, "vision_cfg": {}}', "mine.json: text_cfg is required"),
        (json.dumps({**TINY, "quick_gelo": True}), "unknown key 'quick_gelo'; did you mean 'quick_gelu'"),
        (json.dumps({**TINY, "vision_cfg": {"widht": 8}}), "vision_cfg: unknown key 'widht'; did you mean 'width'"),
        (json.dumps({**TINY, "vision_cfg": {"in_chans": 8}}), "in_chans: comes from the latents"),
        (json.dumps({**TINY, "multimodal_cfg": {}}), "multimodal_cfg: a CoCa"),
        (
            json.dumps({**TINY, "vision_cfg": {"width": 32, "head_width": 0, "patch_size": 8}}),
            "OpenCLIP cannot build it",
        ),
        (
            json.dumps({**TINY, "vision_cfg": {"timm_model_name": "vit_of_mine"}}),
            "OpenCLIP cannot build it: Unknown mod",
        ),
        (json.dumps({**TINY, "vision_cfg": {"timm_model_name": "resnet18"}}), "resnet18 has no patch embedding"),
        (
            json.dumps({**TINY, "vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224}}),
            "image_size 224 is not of these latents",
        ),
    ],
)
def test_a_wrong_json_gets_one_line(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(RequestError, match=complaint) as caught:
        describe(ModelChoice(model=str(path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"custom_text": True},
        {"quick_gelu": True},
        {"vision": {"pos_embed_type": "sin_cos_2d", "pool_type": "avg", "image_size": 64}},
        {"vision": {"layers": [1, 1, 1, 1], "width": 16}},
        {"vision": {"timm_model_name": "vit_tiny_patch16_224", "timm_proj": "linear"}},
        {"vision": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"}},
    ],
)
def test_every_kind_of_tower_reads_sixteen_channels(changes: dict[str, Any]) -> None:
    model = build_model(architecture(**changes), 16, 64).eval()
    with torch.inference_mode():
        features = model(torch.zeros(2, 16, 64, 64), torch.zeros(2, 16, dtype=torch.long))
    assert features["image_features"].shape == features["text_features"].shape == (2, 16)


def test_the_stem_begins_as_open_clips_own() -> None:
    """Uniform within 1/√fan-in, torch's way for convolutions, which OpenCLIP leaves as it is."""
    torch.manual_seed(0)
    own = open_clip.create_model("ViT-B-32", load_weights=False).visual.conv1
    ours = build_model(architecture({"width": 256}), 4, 64).visual.conv1
    for stem in (own, ours):
        bound = 1 / math.sqrt(stem.weight[0].numel())
        assert stem.weight.abs().max() <= bound and stem.bias is None
        assert float(stem.weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_siglip_begins_where_its_paper_says_unless_the_config_says_otherwise() -> None:
    model = build_model(architecture(), 4, 64, "siglip")
    assert model.logit_bias.item() == -10 and model.logit_scale.item() == pytest.approx(math.log(10))
    said = build_model(architecture(init_logit_bias=-5, init_logit_scale=1.0), 4, 64, "siglip")
    assert (said.logit_bias.item(), said.logit_scale.item()) == (-5, 1)
    plain = build_model(architecture(), 4, 64)
    assert plain.logit_bias is None and plain.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_what_no_gradient_reaches_is_not_given_to_the_optimiser() -> None:
    model = build_model(architecture({"pos_embed_type": "sin_cos_2d"}, init_logit_bias=-10), 4, 64)
    given = {id(parameter) for group in parameter_groups(model, 0.1) for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) not in given}
    assert names == {"visual.positional_embedding", "logit_bias"}


def test_the_tokenizer_is_the_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tokenizer_for(architecture())
    assert plain(["a red circle"]).shape == (1, 16)
    loud = tokenizer_for(architecture(text_cfg={**TEXT, "tokenizer_kwargs": {"clean": "whitespace"}}))
    assert not torch.equal(loud(["A RED CIRCLE"]), plain(["A RED CIRCLE"]))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RequestError, match="hf_tokenizer_name=/x: needs `pip install transformers`"):
        tokenizer_for(architecture(text_cfg={**TEXT, "hf_tokenizer_name": "/x"}))


@pytest.fixture
def trained_clip(tmp_path: Path) -> open_clip.CLIP:
    """A model of pixels that OpenCLIP knows as `tiny-clip`, with its weights in `tiny.pt`."""
    config = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "image_size": 32}}
    (tmp_path / "tiny-clip.json").write_text(json.dumps(config))
    (tmp_path / "tiny-quick.json").write_text(json.dumps({**config, "quick_gelu": True}))
    (tmp_path / "tiny-heads.json").write_text(json.dumps({**config, "text_cfg": {**TEXT, "heads": 4}}))
    for path in tmp_path.glob("tiny-*.json"):
        open_clip.add_model_config(path)
    torch.manual_seed(7)
    model = open_clip.create_model("tiny-clip", load_weights=False)
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "tiny.pt"
    )
    save_file(model.state_dict(), tmp_path / "tiny.safetensors")
    return model


@pytest.mark.parametrize("file", ["tiny.pt", "tiny.safetensors"])
@pytest.mark.parametrize("custom_text", [False, True])
def test_a_text_tower_comes_from_another_model(
    trained_clip: open_clip.CLIP, file: str, custom_text: bool, tmp_path: Path
) -> None:
    model = build_model(architecture(custom_text=custom_text), 4, 64)
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
    vision = {name: tensor.clone() for name, tensor in model.visual.state_dict().items()}
    load_text_tower(model, f"tiny-clip/{tmp_path / file}")
    tokens = tokenizer_for(architecture())(["a red circle", "blue"])
    with torch.inference_mode():
        assert torch.equal(model.eval().encode_text(tokens), trained_clip.eval().encode_text(tokens))
    assert model.logit_scale.item() == 1.5
    assert all(torch.equal(tensor, vision[name]) for name, tensor in model.visual.state_dict().items())


@pytest.mark.parametrize(
    ("text", "where", "complaint"),
    [
        ({"width": 32}, "tiny-clip/{0}/tiny.pt", r"positional_embedding is 16x16 there, and 16x32 here"),
        ({"layers": 2}, "tiny-clip/{0}/tiny.pt", r"another text tower: transformer.resblocks.1.\S+ is only in one"),
        ({}, "tiny-quick/{0}/tiny.pt", "was trained with quick_gelu=True"),
        ({}, "tiny-heads/{0}/tiny.pt", "has 4 heads there, and 2 here"),
        ({}, "tiny-clip/{0}/none.pt", "is no file, and no tag of tiny-clip; its tags: none"),
        ({}, "ViT-B-32/laion", "no tag of ViT-B-32; its tags: openai, laion400m_e31"),
        ({}, "ViT-B-32/openai", "was trained with quick_gelu=True"),
        ({}, "no-clip/{0}/tiny.pt", "say MODEL/TAG or MODEL/FILE"),
        ({}, "tiny-clip/{0}/tiny-clip.json", "cannot be read"),
    ],
)
def test_another_text_tower_is_refused(
    trained_clip: open_clip.CLIP, text: dict[str, Any], where: str, complaint: str, tmp_path: Path
) -> None:
    model = build_model(architecture(text_cfg={**TEXT, **text}), 4, 64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RequestError, match=complaint) as caught:
        load_text_tower(model, where.format(tmp_path))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA B200", 2250),
    ],
)
def test_the_peak_of_a_known_gpu(name: str, tflops: float) -> None:
    assert peak_flops(name) == tflops * 1e12


@pytest.mark.parametrize(
    "name",
    ["NVIDIA A10G", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "Tesla V100", "cpu"],
)
def test_no_peak_is_made_up(name: str) -> None:
    assert peak_flops(name) is None


def test_a_run_begins_with_the_text_tower_it_is_told(
    trained_clip: open_clip.CLIP, spec: LatentSpec, tmp_path: Path
) -> None:
    """With a learning rate of next to nothing it still has it at the end; and another one is another run."""
    data = str(latent_store(tmp_path / "store", tmp_path, spec, [8]).storage.root).rpartition("/")[0]
    vision = {**TINY["vision_cfg"], "patch_size": 2}
    (tmp_path / "mine.json").write_text(json.dumps({**TINY, "vision_cfg": vision}))
    values = {"model": str(tmp_path / "mine.json"), "data": data, "out": tmp_path / "out", "workers": 0}
    values |= {"steps": 1, "batch_size": 4, "lr": 1e-12, "precision": "float32"}
    train(TrainConfig(**values, text_tower=f"tiny-clip/{tmp_path / 'tiny.pt'}"))
    learnt = load_checkpoint(tmp_path / "out")["state_dict"]
    theirs = trained_clip.state_dict()
    assert all(
        torch.allclose(learnt[name], theirs[name], atol=1e-6) for name in learnt if name.startswith("transformer.")
    )
    assert not torch.equal(learnt["visual.proj"], theirs["visual.proj"])
    with pytest.raises(RequestError, match="was begun with text_tower="):
        train(TrainConfig(**values))
