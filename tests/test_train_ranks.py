"""Several processes train as one does: their gradients, the order of samples, and going on with another number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from encode_pipeline.latents.store import Version
from tests.gradients_of_ranks import main as gradients_alone
from tests.ids_of_ranks import BATCHES
from tests.test_train import store_of, tiny_model
from tests.test_train_step import largest_difference

__all__ = ["tiny_model"]
ROOT = Path(__file__).parent.parent


def torchrun(processes: int, *words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """So many processes on this machine, as a user would start them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=timeout, check=False
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    path = tmp_path_factory.mktemp("alone") / "gradients.pt"
    gradients_alone(path)
    return torch.load(path)


@pytest.mark.parametrize("processes", [2, 4])
def test_gradients_are_those_of_one_process(
    processes: int, alone: dict[str, dict[str, torch.Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = torchrun(processes, "-m", "tests.gradients_of_ranks", str(tmp_path / "gradients.pt"))
    assert done.returncode == 0, done.stderr
    together = torch.load(tmp_path / "gradients.pt")
    assert together.keys() == alone.keys()
    differences = {case: largest_difference(together[case], alone[case]) for case in alone}
    with capsys.disabled():
        print(f"\n{processes} processes against one, largest relative difference of a gradient:")
        for case, difference in differences.items():
            print(f"  {case}: {difference:.1e}")
    assert max(differences.values()) < 1e-5


def test_samples_are_the_same_in_every_batch(sealed: Version, tiny_model: str, tmp_path: Path) -> None:
    """Whatever the number of processes that read them, and of the workers that prepare them."""
    found = {}
    for processes, workers in ((1, 0), (2, 1), (4, 0), (1, 2)):
        out = tmp_path / f"{processes}-{workers}" / "ids.json"
        out.parent.mkdir()
        done = torchrun(processes, "-m", "tests.ids_of_ranks", tiny_model, store_of(sealed), str(out), str(workers))
        assert done.returncode == 0, done.stderr
        found[processes, workers] = json.loads(out.read_text())
    alone = found[1, 0]
    assert len(alone) == BATCHES and len({json.dumps(batch["ids"]) for batch in alone}) == BATCHES
    for other in found.values():
        assert [batch["ids"] for batch in other] == [batch["ids"] for batch in alone]
        assert [batch["tokens"] for batch in other] == [batch["tokens"] for batch in alone]
        assert [batch["latents"] for batch in other] == pytest.approx([batch["latents"] for batch in alone])
