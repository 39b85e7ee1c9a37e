"""The paper's pixel models, and all that can stand where a model is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from encode_pipeline.latents.command import Settings

FORMS = {
    "runs/b8": "a training run, its latest checkpoint; or a checkpoint file",
    "DIR": "what `python -m train export` or `python -m train import` made",
    "DIR with open_clip_config.json": "a model of OpenCLIP: its config and weights",
    "DIR with config.json": "a CLIP of transformers: config, model.safetensors, preprocessing, tokenizer",
    "MODEL/TAG": "published weights of an OpenCLIP model, as the baselines below",
    "MODEL/FILE": "an OpenCLIP model with the weights in a file",
    "hf-hub:ORG/NAME": "an OpenCLIP model on the Hugging Face hub",
}


class ModelsConfig(Settings):
    """Nothing to say: the list is always the same."""


def baselines() -> list[dict[str, str]]:
    """The eight pixel models of the paper's Table 1: `name` there, and `open_clip`, the address of their weights."""
    text = (resources.files("eval") / "paper" / "baselines.json").read_text(encoding="utf-8")
    return list(json.loads(text))


def list_models(config: ModelsConfig) -> Mapping[str, Any]:
    """What `checkpoint=` takes."""
    return {"forms": FORMS, "baselines": baselines()}


def show_models(result: Mapping[str, Any]) -> str:
    forms = [f"  {form:<32} {what}" for form, what in result["forms"].items()]
    pixels = [f"  {baseline['open_clip']:<32} {baseline['name']}" for baseline in result["baselines"]]
    return "\n".join(["checkpoint= is", *forms, "", "the paper's pixel models", *pixels])
