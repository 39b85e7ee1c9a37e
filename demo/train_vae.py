"""Trains the demo's VAE on the CPU: `python -m demo.train_vae --out demo/vae`. Run it again to resume.

A real diffusers AutoencoderKL, small enough for a repository: 8x down, 4 channels, like SDXL's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from demo.drawing import Pixels
from demo.measure_vae import centre_square, measure, pictures_to_tensor
from demo.scene import render

CROP = 96
BATCH = 8  # small: in equal time more steps beat larger batches
CROPS_A_PICTURE = 4
PEAK_LEARNING_RATE = 1e-3
WARM_UP_STEPS = 50
L1_WEIGHT = 0.1
KL_WEIGHT = 1e-5
LATENT_NOISE = 0.1  # the decoder learns to live with it, so neighbouring latents decode alike
LOG_EVERY = 100
CHECKPOINT_EVERY_SECONDS = 120.0


def small_vae() -> AutoencoderKL:
    """A VAE of under a million weights that passes colours through before it has learnt anything."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,  # with more, a norm over two or four channels wipes out what colour they carry
        mid_block_add_attention=False,
        sample_size=512,
    )
    start_near_the_identity(vae)
    return vae


@torch.no_grad()
def start_near_the_identity(vae: AutoencoderKL) -> None:
    """Every convolution copies its input's channels, and residual branches whisper.

    From the usual start grey shapes come soon and colour late: 17 dB after 450 steps at the best of the learning
    rates tried. From here: 24 dB.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, torch.nn.Conv2d):
            continue
        torch.nn.init.zeros_(cast(Tensor, module.bias))
        if name.endswith("conv2"):  # the last convolution of a residual branch
            module.weight.mul_(0.1)
        else:
            copy = torch.nn.init.dirac_(torch.empty_like(module.weight))
            module.weight.mul_(0.3).add_(copy)


def crops(seed: int, first_step: int) -> Iterator[Tensor]:
    """Batches B×3×96×96 in [-1, 1], the same ones after a resume; every other crop is seen from afar."""
    step = first_step
    while True:
        rng = np.random.default_rng([seed, 96, step])
        batch: list[Pixels] = []
        while len(batch) < BATCH:
            image = render(seed, "train", int(rng.integers(1 << 31))).image
            batch += [_crop(image, rng, shrink=n % 2 == 0) for n in range(CROPS_A_PICTURE)]
        yield pictures_to_tensor(np.stack(batch))
        step += 1


def _crop(image: Pixels, rng: np.random.Generator, shrink: bool) -> Pixels:
    side = int(CROP * rng.uniform(1.2, 3.0)) if shrink else CROP
    top, left = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
    window = image[top : top + side, left : left + side]
    if not shrink:
        return window
    return np.asarray(cv2.resize(window, (CROP, CROP), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def learning_rate(step: int, steps: int) -> float:
    """A short warm-up, then a cosine down to zero."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return PEAK_LEARNING_RATE * warm * 0.5 * (1 + float(np.cos(np.pi * min(step / steps, 1.0))))


def train(out: Path, steps: int, seed: int) -> None:
    """Trains to `steps`, checkpointing into `out`; at the end `out` is what from_pretrained loads."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    vae = small_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint = out / "resume.pt"
    step, seconds_before = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds_before = state["step"], state["seconds"]
        print(f"resuming {checkpoint} at step {step}")
    _forget_lines_after(out / "training.jsonl", step)

    started = last_saved = time.monotonic()
    since_last_line: list[tuple[float, float, float]] = []
    for pixels in crops(seed, step):
        if step >= steps:
            break
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
        noise = torch.Generator().manual_seed((seed << 32) + step)
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=noise)
        latents = latents + LATENT_NOISE * torch.randn(latents.shape, generator=noise)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = vae.decode(latents).sample.float()
        mse, l1 = F.mse_loss(decoded, pixels), F.l1_loss(decoded, pixels)
        kl = posterior.kl().sum() / latents.numel()
        optimizer.zero_grad(set_to_none=True)
        (mse + L1_WEIGHT * l1 + KL_WEIGHT * kl).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1

        since_last_line.append((mse.item(), l1.item(), kl.item()))
        seconds = seconds_before + time.monotonic() - started
        if step % LOG_EVERY == 0:
            mean_mse, mean_l1, mean_kl = np.mean(since_last_line, axis=0)
            line = {
                "step": step,
                "seconds": round(seconds),
                "mse": round(mean_mse, 6),
                "l1": round(mean_l1, 5),
                "kl": round(mean_kl, 3),
                "crop_psnr": round(10 * np.log10(4 / mean_mse), 2),
                "latent_std": round(latents.std().item(), 3),
                "lr": round(learning_rate(step - 1, steps), 7),
            }
            since_last_line.clear()
            print(json.dumps(line), flush=True)
            with (out / "training.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if step == steps or time.monotonic() - last_saved > CHECKPOINT_EVERY_SECONDS:
            last_saved = time.monotonic()
            save_checkpoint(checkpoint, vae, optimizer, step, seconds)

    publish(vae, out, seed)
    print(json.dumps({"steps": step, **measure(out)}))


def _forget_lines_after(log: Path, step: int) -> None:
    """Steps that an interruption threw away are done again: they must not stand in the log twice."""
    if log.exists():
        lines = [line for line in log.read_text().splitlines(True) if json.loads(line)["step"] <= step]
        log.write_text("".join(lines))


def save_checkpoint(
    path: Path, vae: AutoencoderKL, optimizer: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    """All that a resumed run needs, replacing the last checkpoint in one move."""
    unfinished = path.with_name(path.name + ".unfinished")
    state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
    torch.save(state, unfinished)
    unfinished.replace(path)


def publish(vae: AutoencoderKL, out: Path, seed: int) -> dict[str, Any]:
    """Saves the VAE as diffusers does, with the scaling factor that makes its latents' std one."""
    raw = raw_latents(vae, seed)
    scaling_factor = float(1 / raw.std())
    vae.register_to_config(scaling_factor=round(scaling_factor, 5))
    vae.save_pretrained(out, safe_serialization=True)
    statistics = {
        "scaling_factor": round(scaling_factor, 5),
        "latent_mean": [round(float(v), 4) for v in raw.mean(axis=(0, 2, 3))],
        "latent_std": [round(float(v), 4) for v in raw.std(axis=(0, 2, 3))],
    }
    (out / "latent_statistics.json").write_text(json.dumps(statistics, indent=1) + "\n")
    return statistics


@torch.no_grad()
def raw_latents(vae: AutoencoderKL, seed: int, pictures: int = 32) -> NDArray[np.float32]:
    """Posterior means N×4×64×64 of pictures that no training step has drawn."""
    first_unseen = 1 << 31
    batch = np.stack([centre_square(render(seed, "train", first_unseen + n).image, 512) for n in range(pictures)])
    means = [vae.encode(pictures_to_tensor(batch[n : n + 4])).latent_dist.mean for n in range(0, pictures, 4)]
    return np.asarray(torch.cat(means).numpy(), dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the VAE and its checkpoint")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--seed", type=int, default=1000, help="of the pictures; the demo's worlds use 0")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    train(args.out, args.steps, args.seed)


if __name__ == "__main__":
    main()
