"""Models leave for plain OpenCLIP, which then gives the same features with no code of ours."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from encode_pipeline.latents.command import CheckFailed, RequestError, build, main
from encode_pipeline.latents.spec import LatentSpec, VaeIdentity
from encode_pipeline.latents.store import Version
from eval.models import open_model
from eval.zero_shot import ZeroShotConfig, zero_shot
from tests.only_open_clip import link_site, run_isolated
from tests.test_train import store_of, tiny_model
from tests.test_train_models import architecture
from train.__main__ import VERBS
from train.checkpoint import load_checkpoint
from train.config import Architecture, ExportConfig, ImportConfig, TrainConfig, architecture_of
from train.export import compare, export
from train.import_checkpoint import import_checkpoint
from train.loop import train
from train.model import build_model, restore_model, tokenizer_for

__all__ = ["tiny_model"]

SPEC = LatentSpec(
    vae=VaeIdentity(name="an SDXL VAE", weights_sha256="1" * 64, config={}, scaling_factor=0.13025),
    shape=(4, 64, 64),
    image_size=512,
    views=4,
    recipe={},
    seed=0,
)
LATENTS = "torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(3))"
LOAD = f"""
import json, torch, open_clip
answers = {{}}
for name, folder in FOLDERS.items():
    model = open_clip.create_model(f"local-dir:{{folder}}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{{folder}}")(["a red circle", "two blue squares"])
    expected = torch.load(f"{{folder}}.expected.pt")
    with torch.inference_mode():
        found = [model.encode_image({LATENTS}, normalize=True), model.encode_text(tokens, normalize=True)]
    answers[name] = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
open_clip.create_model_and_transforms(f"local-dir:{{folder}}")
print(json.dumps(answers))
"""


def write_checkpoint(path: Path, model: open_clip.CLIP, shape: Architecture, **more: Any) -> Path:
    content = {"epoch": 0, "name": path.stem, "step": 0, "state_dict": model.state_dict(), "spec": SPEC.to_dict()}
    torch.save({**content, "architecture": shape.model_dump(mode="json"), **more}, path)
    return path


def authors_layout(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by the names in the authors' epoch_34.pt, beside those of the VAE that they kept in the model."""
    renamed = {
        f"module.{'visual.latent_vit.' + name.removeprefix('visual.') if name.startswith('visual.') else name}": tensor
        for name, tensor in state.items()
    }
    vae = {
        "module.visual.vae_encoder.conv_in.weight": torch.ones(2, 3),
        "module.visual.vae_quant_conv.bias": torch.ones(8),
    }
    return {**renamed, **vae}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The three recipes with random weights, exported; B/8 after it came in by the authors' layout."""
    base = tmp_path_factory.mktemp("exported")
    made = {}
    for seed, name in enumerate(("latent-vit-b-8", "latent-vit-b-4-plus", "latent-vit-demo")):
        torch.manual_seed(seed)
        shape = architecture_of(name)
        model = build_model(shape, 4, 64).eval()
        if name == "latent-vit-b-8":
            path = base / "epoch_34.pt"
            torch.save({"epoch": 34, "name": "x", "state_dict": authors_layout(model.state_dict())}, path)
            (base / "spec.json").write_bytes(SPEC.to_json())
            checkpoint = base / "imported"
            import_checkpoint(ImportConfig(checkpoint=path, model=name, data=f"{base}/spec.json", out=checkpoint))
            imported = torch.load(checkpoint / "model.pt", mmap=True, weights_only=True)["state_dict"]
            assert all(torch.equal(tensor, imported[key]) for key, tensor in model.state_dict().items())
            path.unlink()
        else:
            checkpoint = write_checkpoint(base / f"{name}.pt", model, shape)
        result = export(ExportConfig(checkpoint=checkpoint, out=base / name))
        assert result["max_difference"] <= 1e-5
        with torch.inference_mode():
            image = model.encode_image(eval(LATENTS), normalize=True)
            text = model.encode_text(tokenizer_for(shape)(["a red circle", "two blue squares"]), normalize=True)
        torch.save([image, text], base / f"{name}.expected.pt")
        shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink()
        made[name] = base / name
    yield made
    shutil.rmtree(base)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link_site(tmp_path_factory.mktemp("site") / "packages")


