"""One step of training: its loss and gradient against OpenCLIP's, in one piece and in many."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import SigLipLoss
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from torch import Tensor

from encode_pipeline.latents.command import RequestError
from train.config import Architecture, TrainConfig
from train.distributed import Ranks
from train.loss import ContrastiveLoss
from train.model import build_model, parameter_groups
from train.schedule import learning_rate
from train.step import Towers, backward, in_pieces

ALONE = Ranks(0, 1, torch.device("cpu"))
ROWS = 32


def small_model(**vision: Any) -> open_clip.CLIP:
    architecture = Architecture(
        embed_dim=24,
        vision_cfg={"width": 32, "layers": 2, "head_width": 16, "patch_size": 2, **vision},
        text_cfg={"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    )
    torch.manual_seed(0)
    model = build_model(architecture, 4, 8)
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    return model.train()


def small_batch(seed: int = 0, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(rows, 4, 8, 8, generator=generator)
    return latents, torch.randint(1, 49000, (rows, 12), generator=generator)


def features(rows: int = ROWS, width: int = 16) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    pair = [F.normalize(torch.randn(rows, width), dim=-1).requires_grad_() for _ in range(2)]
    return pair[0], pair[1]


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Relative to the largest entry of each tensor."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max() / b[name].abs().max().clamp_min(1e-12)) for name in a)


@pytest.mark.parametrize("block_rows", [1, 5, 32, 1000])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_loss_and_its_gradients_are_open_clips(kind: str, block_rows: int) -> None:
    image, text = features()
    scale, bias = torch.tensor(20.0, requires_grad=True), torch.tensor(-5.0, requires_grad=True)
    expected = open_clip.ClipLoss()(image, text, scale) if kind == "clip" else SigLipLoss()(image, text, scale, bias)
    expected.backward()
    loss_of = ContrastiveLoss(ALONE, kind, block_logits=block_rows * ROWS)
    ours = loss_of(image.detach(), text.detach(), scale.detach(), bias.detach() if kind == "siglip" else None, None)
    torch.testing.assert_close(ours.loss, expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.image_grad, image.grad, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours.text_grad, text.grad, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours.scale_grad, scale.grad, rtol=1e-5, atol=1e-7)
    if kind == "siglip":
        torch.testing.assert_close(ours.bias_grad, bias.grad, rtol=1e-5, atol=1e-7)
    assert int(ours.right) == int((image @ text.T).argmax(dim=1).eq(torch.arange(ROWS)).sum())


def test_a_models_bias_is_left_alone_by_clips_loss() -> None:
    """OpenCLIP's SigLIP configs bring one, which makes no difference to a softmax."""
    latents, tokens = small_batch()
    found = []
    for bias in (None, -10.0):
        architecture = Architecture(
            embed_dim=24,
            vision_cfg={"width": 32, "layers": 1, "head_width": 16, "patch_size": 2},
            text_cfg={"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
            init_logit_bias=bias,
        )
        torch.manual_seed(0)
        model = build_model(architecture, 4, 8)
        for count in (1, 4):
            model.zero_grad(set_to_none=True)
            backward(Towers(model, False), in_pieces(latents, tokens, count, 0, 0), ContrastiveLoss(ALONE))
            found.append(gradients(model))
    assert all(largest_difference(other, found[0]) < 1e-4 for other in found[1:])


def test_soft_is_hard_where_captions_differ() -> None:
    image, text = features()
    tokens = torch.arange(ROWS)[:, None].expand(ROWS, 4)
    hard, soft = (ContrastiveLoss(ALONE, "clip", soft)(image, text, torch.tensor(9.0), None, tokens) for soft in (0, 1))
    torch.testing.assert_close(soft.loss, hard.loss)
    torch.testing.assert_close(soft.image_grad, hard.image_grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_equal_captions_are_equally_right(kind: str) -> None:
    """Which of two pictures of one caption stands in which row is chance, and must not matter."""
    tokens = torch.tensor([[1], [1], [2]])
    image, text = features(3, 8)
    swapped, scale, bias = image[[1, 0, 2]], torch.tensor(20.0), torch.tensor(-3.0)

    def loss(pictures: Tensor, soft: bool) -> Any:
        return ContrastiveLoss(ALONE, kind, soft)(pictures, text, scale, bias, tokens)

    assert torch.isclose(loss(image, True).loss, loss(swapped, True).loss, atol=1e-5)
    assert abs(loss(image, False).loss - loss(swapped, False).loss) > 0.1
    same = (tokens == tokens.T).float()
    logits = scale * image @ text.T + bias
    if kind == "siglip":
        expected = -F.logsigmoid((2 * same - 1) * logits).sum() / 3
    else:
        targets = same / same.sum(1, keepdim=True)
        expected = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    torch.testing.assert_close(loss(image, True).loss, expected.detach())


@pytest.mark.parametrize("count", [1, 2, 8, 32])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_pieces_give_the_gradient_of_the_whole(count: int, checkpointing: bool) -> None:
    latents, tokens = small_batch()
    model = small_model()
    out = model(latents, tokens)
    open_clip.ClipLoss()(out["image_features"], out["text_features"], out["logit_scale"]).backward()
    expected = gradients(model)
    model.zero_grad(set_to_none=True)
    model.set_grad_checkpointing(checkpointing)
    backward(Towers(model, False), in_pieces(latents, tokens, count, 0, 0), ContrastiveLoss(ALONE, block_logits=96))
    ours = gradients(model)
    assert "logit_scale" in ours
    difference = largest_difference(ours, expected)
    print(f"{count} pieces: largest relative difference {difference:.1e}")
    assert difference < 1e-5


def test_pieces_with_chance_in_the_towers_are_computed_twice_alike() -> None:
    latents, tokens = small_batch()
    model = small_model(patch_dropout=0.5)
    pieces = in_pieces(latents, tokens, 4, 7, 1000)
    towers = Towers(model, False)
    parts = [towers.features(piece) for piece in pieces]
    image, text = (torch.cat([part[side] for part in parts]) for side in (0, 1))
    open_clip.ClipLoss()(image, text, parts[0][2]).backward()
    expected = gradients(model)
    model.zero_grad(set_to_none=True)
    backward(towers, pieces, ContrastiveLoss(ALONE))
    assert largest_difference(gradients(model), expected) < 1e-5
    later = in_pieces(latents, tokens, 4, 7, 1032)
    assert len({piece.seed for piece in [*pieces, *later]}) == 8


@pytest.mark.parametrize("count", [1, 4])
def test_steps_are_those_of_open_clips_own_loop(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Five steps of open_clip_train's own epoch, optimiser and schedule, against ours on the same batches."""
    steps, peak, warmup = 5, 1e-3, 2
    batches = [small_batch(seed) for seed in range(steps)]
    theirs, ours = small_model(), small_model()

    groups = parameter_groups(theirs, 0.2)
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), eps=1e-6)
    loader = SimpleNamespace(num_batches=steps, num_samples=steps * ROWS)
    data = {"train": SimpleNamespace(set_epoch=lambda epoch: None, dataloader=Loader(batches, **vars(loader)))}
    arguments = SimpleNamespace(
        device="cpu",
        precision="fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=False,
        horovod=False,
        grad_clip_norm=1.0,
        rank=0,
        local_rank=0,
        world_size=1,
        batch_size=ROWS,
        log_every_n_steps=1,
        wandb=False,
        log_local=False,
    )
    schedule = cosine_lr(optimizer, peak, warmup, steps)
    train_one_epoch(theirs, data, open_clip.ClipLoss(), 0, optimizer, None, schedule, None, arguments)

    own = torch.optim.AdamW(parameter_groups(ours, 0.2), lr=peak, betas=(0.9, 0.98), eps=1e-6, fused=True)
    for step, (latents, tokens) in enumerate(batches):
        for group in own.param_groups:
            group["lr"] = learning_rate(step, steps, warmup, peak)
        own.zero_grad()
        backward(Towers(ours, False), in_pieces(latents, tokens, count, 0, 0), ContrastiveLoss(ALONE))
        torch.nn.utils.clip_grad_norm_(ours.parameters(), 1.0)
        own.step()

    before = dict(small_model().named_parameters())
    moved = {name: float((weight - before[name]).abs().max()) for name, weight in theirs.named_parameters()}
    differences = {
        name: float((weight - dict(theirs.named_parameters())[name]).abs().max())
        for name, weight in ours.named_parameters()
    }
    worst = max(differences, key=differences.__getitem__)
    with capsys.disabled():
        print(
            f"\n{count} pieces: after {steps} steps, in which weights moved by up to {max(moved.values()):.1e}, they "
            f"differ from those of open_clip's own loop by {differences[worst]:.1e} at most ({worst})"
        )
    assert min(moved.values()) > 0 and differences[worst] < 1e-5


class Loader(list):
    """Batches with the two numbers that open_clip's loop asks a loader for."""

    def __init__(self, batches: list[Any], num_batches: int, num_samples: int) -> None:
        super().__init__(batches)
        self.num_batches, self.num_samples = num_batches, num_samples


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    rates = [learning_rate(step, 100, 10, 1e-3) for step in range(101)]
    assert rates[9] == max(rates) == 1e-3 and rates[0] == 1e-4
    assert rates[100] == pytest.approx(0) and all(a >= b for a, b in itertools.pairwise(rates[9:]))


def test_pieces_of_a_batch(tmp_path: Any) -> None:
    def pieces(batch_size: int, processes: int, accum: int | None = None) -> int:
        config = TrainConfig(
            model="latent-vit-b-8", data="x", out=tmp_path, steps=1, batch_size=batch_size, accum=accum
        )
        return config.pieces(processes)

    assert pieces(81_920, 128) == 2 and pieces(81_920, 8) == 20 and pieces(512, 1) == 1 and pieces(8, 8) == 1
    assert pieces(81_920, 8, 4) == 4
    for wrong, message in [
        ((10, 4), "not a multiple of 4"),
        ((10, 1, 3), "does not divide"),
        ((1021, 1), "say accum="),
    ]:
        with pytest.raises(RequestError, match=message):
            pieces(*wrong)
