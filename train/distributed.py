"""The processes that train one model together, one for each GPU: what each may ask of all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# The names of torch 2.14, and of those before it.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
PATIENCE = timedelta(minutes=30)
"""With one another: the first shards may come slowly to one machine and fast to the next."""


@dataclass(frozen=True)
class Ranks:
    """This process among the others. Alone, every question is answered without a word over the network."""

    rank: int
    world: int
    device: torch.device
    local: int = 0
    """Its number on its machine."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def rows(self, batch_size: int) -> range:
        """Which rows of a global batch are this process's."""
        share = batch_size // self.world
        return range(self.rank * share, (self.rank + 1) * share)

    def gather(self, part: Tensor) -> Tensor:
        """The rows of all, one process's after the other's."""
        if self.world == 1:
            return part
        part = part.contiguous()
        whole = part.new_empty((self.world * len(part), *part.shape[1:]))
        _gather(whole, part)
        return whole

    def sum_of_mine(self, whole: Tensor) -> Tensor:
        """Of a sum over all processes, the rows that are this one's."""
        if self.world == 1:
            return whole
        mine = whole.new_empty((len(whole) // self.world, *whole.shape[1:]))
        _reduce_scatter(mine, whole.contiguous())
        return mine

    def sums(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def any(self, mine: bool) -> bool:
        """Whether it holds for one process at least."""
        return self.sums(float(mine))[0] > 0

    def collect(self, mine: Any) -> list[Any]:
        """What each process has to say."""
        if self.world == 1:
            return [mine]
        said: list[Any] = [None] * self.world
        dist.all_gather_object(said, mine)
        return said

    def wait(self) -> None:
        """Until all are here."""
        self.sums(0.0)


@contextmanager
def ranks_of_torchrun() -> Iterator[Ranks]:
    """The processes that torchrun has started, or this one alone."""
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        yield Ranks(0, 1, device)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield Ranks(dist.get_rank(), world, device, local)
    dist.destroy_process_group()  # after an error torchrun ends the others; waiting for them could take for ever
