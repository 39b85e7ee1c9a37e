"""The GPU benchmark at sizes where its times mean nothing: on the GPU where there is one, else on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.__main__ import VERBS, main
from benchmarks.figures import Figure, Measured
from benchmarks.gpu import run, steering, training
from benchmarks.gpu.bench import encode_tflop, open_bench
from benchmarks.gpu.busy import Busy, covered, share_between_ends
from benchmarks.gpu.ceiling import matmul, product_tflop
from benchmarks.gpu.encoder import WAYS, diffusers_means, measure_encoder, open_encoder, open_ours, pictures
from benchmarks.gpu.loss import check_alike, features
from benchmarks.gpu.notes import Clock, Notes, is_too_large
from benchmarks.gpu.settings import GpuConfig
from benchmarks.gpu.ways import Way, opened, rate_figures, rates_of
from benchmarks.record import read_record
from benchmarks.table import markdown
from demo.report_machine import ROOT
from encode_pipeline.latents.command import CheckFailed, RequestError

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IS_CPU = DEVICE.type == "cpu"
DTYPES = ("float32", "bfloat16") if IS_CPU else ("float16", "bfloat16")
TINY: dict[str, Any] = {
    "device": DEVICE.type,
    "compile": False,
    "rounds": 2,
    "dtypes": DTYPES,
    "vae": (8, 8, 8, 8),
    "vae_layers": 1,
    "image_size": 64,
    "batch_size": 4,
    "other_batch_sizes": (2,),
    "views_a_turn": 8,
    "matmul": 32,
    "tars": 2,
    "pictures": 6,
    "side": 96,
    "views": 2,
    "models": ("latent-vit-demo",),
    "train_batch": 8,
    "train_steps": 1,
    "peak_tflops": 2.0,
    "pairs": (32, 64),
    "embedding": 16,
    "unet": "tiny",
    "latent_reward": "latent-vit-demo",
    "pixel_reward": "ViT-S-32",
    "steered": (1, 2),
    "iterations": 2,
}
WORDS = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in TINY.items()]
PARTS = [
    f"encoder {DTYPES[0]}, batch 4",
    f"encoder {DTYPES[0]}, batch 2",
    "pipeline",
    "train latent-vit-demo",
    "loss",
    "reno",
    f"encoder {DTYPES[1]}, batch 4",
    "bits",
]
UNCOMPILED = ["diffusers", "diffusers, channels_last", "ours, plain", *([] if IS_CPU else ["ours, fused"])]
WAYS_OF = {
    PARTS[0]: UNCOMPILED,
    PARTS[1]: [name for name in UNCOMPILED if name in ("diffusers", "ours, fused")],
    PARTS[6]: UNCOMPILED,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two that wait for each other are slow where others are at work too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of every part, as the command writes it."""
    out = tmp_path_factory.mktemp("bench") / "results" / "gpu.json"
    assert main("benchmarks", VERBS, ["gpu", f"out={out}", *WORDS]) == 0
    assert out.with_suffix(".png").stat().st_size > 0
    content = read_record(out)
    assert out.with_suffix(".md").read_text() == markdown(content)
    return content


def figures_of(result: Mapping[str, Any], part: str) -> dict[str, dict[str, Any]]:
    figures = result["benchmarks"]["gpu"]["figures"]
    start = f"{part}: "
    return {one["name"].removeprefix(start): one for one in figures if one["name"].startswith(start)}


def rates_in(result: Mapping[str, Any], part: str, unit: str) -> list[str]:
    return [name for name, figure in figures_of(result, part).items() if figure["unit"] == unit]


def test_every_part_is_measured(result: dict[str, Any]) -> None:
    details = result["benchmarks"]["gpu"]["details"]
    assert list(details["seconds"]) == PARTS and details["failed"] == {}
    assert "random" in details["weights"]
    assert ("not_comparable" in details) == IS_CPU
    names = [figure["name"] for figure in result["benchmarks"]["gpu"]["figures"]]
    assert len(set(names)) == len(names)
    assert all(len(figure["rounds"]) in (1, TINY["rounds"]) for figure in result["benchmarks"]["gpu"]["figures"])
    assert result["format"] == 2 and result["commit"] and result["benchmarks"]["gpu"]["settings"]["batch_size"] == 4


