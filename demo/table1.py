"""The paper's first table in miniature: a latent tower and its twin of pixels, on the same pictures and tokens.

OUT/world/                          pictures to train on and held-out ones, the same for both
OUT/{latent,pixel}/store/           what the training pictures become: latents of the demo's VAE, or averaged pixels
OUT/{latent,pixel}/test-store/      the held-out ones
OUT/{latent,pixel}/train/           checkpoints and metrics
OUT/steps.json                      what each step was asked, how long it took and what it returned
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from demo.run import VAE, StepLog
from demo.scene import CLASS_NAMES
from encode_pipeline.latents.command import Settings

TOWERS = {"latent": str(VAE), "pixel": "pixels"}
"""What each tower reads, by the name that `vae=` has for it."""


class TableConfig(Settings):
    """How large the comparison is, and where it goes."""

    out: Path = Field(Path("runs/table1-demo"), description="folder of the comparison")
    train_pictures: int = Field(3000, gt=0)
    test_pictures: int = Field(960, gt=0, description="a multiple of the 48 classes")
    steps: int = Field(1400, gt=0, description="training steps of each tower")
    seed: int = Field(0, ge=0)

    @field_validator("test_pictures")
    @classmethod
    def _every_class_as_often(cls, value: int) -> int:
        if value % len(CLASS_NAMES):
            raise ValueError(f"must be a multiple of the {len(CLASS_NAMES)} classes")
        return value


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
    return {"out": str(config.out)}


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
