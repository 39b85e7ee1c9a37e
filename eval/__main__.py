"""`python -m eval VERB`: what a model is worth."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from encode_pipeline.latents.command import Verb, main
from eval.baselines import ModelsConfig, list_models, show_models
from eval.retrieval import RetrievalConfig
from eval.zero_shot import ZeroShotConfig


def run_zero_shot(config: ZeroShotConfig) -> Mapping[str, Any]:
    from eval.zero_shot import zero_shot

    return zero_shot(config)


def run_retrieval(config: RetrievalConfig) -> Mapping[str, Any]:
    from eval.retrieval import retrieval

    return retrieval(config)


def show_evaluation(result: Mapping[str, Any]) -> str:
    from eval.evaluation import show

    return show(result)


VERBS = {
    "zero-shot": Verb(ZeroShotConfig, run_zero_shot, "classify pictures by class names", show=show_evaluation),
    "retrieval": Verb(RetrievalConfig, run_retrieval, "find pictures by captions and back", show=show_evaluation),
    "models": Verb(ModelsConfig, list_models, "what checkpoint= takes, and the paper's pixel models", show=show_models),
}

if __name__ == "__main__":
    sys.exit(main("eval", VERBS, sys.argv[1:]))
