"""What goes wrong in a run: each ends with one line that says what, and the last good checkpoint stays as it was."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import Version
from tests.conftest import Configure, build_vae, encode_and_seal
from tests.latent_stores import latent_store
from tests.test_train import store_of, tiny_model
from tests.test_train_ranks import torchrun
from train.checkpoint import checkpoints, load_checkpoint
from train.config import TrainConfig, architecture_of
from train.loop import train
from train.metrics import read_metrics

__all__ = ["tiny_model"]


@pytest.fixture
def values(sealed: Version, tiny_model: str, tmp_path: Path) -> dict[str, object]:
    """A run of five steps, a checkpoint after each."""
    out = tmp_path / "out"
    return {
        "model": tiny_model,
        "data": store_of(sealed),
        "out": out,
        "batch_size": 12,
        "steps": 5,
        "checkpoint_every": 1,
        "keep_checkpoints": 9,
        "workers": 0,
    }


def steps_in(values: dict[str, object]) -> list[int]:
    out = values["out"]
    assert isinstance(out, Path)
    return [int(load_checkpoint(path)["step"]) for path in checkpoints(out / "checkpoints")]


def test_a_batch_that_is_no_number_ends_the_run_before_it_is_saved(
    configure: Configure, values: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A latent with a NaN cannot be in a sound store, so one comes in below the reader."""
    import train.loop

    real = train.loop.open_data

    def with_a_fault(*arguments: object) -> object:
        data = real(*arguments)
        whole = data.batches

        def batches(first: int, last: int, rows: range):
            for number, batch in enumerate(whole(first, last, rows), first):
                if number == 2:
                    batch.latents_bchw[3, 0, 0, 0] = float("nan")
                    named.extend(data.names(batch.ids[3:4]))
                yield batch

        monkeypatch.setattr(data, "batches", batches)
        return data

    named: list[str] = []
    monkeypatch.setattr(train.loop, "open_data", with_a_fault)
    with pytest.raises(
        CheckFailed, match=r"^step 3: loss nan, gradient norm nan; latents that are not finite: "
    ) as caught:
        train.loop.train(TrainConfig(**values))
    assert named[0] in str(caught.value) and "\n" not in str(caught.value)
    assert steps_in(values) == [1, 2]
    listing = json.loads((tmp_path / "out" / "not_finite_step_00000003.json").read_text())
    assert listing["not_finite"] == named and len(listing["batch"]) == 12 and named[0] in listing["batch"]
    monkeypatch.setattr(train.loop, "open_data", real)
    assert train.loop.train(TrainConfig(**values))["steps_now"] == 3  # mended, it goes on from the last good step


def test_a_learning_rate_that_explodes_is_told_from_a_bad_sample(values: dict[str, object]) -> None:
    with pytest.raises(
        CheckFailed, match=r"gradient norm (nan|inf); all its latents are finite; the batch's samples are"
    ):
        train(TrainConfig(**{**values, "lr": 1e30, "steps": 20, "warmup": 0, "clip_grad": None}))


def test_a_full_disk_leaves_the_last_good_checkpoint(values: dict[str, object], tmp_path: Path) -> None:
    train(TrainConfig(**{**values, "steps": 1, "lr": 1e-3}))
    size = checkpoints(tmp_path / "out" / "checkpoints")[0].stat().st_size
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(2.5 * size)}", "tmpfs", small], check=False)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        full = {**values, "out": small / "out", "cache": tmp_path / "cache"}
        with pytest.raises(
            CheckFailed,
            match=r"step_00000003\.pt: No space left on device; the last good checkpoint is step_00000002\.pt",
        ):
            train(TrainConfig(**full))
        assert steps_in(full) == [1, 2]
        assert not list((small / "out" / "checkpoints").glob(".*"))
        checkpoints(small / "out" / "checkpoints")[0].unlink()
        assert train(TrainConfig(**{**full, "keep_checkpoints": 1}))["steps"] == 5
        assert steps_in(full) == [5]
    finally:
        subprocess.run(["umount", small], check=True)


