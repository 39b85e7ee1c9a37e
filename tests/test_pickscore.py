"""PickScore: parquet to tars with every row accounted for, pairs of latents, the loss by hand, a run that learns."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from demo.image_tar import jpeg_bytes
from demo.pairs import DemoPairs, choose, write_demo_pairs
from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.preference_tars import PairsRequest, write_pairs
from encode_pipeline.records import Sample
from tests.conftest import encode_and_seal, samples_in
from tests.test_boundaries import ROOT, run_without
from train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from train.config import Architecture, PickScoreConfig
from train.metrics import read_metrics
from train.model import build_model
from train.pair_scores import accuracy_with_ties, agreement, best_threshold, preference_loss
from train.pickscore import fine_tune, learning_rate
from train.preferences import PreferencePairs, training_batches

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 220), "white": (240, 240, 240)}
TYPES = {
    "caption": pa.string(),
    "jpg_0": pa.binary(),
    "jpg_1": pa.binary(),
    "has_label": pa.bool_(),
    "label_0": pa.float64(),
    "label_1": pa.float64(),
    "num_example_per_prompt": pa.int64(),
    "ranking_id": pa.int64(),
    "are_different": pa.bool_(),
}
DEMO_VAE = ROOT / "demo" / "vae"
ARCHITECTURE = Architecture(
    embed_dim=16,
    vision_cfg={"width": 32, "layers": 1, "head_width": 16, "patch_size": 4, "pool_type": "avg"},
    text_cfg={"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
)

Row = dict[str, Any]


def picture(colour: str, rng: np.random.Generator) -> bytes:
    """A JPEG of one colour, more or less."""
    pixels = np.array(COLOURS[colour]) + rng.normal(0, 12, (64, 64, 3)) + rng.uniform(-20, 20)
    return jpeg_bytes(pixels.clip(0, 255).astype(np.uint8))


def rows_of(count: int, seed: int) -> list[Row]:
    """Pairs of which the picture of the named colour wins; every eighth is a tie."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        right, wrong = (str(name) for name in rng.choice(list(COLOURS), 2, replace=False))
        winner = int(rng.integers(2))
        is_tie = number % 8 == 7
        sides = [right, right if is_tie else wrong]
        rows.append(
            {
                "caption": f"a {right} picture",
                "jpg_0": picture(sides[winner], rng),
                "jpg_1": picture(sides[1 - winner], rng),
                "label_0": 0.5 if is_tie else 1.0 - winner,
                "label_1": 0.5 if is_tie else float(winner),
                "has_label": True,
                "num_example_per_prompt": 1 + number % 3,
                "ranking_id": 100 + number,
                "are_different": True,
            }
        )
    return rows


def write_parquet(path: Path, rows: list[Row], leave_out: str = "", **types: pa.DataType) -> Path:
    kinds = {name: kind for name, kind in {**TYPES, **types}.items() if name != leave_out}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()})
    pq.write_table(table, path, row_group_size=7)
    return path


def convert(rows: list[Row], folder: Path, name: str, per_tar: int = 1000) -> Path:
    """The rows' pairs as tars."""
    write_pairs(
        PairsRequest(parquet=str(write_parquet(folder / f"{name}.parquet", rows)), out=folder / name, per_tar=per_tar)
    )
    return folder / name


def encode(sources: list[Path], store: Path, vae: Path, **changes: Any) -> str:
    values = {"image_size": 64, "views": 1, "batch_size": 8, "threads": 1, **changes}
    encode_and_seal(EncodeConfig(vae=str(vae), source=[str(path) for path in sources], store=str(store), **values))
    return str(store)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """96 pairs to learn from, 48 to judge by."""
    folder = tmp_path_factory.mktemp("pairs")
    return {
        name: encode([convert(rows_of(count, seed), folder, name, per_tar=40)], folder / f"{name}-latents", DEMO_VAE)
        for seed, (name, count) in enumerate({"train": 96, "held-out": 48}.items())
    }


