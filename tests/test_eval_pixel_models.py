"""Pixel models behind the one door: the same numbers as the libraries give by themselves, or a clear refusal."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory
from open_clip.pretrained import _PRETRAINED
from open_clip.transformer import QuickGELU
from PIL import Image
from safetensors.torch import load_file, save_file

from encode_pipeline.latents.command import RequestError, main
from eval import open_clip_models
from eval.__main__ import VERBS
from eval.baselines import baselines
from eval.models import PixelClip, open_model
from tests.test_eval_models import NAMES, TEMPLATES, classifier
from tests.test_import import Bomb
from tests.test_train_models import TEXT
from train.config import Architecture
from train.model import tokenizer_for

SIZE = 32
VISION = {"image_size": SIZE, "width": 32, "layers": 1, "head_width": 16, "patch_size": 8}
TINY = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
PREPARATION = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}
TEXTS = ["a red circle", "Zwei blaue Quadrate, 50 % größer!", "word " * 40]


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[str]:
    """The name of a small model that OpenCLIP is told of."""
    (tmp_path / "tiny-vit.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "tiny-vit.json")
    yield "tiny-vit"
    factory._MODEL_CONFIG_PATHS.pop()
    factory._rescan_model_configs()


@pytest.fixture
def weights(tiny: str, tmp_path: Path) -> Path:
    torch.manual_seed(3)
    path = tmp_path / "weights.pt"
    state = open_clip.create_model(tiny).state_dict()
    torch.save({"epoch": 1, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return path


@pytest.fixture
def folder(weights: Path, tmp_path: Path) -> Path:
    """A folder as OpenCLIP pushes to the hub."""
    out = tmp_path / "folder"
    out.mkdir()
    state = torch.load(weights)["state_dict"]
    save_file({name[len("module.") :]: tensor for name, tensor in state.items()}, out / "open_clip_model.safetensors")
    (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": PREPARATION}))
    return out


@pytest.fixture
def transformers_folder(tmp_path: Path) -> Path:
    """A real CLIPModel with random weights, as `save_pretrained` leaves it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    torch.manual_seed(4)
    side = {"intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**side, "vocab_size": 49408, "hidden_size": 16, "max_position_embeddings": 16}
    text |= {"bos_token_id": 49406, "eos_token_id": 49407}
    vision = {**side, "hidden_size": 32, "image_size": SIZE, "patch_size": 8}
    out = tmp_path / "transformers"
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(out)
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(out)
    words = open_clip.SimpleTokenizer()
    special = {words.sot_token_id: "<|startoftext|>", words.eot_token_id: "<|endoftext|>"}
    vocabulary = {special.get(number, word): number for word, number in words.encoder.items()}
    CLIPTokenizer(vocab=vocabulary, merges=list(words.bpe_ranks), model_max_length=16).save_pretrained(out)
    return out


@pytest.fixture
def pictures() -> list[Image.Image]:
    noise = torch.randint(0, 256, (3, 60, 90, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return [Image.fromarray(one.numpy()) for one in noise]


def embed(model: PixelClip, pictures: list[Image.Image]) -> torch.Tensor:
    return model.embed_pixels(torch.stack([model.prepare(picture) for picture in pictures]))


def test_a_folder_of_open_clip_gives_what_open_clip_gives(
    folder: Path, pictures: list[Image.Image], caplog: pytest.LogCaptureFixture
) -> None:
    model = open_model(str(folder))
    assert isinstance(model, PixelClip) and model.spec is None
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    plain, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    plain.eval()
    assert torch.allclose(model.embed_classes(NAMES, TEMPLATES), classifier(plain, tokenizer), atol=1e-6)
    with torch.inference_mode():
        texts = plain.encode_text(tokenizer(TEXTS), normalize=True)
        rows = plain.encode_image(torch.stack([preprocess(picture) for picture in pictures]), normalize=True)
    assert torch.allclose(model.embed_texts(TEXTS), texts, atol=1e-6)
    assert torch.allclose(embed(model, pictures), rows, atol=1e-6)
    told = model.provenance
    assert (told["kind"], told["name"], told["file"]) == ("open_clip", "folder", "open_clip_model.safetensors")
    assert told["preprocessing"]["mean"] == [0.5, 0.4, 0.3] and told["preprocessing"]["size"] == (SIZE, SIZE)
    assert told["parameters"]["total"] == sum(parameter.numel() for parameter in plain.parameters())
    assert model.not_comparable[0] == "weights of a local folder, not one of OpenCLIP's published"
    json.dumps(told)


def test_a_file_of_weights_is_the_same_model(tiny: str, weights: Path, folder: Path) -> None:
    model = open_model(f"{tiny}/{weights}")
    assert torch.equal(model.embed_texts(TEXTS), open_model(folder).embed_texts(TEXTS))
    assert model.provenance["weights_sha256"] == open_model(folder).provenance["weights_sha256"]
    assert (model.name, model.provenance["model"]) == ("tiny-vit/weights.pt", tiny)
    assert model.not_comparable[0] == "weights of a local file, not one of OpenCLIP's published"


def test_a_tag_brings_its_own_preparation(tiny: str, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {"mine": {"file": str(weights), **PREPARATION}, "fast": {"file": str(weights), "quick_gelu": True}}
    monkeypatch.setitem(_PRETRAINED, tiny, tags)
    mine, fast = open_model(f"{tiny}/mine"), open_model(f"{tiny}/fast")
    assert (mine.name, mine.provenance["tag"], mine.not_comparable[1:]) == (f"{tiny}/mine", "mine", [])
    assert mine.not_comparable[0].startswith("a small model (0.8 M")
    assert mine.provenance["preprocessing"]["std"] == PREPARATION["std"]
    assert [any(isinstance(part, QuickGELU) for part in one.model.modules()) for one in (mine, fast)] == [False, True]
    plain = open_clip.create_model(tiny, "fast", force_quick_gelu=True).eval()
    assert torch.allclose(fast.embed_classes(NAMES, TEMPLATES), classifier(plain, fast.tokenizer), atol=1e-6)
    with pytest.raises(RequestError, match=rf"{tiny}/mien: mien is no file, and no tag of {tiny}; did you mean 'mine'"):
        open_model(f"{tiny}/mien")
    with pytest.raises(RequestError, match=rf"which weights\? Say {tiny}/TAG or {tiny}/FILE; its tags: mine, fast"):
        open_model(tiny)


def test_a_clip_gives_what_transformers_gives(transformers_folder: Path, pictures: list[Image.Image]) -> None:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    model = open_model(str(transformers_folder))
    assert isinstance(model, PixelClip)
    plain = CLIPModel.from_pretrained(transformers_folder).eval()
    words = CLIPTokenizer.from_pretrained(transformers_folder)
    processor = CLIPImageProcessor.from_pretrained(transformers_folder)
    with torch.inference_mode():
        tokens = words(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
        found = plain(**tokens, **processor(images=pictures, return_tensors="pt"))
    assert torch.allclose(model.embed_texts(TEXTS), found.text_embeds, atol=1e-6)
    assert torch.allclose(embed(model, pictures), found.image_embeds, atol=1e-6)
    logits = model.logit_scale * embed(model, pictures) @ model.embed_texts(TEXTS).T
    assert torch.allclose(logits, found.logits_per_image, atol=1e-4)
    assert torch.allclose(model.embed_classes(NAMES, TEMPLATES), classifier(model.model, model.tokenizer), atol=1e-6)
    theirs, ours = model.tokenizer(TEXTS), open_clip.SimpleTokenizer(context_length=16)(TEXTS)
    assert torch.equal(torch.where(ours == 0, 49407, ours), theirs)
    told = model.provenance
    assert (told["kind"], told["preprocessing"]["crop_size"]["height"]) == ("transformers", SIZE)
    assert told["parameters"]["total"] == sum(parameter.numel() for parameter in plain.parameters())
    json.dumps(told)


def changed(folder: Path, file: str, less: str | None = None, **more: torch.Tensor) -> None:
    """Takes a weight out of a file, and puts others in."""
    state = load_file(folder / file)
    if less:
        del state[less]
    save_file({**state, **more}, folder / file, metadata={"format": "pt"})


def test_weights_that_do_not_fit_open_clip_are_named(tiny: str, folder: Path, weights: Path, tmp_path: Path) -> None:
    file = "open_clip_model.safetensors"
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    changed(folder, file, less="ln_final.bias", extra=torch.ones(1))
    with pytest.raises(
        RequestError, match=rf"{file}: missing or .* weights: ln_final.bias is missing, extra is unexpected"
    ):
        open_model(folder)
    changed(other, file, **{"visual.positional_embedding": torch.ones(50, 32)})  # OpenCLIP itself would stretch them
    with pytest.raises(RequestError, match="visual.positional_embedding is 50x32 there, and 17x32 in the model"):
        open_model(other)
    (other / file).rename(other / "a.safetensors")
    shutil.copy(other / "a.safetensors", other / "b.safetensors")
    with pytest.raises(RequestError, match=r"other: which weights\? There are several: a.safetensors, b.safetensors"):
        open_model(other)
    (other / "open_clip_config.json").write_text("{")
    (other / "b.safetensors").unlink()
    with pytest.raises(RequestError, match="other: cannot be opened: ValueError"):
        open_model(other)
    torch.save({"state_dict": {}, "x": Bomb(tmp_path / "ran")}, weights)
    with pytest.raises(RequestError, match=r"weights.pt: not a checkpoint that can be read safely: .*posix.system"):
        open_model(f"{tiny}/{weights}")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(RequestError, match="no.pt is no file, and no tag of tiny-vit, which has none"):
        open_model(f"{tiny}/no.pt")


def test_code_beside_a_tokenizer_is_not_run(folder: Path, transformers_folder: Path, tmp_path: Path) -> None:
    """Neither where a folder has it, nor where its config, or a checkpoint's, asks for it to be trusted."""
    trusted = {"hf_tokenizer_name": str(folder), "tokenizer_kwargs": {"trust_remote_code": True}}
    config = {**TINY, "text_cfg": {**TINY["text_cfg"], **trusted}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPARATION}))
    for place in (folder, transformers_folder):
        (place / "strange.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w').close()\nclass Strange: pass\n")
        said = {"tokenizer_class": "Strange", "auto_map": {"AutoTokenizer": ["strange.Strange", None]}}
        (place / "tokenizer_config.json").write_text(json.dumps(said))
        (place / "tokenizer.json").unlink(missing_ok=True)
        with pytest.raises(RequestError, match=f"{place}: "):
            open_model(place)
    with pytest.raises(RequestError, match="hf_tokenizer_name"):
        tokenizer_for(Architecture(embed_dim=16, vision_cfg=VISION, text_cfg=config["text_cfg"]))
    assert not (tmp_path / "run").exists()


def test_what_is_wrong_in_a_folder_of_transformers_is_named(transformers_folder: Path) -> None:
    file, folder = "model.safetensors", transformers_folder
    good = (folder / file).read_bytes()
    bias = "text_model.final_layer_norm.bias"
    changed(folder, file, **{"vision_model.embeddings.position_ids": torch.arange(17)[None]})
    open_model(folder)  # which old versions wrote
    changed(folder, file, less=bias, extra=torch.ones(1))
    with pytest.raises(RequestError, match=rf"missing or unexpected weights: {bias} is missing, extra is unexpected"):
        open_model(folder)
    (folder / file).write_bytes(good)
    changed(folder, file, **{bias: torch.ones(3)})
    with pytest.raises(RequestError, match=rf"weights: {bias} is \(3,\), not \(16,\)"):
        open_model(folder)
    (folder / file).write_bytes(good[:1000])
    with pytest.raises(RequestError, match="transformers: cannot be opened: "):
        open_model(folder)
    (folder / file).write_bytes(good)
    preparation = folder / "preprocessor_config.json"
    said = preparation.read_text()
    preparation.write_text(said.replace('"height": 32', '"height": 64'))
    with pytest.raises(RequestError, match="preprocessor_config.json: makes 3x64x32 .* the model reads 3x32x32"):
        open_model(folder)
    preparation.unlink()
    with pytest.raises(RequestError, match=r"preprocessor_config.json: no such file, and a transformers CLIP needs it"):
        open_model(folder)
    preparation.write_text(said)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(RequestError, match="its tokenizer knows 2 words, its text tower 49,408|cannot be opened"):
        open_model(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(RequestError, match="config.json: a model of type bert; of transformers' models only clip fits"):
        open_model(folder)


def test_an_unknown_model_is_told_what_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        RequestError, match=r"ViT-B-23/laion2b_s34b_b79k: no such .* did you mean 'ViT-B-32/laion2b_s34b"
    ):
        open_model("ViT-B-23/laion2b_s34b_b79k")
    with pytest.raises(RequestError, match="ViT-B-32/laion2b_s34b_b97k: .* did you mean 'laion2b_s34b_b79k'"):
        open_model("ViT-B-32/laion2b_s34b_b97k")
    with pytest.raises(RequestError, match="runs/no: no such file or folder, .*`python -m eval models` lists"):
        open_model("runs/no")
    assert main("eval", VERBS, ["models"]) == 0
    told = capsys.readouterr().out
    assert "hf-hub:ORG/NAME" in told and "ViT-g-14/laion2b_s34b_b88k" in told and "CLIP-ViT-B/16-plus L400M" in told


def test_the_papers_baselines_are_tags_of_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """And each is asked for where its own weights are: OpenCLIP's list gives one the hub repository of another."""
    asked = []

    def download(entry: dict[str, Any], prefer_hf_hub: bool) -> str:
        asked.append(entry["hf_hub"] if prefer_hf_hub else entry["url"])
        raise OSError("no network")

    monkeypatch.setattr(open_clip_models, "download_pretrained", download)
    assert len({baseline["name"] for baseline in baselines()}) == 8
    for baseline in baselines():
        model, tag = baseline["open_clip"].split("/")
        assert (model, tag) in open_clip.list_pretrained()
        with pytest.raises(RequestError, match=f"{tag}: cannot be opened: OSError: no network"):
            open_model(baseline["open_clip"])
        place, wanted = ("".join(filter(str.isalnum, text.lower())) for text in (asked[-1], tag))
        assert wanted in place
