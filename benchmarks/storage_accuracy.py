"""The demo's Latent-CLIP trained on float16 latents and on their int8 copy: what each knows of held-out pictures.

FOLDER/int8/{store,test-store}/      the latents of `make table1-demo`, as int8
FOLDER/{float16,int8}-SEED/          towers: checkpoints and metrics
FOLDER/results/TOWER-reads-KIND/     each tower on both kinds of held-out latents
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks.figures import Figure, Measured, compared
from encode_pipeline.config import PositiveInt
from encode_pipeline.latents.command import CheckFailed, RequestError, Settings
from encode_pipeline.latents.commit import ShardBuild, ShardCommit
from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.store import Store, Version
from eval import intervals
from eval.zero_shot import ZeroShotConfig, zero_shot

KINDS = ("float16", "int8")
LONG = "table1"
"""The tower that `make table1-demo` left, of far more steps; only looked at."""
UNIT = "of the held-out pictures right"
Right = list[bool]


class AccuracyConfig(Settings):
    out: Path | None = Field(None, description="also write the numbers to this JSON file")
    table1: Path = Field(Path("runs/table1-demo"), description="what `make table1-demo` has made: latents and a tower")
    folder: Path = Field(Path("runs/storage-accuracy"), description="for towers and results; again: goes on")
    steps: PositiveInt = Field(400, description="training steps of each tower")
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="a pair of towers for each")
    at_once: PositiveInt = Field(len(os.sched_getaffinity(0)), description="towers trained side by side, a core each")


def measure(config: AccuracyConfig) -> Measured:
    """Held-out accuracy of pairs of towers alike but for what their latents are stored as, on both kinds of latents."""
    stores = {kind: _stores(kind, config) for kind in KINDS}
    towers = [(kind, seed) for seed in config.seeds for kind in KINDS]
    with ThreadPoolExecutor(config.at_once) as pool:
        for done in [pool.submit(_train, kind, seed, stores[kind][0], config) for kind, seed in towers]:
            done.result()
    right = {
        (trained, read): [_right(f"{trained}-{seed}", read, stores[read][1], config) for seed in config.seeds]
        for trained in KINDS
        for read in KINDS
    }
    long = {read: _right(LONG, read, stores[read][1], config) for read in KINDS}
    return Measured(tuple(_figures(right, long)), _details(config, right, long))


def _stores(kind: str, config: AccuracyConfig) -> tuple[Path, Path]:
    """The store to learn from and that to be asked about."""
    found = [config.table1 / "latent" / name for name in ("store", "test-store")]
    if not all((place / "current.json").is_file() for place in found):
        raise RequestError(f"table1={config.table1}: holds no promoted latents; run: make table1-demo")
    if kind == "int8":
        originals, found = found, [config.folder / "int8" / place.name for place in found]
        for original, place in zip(originals, found, strict=True):
            int8_copy(Store(original).version(), place)
    return found[0], found[1]


def int8_copy(source: Version, out: Path) -> Version:
    """The same samples in an int8 store, sealed."""
    spec = source.spec.model_copy(update={"dtype": "int8"})
    version = Store(out).create(spec)
    for commit in () if version.sealed else source.commits():
        if version.is_done(commit.shard):
            continue
        with (
            tempfile.TemporaryDirectory() as scratch,
            ExitStack() as opened,
            ShardBuild(Path(scratch), spec, commit.source) as build,
        ):
            views = [opened.enter_context(shard) for shard in _shards(source, commit)]
            for number, key in enumerate(views[0].keys):
                latents, records = zip(*((view.latent(number), view.metadata(number)) for view in views), strict=True)
                build.add(key, latents, views[0].caption(number), records)
            version.publish(*build.finish(commit.source_sha256, {}))
    version.seal()
    return version


def _shards(version: Version, commit: ShardCommit) -> Iterator[LatentShard]:
    for payload in commit.views:
        local = version.storage.local_path(payload.path)
        assert local is not None
        yield LatentShard(local, version.spec)


def _train(kind: str, seed: int, store: Path, config: AccuracyConfig) -> None:
    """Trains a tower to its last step, or sees that it is. Each on cores of its own, so that its sums are the same."""
    out = config.folder / f"{kind}-{seed}"
    words = ["model=latent-vit-demo", f"data={store}", f"out={out}", f"steps={config.steps}", f"seed={seed}"]
    config.folder.mkdir(parents=True, exist_ok=True)
    with out.with_name(f"{out.name}.log").open("ab") as log:
        command = [sys.executable, "-m", "train", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode != 0:
        raise CheckFailed(f"{out}: training ended with exit status {done.returncode}; see {log.name}")


def _right(tower: str, read: str, store: Path, config: AccuracyConfig) -> Right:
    """Of each held-out picture, whether a tower that reads this kind of latents names its class."""
    out = config.folder / "results" / f"{tower}-reads-{read}"
    checkpoint = config.table1 / "latent" / "train" if tower == LONG else config.folder / tower
    classes = config.table1 / "world" / "test"
    zero_shot(ZeroShotConfig(checkpoint=str(checkpoint), data=str(store), classes=classes, out=out))
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return [line["top5"][:1] == [line["label"]] for line in sorted(lines, key=lambda line: str(line["key"]))]


def _figures(right: Mapping[tuple[str, str], Sequence[Right]], long: Mapping[str, Right]) -> Iterator[Figure]:
    """A value a seed."""
    shares = {ways: [share(answers) for answers in of_seeds] for ways, of_seeds in right.items()}
    base = Figure(name_of("float16", "float16"), UNIT, tuple(shares["float16", "float16"]))
    for (trained, read), values in shares.items():
        yield compared(name_of(trained, read), UNIT, values, base)
    first = Figure(name_of(LONG, "float16"), UNIT, (share(long["float16"]),))
    yield first
    yield compared(name_of(LONG, "int8"), UNIT, [share(long["int8"])], first)


def name_of(trained: str, read: str) -> str:
    return f"{'of `make table1-demo`' if trained == LONG else f'trained on {trained}'}, reads {read}"


def share(right: Right) -> float:
    return sum(right) / len(right)


def _details(
    config: AccuracyConfig, right: Mapping[tuple[str, str], Sequence[Right]], long: Mapping[str, Right]
) -> dict[str, Any]:
    base = right["float16", "float16"]
    return {
        "pictures": len(long["int8"]),
        "steps": config.steps,
        "seeds": config.seeds,
        "weights": "trained here on the demo's world; not comparable with the paper's",
        "intervals": {name_of(*ways): _interval(of_seeds) for ways, of_seeds in right.items()},
        "less_trained_on_float16_reads_float16": {
            name_of(*ways): [difference(mine, first) for mine, first in zip(of_seeds, base, strict=True)]
            for ways, of_seeds in right.items()
            if ways != ("float16", "float16")
        },
        "less_it_of_all_seeds": {
            name_of(*ways): difference_of_seeds(of_seeds, base)
            for ways, of_seeds in right.items()
            if ways != ("float16", "float16")
        },
        "of_table1_int8_less_float16": difference(long["int8"], long["float16"]),
        "of_table1_became_right_or_wrong": sum(a != b for a, b in zip(long["int8"], long["float16"], strict=True)),
    }


def _interval(of_seeds: Sequence[Right]) -> list[dict[str, float]]:
    """Of each seed's accuracy, by drawing pictures anew."""
    found = []
    for answers in of_seeds:
        low, high = intervals.share(sum(answers), len(answers), 0)
        found.append({"value": share(answers), "low": low, "high": high})
    return found


def difference(mine: Right, first: Right) -> dict[str, float]:
    """Picture by picture, with its 95 % interval."""
    return vars(intervals.paired_difference(mine, first, 0))


def difference_of_seeds(mine: Sequence[Right], first: Sequence[Right]) -> dict[str, float]:
    """The mean over seeds, picture by picture. Its interval knows nothing of the luck of a seed."""
    pairs = list(zip(mine, first, strict=True))
    gained = [sum(a[at] - b[at] for a, b in pairs) / len(pairs) for at in range(len(mine[0]))]
    low, high = intervals.mean(gained, 0)
    return {"value": sum(gained) / len(gained), "low": low, "high": high}
