"""A step of training, batches in memory: OpenCLIP's own loop against this project's step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Literal

import open_clip
import torch
from open_clip_train.train import train_one_epoch
from pydantic import Field
from torch import Tensor, nn

from benchmarks.figures import Figure, Measured, measured_once
from benchmarks.paired import paired
from benchmarks.settings import BenchmarkConfig
from encode_pipeline.config import PositiveInt
from train.config import architecture_of
from train.distributed import Ranks
from train.flops import training_flops
from train.loss import ContrastiveLoss
from train.model import build_model, parameter_groups
from train.step import Towers, backward, in_pieces


class TrainingConfig(BenchmarkConfig):
    model: str = Field("latent-vit-demo", description="a recipe")
    batch_size: PositiveInt = Field(128, description="samples in a step")
    steps: PositiveInt = Field(4, description="steps in a turn")
    pieces: PositiveInt = Field(4, description="pieces of a batch, where it is not one")
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = Field(False, description="also with torch.compile")


class Batches(list[tuple[Tensor, Tensor]]):
    """Batches in memory, as OpenCLIP's loop wants a loader to be."""

    def __init__(self, config: TrainingConfig, device: torch.device, context: int) -> None:
        latents = torch.randn(config.batch_size, 4, 64, 64, device=device)
        tokens = torch.randint(1, 49000, (config.batch_size, context), device=device)
        super().__init__([(latents, tokens)] * config.steps)
        self.num_batches, self.num_samples = config.steps, config.steps * config.batch_size


def measure(config: TrainingConfig) -> Measured:
    """Samples a second of forward, backward and update; random latents, no loader."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    architecture = architecture_of(config.model)
    context = int(architecture.text_cfg["context_length"])
    flops = training_flops(architecture, 4, 64)
    batches = Batches(config, device, context)
    torch.manual_seed(0)
    model = build_model(architecture, 4, 64).to(device).train()
    works: dict[str, Callable[[], int]] = {"open_clip's own loop": theirs(copy.deepcopy(model), batches, config)}
    works["in one piece"] = ours(model, batches, config, 1)
    if config.pieces > 1:
        works[f"in {config.pieces} pieces"] = ours(model, batches, config, config.pieces)
    if config.compile:
        compiled = copy.deepcopy(model)
        compiled.compile()
        works["in one piece, compiled"] = ours(compiled, batches, config, 1)
    peaks: dict[str, float] = {}
    ways = (
        {name: partial(_with_peak, work, name, peaks) for name, work in works.items()}
        if device.type == "cuda"
        else works
    )
    rates = paired(ways, config.rounds)
    scale = flops / 1e12
    work = [Figure(f"{rate.name}, work", "TFLOP a second", tuple(scale * r for r in rate.rounds)) for rate in rates]
    memory = [measured_once(f"{name}, at most", "GB of GPU memory", peak) for name, peak in peaks.items()]
    return Measured((*rates, *work, *memory), {"weights": "random: speeds are comparable"})


def theirs(model: open_clip.CLIP, batches: Batches, config: TrainingConfig) -> Callable[[], int]:
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.2), lr=1e-4)
    arguments = SimpleNamespace(
        device=str(next(model.parameters()).device),
        precision={"bfloat16": "amp_bf16", "float32": "fp32"}[config.precision],
        log_every_n_steps=10**9,
        batch_size=config.batch_size,
        distill=False,
        accum_freq=1,
        skip_scheduler=True,
        horovod=False,
        grad_clip_norm=None,
        rank=0,
        local_rank=0,
        world_size=1,
        wandb=False,
        log_local=False,
    )
    data = {"train": SimpleNamespace(set_epoch=lambda epoch: None, dataloader=batches)}
    loss = open_clip.ClipLoss(cache_labels=True)

    def work() -> int:
        train_one_epoch(model, data, loss, 0, optimizer, None, None, None, arguments)
        return batches.num_samples

    return work


def ours(model: nn.Module, batches: Batches, config: TrainingConfig, pieces: int) -> Callable[[], int]:
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.2), lr=1e-4, fused=True)
    towers = Towers(model, bfloat16=config.precision == "bfloat16")
    loss_of = ContrastiveLoss(Ranks(0, 1, batches[0][0].device))

    def work() -> int:
        for number, (latents, tokens) in enumerate(batches):
            optimizer.zero_grad(set_to_none=True)
            backward(towers, in_pieces(latents, tokens, pieces, 0, number * len(latents)), loss_of)
            optimizer.step()
        return batches.num_samples

    return work


def _with_peak(work: Callable[[], int], name: str, peaks: dict[str, float]) -> int:
    torch.cuda.reset_peak_memory_stats()
    count = work()
    torch.cuda.synchronize()
    peaks[name] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
    return count