def test_plain_open_clip_loads_all_three(folders: dict[str, Path], site: Path, tmp_path: Path) -> None:
    told = {name: str(folder) for name, folder in folders.items()}
    answers = json.loads(run_isolated(site, f"FOLDERS = {told!r}\n{LOAD}", tmp_path))
    assert set(answers) == set(folders) and max(answers.values()) <= 1e-5, answers


def test_a_moved_folder_loads_as_its_card_says(folders: dict[str, Path], site: Path, tmp_path: Path) -> None:
    moved = tmp_path / "new home & more"
    shutil.copytree(folders["latent-vit-demo"], moved)
    config = moved / "open_clip_config.json"
    config.write_text(config.read_text().replace(str(folders["latent-vit-demo"]), "/no/such/folder"))
    card = (moved / "README.md").read_text()
    assert "Its weights are random: it was never trained." in card
    code = card.split("```python\n")[1].split("```")[0]
    line = card.split("```sh\n")[1].split("```")[0].strip().replace("python", sys.executable, 1)
    shutil.copy(f"{folders['latent-vit-demo']}.expected.pt", f"{moved}.expected.pt")
    mend = f"import os, subprocess; subprocess.run({line!r}, shell=True, check=True); os.chdir('/')"
    told = run_isolated(site, f"{code}\n{mend}\nFOLDERS = {{'moved': {str(moved)!r}}}\n{LOAD}", moved).splitlines()
    assert told[0].startswith("tensor([[")
    assert json.loads(told[-1])["moved"] <= 1e-5


def test_the_tokenizer_files_are_open_clips_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["latent-vit-demo"]
    own = open_clip.SimpleTokenizer(context_length=24)
    with gzip.open(tmp_path / "merges.gz", "wb") as file:
        file.write((folder / "merges.txt").read_bytes())
    again = open_clip.SimpleTokenizer(str(tmp_path / "merges.gz"), context_length=24)
    texts = ["a red circle", "Ein Bild, 50 % größer!", "☃ 漢字"]
    assert torch.equal(again(texts), own(texts))
    words = json.loads((folder / "vocab.json").read_text())
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    assert words == {special.get(word, word): number for word, number in own.encoder.items()}
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 24
    assert json.loads((folder / "config.json").read_text())["num_classes"] == 0  # transformers reads this first


