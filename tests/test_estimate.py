"""What a run will take: arithmetic on measured rates, and pictures counted where nobody said how many."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from encode_pipeline.__main__ import VERBS
from encode_pipeline.estimate import MEASURED, PlanRequest, estimate
from encode_pipeline.latents.command import RequestError, build, main
from encode_pipeline.latents.spec import bytes_of
from encode_pipeline.latents.store import Store
from encode_pipeline.records import Sample
from encode_pipeline.run import run
from tests.conftest import Configure, samples_in

RECORD = Path(__file__).parent.parent / "benchmarks/results/gpu-h200.json"


@pytest.fixture
def ray_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster of this machine that says it has a GPU."""
    import ray

    monkeypatch.setenv("PYTHONPATH", str(RECORD.parent.parent.parent))
    ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


def ask(**values: Any) -> dict[str, Any]:
    return estimate(build(PlanRequest, {"estimate": True, **values}))


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main("encode_pipeline", VERBS, ["plan", *words])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_rate_is_the_one_on_record() -> None:
    gpu = json.loads(RECORD.read_text())["benchmarks"]["gpu"]
    (rate,) = (figure for figure in gpu["figures"] if figure["name"] == "pipeline: this pipeline, once under way")
    run = gpu["details"]["pipeline"]["last_run"]
    assert gpu["details"]["device"] in MEASURED.how and RECORD.name in MEASURED.how
    assert MEASURED.views_per_second == rate["median"]
    views = PlanRequest.model_fields["views"].default
    assert MEASURED.bytes_per_view == run["bytes"] / (run["samples"]["encoded"] * views)


def test_the_papers_size_by_hand() -> None:
    result = ask(images=2.7e9, gpu_hour_price=2.0, terabyte_month_price=23)
    latents = 4 * 2.7e9
    hours = latents / 399.7 / 3600
    assert result["latents"] == latents
    assert result["gpu_hours"] == pytest.approx(hours, rel=1e-5) and result["cost"] == pytest.approx(
        2 * hours, rel=1e-5
    )
    assert result["hours_on_gpus"]["64"] == pytest.approx(hours / 64, rel=1e-5)
    assert 354e12 < result["store_bytes"] < 1.1 * 354e12  # no less than the bare latents
    assert result["store_per_month"] == pytest.approx(result["store_bytes"] / 1e12 * 23, rel=1e-5)
    half = ask(images=2.7e9, views=2, views_per_second=799.4, actors=16, gpus_per_actor=0.5)
    assert half["gpu_hours"] == pytest.approx(hours / 4, rel=1e-4)
    assert half["hours_on_gpus"] == {"8": pytest.approx(hours / 32, rel=1e-4)}


def test_pictures_are_counted_in_a_few_tars(configure: Configure) -> None:
    config = configure()
    tars = [Path(path) for path in config.source]
    (folder,) = tars
    holds = [sum(isinstance(item, Sample) for item in samples_in(tar)) for tar in sorted(folder.glob("*.tar"))]
    result = ask(source=config.source)
    assert result["images"] == sum(holds) and f"counted in {len(holds)} of {len(holds)} tars" in result["images_how"]
    assert result["source_bytes"] == sum(tar.stat().st_size for tar in folder.glob("*.tar"))
    many = [str(tar) for tar in sorted(folder.glob("*.tar"))]
    assert ask(source=many[:1])["images"] == holds[0]


def test_the_rate_of_earlier_runs_into_the_store_comes_first(configure: Configure, ray_with_a_gpu: None) -> None:
    config = configure(views=2, engine="ray", actors=1)
    assert ask(images=1e6, store=config.store)["rate_how"] == MEASURED.how  # nothing is there yet
    result = run(config)
    found = ask(images=1e6, store=config.store, image_size=config.image_size)
    rate = result["samples"]["encoded"] * 2 / result["gpu_hours"] / 3600
    assert found["views_per_second"] == pytest.approx(rate, rel=0.05) and config.store in found["rate_how"]
    assert found["store_bytes"] / found["latents"] == pytest.approx(
        result["bytes"] / (2 * result["samples"]["encoded"]), rel=0.2
    )
    small = ask(images=1e6, store=config.store, image_size=config.image_size, latent_dtype="int8")
    shape = Store(config.store).version().spec.shape
    saved = bytes_of(shape, "float16") - bytes_of(shape, "int8")
    assert (found["store_bytes"] - small["store_bytes"]) / found["latents"] == pytest.approx(saved, rel=1e-3)


def test_what_is_missing_is_said_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert said(capsys) == (2, "", "error: source and store and vae are required\n")
    assert said(capsys, "--estimate") == (2, "", "error: source is required; or say images=\n")
    wants = said(capsys, "source=x", "store=y", "vae=z", "images=3")
    assert wants == (2, "", "error: images is for an estimate: say --estimate too\n")
    assert "images=-1" in said(capsys, "--estimate", "images=-1")[2]
    with pytest.raises(RequestError, match="image_size=256: measured for 512 only; say views_per_second="):
        ask(images=1, image_size=256)
    empty = tmp_path / "empty.tar"
    empty.write_bytes(bytes(10240))
    status, _, error = said(capsys, "--estimate", f"source={empty}")
    assert status == 2 and error.count("\n") == 1 and str(empty) in error
    short = tmp_path / "short.tar"
    short.write_bytes(b"tar")
    assert said(capsys, "--estimate", f"source={short}") == (
        2,
        "",
        f"error: {short}: cut short at byte 3; say images=\n",
    )


def test_people_read_it_in_their_units(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = said(capsys, "--estimate", "images=2.7e9", "gpu_hour_price=2.49", "terabyte_month_price=23")
    assert status == 0
    assert "10,800,000,000 in 4 view(s)" in out and "4.9 days on 64 GPUs" in out
    assert "7,505.6 GPU-hours, $18,689.02 at $2.49" in out and "387.1 TB, $8,903.08 a month" in out
    assert json.loads(said(capsys, "--estimate", "images=100", "--json")[1])["latents"] == 400
