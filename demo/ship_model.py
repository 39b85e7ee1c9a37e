"""`python -m demo.ship_model OUT`: what stays of a finished `make table1-demo`.

Its latent tower becomes `demo/latent-clip`, its table and numbers `benchmarks/results/table1-demo.md` and `.json`.

Weights are kept in half precision, which halves the folder and changes no prediction worth speaking of: the scores on
the card are those of the folder itself.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from demo.image_tar import sha256_of
from demo.report_machine import git_commit, processor, software
from demo.run import SHIPPED, VAE
from encode_pipeline.latents.command import CheckFailed, RequestError
from train.checkpoint import load_checkpoint
from train.export import folder_made_whole
from train.model import parameter_counts, restore_model
from train.model_card import model_card

WEIGHTS, CARD = "model.pt", "README.md"
KEPT = Path(__file__).parents[1] / "benchmarks" / "results"
MOST_BYTES = 12_000_000

ABOUT = """
## What it is worth

On {n:,} held-out pictures of the demo's world, one of {classes} names each, chosen by {templates} prompts a name:
top-1 **{acc1:.1%}** (95 % interval {low:.1%} to {high:.1%}), top-5 {acc5:.1%}. It knows coloured shapes and nothing
else: not comparable with the paper's models. Measured on this folder, after its weights were made halves.

It is the latent tower of `make table1-demo` ({pictures:,} pictures in four views, {steps:,} steps), trained on latents
of [`demo/vae`](../vae). Drawn and trained from nothing: no one's pictures or weights are in it. Licence: Apache-2.0.

| | |
|---|---|
| weights | `{weights}`, {size:,} bytes, float16 |
| sha256 | `{sha256}` |
"""


def ship(out: Path, folder: Path = SHIPPED) -> dict[str, Any]:
    """Writes the folder anew, with a card that says what the folder itself scores."""
    from eval.zero_shot import ZeroShotConfig, zero_shot

    asked = json.loads((out / "steps.json").read_text())["asked"]
    trained = load_checkpoint(out / "latent" / "train")
    # Where things were on the machine that trained it is nobody's business.
    spec = {**trained["spec"], "vae": {**trained["spec"]["vae"], "name": str(VAE)}}
    places = {"data", "out", "cache", "classes", "zero_shot"}
    content = {key: value for key, value in trained.items() if key != "optimizer"} | {
        "spec": spec,
        "settings": {key: value for key, value in trained["settings"].items() if key not in places},
        "state_dict": {
            name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in trained["state_dict"].items()
        },
    }
    model, _, latents = restore_model(content, out)
    for old in (WEIGHTS, CARD, "spec.json"):
        (folder / old).unlink(missing_ok=True)
    with folder_made_whole(folder) as made, tempfile.TemporaryDirectory() as scratch:
        torch.save(content, made / WEIGHTS)
        (made / "spec.json").write_bytes(latents.to_json())
        size = (made / WEIGHTS).stat().st_size
        if size > MOST_BYTES:
            raise CheckFailed(f"{made / WEIGHTS}: {size:,} bytes, more than the {MOST_BYTES:,} that may be shipped")
        data, classes = str(out / "latent" / "test-store"), out / "world" / "test"
        result = zero_shot(ZeroShotConfig(checkpoint=made, data=data, classes=classes, out=Path(scratch)))
        low, high = result["intervals"]["acc1"]
        about = ABOUT.format(
            **{key: result[key] for key in ("n", "classes", "templates")},
            **result["metrics"],
            low=low,
            high=high,
            pictures=asked["train_pictures"],
            steps=asked["steps"],
            weights=WEIGHTS,
            size=size,
            sha256=sha256_of(made / WEIGHTS),
        )
        card = model_card(content, latents, parameter_counts(model), "native")
        (made / CARD).write_text(card.replace("# license: yours to choose", "license: apache-2.0") + about)
    return {"folder": str(folder), **result["metrics"]}


def keep_results(out: Path, folder: Path = KEPT) -> None:
    """Writes what was measured, in what time and on what, beside the other benchmarks."""
    log = json.loads((out / "steps.json").read_text())
    results = {path.parent.name: json.loads(path.read_text()) for path in sorted(out.glob("results/*/result.json"))}
    kept = ("way", "metrics", "intervals", "n", "classes", "templates", "damaged", "not_comparable")
    content = {
        "command": "make table1-demo",
        "processor": processor(),
        "software": software(),
        "commit": git_commit(),
        "asked": {key: value for key, value in log["asked"].items() if key != "out"},
        "seconds": {name: step["seconds"] for name, step in log["steps"].items()},
        "minutes": round(sum(step["seconds"] for step in log["steps"].values()) / 60),
        "results": {name: {key: result[key] for key in kept} for name, result in results.items()},
    }
    (folder / "table1-demo.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "table1-demo.md").write_text((out / "report" / "report.md").read_text())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m demo.ship_model OUT")
    try:
        keep_results(Path(sys.argv[1]))
        print(ship(Path(sys.argv[1])))
    except (CheckFailed, RequestError) as error:
        sys.exit(f"error: {error}")
