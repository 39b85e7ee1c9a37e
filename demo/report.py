"""The page of a finished demo: `python -m demo.report OUT` writes OUT/report.html once more.

report_run.py        the demo's folder, read back
report_flow.py       the way the data went, and what was refused
report_zero_shot.py  scores, intervals, confusions
report_machine.py    what it ran on
pictures.py          pictures, latents and what they decode to
charts.py            numbers as SVG
report.html.j2       the page
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from jinja2 import Environment

from demo import charts
from demo.image_tar import sha256_of
from demo.pictures import show_decoded, show_samples
from demo.report_flow import rejects, training_stations, way_of, zero_shot_station
from demo.report_machine import git_commit, processor, software
from demo.report_run import DemoRun, StoreFacts, read_run
from demo.report_zero_shot import color_of, confusion_counts, examples, scores, shape_of, unique
from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.preview.decoder import load_decoder
from encode_pipeline.preview.page import page_environment
from encode_pipeline.vae import LoadedVae
from train.checkpoint import load_checkpoint

TEMPLATE = "report.html.j2"
EXAMPLES = 6
STAGES = {
    "vae": "the VAE at work",
    "decode": "waiting for pictures to be decoded and augmented",
    "input": "waiting for the tar's bytes",
    "writer": "waiting for the writer",
    "between": "from one tar to the next",
}


def write_report(out: Path, report: Path) -> dict[str, Any]:
    """Writes one self-contained HTML file about the finished demo in `out`."""
    started = time.monotonic()
    run = read_run(out)
    vae = load_decoder(run.store.version.spec)
    content = {
        **_about(run, vae),
        "samples": show_samples(run.store, out / "world" / "train", vae),
        "rejects": rejects(run),
        **_training(run),
        **_zero_shot(run, vae),
        **_throughput(run),
    }
    content["steps"] = _steps(run, time.monotonic() - started)
    content["total_seconds"] = sum(step["seconds"] for step in content["steps"])
    html = _environment().get_template(TEMPLATE).render(content)
    report.write_text(html, encoding="utf-8")
    return {"report": str(report), "bytes": report.stat().st_size}


def _about(run: DemoRun, vae: LoadedVae) -> dict[str, Any]:
    """The way of the data, the sizes of the two models, and where everything came from."""
    state = load_checkpoint(run.checkpoint)["state_dict"]
    parameters = sum(tensor.numel() for tensor in state.values())
    made_by = run.store.commits[0].made_by
    spec = run.store.version.spec
    return {
        "run": run,
        "lanes": {
            "Training pictures": [
                *way_of(run.store, run.steps["verify"]["result"]),
                *training_stations(run, parameters),
            ],
            "Held-out pictures": [
                *way_of(run.test_store, run.steps["verify-test"]["result"]),
                zero_shot_station(run),
            ],
        },
        "vae_parameters": sum(weights.numel() for weights in vae.model.parameters()),
        "model_parameters": parameters,
        "provenance": {
            "software": ", ".join(f"{name} {version}" for name, version in software().items()),
            "processor": processor(),
            "VAE device": f"{made_by['device']}, {made_by['compute_dtype']}, batches of {made_by['batch_size']}",
            "training device": run.steps["train"]["result"]["device"],
            "seeds": f"world {run.world['spec']['seed']}, encoding {spec.seed}, training {run.settings['seed']}",
            "VAE": _from_here(spec.vae.name),
            "VAE sha256, over its tensors": spec.vae.weights_sha256,
            "scaling factor": f"{spec.vae.scaling_factor:g} (latents are stored {spec.scale})",
            "version of the training latents": run.store.version.fingerprint,
            "version of the held-out latents": run.test_store.version.fingerprint,
            "checkpoint": _from_here(str(run.checkpoint)),
            "checkpoint sha256": sha256_of(run.checkpoint),
            "git commit": git_commit() or "not a git checkout",
        },
    }


def _training(run: DemoRun) -> dict[str, Any]:
    lines, batch = run.training, run.settings["batch_size"]

    def curve(key: str, label: str, **options: Any) -> str:
        return charts.line_chart([(line["step"], line[key]) for line in lines], "step", label, **options)

    # A line's rate and wait are over the time since the line before.
    spans = [
        (line["step"] - before) * batch / line["samples_per_second"]
        for before, line in zip([0, *(line["step"] for line in lines)], lines, strict=False)
    ]
    waits = [line["data_wait"] * span for line, span in zip(lines, spans, strict=True)]
    return {
        "curves": [
            curve("loss", "contrastive loss (nats)"),
            curve("accuracy", "in-batch accuracy", percent=True, reference=(1 / batch, f"chance 1/{batch}")),
            curve("samples_per_second", "speed (samples/s)"),
            curve("lr", "learning rate"),
        ],
        "samples_seen": run.zero_shot["step"] * batch,
        "samples_per_second": run.zero_shot["step"] * batch / sum(spans),
        "data_wait": sum(waits) / sum(spans),
    }


def _zero_shot(run: DemoRun, vae: LoadedVae) -> dict[str, Any]:
    pairs = [(prediction.label, prediction.top5[0]) for prediction in run.predictions]
    colors, shapes = unique(map(color_of, run.classes)), unique(map(shape_of, run.classes))
    by_color = confusion_counts([(color_of(label), color_of(said)) for label, said in pairs], colors)
    by_shape = confusion_counts([(shape_of(label), shape_of(said)) for label, said in pairs], shapes)
    shown = examples(run.predictions, True, EXAMPLES), examples(run.predictions, False, EXAMPLES)
    pictures = show_decoded(run.test_store, [(p.shard, p.key) for some in shown for p in some], vae)
    right, wrong = shown
    return {
        "scores": scores(run.predictions, run.classes),
        "bar": charts.interval_bar,
        "shipped_scores": scores(run.shipped_predictions, run.classes),
        "confusions": {
            "Colours": charts.confusion(by_color, colors),
            "Shapes": charts.confusion(by_shape, shapes),
            f"All {len(run.classes)} classes": charts.heat_map(
                confusion_counts(pairs, run.classes), run.classes, colors
            ),
        },
        "right": list(zip(right, pictures, strict=False)),
        "wrong": list(zip(wrong, pictures[len(right) :], strict=True)),
    }


def _throughput(run: DemoRun) -> dict[str, Any]:
    def stages(facts: StoreFacts) -> dict[str, float]:
        shares = facts.encode["time_share"]
        if unknown := set(shares) - set(STAGES):
            raise CheckFailed(f"steps.json: the encoder timed stages that this page does not know: {sorted(unknown)}")
        return {stage: shares.get(stage, 0.0) for stage in STAGES}

    encoders = {"Training pictures": run.store, "Held-out pictures": run.test_store}
    return {
        "encoders": {name: (facts, stages(facts)) for name, facts in encoders.items()},
        "stages": STAGES,
        "stage_bar": lambda shares: charts.stacked_bar(list(shares.items())),
    }


def _steps(run: DemoRun, page_seconds: float) -> list[dict[str, Any]]:
    """Every step with its command; the page's own time is counted up to here."""
    steps: list[dict[str, Any]] = [
        {"name": name, "command": _from_here(step["command"]), "seconds": step["seconds"]}
        for name, step in run.steps.items()
        if name != "report"
    ]
    return [*steps, {"name": "report", "command": "this page", "seconds": page_seconds}]


def _from_here(text: str) -> str:
    """Paths as seen from the folder that the demo runs in."""
    return text.replace(f"{Path.cwd()}/", "")


def _environment() -> Environment:
    environment = page_environment(Path(__file__).parent)
    environment.filters.update({"size": size_text, "clock": clock_text, "percent": percent_text})
    return environment


def size_text(size: float) -> str:
    """Bytes in the unit that suits."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def clock_text(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def percent_text(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m demo.report OUT")
    try:
        print(write_report(Path(sys.argv[1]), Path(sys.argv[1]) / "report.html"))
    except (CheckFailed, RequestError) as error:
        sys.exit(f"error: {error}")
