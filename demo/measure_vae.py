"""How well a VAE keeps pictures it never saw: `python -m demo.measure_vae [DIR] [--sheet FILE.png]`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from demo.drawing import Pixels
from demo.scene import render

SHIPPED_VAE = Path(__file__).parent / "vae"


def centre_square(image: Pixels, side: int) -> Pixels:
    """The middle of a picture, its short side scaled to `side`."""
    height, width = image.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = image[top : top + short, left : left + short]
    return np.asarray(cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def pictures_to_tensor(pictures_bhwc: Pixels) -> Tensor:
    """uint8 B×H×W×3 -> float B×3×H×W in [-1, 1]: what a VAE takes."""
    return torch.from_numpy(pictures_bhwc).permute(0, 3, 1, 2).float() / 127.5 - 1


def tensor_to_pictures(pixels_bchw: Tensor) -> Pixels:
    """float B×3×H×W in [-1, 1] -> uint8 B×H×W×3."""
    scaled = ((pixels_bchw.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.asarray(scaled.permute(0, 2, 3, 1).numpy(), dtype=np.uint8)


def load_vae(directory: Path) -> AutoencoderKL:
    """The VAE of a folder, for measuring."""
    # Without the flag diffusers asks for accelerate, which so small a model does not need.
    return AutoencoderKL.from_pretrained(directory, low_cpu_mem_usage=False).eval()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, picture: Pixels) -> Pixels:
    """The picture after a way through the latents, by the posterior's mode."""
    posterior = vae.encode(pictures_to_tensor(picture[None])).latent_dist
    return np.asarray(tensor_to_pictures(vae.decode(posterior.mode()).sample)[0], dtype=np.uint8)


def measure(directory: Path, pictures: int = 48, seed: int = 0, sheet: Path | None = None) -> dict[str, Any]:
    """PSNR in dB over test pictures at 512², their mean and the worst, and seconds a picture."""
    vae = load_vae(directory)
    originals = [centre_square(render(seed, "test", n).image, 512) for n in range(pictures)]
    started = time.monotonic()
    decoded = [reconstruct(vae, picture) for picture in originals]
    seconds = (time.monotonic() - started) / pictures
    errors = [np.square(a.astype(np.float64) - b).mean() for a, b in zip(originals, decoded, strict=True)]
    psnr = [10 * np.log10(255**2 / error) for error in errors]
    if sheet is not None:
        _write_sheet(sheet, originals[:12], decoded[:12])
    return {
        "pictures": pictures,
        "psnr_mean": round(float(np.mean(psnr)), 2),
        "psnr_worst": round(float(np.min(psnr)), 2),
        "seconds_a_picture": round(seconds, 3),
    }


def _write_sheet(path: Path, originals: list[Pixels], decoded: list[Pixels]) -> None:
    """Originals above their reconstructions, six pairs a row."""
    rows = []
    for start in range(0, len(originals), 6):
        for pictures in (originals, decoded):
            rows.append(np.concatenate(pictures[start : start + 6], axis=1))
    half_size = cv2.resize(np.concatenate(rows), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(path), half_size[..., ::-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=SHIPPED_VAE)
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--sheet", type=Path, help="write originals and reconstructions to this PNG")
    args = parser.parse_args()
    print(json.dumps(measure(args.directory, args.pictures, sheet=args.sheet)))


if __name__ == "__main__":
    main()