@pytest.fixture(scope="module")
def base(stores: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt nothing yet."""
    spec = PreferencePairs(stores["train"], Path("unused")).spec
    torch.manual_seed(0)
    content = {
        "epoch": 0,
        "name": "tiny",
        "step": 7,
        "state_dict": build_model(ARCHITECTURE, *spec.shape[:2]).state_dict(),
        "optimizer": {},
        "spec": spec.to_dict(),
        "architecture": ARCHITECTURE.model_dump(mode="json"),
        "settings": {},
    }
    return save_checkpoint(tmp_path_factory.mktemp("base"), content, keep=1)


Configure = Callable[..., PickScoreConfig]


@pytest.fixture
def pickscore(stores: dict[str, str], base: Path, tmp_path: Path) -> Configure:
    def make(**changes: Any) -> PickScoreConfig:
        values = {
            "checkpoint": base,
            "data": stores["train"],
            "validation": stores["held-out"],
            "out": tmp_path / "out",
        }
        short = {"steps": 12, "batch_size": 20, "lr": 1e-3, "warmup": 2, "precision": "float32"}
        return PickScoreConfig(**{**values, **short, "checkpoint_every": 4, "log_every": 1, **changes})

    return make


# --- the loss and the accuracies -----------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    even, odds = [0.0, 0.0], [math.log(3), 0.0]  # probabilities 1/2, 1/2 and 3/4, 1/4

    def loss(scores: list[list[float]], labels: list[list[float]], examples: list[float]) -> float:
        return preference_loss(torch.tensor(scores), torch.tensor(labels), torch.tensor(examples)).item()

    assert loss([even], [[0.5, 0.5]], [1]) == pytest.approx(0, abs=1e-7)
    assert loss([odds], [[1, 0]], [5]) == pytest.approx(-math.log(3 / 4))
    assert loss([odds], [[0, 1]], [1]) == pytest.approx(-math.log(1 / 4))
    assert loss([odds], [[0.5, 0.5]], [1]) == pytest.approx(-0.5 * math.log(3 / 16) + math.log(0.5))
    # Of the caption with three pairs, this one weighs a third: 3/4 and 1/4 of the two.
    assert loss([odds, odds], [[1, 0], [0, 1]], [1, 3]) == pytest.approx(
        -0.75 * math.log(3 / 4) - 0.25 * math.log(1 / 4)
    )


def test_the_loss_is_pickscores_formula() -> None:
    """Cross-entropy with each side's label, log 0.5 added where labels are equal, weights that add up to one."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 4, (64, 2))
    labels = np.array([[1, 0], [0, 1], [0.5, 0.5]])[rng.integers(3, size=64)]
    examples = rng.integers(1, 9, 64)
    total = weights = 0.0
    for (one, other), (label_0, label_1), count in zip(scores, labels, examples, strict=True):
        norm = math.log(math.exp(one) + math.exp(other))
        loss = label_0 * (norm - one) + label_1 * (norm - other) + (math.log(0.5) if label_0 == label_1 else 0)
        total, weights = total + loss / count, weights + 1 / count
    ours = preference_loss(torch.tensor(scores), torch.tensor(labels), torch.tensor(examples).double())
    assert ours.item() == pytest.approx(total / weights, rel=1e-12)


def test_the_gradient_of_the_loss() -> None:
    torch.manual_seed(0)
    scores = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, 0], [0, 1], [0.5, 0.5]] * 2, dtype=torch.float64)
    examples = torch.tensor([1, 2, 3, 1, 1, 8], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda values: preference_loss(values, labels, examples), (scores,))


