"""What ends a run whose loss or gradient is no longer a number, before such weights are saved."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from encode_pipeline.latents.command import CheckFailed
from train.data import Batch, LatentData
from train.distributed import Ranks


@dataclass(frozen=True)
class _Noted:
    step: int
    batch: Batch
    values: Tensor
    """On their way from the GPU."""
    arrived: torch.cuda.Event | None


class Guard:
    """Looks at every step, one step late, so that a GPU need not wait for the look."""

    def __init__(self, out: Path, data: LatentData, ranks: Ranks) -> None:
        self._out, self._data, self._ranks = out, data, ranks
        self._noted: _Noted | None = None

    def note(self, step: int, batch: Batch, loss: Tensor, norm: Tensor) -> None:
        """Looks at the step before, and remembers this one."""
        self.check()
        values = torch.stack([loss.detach(), norm.detach()]).to("cpu", non_blocking=True)
        arrived = torch.cuda.Event() if loss.is_cuda else None
        if arrived is not None:
            arrived.record()
        self._noted = _Noted(step, batch, values, arrived)

    def check(self) -> None:
        """Raises if what was noted last is not finite. All processes see it in the same step: they share gradients."""
        noted, self._noted = self._noted, None
        if noted is None:
            return
        if noted.arrived is not None:
            noted.arrived.synchronize()
        loss, norm = noted.values.tolist()
        if not math.isfinite(norm):
            self._stop(noted, loss, norm)

    def _stop(self, noted: _Noted, loss: float, norm: float) -> None:
        finite = torch.isfinite(noted.batch.latents_bchw.flatten(1).float()).all(dim=1).numpy()
        bad = self._data.names(noted.batch.ids[~finite])
        culprits = [name for names in self._ranks.collect(bad) for name in names]
        listing = self._out / f"not_finite_step_{noted.step:08d}.json"
        if self._ranks.is_first:
            samples = self._data.names(self._data.batch_ids(noted.step - 1))
            listing.write_text(json.dumps({"step": noted.step, "not_finite": culprits, "batch": samples}, indent=1))
        self._ranks.wait()  # who left now would take the others with it, this list too
        cause = f"latents that are not finite: {', '.join(culprits[:3])}" if culprits else "all its latents are finite"
        raise CheckFailed(
            f"step {noted.step}: loss {loss}, gradient norm {norm}; {cause}; the batch's samples are in {listing}"
        )
