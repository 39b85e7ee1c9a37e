"""On a real GPU: a step of training gives the CPU's gradient, and a whole run learns. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from encode_pipeline.latents.store import Version
from tests.test_train import store_of, tiny_model
from tests.test_train_step import ALONE, gradients, largest_difference, small_batch, small_model
from train.config import TrainConfig
from train.distributed import Ranks
from train.loop import train
from train.loss import ContrastiveLoss
from train.metrics import read_metrics
from train.step import Towers, backward, in_pieces

__all__ = ["tiny_model"]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_step_is_that_of_the_cpu(kind: str, compiled: bool, count: int) -> None:
    latents, tokens = small_batch()
    model = small_model()
    backward(Towers(model, False), in_pieces(latents, tokens, 1, 0, 0), ContrastiveLoss(ALONE, kind))
    expected = gradients(model)
    model = small_model().to("cuda")
    if compiled:
        model.compile()
    loss_of = ContrastiveLoss(Ranks(0, 1, torch.device("cuda")), kind)
    backward(Towers(model, False), in_pieces(latents.cuda(), tokens.cuda(), count, 0, 0), loss_of)
    found = {name: gradient.cpu() for name, gradient in gradients(model).items()}
    assert largest_difference(found, expected) < 1e-3  # the GPU sums in another order


@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_learns(sealed: Version, tiny_model: str, tmp_path: Path, compiled: bool) -> None:
    values = {"model": tiny_model, "data": store_of(sealed), "out": tmp_path / "out", "steps": 40, "workers": 1}
    assert train(TrainConfig(**values, precision="bfloat16", compile=compiled, accum=2))["device"] == "cuda:0"
    losses = [line["loss"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl")]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
