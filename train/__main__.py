"""`python -m train`: train a model on a latent store, or describe one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from encode_pipeline.latents.command import Verb, main
from train.config import CurvesConfig, ModelChoice, TrainConfig, architecture_of


def run_train(config: TrainConfig) -> Mapping[str, Any]:
    from train.loop import train

    return train(config)


def run_describe(choice: ModelChoice) -> Mapping[str, Any]:
    from train.model import build_model, parameter_counts

    architecture = architecture_of(choice.model)
    counts = parameter_counts(build_model(architecture, choice.channels, choice.grid))
    return {"model": choice.model, **counts, **architecture.model_dump(mode="json")}


def run_curves(config: CurvesConfig) -> Mapping[str, Any]:
    from train.curves import compare_runs

    compare_runs([config.runs] if isinstance(config.runs, str) else config.runs, config.out)
    return {"curves": str(config.out)}


VERBS = {
    "run": Verb(TrainConfig, run_train, "train a model; the same command goes on from its latest checkpoint"),
    "describe": Verb(ModelChoice, run_describe, "a model's architecture and parameter counts", "model"),
    "curves": Verb(CurvesConfig, run_curves, "the curves of one run, or of several to compare", "runs"),
}

if __name__ == "__main__":
    sys.exit(main("train", VERBS, sys.argv[1:], default="run"))