def test_each_way_of_encoding_has_its_share_of_the_ceiling(result: dict[str, Any]) -> None:
    tflop = result["benchmarks"]["gpu"]["details"]["view_tflop"]
    for part, names in WAYS_OF.items():
        assert rates_in(result, part, "views a second") == names
        found = figures_of(result, part)
        for name in names:
            pairs = zip(found[name]["rounds"], found["matmul ceiling"]["rounds"], strict=True)
            shares = [rate * tflop / best for rate, best in pairs]
            assert found[f"{name}: share of the ceiling"]["rounds"] == pytest.approx(shares, rel=1e-3)
        if not IS_CPU:
            assert all(found[f"{name}: peak memory"]["median"] > 0 for name in names)


def test_the_pipeline_stands_beside_all_others(result: dict[str, Any]) -> None:
    found = figures_of(result, "pipeline")
    straightforward, loop, ours, bare, under_way, passes = rates_in(result, "pipeline", "views a second")
    assert found[ours]["against"] == f"pipeline: {straightforward}"
    assert found[passes]["against"] == found[under_way]["against"] == f"pipeline: {ours}"
    shares = [one / whole for one, whole in zip(found[ours]["rounds"], found[bare]["rounds"], strict=True)]
    assert found["this pipeline: share of the bare encoder"]["rounds"] == pytest.approx(shares, rel=1e-3)
    assert 0 < found["this pipeline: device busy"]["median"] <= 1
    assert found["this pipeline to the plain diffusers loop"]["median"] > 0 and "diffusers" in loop
    run_of_it = result["benchmarks"]["gpu"]["details"]["pipeline"]["last_run"]
    assert run_of_it["samples"]["encoded"] == TINY["tars"] * TINY["pictures"] and run_of_it["rescued_latents"] == 0


def test_training_has_mfu_and_what_pieces_cost(result: dict[str, Any]) -> None:
    part = "train latent-vit-demo, batch 8"
    found, details = figures_of(result, part), result["benchmarks"]["gpu"]["details"]["train latent-vit-demo"]
    ways = ["open_clip's own loop", "ours", "ours, checkpointing", "ours, 4 pieces"]
    assert rates_in(result, part, "samples a second") == ways
    for name in ways:
        mfu = [rate * details["gflop_per_sample"] / 1e3 / TINY["peak_tflops"] for rate in found[name]["rounds"]]
        assert found[f"{name}: MFU"]["rounds"] == pytest.approx(mfu, rel=1e-3)
    whole, cut = found["ours"]["rounds"], found["ours, 4 pieces"]["rounds"]
    overheads = [one / other - 1 for one, other in zip(whole, cut, strict=True)]
    assert found["GradCache overhead, 4 pieces"]["rounds"] == pytest.approx(overheads, abs=1e-3)


def test_losses_and_rewards_are_compared_at_every_size(result: dict[str, Any]) -> None:
    for pairs in TINY["pairs"]:
        assert rates_in(result, f"loss, {pairs} pairs", "ms") == ["open_clip's ClipLoss", "ours, in blocks"]
    for count in TINY["steered"]:
        found = figures_of(result, f"reno, batch {count}")
        rewards = ["reward of pixels", "reward of latents"]
        assert rates_in(result, f"reno, batch {count}", "iterations a second") == rewards
        assert found["reward of latents"]["against"] == f"reno, batch {count}: reward of pixels"
    seconds = result["benchmarks"]["gpu"]["details"]["reno"]["seconds_by_part"]["reno, batch 1"]
    assert "decode" in seconds["reward of pixels"] and "decode" not in seconds["reward of latents"]


