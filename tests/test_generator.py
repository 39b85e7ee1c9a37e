"""Any SDXL pipeline as a generator: the tiny one against diffusers' own pipeline, and what is wrong with others."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from encode_pipeline.latents.command import RequestError
from encode_pipeline.vae import load_vae
from eval.denoise import Level, denoise, guided
from eval.generator import Generator, build_tiny_pipeline, load_generator

PROMPTS = ["a photo of a red circle", "a drawing of two blue squares " * 30]


@pytest.fixture(scope="module")
def generator(tiny_pipeline: Path) -> Generator:
    return load_generator(str(tiny_pipeline))


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline: Path) -> Any:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, 8, 8, generator=generator) for _ in range(count)]


def same_way(pipeline: Any, steps: int, x: torch.Tensor, **more: Any) -> torch.Tensor:
    """What the pipeline makes, its own noise drawn as `noise(steps, seed=7)` is."""
    latents: torch.Tensor = pipeline(
        PROMPTS,
        num_inference_steps=steps,
        latents=x,
        height=64,
        width=64,
        output_type="latent",
        generator=torch.Generator().manual_seed(7),
        **more,
    ).images
    return latents


@pytest.mark.parametrize("steps", [1, 3])
def test_generates_what_the_pipeline_does(generator: Generator, pipeline: Any, steps: int) -> None:
    (x,) = noise(1)
    prompts, levels = generator.embed_prompts(PROMPTS), generator.schedule.trailing(steps)
    with torch.no_grad():
        ours = denoise(
            x * levels[0].sigma,
            levels,
            lambda x_bchw, level: generator.eps(x_bchw, level.t, prompts),
            noise(steps, seed=7)[: steps - 1],
        )
    assert float((ours - same_way(pipeline, steps, x, guidance_scale=0.0)).abs().max()) < 1e-5 * steps


def test_guided_as_the_pipeline_is(generator: Generator, pipeline: Any) -> None:
    (x,) = noise(1)
    prompts, levels = generator.embed_prompts(PROMPTS), generator.schedule.trailing(1)
    negative = generator.embed_prompts(["text, watermark"]).repeated(2)

    def predict(x_bchw: torch.Tensor, level: Level) -> torch.Tensor:
        seen = (generator.eps(x_bchw, level.t, words) for words in (prompts, negative))
        return guided(*seen, guidance=3.0)

    with torch.no_grad():
        ours = denoise(x * levels[0].sigma, levels, predict)
    theirs = same_way(pipeline, 1, x, guidance_scale=3.0, negative_prompt=["text, watermark"] * 2)
    assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())


def test_steered_by_gradients(generator: Generator) -> None:
    """The noise of a one-step generation gets a gradient through UNet and process; the weights get none."""
    x = noise(1)[0].requires_grad_()
    prompts, levels = generator.embed_prompts(PROMPTS), generator.schedule.trailing(1)
    made = denoise(x * levels[0].sigma, levels, lambda x_bchw, level: generator.eps(x_bchw, level.t, prompts))
    made.square().mean().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and float(x.grad.abs().max()) > 0
    assert not any(weights.requires_grad for weights in generator.unet.parameters())


def test_tokens_are_open_clips(generator: Generator) -> None:
    texts = [template("tench, Tinca tinca") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    first, second = (
        tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        for tokenizer in generator.tokenizers
    )
    assert torch.equal(second, open_clip.get_tokenizer("ViT-B-32")(texts))
    assert torch.equal(first.masked_fill(first == 49407, 0), second.masked_fill(second == 49407, 0))


def test_known_by_content_and_marked(
    generator: Generator, tiny_pipeline: Path, small_vae: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(tiny_pipeline, copy)
    moved = load_generator(str(copy))
    assert (moved.weights_sha256, moved.config_sha256) == (generator.weights_sha256, generator.config_sha256)
    build_tiny_pipeline(tmp_path / "other", seed=1)
    assert load_generator(str(tmp_path / "other")).weights_sha256 != generator.weights_sha256
    assert generator.not_comparable == [
        "the generator has random weights",
        "the generator is a small one of 6.9 million parameters",
    ]
    assert generator.load_vae().identity.weights_sha256 == load_vae(str(small_vae)).identity.weights_sha256


def test_a_directory_needs_no_network(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_generator(str(tiny_pipeline)).load_vae()


def without_a_weight(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_out.bias"]
    save_file(weights, path)


def without_a_text_weight(folder: Path) -> None:
    path = folder / "text_encoder_2" / "model.safetensors"
    weights = load_file(path)
    del weights["text_projection.weight"]
    save_file(weights, path, {"format": "pt"})


def with_a_weight_too_many(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    save_file({**load_file(path), "more": torch.zeros(2)}, path, {"format": "pt"})


def of_another_kind(folder: Path) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "StableDiffusionPipeline"}))


def with_pickles_only(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


def with_a_tokenizer_of_two_words(folder: Path) -> None:
    from transformers import CLIPTokenizer

    shutil.rmtree(folder / "tokenizer")
    CLIPTokenizer().save_pretrained(folder / "tokenizer")


def with_a_list_for_its_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("[]")


def with_words_for_numbers(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text('{"beta_start": "x"}')


def without_its_unet(folder: Path) -> None:
    shutil.rmtree(folder / "unet")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (without_a_weight, "unet: weights do not fit the config: missing_keys conv_out.bias"),
        (without_a_text_weight, "text_encoder_2: weights do not fit the config: missing_keys text_projection.weight"),
        (with_a_weight_too_many, "text_encoder: weights do not fit the config: unexpected_keys more"),
        (of_another_kind, "is a StableDiffusionPipeline; a StableDiffusionXLPipeline is wanted"),
        (with_pickles_only, "no file named diffusion_pytorch_model.safetensors found in directory"),
        (with_a_tokenizer_of_two_words, "tokens, its text encoder 49408"),
        (without_its_unet, "no unet in this pipeline"),
        (with_a_list_for_its_index, "is a None; a StableDiffusionXLPipeline is wanted"),
        (with_words_for_numbers, "could not convert string to float: 'x'"),
    ],
)
def test_what_is_wrong_with_a_pipeline_is_one_line(tiny_pipeline: Path, tmp_path: Path, damage: Any, says: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_pipeline, folder)
    damage(folder)
    with pytest.raises(RequestError) as refusal:
        load_generator(str(folder))
    said = str(refusal.value)
    assert said.startswith(f"generator: {folder}: ") and says in said and "\n" not in said


@pytest.mark.parametrize("name", ["{small_vae}", "runs/that/is-not-there"])  # names on the hub have one slash at most
def test_a_folder_that_is_no_pipeline(small_vae: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"no diffusers pipeline here \(no model_index.json\)"):
        load_generator(name.format(small_vae=small_vae))
