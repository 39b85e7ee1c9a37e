"""Several processes train as one does: their gradients, the order of samples, and going on with another number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gradients_of_ranks import main as gradients_alone
from tests.test_train_step import largest_difference

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