def test_agreement_gives_a_tie_a_half_and_equal_scores_nothing() -> None:
    scores = torch.tensor([[2.0, 1.0], [1.0, 2.0], [1.0, 2.0], [1.0, 1.0]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    assert agreement(scores, labels).tolist() == [1, 0, 0.5, 0]


def test_accuracy_with_ties_is_pickscores() -> None:
    rng = np.random.default_rng(1)
    scores, kinds = rng.normal(0, 1, (300, 2)), rng.integers(3, size=300)
    labels = np.array([[1, 0], [0, 1], [0.5, 0.5]])[kinds]

    def points(threshold: float) -> float:
        total = 0.0
        for pair, kind in zip(scores, kinds, strict=True):
            first, second = np.exp(pair) / np.exp(pair).sum()
            called = 2 if abs(second - first) <= threshold else 0 if first > second else 1
            total += 1 if called == kind else 0.5 if 2 in (called, kind) else 0
        return total / len(scores)

    for threshold in (0, 0.1, 0.3, 0.7, 1):
        ours = accuracy_with_ties(torch.tensor(scores), torch.tensor(labels), threshold)
        assert ours == pytest.approx(points(threshold))
    expected = max((number / 10 for number in range(11)), key=points)
    assert best_threshold(torch.tensor(scores), torch.tensor(labels)) == expected


def test_the_rate_goes_up_and_then_down_in_a_straight_line(pickscore: Configure) -> None:
    config = pickscore(steps=100, warmup=20, lr=1.0)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == 0.05 and rates[19] == rates[20] == max(rates) == 1
    assert np.diff(rates[20:]) == pytest.approx(-1 / 80) and rates[99] == pytest.approx(1 / 80)


def test_the_defaults_are_pickscores(tmp_path: Path) -> None:
    config = PickScoreConfig(checkpoint=tmp_path, data="a", validation="b", out=tmp_path)
    assert (config.lr, config.weight_decay, config.warmup, config.steps, config.batch_size) == (
        3e-6,
        0.3,
        500,
        4000,
        128,
    )
    assert (config.beta1, config.beta2, config.eps, config.clip_grad) == (0.9, 0.999, 1e-8, 1.0)


# --- parquet to tars -----------------------------------------------------------------------------


def test_every_row_is_a_pair_or_left_out_for_a_reason(tmp_path: Path) -> None:
    rows = rows_of(30, 0)
    rows[3]["has_label"] = False
    rows[4]["has_label"] = None
    rows[9]["jpg_1"] = None
    rows[10]["jpg_0"] = b""
    rows[11]["caption"] = "  "
    rows[12]["caption"] = None
    rows[17]["label_0"] = 0.7
    rows[18]["label_1"] = None
    rows[19]["label_0"] = math.nan
    rows[20]["num_example_per_prompt"] = None
    rows[21]["num_example_per_prompt"] = 0
    one = write_parquet(tmp_path / "in" / "a.parquet", rows[:14])
    write_parquet(tmp_path / "in" / "b.parquet", rows[14:])
    request = PairsRequest(parquet=str(tmp_path / "in"), out=tmp_path / "tars", per_tar=4)
    result = write_pairs(request)
    assert result["left_out"] == {
        "bad_labels": 3,
        "bad_num_example_per_prompt": 2,
        "missing_caption": 2,
        "missing_image": 2,
        "no_label": 2,
    }
    assert (result["rows"], result["pairs"], result["ties"], result["tars"]) == (30, 19, 3, 5)
    assert result["rows"] == result["pairs"] + sum(result["left_out"].values())

    tars = sorted((tmp_path / "tars").glob("*.tar"))
    samples = [sample for tar in tars for sample in samples_in(tar)]
    used = [number for number in range(30) if number not in (3, 4, 9, 10, 11, 12, 17, 18, 19, 20, 21)]
    assert [sample.key for sample in samples] == [f"{number:09d}_{side}" for number in used for side in (0, 1)]
    for sample, (number, side) in zip(samples, [(number, side) for number in used for side in (0, 1)], strict=True):
        assert isinstance(sample, Sample)
        row = rows[number]
        assert (sample.image, sample.caption) == (row[f"jpg_{side}"], row["caption"])
        assert sample.metadata == {
            "pair": f"a.parquet:{number}" if number < 14 else f"b.parquet:{number - 14}",
            "side": side,
            "label": row[f"label_{side}"],
            "num_example_per_prompt": row["num_example_per_prompt"],
            "ranking_id": 100 + number,
            "are_different": True,
        }

    before = {tar.name: tar.read_bytes() for tar in tars}
    (tmp_path / "tars" / "counts" / "00001.json").unlink()  # as if killed while it wrote the last tars
    tars[-1].unlink()
    assert write_pairs(request) == result
    assert {tar.name: tar.read_bytes() for tar in (tmp_path / "tars").glob("*.tar")} == before
    with pytest.raises(RequestError, match="tars: holds pairs of other files"):
        write_pairs(PairsRequest(parquet=str(one), out=tmp_path / "tars"))
    with pytest.raises(RequestError, match="in: not empty, and not begun by this command"):
        write_pairs(PairsRequest(parquet=str(one), out=tmp_path / "in"))


def test_pictures_as_hugging_face_keeps_them(tmp_path: Path) -> None:
    rows = rows_of(3, 0)
    wrapped = [{**row, "jpg_0": {"bytes": row["jpg_0"], "path": None}} for row in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path = write_parquet(tmp_path / "a.parquet", wrapped, jpg_0=kind)
    write_pairs(PairsRequest(parquet=str(path), out=tmp_path / "tars"))
    samples = samples_in(tmp_path / "tars" / "00000-000.tar")
    assert [sample.image for sample in samples[::2] if isinstance(sample, Sample)] == [row["jpg_0"] for row in rows]


def test_bad_parquet_is_one_line_with_file_and_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from encode_pipeline.__main__ import VERBS
    from encode_pipeline.latents.command import main

    def refused(path: Path, status: int = 2) -> str:
        assert main("encode_pipeline", VERBS, ["pairs", str(path), f"out={tmp_path / path.stem}"]) == status
        error = capsys.readouterr().err.strip().splitlines()
        assert [line.startswith("error: ") and str(path) in line for line in error].count(True) == 1 == len(error)
        return error[0]

    rows = rows_of(40, 0)
    lacking = write_parquet(tmp_path / "lacking.parquet", rows, leave_out="label_1")
    assert "no column label_1; it has caption, jpg_0" in refused(lacking)
    numbers = write_parquet(tmp_path / "numbers.parquet", [{**row, "jpg_0": 1} for row in rows], jpg_0=pa.int64())
    assert "column jpg_0 holds int64" in refused(numbers)
    (tmp_path / "text.parquet").write_text("not parquet")
    assert "not a readable parquet file" in refused(tmp_path / "text.parquet")
    assert "no parquet file there" in refused(tmp_path / "nowhere.parquet")
    damaged = write_parquet(tmp_path / "damaged.parquet", rows)
    content = bytearray(damaged.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    damaged.write_bytes(bytes(content))
    assert "damaged: " in refused(damaged, status=1)
    none = write_parquet(tmp_path / "none.parquet", [{**row, "has_label": False} for row in rows])
    with pytest.raises(CheckFailed, match=r"none\.parquet: no usable pair: 40 no_label"):
        write_pairs(PairsRequest(parquet=str(none), out=tmp_path / "none"))


def test_pairs_need_no_torch(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows_of(3, 0))
    code = "from encode_pipeline.__main__ import VERBS, main; sys.exit(main('encode_pipeline', VERBS, sys.argv[1:]))"
    done = run_without(
        {"torch", "ray", "diffusers", "albumentations"}, code, "pairs", str(path), f"out={tmp_path / 't'}"
    )
    assert done.returncode == 0 and "pairs: 3" in done.stdout, done.stderr


# --- pairs of latents ----------------------------------------------------------------------------


def test_a_pair_that_lost_a_side_is_counted_and_left_out(small_vae: Path, tmp_path: Path) -> None:
    rows = rows_of(6, 0)
    rows[2]["jpg_1"] = b"no picture"
    store = encode([convert(rows, tmp_path, "a")], tmp_path / "store", small_vae)
    pairs = PreferencePairs(store, tmp_path)
    assert pairs.names == [f"a.parquet:{number}" for number in (0, 1, 3, 4, 5)] and pairs.incomplete == 1
    batch = pairs.batch([2, 0], lambda captions: torch.tensor([[len(caption)] for caption in captions]))
    assert batch.latents_bschw.shape == (2, 2, 4, 8, 8) and batch.ids == ["a.parquet:3", "a.parquet:0"]
    assert batch.labels_bs.tolist() == [[rows[number]["label_0"], rows[number]["label_1"]] for number in (3, 0)]
    assert batch.examples_b.tolist() == [1, 1]
    assert batch.tokens_bl.flatten().tolist() == [len(rows[number]["caption"]) for number in (3, 0)]


def test_what_makes_no_pairs_is_refused(small_vae: Path, world: Path, tmp_path: Path) -> None:
    plain = encode([world / "train" / "00000.tar"], tmp_path / "plain", small_vae)
    with pytest.raises(RequestError, match="not half of a preference pair; make the tars with"):
        PreferencePairs(plain, tmp_path)
    rows = rows_of(3, 0)
    first, second = convert(rows, tmp_path / "1", "a"), convert(rows, tmp_path / "2", "a")
    twice = encode([first, second], tmp_path / "twice", small_vae)
    with pytest.raises(RequestError, match=r"side 0 of pair a\.parquet:0 is there twice: .*_0 and .*_0"):
        PreferencePairs(twice, tmp_path)


def test_every_pair_once_an_epoch_wherever_one_begins(stores: dict[str, str], tmp_path: Path) -> None:
    pairs = PreferencePairs(stores["train"], tmp_path)

    def ids(first: int, seed: int = 0) -> list[str]:
        tokens = lambda captions: torch.zeros(len(captions), 1)  # noqa: E731
        return [name for batch in training_batches(pairs, tokens, 20, seed, first, 15) for name in batch.ids]

    whole = ids(0)
    assert whole[20 * 7 :] == ids(7) and whole != ids(0, seed=1)
    epochs = [whole[start : start + 96] for start in (0, 96, 192)]
    assert all(sorted(epoch) == pairs.names for epoch in epochs) and epochs[0] != epochs[1]


def test_latents_of_another_vae_are_refused_and_another_scale_converted(
    small_vae: Path, pickscore: Configure, tmp_path: Path
) -> None:
    tars = convert(rows_of(48, 1), tmp_path, "held-out")
    foreign = encode([tars], tmp_path / "foreign", small_vae)
    with pytest.raises(RequestError, match="foreign.*: these latents are not the model's: vae: "):
        fine_tune(pickscore(validation=foreign))
    stored = [encode([tars], tmp_path / scale, DEMO_VAE, scale=scale) for scale in ("raw", "model")]
    raw, converted = (
        fine_tune(pickscore(out=tmp_path / str(number), steps=1, validation=store))["start"]
        for number, store in enumerate(stored)
    )
    assert converted["loss"] == pytest.approx(raw["loss"], rel=1e-3) and raw["loss"] > 0.05


# --- the run -------------------------------------------------------------------------------------


def lines(out: Path) -> list[dict[str, float]]:
    timed = ("samples_per_second", "data_wait")
    return [
        {key: value for key, value in line.items() if key not in timed} for line in read_metrics(out / "metrics.jsonl")
    ]


def assert_same_run(one: Path, other: Path) -> None:
    a, b = (load_checkpoint(out) for out in (one, other))
    assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])
    assert lines(one) == lines(other) and [line["step"] for line in lines(one)] == list(range(1, 13))
    assert (one / "held-out.json").read_bytes() == (other / "held-out.json").read_bytes()
    assert [path.name for path in checkpoints(one / "best")] == [path.name for path in checkpoints(other / "best")]


def test_it_learns_what_people_prefer(pickscore: Configure, stores: dict[str, str]) -> None:
    result = fine_tune(pickscore(steps=60, lr=3e-3, warmup=5, checkpoint_every=20, test=stores["train"]))
    start, end = result["start"], result["end"]
    assert (start["pairs"], start["ties"], start["step"], end["step"]) == (48, 6, 0, 60)
    assert start["accuracy_decided"] < 0.7 and end["accuracy_decided"] > 0.9, (start, end)
    assert end["accuracy_with_ties"] > start["accuracy_with_ties"] + 0.15
    assert result["best"]["accuracy"] == max(
        look["accuracy"]
        for look in json.loads((Path(result["best_checkpoint"]).parents[1] / "held-out.json").read_text())
    )
    assert result["test"]["pairs"] == 96 and result["test"]["tie_threshold"] == result["best"]["tie_threshold"]
    assert result["test"]["accuracy_decided"] > 0.9
    best = load_checkpoint(Path(result["best_checkpoint"]))
    assert (best["name"], best["step"]) == ("tiny", result["best"]["step"])


def test_resumed_equals_uninterrupted(pickscore: Configure, tmp_path: Path) -> None:
    whole = fine_tune(pickscore(out=tmp_path / "whole", keep_checkpoints=9))
    fine_tune(pickscore(out=tmp_path / "cut", keep_checkpoints=9))
    for path in checkpoints(tmp_path / "cut" / "checkpoints")[1:]:
        path.unlink()  # as if killed after step 4
    resumed = fine_tune(pickscore(out=tmp_path / "cut", keep_checkpoints=9))
    assert (whole["steps_now"], resumed["steps_now"], resumed["steps"]) == (12, 8, 12)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_at_any_moment_the_same_command_goes_on(
    number: signal.Signals, pickscore: Configure, tmp_path: Path
) -> None:
    fine_tune(pickscore(out=tmp_path / "whole"))
    config = pickscore(out=tmp_path / "killed")
    words = [f"{key}={value}" for key, value in config.model_dump(mode="json").items() if value is not None]
    command = [sys.executable, "-m", "train", "pickscore", *words]
    run = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not lines(tmp_path / "killed") and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    run.send_signal(number)
    assert run.wait() in (-number, 128 + number, 0)
    assert lines(tmp_path / "killed"), run.stderr.read() if run.stderr else ""
    assert fine_tune(config)["steps"] == 12
    assert fine_tune(config)["steps_now"] == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_run_of_other_settings_or_pairs_is_refused(
    pickscore: Configure, base: Path, stores: dict[str, str], tmp_path: Path
) -> None:
    fine_tune(pickscore(steps=1))
    with pytest.raises(RequestError, match=r"was begun with lr=0.001, not 0.5; use another out="):
        fine_tune(pickscore(steps=1, lr=0.5))
    with pytest.raises(RequestError, match="was begun on other pairs"):
        fine_tune(pickscore(steps=1, data=stores["held-out"]))
    save_checkpoint(tmp_path / "other" / "checkpoints", load_checkpoint(base), keep=1)
    with pytest.raises(RequestError, match="holds another run, not one of pickscore"):
        fine_tune(pickscore(out=tmp_path / "other"))
    with pytest.raises(RequestError, match="no checkpoint in this folder"):
        fine_tune(pickscore(checkpoint=tmp_path, out=tmp_path / "new"))


def test_a_loss_that_is_no_number_stops_the_run_and_names_pairs(
    pickscore: Configure, base: Path, tmp_path: Path
) -> None:
    content = load_checkpoint(base)
    content["state_dict"]["visual.proj"][0, 0] = math.nan
    broken = save_checkpoint(tmp_path / "broken", content, keep=1)
    with pytest.raises(CheckFailed, match=r"step 1: loss nan, .*; pairs train\.parquet:\d+, "):
        fine_tune(pickscore(checkpoint=broken))
    assert not checkpoints(tmp_path / "out" / "checkpoints")


# --- the demo's pairs ----------------------------------------------------------------------------


def test_demo_pairs_are_truthful_and_the_same_every_time(tmp_path: Path) -> None:
    config = DemoPairs(out=tmp_path / "a", train=12, held_out=5, seed=3)
    write_demo_pairs(config)
    write_demo_pairs(config.model_copy(update={"out": tmp_path / "b"}))
    for name in ("train.parquet", "held-out.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    rows = pq.read_table(tmp_path / "a" / "train.parquet").to_pylist()
    assert [row["caption"] for row in rows] == [choose(3, "pairs-train", index).caption for index in range(12)]
    kinds = set()
    for index in range(300):
        choice = choose(3, "pairs-train", index)
        matches = [name in choice.caption for name in choice.classes]
        assert [label > 0 for label in choice.labels] == matches and sum(choice.labels) == 1
        (color, shape), (other_color, other_shape) = (name.split() for name in choice.classes)
        expected = {(True, True): "tie", (True, False): "shape", (False, True): "colour", (False, False): "both"}
        assert choice.kind == expected[color == other_color, shape == other_shape]
        kinds.add(choice.kind)
    assert len(kinds) == 4