def test_bits_of_the_plain_kernels_depend_on_the_picture_alone(result: dict[str, Any]) -> None:
    plain = result["benchmarks"]["gpu"]["details"]["bits"]["plain"]
    assert plain["same_in_any_place"] and plain["same_in_any_company"] and plain["same_from_another_encoder"]


def test_what_was_left_out_is_named(result: dict[str, Any]) -> None:
    left_out = result["benchmarks"]["gpu"]["details"]["left_out"]
    assert f"{PARTS[0]}: ours, compiled: {'needs a GPU' if IS_CPU else 'compile=false'}" in left_out
    assert "train latent-vit-demo, batch 8: ours, compiled: compile=false" in left_out
    text = markdown(result)
    assert all(f"Left out: {line}" in text for line in left_out)


@pytest.mark.skipif(not IS_CPU, reason="there is a GPU")
def test_without_a_gpu_a_line_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main("benchmarks", VERBS, ["gpu", f"out={tmp_path / 'gpu.json'}"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("no CUDA GPU here") and "encoder float16, batch 16" in line and "reno" in line
    assert not list(tmp_path.iterdir())


def test_without_time_everything_is_left_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert main("benchmarks", VERBS, ["gpu", f"device={DEVICE.type}", "minutes=0", f"out={out}"]) == 0
    benchmark = json.loads(out.read_text())["benchmarks"]["gpu"]
    assert benchmark["figures"] == [] and len(benchmark["details"]["left_out"]) == 13
    assert "Left out: pipeline: takes about 70 s, and 0 s were left" in capsys.readouterr().out


def test_a_part_that_fails_loses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {part.name: part for part in run.parts_of(GpuConfig(**{**TINY, "models": ("none-such",)}))}
    monkeypatch.setattr(run, "parts_of", lambda config: [parts["train none-such"], parts["loss"]])
    kept: list[Measured] = []
    measured = run.measure(GpuConfig(**TINY), kept.append)
    assert len(kept) == 2 and not kept[0].figures and len(kept[0].details["failed"]) == 1
    assert next(figure.name for figure in measured.figures) == "loss, 32 pairs: open_clip's ClipLoss"
    assert "no such recipe" in measured.details["failed"]["train none-such"]
    out = tmp_path / "gpu.json"
    assert main("benchmarks", VERBS, ["gpu", f"out={out}", *WORDS]) == 1
    assert len(json.loads(out.read_text())["benchmarks"]["gpu"]["figures"]) == len(measured.figures)
    assert (
        "Failed: train none-such: RequestError: model=none-such: no such recipe" in out.with_suffix(".md").read_text()
    )


def test_the_record_on_an_h200_can_be_read() -> None:
    text = markdown(read_record(ROOT / "benchmarks" / "results" / "gpu-h200.json"))
    assert text.startswith("Machine: NVIDIA H200, Intel") and "ours, fused" in text and "2.99" in text


def test_a_way_that_fails_loses_no_other() -> None:
    notes, turns = Notes({}), iter(range(2))

    def broken() -> float:
        raise RuntimeError("no\nkernel")

    def too_large() -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def told_apart() -> float:
        try:
            return too_large()
        except torch.OutOfMemoryError:
            raise RequestError("batch_size=9: more than this GPU has memory for") from None

    def without_library() -> float:
        raise ModuleNotFoundError("No module named 'library'")

    ways = opened("part", "sound", lambda: lambda: 3.0, notes, DEVICE)
    ways += opened("part", "tires", lambda: lambda: float(next(turns)), notes, DEVICE)
    assert not opened("part", "broken", lambda: broken, notes, DEVICE)
    assert not opened("part", "large", lambda: too_large, notes, DEVICE)
    assert not opened("part", "told apart", lambda: told_apart, notes, DEVICE)
    assert not opened("part", "library", lambda: without_library, notes, DEVICE)
    rates = rates_of("part", ways, 2, notes, Clock(60), DEVICE)
    assert [figure.name for figure in rate_figures(ways, rates, "x/s") if figure.unit == "x/s"] == ["sound"]
    assert notes.failed == {
        "part: broken": "RuntimeError: no kernel",
        "part: tires": "StopIteration",
    }
    assert notes.left_out == {
        "part: large": "out of memory",
        "part: told apart": "out of memory",
        "part: library": "needs what is not installed here: No module named 'library'",
    }


def test_what_began_with_too_little_memory_is_told_by_the_whole_chain() -> None:
    def of(error: Exception, first: Exception) -> Exception:
        """The error that is raised while another is handled."""
        try:
            try:
                raise first
            except Exception:
                raise error from None
        except Exception as raised:
            return raised

    middle = of(RuntimeError("capture"), torch.OutOfMemoryError("no memory"))
    assert is_too_large(of(ValueError("compiler"), middle))
    assert is_too_large(torch.OutOfMemoryError())
    assert not is_too_large(of(ValueError("compiler"), RuntimeError("kernel"))) and not is_too_large(None)


def test_latents_that_are_not_diffusers_are_refused() -> None:
    bench = open_bench(GpuConfig(**TINY))
    batch = pictures(3, 64)
    expected = diffusers_means(bench, DTYPES[0], batch)
    assert open_ours(bench, DTYPES[0], batch, 2, "plain", expected)() == 6
    with pytest.raises(CheckFailed, match="kernels=plain: latents differ from diffusers' by 0.1"):
        open_ours(bench, DTYPES[0], batch, 2, "plain", 1.2 * expected)


def test_every_computation_of_an_encoder_is_noted() -> None:
    bench = open_bench(GpuConfig(**TINY))
    encoder = open_encoder(bench, DTYPES[0], 2, "plain")
    busy, batch = Busy(encoder), list(pictures(2, 64))
    for _ in range(3):
        encoder.encode(batch, [np.zeros(encoder.spec.shape, np.float32)] * 2)
    spans = busy.spans()
    assert len(spans) == (6 if IS_CPU else 3)  # pictures on their own, or batches in a graph
    assert all(begun < ended for begun, ended in spans) and 0 < share_between_ends(spans) <= 1
    assert busy.spans() == []


class ToldClock(Clock):
    """One that goes as it is told."""

    def __init__(self, *left: float) -> None:
        self._told = iter(left)

    def left(self) -> float:
        return next(self._told)


def test_no_round_begins_that_would_end_after_the_time() -> None:
    def rounds(clock: Clock) -> int:
        return len(rates_of("part", [Way("one", lambda: 1.0, None)], 4, Notes({}), clock, DEVICE)["one"])

    assert rounds(Clock(0)) == 1 and rounds(Clock(600)) == 4
    assert rounds(ToldClock(30, 20, 10, 0)) == 3
    assert rounds(ToldClock(30, 20, 9)) == 2
    assert Clock(100, within=Clock(1)).left() <= 1


def test_a_part_leaves_the_later_ones_what_they_need() -> None:
    def nothing(bench: object, notes: Notes, clock: Clock) -> None:
        pass

    part = run.Part("now", nothing, needs=30, most=110)
    later = [run.Part("then", nothing, 50, 90), run.Part("last", nothing, 20, 20)]
    for left, seconds in ((300, 110), (150, 80), (80, 30)):
        assert run.seconds_for(part, later, left) == seconds
        assert run.seconds_for(part, [*later, run.Part("extra", nothing, 75, 100, extra=True)], left) == seconds
    assert run.seconds_for(part, [], 60) == 60


def test_no_part_takes_the_time_of_another() -> None:
    config = GpuConfig()
    left, begun = 60 * config.minutes, []
    parts = list(run.parts_of(config))
    for number, part in enumerate(parts):
        assert part.needs <= part.most
        if left >= part.needs:
            begun.append(part)
            left -= run.seconds_for(part, parts[number + 1 :], left)
    assert left >= 0 and len(begun) >= 10
    assert [part for part in parts if not part.extra] == [part for part in begun if not part.extra]
    assert [part.name for part in parts if part.extra] == [
        "bits",
        "train latent-vit-b-8, compiled and checkpointed",
        "train latent-vit-b-4-plus, compiled and checkpointed",
    ]
    assert not any("checkpointed" in part.name for part in run.parts_of(GpuConfig(compile=False)))


def test_compiled_ways_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by torch's compiler, though not turned into machine code, which takes minutes."""
    really = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: really(self, backend="eager"))
    bench = open_bench(GpuConfig(**{**TINY, "compile": True, "rounds": 1}))
    notes = Notes({})
    measure_encoder(bench, notes, Clock(600), DTYPES[0], 2, [WAYS[0], WAYS[2]])
    for together in (False, True):
        training.measure_training(bench, notes, Clock(600), "latent-vit-demo", together)
    names = [figure.name for figure in notes.measured().figures]
    assert f"encoder {DTYPES[0]}, batch 2: diffusers, channels_last, torch.compile" in names
    rates = [figure.name for figure in notes.measured().figures if figure.unit == "samples a second"]
    part = "train latent-vit-demo, batch 8"
    assert rates == [
        *(f"{part}: {way}" for way in training.APART),
        *(f"{part}, compiled and checkpointed: {way}" for way in training.TOGETHER),
    ]
    assert not notes.failed and not notes.left_out
    torch.compiler.reset()


def test_ceiling_and_mfu_by_hand() -> None:
    assert product_tflop(8192) == pytest.approx(1.0995, rel=1e-4)
    assert matmul(16, torch.float32, torch.device("cpu"))() == pytest.approx(100 * 2 * 16**3 / 1e12)
    assert encode_tflop(GpuConfig()) == pytest.approx(1.117, rel=1e-3)
    ways = [Way(name, lambda: 1.0, None) for name in ("ours", "ours, 4 pieces")]
    rates = {"ours": (1000.0,), "ours, 4 pieces": (800.0,), training.CEILING: (100.0,)}
    found = {figure.name: figure for figure in training._shares(ways, rates, 0.05, 200.0)}
    assert found["ours: MFU"].rounds == (0.25,) and found["ours: share of the ceiling"].rounds == (0.5,)
    assert found["GradCache overhead, 4 pieces"] == Figure(
        "GradCache overhead, 4 pieces", "share of a step", (0.25,), "less"
    )


def test_time_that_is_covered_twice_counts_once() -> None:
    spans = [(0.0, 1.0), (0.5, 2.0), (3.0, 4.0), (3.2, 3.4)]
    assert covered(spans) == 3.0 and share_between_ends(spans) == 0.75
    assert covered([]) == 0.0


def test_the_generator_is_of_sdxls_size() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**steering.UNETS["sdxl"])
    assert sum(weights.numel() for weights in unet.parameters()) == 2_567_463_684


def test_losses_that_differ_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text, scale = features(8, 4, torch.device("cpu"))
    check_alike(image, text, scale)
    from benchmarks.gpu import loss

    wrong = {**loss.WAYS, "ours, in blocks": lambda image, text, scale: loss.by_blocks(image, text, 1.01 * scale)}
    monkeypatch.setattr(loss, "WAYS", wrong)
    with pytest.raises(CheckFailed, match="differ by"):
        check_alike(image, text, scale)


def test_steering_needs_no_transformers() -> None:
    program = """
import sys
sys.modules["transformers"] = None
from benchmarks.gpu import steering
from benchmarks.gpu.bench import open_bench
from benchmarks.gpu.settings import GpuConfig
import torch
bench = open_bench(GpuConfig(device="cpu", vae=(8, 8, 8, 8), vae_layers=1, image_size=64, unet="tiny"))
sampler = steering.Sampler(steering.open_generator(bench, torch.float32))
latents = sampler.generate(["a", "b"])(torch.randn(2, *sampler.shape(64)))
assert latents.isfinite().all() and sampler.decode(latents).shape == (2, 3, 64, 64)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=300)