@pytest.mark.parametrize(
    "changes",
    [
        {"quick_gelu": True, "vision": {"ls_init_value": 0.1}},
        {"custom_text": True, "vision": {"no_ln_pre": True, "final_ln_after_pool": True, "pool_type": "avg"}},
        {"init_logit_bias": -10.0, "nonscalar_logit_scale": True, "vision": {"mlp_ratio": 3.0, "patch_dropout": 0.5}},
        {"vision": {"pos_embed_type": "sin_cos_2d", "block_type": "default", "head_width": 8}},
        {"vision": {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear"}},
        {"text_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 1, "no_causal_mask": True}},
    ],
)
def test_what_timm_can_say_is_exported_as_it_is(changes: dict[str, Any], tmp_path: Path) -> None:
    shape = architecture(**changes)
    model = build_model(shape, 4, 64)
    with torch.no_grad():
        for parameter in model.parameters():  # zeros and ones of a fresh model would hide a weight in the wrong place
            parameter.add_(torch.randn_like(parameter) * 0.05)
    checkpoint = write_checkpoint(tmp_path / "m.pt", model, shape)
    assert export(ExportConfig(checkpoint=checkpoint, out=tmp_path / "out"))["max_difference"] <= 1e-5


@pytest.mark.parametrize(
    ("vision", "complaint"),
    [
        ({"attentional_pool": True, "attn_pooler_heads": 2}, "vision_cfg.attentional_pool=True"),
        ({"qk_norm": True}, "vision_cfg.qk_norm=True"),
        ({"norm_kwargs": {"eps": 1e-6}}, "vision_cfg.norm_kwargs="),
        ({"act_kwargs": {"approximate": "tanh"}}, "vision_cfg.act_kwargs="),
        ({"layers": [1, 1, 1, 1], "width": 16}, "vision_cfg.layers="),
    ],
)
def test_what_timm_cannot_say_is_refused_by_name(vision: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    shape = architecture(vision)
    checkpoint = write_checkpoint(tmp_path / "m.pt", build_model(shape, 4, 64), shape)
    with pytest.raises(RequestError, match=f"{complaint}.*form=native can"):
        export(ExportConfig(checkpoint=checkpoint, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    export(ExportConfig(checkpoint=checkpoint, out=tmp_path / "out", form="native"))
    assert open_model(tmp_path / "out").spec == SPEC


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny.pt", build_model(architecture(), 4, 64), architecture())


def test_a_folder_with_something_in_it_is_never_touched(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    for form in ("open-clip", "native"):
        with pytest.raises(RequestError, match="out: already there; say another out="):
            export(build(ExportConfig, {"checkpoint": tiny_checkpoint, "out": out, "form": form}))
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    (out / "thesis.txt").unlink()
    left = tmp_path / ".out.unfinished"  # by an export that was killed
    left.mkdir()
    (left / "open_clip_model.safetensors").write_text("half")
    export(ExportConfig(checkpoint=tiny_checkpoint, out=out))
    assert (out / "open_clip_config.json").exists() and not left.exists()


def test_an_export_that_gives_other_features_fails(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(ExportConfig(checkpoint=tiny_checkpoint, out=out))
    model, shape, spec = restore_model(load_checkpoint(tiny_checkpoint), tiny_checkpoint)
    weights = load_file(out / "open_clip_model.safetensors")
    weights["visual.head.proj.weight"][0, 0] += 0.1
    save_file(weights, out / "open_clip_model.safetensors")
    with pytest.raises(CheckFailed, match="features of the exported model differ by"):
        compare(model.eval(), tokenizer_for(shape), spec, out)


def test_a_siglip_run_is_exported_with_its_bias(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = build_model(architecture(), 4, 64, "siglip")
    path = write_checkpoint(tmp_path / "siglip.pt", model, architecture())
    export(ExportConfig(checkpoint=path, out=tmp_path / "out"))
    assert open_clip.create_model(f"local-dir:{tmp_path / 'out'}").logit_bias.item() == -10
    assert open_model(path).model.logit_bias.item() == -10


def test_a_run_is_exported_and_evaluated(sealed: Version, tiny_model: str, tmp_path: Path) -> None:
    train(build(TrainConfig, {"model": tiny_model, "data": store_of(sealed), "out": tmp_path / "run", "steps": 2}))
    words = ["export", f"checkpoint={tmp_path / 'run'}", f"out={tmp_path / 'native'}", "form=native"]
    assert main("train", VERBS, words, default="run") == 0
    native = load_checkpoint(tmp_path / "native")
    whole = load_checkpoint(tmp_path / "run")
    assert "optimizer" not in native and native["settings"] == whole["settings"]
    assert all(torch.equal(tensor, native["state_dict"][name]) for name, tensor in whole["state_dict"].items())
    assert LatentSpec.from_json((tmp_path / "native" / "spec.json").read_bytes(), "") == sealed.spec
    card = (tmp_path / "native" / "README.md").read_text()
    assert "# tiny\n" in card and "Trained for 2 steps of 10 samples: 20 samples seen." in card
    assert str(tmp_path) not in card
    results = [
        zero_shot(ZeroShotConfig(checkpoint=tmp_path / name, data=store_of(sealed), label="caption"))
        for name in ("run", "native")
    ]
    assert results[0]["metrics"] == results[1]["metrics"] and results[1]["step"] == 2
    assert export(ExportConfig(checkpoint=tmp_path / "native", out=tmp_path / "oc"))["max_difference"] <= 1e-5
