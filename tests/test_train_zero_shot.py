"""Zero-shot during training: the verdict of the evaluation, by any number of ranks, and no trace in the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import SpecError
from encode_pipeline.latents.store import Version
from eval.models import LatentClip, open_model
from eval.zero_shot import ZeroShotConfig, zero_shot
from tests.conftest import Configure, build_vae, encode_and_seal
from tests.test_train import store_of, tiny_model
from tests.test_train_ranks import torchrun
from tests.test_zero_shot import checkpoint, test_store
from train.metrics import read_metrics
from train.zero_shot import ZeroShotSet

__all__ = ["checkpoint", "test_store", "tiny_model"]


def share(pictures: ZeroShotSet, model: LatentClip, rank: int = 0, world: int = 1, size: int = 5) -> dict[str, int]:
    return pictures.count(model.model, model.tokenizer, model.device, rank, world, size)


def test_the_ranks_shares_add_up_to_what_the_evaluation_says(
    checkpoint: Path, test_store: Version, world: Path, tmp_path: Path
) -> None:
    model = open_model(checkpoint)
    pictures = ZeroShotSet(store_of(test_store), world / "test", model.spec, tmp_path / "cache")
    result = zero_shot(ZeroShotConfig(checkpoint=checkpoint, data=store_of(test_store), classes=world / "test"))
    said = {"right_at_1": result["metrics"]["acc1"] * 48, "right_at_5": result["metrics"]["acc5"] * 48, "n": 48}
    for ranks in (1, 2, 3, 20):
        shares = [share(pictures, model, rank, ranks) for rank in range(ranks)]
        assert {key: sum(part[key] for part in shares) for key in said} == pytest.approx(said)
    keys = [key for rank in range(3) for batch in pictures.batches(7, rank, 3) for key in batch.keys]
    assert len(keys) == 48 and sorted(keys) == sorted(key for batch in pictures.batches(48) for key in batch.keys)


def test_a_model_that_knows_the_answers_is_right(
    checkpoint: Path, test_store: Version, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image tower is replaced by one that gives the embedding of the right class, or of the one before it."""
    model = open_model(checkpoint)
    pictures = ZeroShotSet(store_of(test_store), world / "test", model.spec, tmp_path / "cache")
    rows = model.embed_classes(pictures.names, pictures.templates)
    labels = iter([number for batch in pictures.batches(6) for number in batch.labels])

    def knows(latents: torch.Tensor, normalize: bool) -> torch.Tensor:
        numbers = [next(labels) for _ in latents]
        return torch.stack([rows[number if number % 2 else number - 1] for number in numbers])

    monkeypatch.setattr(model.model, "encode_image", knows)
    assert share(pictures, model, size=6)["right_at_1"] == 24


def test_the_model_is_left_as_it_was(checkpoint: Path, test_store: Version, world: Path, tmp_path: Path) -> None:
    model = open_model(checkpoint)
    pictures = ZeroShotSet(store_of(test_store), world / "test", model.spec, tmp_path / "cache")
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    model.model.train()
    with torch.autocast("cpu", torch.bfloat16):
        assert share(pictures, model)["n"] == 48
    assert model.model.training and all(parameter.grad is None for parameter in model.model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.model.state_dict().items())
    model.model.eval()
    share(pictures, model)
    assert not model.model.training


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_classifies_now_and_then(
    processes: int, sealed: Version, test_store: Version, tiny_model: str, world: Path, tmp_path: Path
) -> None:
    out, labelled = tmp_path / "run", store_of(test_store)
    words = [
        f"model={tiny_model}",
        f"data={store_of(sealed)}",
        f"out={out}",
        "steps=8",
        "log_every=4",
        "tensorboard=true",
    ]
    words += [f"zero_shot={labelled}", f"classes={world / 'test'}", "zero_shot_every=3"]
    done = torchrun(processes, "-m", "train", *words)
    assert done.returncode == 0, done.stderr
    lines = read_metrics(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [3, 4, 6, 8]
    assert [line["step"] for line in lines if "zero_shot_acc1" in line] == [3, 6, 8]
    said = zero_shot(ZeroShotConfig(checkpoint=out, data=labelled, classes=world / "test"))["metrics"]
    assert lines[-1]["zero_shot_acc1"] == pytest.approx(said["acc1"])
    assert lines[-1]["zero_shot_acc5"] == pytest.approx(said["acc5"])
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("zero_shot_acc1")] == [3, 6, 8]


def test_another_scale_is_converted_and_another_vae_refused(
    checkpoint: Path, test_store: Version, configure: Configure, world: Path, tmp_path: Path
) -> None:
    model = open_model(checkpoint)
    scaled = encode_and_seal(
        configure(source=str(world / "test"), store=str(tmp_path / "scaled"), views=1, scale="model")
    )
    latents = [
        torch.cat([batch.latents_bchw for batch in ZeroShotSet(store_of(s), None, model.spec, tmp_path).batches(64)])
        for s in (test_store, scaled)
    ]
    assert torch.allclose(*latents, atol=5e-3)
    foreign = configure(
        source=str(world / "test"), store=str(tmp_path / "foreign"), vae=str(build_vae(tmp_path / "vae", 5))
    )
    with pytest.raises(SpecError, match="these latents are not the model's: vae: "):
        ZeroShotSet(store_of(encode_and_seal(foreign)), None, model.spec, tmp_path)


def test_what_does_not_fit_is_refused_when_it_is_opened(checkpoint: Path, test_store: Version, tmp_path: Path) -> None:
    spec, data = open_model(checkpoint).spec, store_of(test_store)
    with pytest.raises(RequestError, match=r"view=1: .* has 1 views, from 0"):
        ZeroShotSet(data, None, spec, tmp_path, view=1)
    with pytest.raises(RequestError, match="no wrong in its metadata"):
        ZeroShotSet(data, None, spec, tmp_path, label="wrong")
    with pytest.raises(RequestError, match=r"classnames\.txt: no such file"):
        ZeroShotSet(data, tmp_path, spec, tmp_path)
    (tmp_path / "classnames.txt").write_text("a cat\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("{c}\n")
    with pytest.raises(RequestError, match=r"test-store.*: label '.*' is not in .*classnames\.txt"):
        ZeroShotSet(data, tmp_path, spec, tmp_path)
