"""`python -m eval VERB`: what a model is worth."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from encode_pipeline.latents.command import Verb, main
from eval.generated_imagenet import GenerateConfig
from eval.tiny_generator import TinyGeneratorConfig, tiny_generator
from eval.zero_shot import ZeroShotConfig


def run_zero_shot(config: ZeroShotConfig) -> Mapping[str, Any]:
    from eval.zero_shot import zero_shot

    return zero_shot(config)


def show_zero_shot(result: Mapping[str, Any]) -> str:
    metrics = result["metrics"]
    return (
        f"{result['model']} at step {result['step']} on {result['n']} pictures of {result['classes']} classes: "
        f"top-1 {metrics['acc1']:.1%}, top-5 {metrics['acc5']:.1%}, per class {metrics['mean_per_class_recall']:.1%}"
    )


def run_generate(config: GenerateConfig) -> Mapping[str, Any]:
    from eval.generated_imagenet import generate_imagenet

    return generate_imagenet(config)


def show_generated(result: Mapping[str, Any]) -> str:
    way = ", then ".join(f"t={level['t']:g} sigma={level['sigma']:.4g}" for level in result["levels"])
    shards = result["shards"]
    lines = [
        f"version {result['fingerprint']} in {result['store']}" + ("" if result["sealed"] else " (not sealed)"),
        f"{result['items']} latents noised to and denoised from {way}",
        f"{shards['done']} shards made now, {result['already_done']} before, {shards['failed']} given up on",
    ]
    lines += [f"not comparable: {reason}" for reason in result["not_comparable"]]
    lines += [f"given up: {failure['source']}: {failure['error']}" for failure in result["failures"]]
    lines += [f"rejected: {item}" for item in result["rejected_items"]]
    return "\n".join([*lines, *(f"not in the data: {item}" for item in result["not_in_data"])])


VERBS = {
    "zero-shot": Verb(ZeroShotConfig, run_zero_shot, "classify latents by class names", show=show_zero_shot),
    "generate-imagenet": Verb(
        GenerateConfig, run_generate, "labelled pictures gone over by a generator, as latents", "data", show_generated
    ),
    "tiny-generator": Verb(TinyGeneratorConfig, tiny_generator, "a tiny SDXL pipeline to try commands with", "out"),
}

if __name__ == "__main__":
    sys.exit(main("eval", VERBS, sys.argv[1:]))
