"""A trained model as a folder for others: for plain OpenCLIP, or for this project."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.spec import LatentSpec
from train.checkpoint import history, load_checkpoint
from train.config import Architecture, ExportConfig
from train.model import parameter_counts, restore_model, tokenizer_for
from train.model_card import AFTER_MOVING, model_card, title
from train.timm_layout import TimmTower, timm_tower, timm_weights

TOLERANCE = 1e-5
"""How far features of the exported model may be from those of the original."""

LEFT_OUT = {"optimizer"}
TEXTS = ["a red circle", "Ein Bild von zwei blauen Quadraten, 50 % größer!", "", "word " * 100]


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes the folder, and says how to load it and how well that went."""
    content = load_checkpoint(config.checkpoint)
    model, architecture, spec = restore_model(content, config.checkpoint)
    model.eval()
    result: dict[str, Any] = {"out": str(config.out), "form": config.form, "model": content["name"]}
    result["step"] = content["step"]
    if config.form == "native":
        write_native(config.out, content, model, spec)
        return {**result, "load": f"checkpoint={config.out}"}
    tower = timm_tower(architecture, spec.shape[0], spec.shape[1])
    if "hf_model_name" in architecture.text_cfg:
        raise RequestError("text_cfg.hf_model_name: a text tower that one folder cannot hold; form=native can")
    tokenizer = tokenizer_for(architecture)
    home = config.out.resolve()
    with folder_made_whole(config.out) as folder:
        weights = timm_weights(architecture, model.state_dict())
        for name in weights:  # safetensors wants every tensor whole and apart
            weights[name] = weights[name].clone(memory_format=torch.contiguous_format)
        save_file(weights, folder / HF_SAFE_WEIGHTS_NAME)
        del weights
        timm = {"architecture": tower.architecture, "model_args": tower.model_args, "pretrained_cfg": {}}
        _write_json(folder / "config.json", {**timm, "num_classes": 0})  # without it transformers' tokenizers choke
        _write_tokenizer(tokenizer, folder)
        (folder / "spec.json").write_bytes(spec.to_json())
        (folder / "README.md").write_text(model_card(content, spec, parameter_counts(model), config.form))
        _write_json(folder / HF_CONFIG_NAME, _open_clip_config(architecture, tower, model, folder.resolve()))
        difference = compare(model, tokenizer, spec, folder)
        told = {"history": {"name": title(content["name"]), **history(content)}}  # open_clip reads past it
        _write_json(folder / HF_CONFIG_NAME, {**_open_clip_config(architecture, tower, model, home), **told})
        # safetensors lets nobody else read its files
        (folder / HF_SAFE_WEIGHTS_NAME).chmod((folder / HF_CONFIG_NAME).stat().st_mode)
    return {
        **result,
        "max_difference": difference,
        "load": f'open_clip.create_model("local-dir:{home}")',
        "after_moving": AFTER_MOVING,
    }


def write_native(out: Path, content: Mapping[str, Any], model: torch.nn.Module, spec: LatentSpec) -> None:
    """A folder with a checkpoint that `eval` loads, without the optimiser's state, and what tells of it."""
    with folder_made_whole(out) as folder:
        torch.save({key: value for key, value in content.items() if key not in LEFT_OUT}, folder / "model.pt")
        (folder / "spec.json").write_bytes(spec.to_json())
        (folder / "README.md").write_text(model_card(content, spec, parameter_counts(model), "native"))


@contextmanager
def folder_made_whole(out: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when it is filled; one that holds something is never touched."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise RequestError(f"{out}: already there; say another out=")
    unfinished = out.resolve().parent / f".{out.resolve().name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(out.resolve())
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def compare(model: open_clip.CLIP, tokenizer: Any, spec: LatentSpec, folder: Path) -> float:
    """Loads the folder with OpenCLIP alone, and gives the largest difference of unit features on random latents."""
    loaded = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = tokenizer(TEXTS)
    if not torch.equal(tokens, open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)):
        raise CheckFailed(f"{folder}: its tokenizer gives other tokens than the model's own")
    spread = 1 / spec.vae.scaling_factor if spec.scale == "raw" else 1.0
    latents = torch.randn(4, *spec.shape, generator=torch.Generator().manual_seed(0)) * spread
    with torch.inference_mode():
        theirs, ours = (_answers(one, latents, tokens) for one in (loaded, model))
    difference = max(float((a - b).abs().max()) for a, b in zip(theirs, ours, strict=True))
    if not difference <= TOLERANCE:
        raise CheckFailed(f"{folder}: features of the exported model differ by {difference:.1e}")
    return difference


def _answers(model: open_clip.CLIP, latents: Tensor, tokens: Tensor) -> list[Tensor]:
    bias = [] if model.logit_bias is None else [model.logit_bias]
    features = [model.encode_image(latents, normalize=True), model.encode_text(tokens, normalize=True)]
    return [answer.detach() for answer in (*features, model.logit_scale, *bias)]


def _open_clip_config(
    architecture: Architecture, tower: TimmTower, model: open_clip.CLIP, home: Path
) -> dict[str, Any]:
    """What open_clip reads. timm looks up `local-dir:` from the current directory, so the path must be absolute."""
    said = architecture.model_dump(mode="json", exclude_defaults=True)
    bias = {} if model.logit_bias is None else {"init_logit_bias": float(model.logit_bias)}
    vision = {**tower.vision_cfg, "timm_model_name": f"local-dir:{home}"}
    return {
        "model_cfg": {**said, **bias, "vision_cfg": vision},
        "preprocess_cfg": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
    }


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """The tokenizer in transformers' files, which OpenCLIP reads only where its config names one of Hugging Face."""
    if not isinstance(tokenizer, open_clip.SimpleTokenizer):
        tokenizer.save_pretrained(folder)
        return
    begin, end = "<|startoftext|>", "<|endoftext|>"
    special = {tokenizer.sot_token_id: begin, tokenizer.eot_token_id: end}
    _write_json(
        folder / "vocab.json", {special.get(number, word): number for word, number in tokenizer.encoder.items()}
    )
    merges = "".join(f"{left} {right}\n" for left, right in tokenizer.bpe_ranks)
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    named = {"bos_token": begin, "eos_token": end, "unk_token": end, "pad_token": end}
    kind = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.context_length}
    _write_json(folder / "tokenizer_config.json", {**kind, **named})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