def test_samples_skipped_before_a_kill_stay_counted(values: dict[str, object], sealed: Version, tmp_path: Path) -> None:
    tar = sealed.storage.local_path(sealed.manifest().column("path").to_pylist()[0])
    assert tar is not None
    tar.write_bytes(tar.read_bytes()[:-1024])
    train(TrainConfig(**{**values, "damaged": "skip"}))
    whole = [line["skipped"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl")]
    assert 0 < whole[1] < whole[-1]
    for path in checkpoints(tmp_path / "out" / "checkpoints")[2:]:
        path.unlink()
    assert train(TrainConfig(**{**values, "damaged": "skip"}))["steps_now"] == 3
    assert [line["skipped"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl")] == whole


def test_a_full_disk_elsewhere_names_the_folder(values: dict[str, object], tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", small], check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        (small / "filler").write_bytes(b"x" * 12288)
        with pytest.raises(CheckFailed, match=r"small/.*: No space left on device"):
            train(TrainConfig(**{**values, "out": small / "out", "cache": tmp_path / "cache"}))
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_damaged_shard_ends_all_processes(sealed: Version, values: dict[str, object]) -> None:
    row = sealed.manifest().to_pylist()[0]
    path = sealed.storage.local_path(row["path"])
    assert path is not None
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = torchrun(2, "-m", "train", *(f"{key}={value}" for key, value in values.items()))
    assert done.returncode == 1
    said = {line for line in done.stderr.splitlines() if line.startswith("error: ")}
    assert any(line.startswith(f"error: {path}: ") for line in said)
    assert all(str(path) in line or line.endswith("ends because another one has") for line in said)


def test_what_cannot_be_is_refused_in_a_line(values: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="classes: of which pictures"):
        TrainConfig(**{**values, "classes": tmp_path})
    model = tmp_path / "short.json"
    vision = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 2}
    text = {"context_length": 0, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    with pytest.raises(RequestError, match="context_length: 0: has to be 3 at least"):
        architecture_of(str(model))


def test_towers_that_look_at_a_whole_batch_take_it_whole(
    values: dict[str, object], spec: LatentSpec, tmp_path: Path
) -> None:
    large = latent_store(tmp_path / "large", tmp_path, spec.model_copy(update={"shape": (4, 32, 32)}), [12])
    model = tmp_path / "resnet.json"
    vision = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    with pytest.raises(RequestError, match="normalises over the batch, so it takes whole ones: say accum=1"):
        train(TrainConfig(**{**values, "model": str(model), "data": store_of(large), "lr": 1e-3, "accum": 2}))


def test_another_spec_is_refused(values: dict[str, object], configure: Configure, tmp_path: Path) -> None:
    train(TrainConfig(**{**values, "steps": 5}))
    other = encode_and_seal(configure(vae=str(build_vae(tmp_path / "vae", seed=5)), store=str(tmp_path / "other")))
    with pytest.raises(RequestError, match=r"was trained on other latents \(vae: .* against .*\); use another out="):
        train(TrainConfig(**{**values, "data": store_of(other), "steps": 5}))
    again = encode_and_seal(configure(seed=9, store=str(tmp_path / "again")))
    with pytest.raises(RequestError, match="use another out="):
        train(TrainConfig(**{**values, "data": store_of(again)}))
    assert steps_in(values) == [1, 2, 3, 4, 5]


def test_what_may_change_between_two_starts_and_what_not(values: dict[str, object]) -> None:
    assert train(TrainConfig(**values))["steps_now"] == 5
    assert train(TrainConfig(**{**values, "log_every": 3, "accum": 2, "keep_checkpoints": 1}))["steps_now"] == 0
    for key, value in (("lr", 0.5), ("batch_size", 6), ("seed", 1), ("mix", 1), ("repeated_captions", "soft")):
        with pytest.raises(RequestError, match=f"was begun with {key}=.*; use another out="):
            train(TrainConfig(**{**values, key: value}))
