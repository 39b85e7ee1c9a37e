"""`python -m train`: train a model on a latent store, describe, export or import one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from encode_pipeline.latents.command import Verb, main
from train.config import CurvesConfig, ExportConfig, ImportConfig, ModelChoice, PickScoreConfig, TrainConfig


def run_train(config: TrainConfig) -> Mapping[str, Any]:
    from train.loop import train

    return train(config)


def run_describe(choice: ModelChoice) -> Mapping[str, Any]:
    from train.describe import describe

    return describe(choice)


def show_describe(result: Mapping[str, Any]) -> str:
    vision, text = (
        ", ".join(f"{key} {value}" for key, value in result[part].items()) for part in ("vision_cfg", "text_cfg")
    )
    shape = "×".join(map(str, result["latents"]))
    return (
        f"{result['model']}: reads latents of {shape}, embeds in {result['embed_dim']}\n"
        f"  image  {result['image']:>13,} parameters  {vision}\n"
        f"  text   {result['text']:>13,} parameters  {text}\n"
        f"  total  {result['total']:>13,} parameters\n"
        f"  training: {result['gflops_per_sample']:.1f} GFLOP a sample, forward and backward; "
        f"{result['training_state_gb']:.2f} GB of weights, gradients and AdamW's moments in float32, activations aside"
    )


def run_export(config: ExportConfig) -> Mapping[str, Any]:
    from train.export import export

    return export(config)


def run_import(config: ImportConfig) -> Mapping[str, Any]:
    from train.import_checkpoint import import_checkpoint

    return import_checkpoint(config)


def run_curves(config: CurvesConfig) -> Mapping[str, Any]:
    from train.curves import compare_runs

    compare_runs([config.runs] if isinstance(config.runs, str) else config.runs, config.out)
    return {"curves": str(config.out)}


def run_pickscore(config: PickScoreConfig) -> Mapping[str, Any]:
    from train.pickscore import fine_tune

    return fine_tune(config)


VERBS = {
    "run": Verb(TrainConfig, run_train, "train a model; the same command goes on from its latest checkpoint"),
    "describe": Verb(ModelChoice, run_describe, "a model's parameters, FLOPs and config", "model", show_describe),
    "export": Verb(ExportConfig, run_export, "a trained model as a folder for OpenCLIP or this project", "checkpoint"),
    "import": Verb(ImportConfig, run_import, "the authors' or OpenCLIP's checkpoint as one of ours", "checkpoint"),
    "curves": Verb(CurvesConfig, run_curves, "the curves of one run, or of several to compare", "runs"),
    "pickscore": Verb(PickScoreConfig, run_pickscore, "fine-tune a model on preference pairs; again: resume"),
}

if __name__ == "__main__":
    sys.exit(main("train", VERBS, sys.argv[1:], default="run"))
