"""`python -m eval VERB`: what a model is worth."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from encode_pipeline.latents.command import Verb, main
from eval.baselines import ModelsConfig, list_models, show_models
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


VERBS = {
    "zero-shot": Verb(ZeroShotConfig, run_zero_shot, "classify latents by class names", show=show_zero_shot),
    "models": Verb(ModelsConfig, list_models, "what checkpoint= takes, and the paper's pixel models", show=show_models),
}

if __name__ == "__main__":
    sys.exit(main("eval", VERBS, sys.argv[1:]))
