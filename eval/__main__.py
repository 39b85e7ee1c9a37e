"""`python -m eval VERB`: what a model is worth."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from encode_pipeline.latents.command import Verb, main
from eval.baselines import ModelsConfig, list_models, show_models
from eval.benchmarks.compbench import CompbenchConfig
from eval.benchmarks.export import ExportConfig
from eval.benchmarks.geneval import GenevalConfig
from eval.generated_imagenet import GenerateConfig
from eval.report.run import ReportConfig
from eval.retrieval import RetrievalConfig
from eval.steering.run import SteerConfig
from eval.timing import TimingConfig
from eval.tiny_generator import TinyGeneratorConfig, tiny_generator
from eval.zero_shot import ZeroShotConfig


def run_zero_shot(config: ZeroShotConfig) -> Mapping[str, Any]:
    from eval.zero_shot import zero_shot

    return zero_shot(config)


def run_retrieval(config: RetrievalConfig) -> Mapping[str, Any]:
    from eval.retrieval import retrieval

    return retrieval(config)


def show_evaluation(result: Mapping[str, Any]) -> str:
    from eval.result import show

    return show(result)


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


def run_steer(config: SteerConfig) -> Mapping[str, Any]:
    from eval.steering.run import steer

    return steer(config)


def show_steered(result: Mapping[str, Any]) -> str:
    from eval.steering.summary import show

    return show(result)


def run_export(config: ExportConfig) -> Mapping[str, Any]:
    from eval.benchmarks.export import export

    return export(config)


def show_exported(result: Mapping[str, Any]) -> str:
    from eval.benchmarks.export import show

    return show(result)


def run_timing(config: TimingConfig) -> Mapping[str, Any]:
    from eval.timing import timing

    return timing(config)


def show_timing(result: Mapping[str, Any]) -> str:
    from eval.timing import show

    return show(result)


def run_geneval(config: GenevalConfig) -> Mapping[str, Any]:
    from eval.benchmarks.geneval import geneval

    return geneval(config)


def run_compbench(config: CompbenchConfig) -> Mapping[str, Any]:
    from eval.benchmarks.compbench import compbench

    return compbench(config)


def show_scores(result: Mapping[str, Any]) -> str:
    from eval.benchmarks.scoring import show

    return show(result)


def run_report(config: ReportConfig) -> Mapping[str, Any]:
    from eval.report.run import report

    return report(config)


def show_report(result: Mapping[str, Any]) -> str:
    return "\n".join(result[kind] for kind in ("html", "md", "csv", "tex"))


VERBS = {
    "models": Verb(ModelsConfig, list_models, "what checkpoint= takes, and the paper's pixel models", show=show_models),
    "zero-shot": Verb(ZeroShotConfig, run_zero_shot, "classify pictures by class names", show=show_evaluation),
    "retrieval": Verb(RetrievalConfig, run_retrieval, "find pictures by captions and back", show=show_evaluation),
    "generate-imagenet": Verb(
        GenerateConfig, run_generate, "labelled pictures gone over by a generator, as latents", "data", show_generated
    ),
    "reno": Verb(SteerConfig, run_steer, "pictures of prompts, steered by rewards or not", show=show_steered),
    "export": Verb(
        ExportConfig,
        run_export,
        "a run's pictures as the official scorers read them",
        "run",
        show_exported,
    ),
    "timing": Verb(TimingConfig, run_timing, "how long steering takes, latents against pixels", show=show_timing),
    "geneval": Verb(GenevalConfig, run_geneval, "judge pictures of GenEval's prompts", "run", show_scores),
    "compbench": Verb(CompbenchConfig, run_compbench, "judge pictures of T2I-CompBench's prompts", "run", show_scores),
    "tiny-generator": Verb(TinyGeneratorConfig, tiny_generator, "a tiny SDXL pipeline to try commands with", "out"),
    "report": Verb(ReportConfig, run_report, "results side by side, the paper's beside ours", "runs", show_report),
}

if __name__ == "__main__":
    sys.exit(main("eval", VERBS, sys.argv[1:]))
