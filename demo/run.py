"""The demo: every command a user would type, in order, each resumable, with a page at the end.

OUT/world/          image tars, made here
OUT/store/          latents of the training pictures, four views each, encoded on local Ray
OUT/test-store/     latents of the held-out pictures, one view each, encoded in this process
OUT/train/          checkpoints and metrics.jsonl
OUT/zero-shot/      result.json and predictions.jsonl of the model just trained
OUT/zero-shot-shipped/  the same of demo/latent-clip, which was trained longer
OUT/steps.json      what each step was asked, how long it took and what it returned
OUT/report.html     the page
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from encode_pipeline.latents.command import CheckFailed, Settings, Verb, load_settings, parse

VAE = Path(os.path.relpath(Path(__file__).parent / "vae"))
SHIPPED = Path(os.path.relpath(Path(__file__).parent / "latent-clip"))
"""The latent tower of `make table1-demo`."""


def _every_class_as_often(pictures: int) -> int:
    if pictures % 48:
        raise ValueError("must be a multiple of the 48 classes")
    return pictures


HeldOut = Annotated[int, Field(gt=0, description="a multiple of the 48 classes"), AfterValidator(_every_class_as_often)]
"""How many pictures are held out."""


class DemoConfig(Settings):
    """How large the demo is, and where it goes."""

    out: Path = Field(Path("runs/demo"), description="folder of the demo")
    train_pictures: int = Field(600, gt=0)
    test_pictures: HeldOut = 288
    steps: int = Field(250, gt=0, description="training steps")
    actors: int = Field(2, gt=0, description="Ray actors that encode")
    seed: int = Field(0, ge=0)


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Runs whatever of the demo has not been run yet, and writes the report."""
    steps = StepLog(config, config.out)
    store, test_store, classes = _latents(config, steps)
    train = config.out / "train"
    steps.command(
        "train",
        "train",
        [
            "model=latent-vit-demo",
            f"data={store}",
            f"out={train}",
            f"steps={config.steps}",
            f"seed={config.seed}",
        ],
    )
    for step, checkpoint in {"zero-shot": train, "zero-shot-shipped": SHIPPED}.items():
        words = [f"checkpoint={checkpoint}", f"data={test_store}", f"classes={classes}", f"out={config.out / step}"]
        steps.command(step, "eval", ["zero-shot", *words])
    report = config.out / "report.html"
    steps.do("report", f"python -m demo.report {config.out}", lambda: _report(config.out, report))
    print(f"done in {sum(step['seconds'] for step in steps.steps.values()):.0f} s of work", file=sys.stderr)
    return {"report": str(report), **steps.steps["zero-shot"]["result"]["metrics"]}


def make_latents(config: DemoConfig) -> dict[str, Any]:
    """Runs the demo as far as its latents, whose places it returns; `run_demo` goes on from there."""
    store, test_store, classes = _latents(config, StepLog(config, config.out))
    return {"data": str(store), "test_data": str(test_store), "classes": str(classes)}


def _latents(config: DemoConfig, steps: StepLog) -> tuple[Path, Path, Path]:
    """The promoted stores of training and held-out pictures, and the folder with the class names."""
    world, store, test_store = config.out / "world", config.out / "store", config.out / "test-store"
    steps.do(
        "world",
        f"world {config.train_pictures} + {config.test_pictures} pictures",
        lambda: _world(config, world),
    )
    encode = [f"vae={VAE}", f"seed={config.seed}", "batch_size=8", "threads=1"]
    ray = ["engine=ray", f"actors={config.actors}", "gpus_per_actor=0"]
    steps.command("encode", "encode_pipeline", ["run", f"source={world / 'train'}", f"store={store}", *encode, *ray])
    local = ["engine=local", "views=1"]
    steps.command(
        "encode-test",
        "encode_pipeline",
        ["run", f"source={world / 'test'}", f"store={test_store}", *encode, *local],
    )
    for name, place in (("", store), ("-test", test_store)):
        for verb in ("seal", "verify", "promote", "status"):
            steps.command(f"{verb}{name}", "encode_pipeline", [verb, str(place)])
    return store, test_store, world / "test"


class StepLog:
    """Runs steps and keeps what they said in `steps.json`; a finished step is not run again."""

    def __init__(self, config: Settings, out: Path) -> None:
        self.path = out / "steps.json"
        out.mkdir(parents=True, exist_ok=True)
        asked = config.model_dump(mode="json")
        found = json.loads(self.path.read_text()) if self.path.exists() else {"asked": asked, "steps": {}}
        if found["asked"] != asked:
            raise CheckFailed(f"{out}: holds a demo of other settings, {found['asked']}; choose another out=")
        self._asked = asked
        self.steps: dict[str, dict[str, Any]] = found["steps"]

    def command(self, name: str, package: str, words: list[str]) -> None:
        """One command line of one of the packages, through the same door as a user's."""
        self.do(name, f"python -m {package} {' '.join(words)}", lambda: _run_command(package, words))

    def do(self, name: str, command: str, work: Callable[[], Mapping[str, Any]]) -> None:
        if name in self.steps:
            print(f"[{name}] done before", file=sys.stderr, flush=True)
            return
        print(f"\n[{name}] {command}", file=sys.stderr, flush=True)
        started = time.monotonic()
        result = work()
        if not result.get("ok", True):
            raise CheckFailed(f"{name}: {json.dumps(result, default=str)[:2000]}")
        seconds = round(time.monotonic() - started, 1)
        self.steps[name] = {"command": command, "seconds": seconds, "result": dict(result)}
        unfinished = self.path.with_name(f".{self.path.name}.unfinished")
        unfinished.write_text(json.dumps({"asked": self._asked, "steps": self.steps}, indent=1, default=str) + "\n")
        unfinished.replace(self.path)
        print(f"[{name}] {seconds} s", file=sys.stderr, flush=True)


def _run_command(package: str, words: list[str]) -> Mapping[str, Any]:
    verbs = _verbs(package)
    request = parse(package, verbs, words, default="run")
    verb = verbs[request.verb]
    return verb.run(load_settings(verb, verbs.values(), request))


def _verbs(package: str) -> dict[str, Verb]:
    if package == "encode_pipeline":
        from encode_pipeline.__main__ import VERBS as verbs
    elif package == "train":
        from train.__main__ import VERBS as verbs
    else:
        from eval.__main__ import VERBS as verbs
    return verbs


def _report(out: Path, page: Path) -> Mapping[str, Any]:
    from demo.report import write_report

    return write_report(out, page)


def _world(config: DemoConfig, out: Path) -> Mapping[str, Any]:
    from demo.world import WorldSpec, write_world

    def say(done: int, total: int) -> None:
        if done == total or done % 100 == 0:
            print(f"{done}/{total} pictures", file=sys.stderr, flush=True)

    spec = WorldSpec(
        seed=config.seed,
        train_pictures=config.train_pictures,
        test_pictures=config.test_pictures,
        pictures_per_tar=60,
        warts=True,
    )
    summary = write_world(out, spec, say)
    return {"pictures": summary.pictures, "tars": len(summary.tars), "warts": summary.warts}
