"""The paper's first table in miniature: a latent tower and its twin of pixels, on the same pictures and tokens.

OUT/world/                          pictures to train on and held-out ones, the same for both
OUT/{latent,pixel}/store/           what the training pictures become: latents of the demo's VAE, or averaged pixels
OUT/{latent,pixel}/test-store/      the held-out ones
OUT/{latent,pixel}/train/           checkpoints and metrics
OUT/generator/                      a tiny SDXL pipeline that has learned to draw the world
OUT/generated/{workflow,literal}/   the held-out latents gone over by it, by both readings of the paper's noise level
OUT/results/                        a folder for each evaluation
OUT/report/                         the table as a page, Markdown, CSV and LaTeX
OUT/steps.json                      what each step was asked, how long it took and what it returned
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from demo.run import VAE, HeldOut, StepLog
from encode_pipeline.latents.command import Settings

TOWERS = {"latent": str(VAE), "pixel": "pixels"}
"""What each tower reads, by the name that `vae=` has for it."""
READINGS = ("workflow", "literal")


class TableConfig(Settings):
    """How large the comparison is, and where it goes."""

    out: Path = Field(Path("runs/table1-demo"), description="folder of the comparison")
    train_pictures: int = Field(3000, gt=0)
    test_pictures: HeldOut = 960
    steps: int = Field(1400, gt=0, description="training steps of each tower")
    generator_steps: int = Field(1500, gt=0, description="training steps of the generator")
    seed: int = Field(0, ge=0)


def make_table(config: TableConfig) -> dict[str, Any]:
    """Runs whatever of the comparison has not been run yet."""
    steps = StepLog(config, config.out)
    world = config.out / "world"
    steps.do("world", f"world {config.train_pictures} + {config.test_pictures}", lambda: _world(config, world))
    for tower, vae in TOWERS.items():
        folder = config.out / tower
        encode = [f"vae={vae}", f"seed={config.seed}", "batch_size=8", "threads=1", "engine=local"]
        for split, name, more in (("train", "store", []), ("test", "test-store", ["views=1"])):
            store = folder / name
            words = ["run", f"source={world / split}", f"store={store}", *encode, *more]
            steps.command(f"{tower}-encode-{split}", "encode_pipeline", words)
            for verb in ("seal", "verify", "promote"):
                steps.command(f"{tower}-{verb}-{split}", "encode_pipeline", [verb, str(store)])
    for tower in TOWERS:
        folder = config.out / tower
        words = ["model=latent-vit-demo", f"data={folder / 'store'}", f"out={folder / 'train'}"]
        words += [f"steps={config.steps}", f"seed={config.seed}"]
        steps.command(f"{tower}-train", "train", words)
    generator = config.out / "generator"
    steps.do("generator", f"a generator of {config.generator_steps} steps", lambda: _generator(config, generator))
    for reading in READINGS:
        words = [str(config.out / "latent" / "test-store"), f"out={config.out / 'generated' / reading}"]
        words += [f"generator={generator}", f"noise={reading}", f"classes={world / 'test'}", f"seed={config.seed}"]
        steps.command(f"generate-{reading}", "eval", ["generate-imagenet", *words])
    results = []
    for tower, data, way in _evaluations(config.out):
        name = "-".join([tower, *(part for part in (data.name, way) if part not in ("test-store", None))])
        results.append(str(config.out / "results" / name))
        words = [f"checkpoint={config.out / tower / 'train'}", f"data={data}", f"classes={world / 'test'}"]
        words += [f"out={results[-1]}", *([f"way={way}"] if way else [])]
        steps.command(f"evaluate-{name}", "eval", ["zero-shot", *words])
    steps.command("report", "eval", ["report", *results, f"out={config.out / 'report'}"])
    return dict(steps.steps["report"]["result"])


def _evaluations(out: Path) -> Iterator[tuple[str, Path, str | None]]:
    """Which tower looks at which store, and by which way."""
    for tower in TOWERS:
        yield tower, out / tower / "test-store", None
    for reading in READINGS:
        generated = out / "generated" / reading
        yield from (("latent", generated, "direct"), ("latent", generated, "decoded"), ("pixel", generated, "decoded"))


def _generator(config: TableConfig, out: Path) -> dict[str, Any]:
    from demo.train_generator import GeneratorConfig, train_generator

    data = str(config.out / "latent" / "store")
    return train_generator(GeneratorConfig(data=data, out=out, steps=config.generator_steps, seed=config.seed))


def _world(config: TableConfig, out: Path) -> dict[str, Any]:
    from demo.world import WorldSpec, write_world

    spec = WorldSpec(
        seed=config.seed,
        train_pictures=config.train_pictures,
        test_pictures=config.test_pictures,
        pictures_per_tar=60,
    )
    summary = write_world(out, spec)
    return {"pictures": summary.pictures, "tars": len(summary.tars)}
