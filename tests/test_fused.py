"""The fused encoder's arithmetic, by Triton's interpreter on a CPU: what diffusers' own encoder gives, to rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from diffusers import AutoencoderKL, AutoencoderTiny

pytest.importorskip("triton")
from encode_pipeline.fused import fits

SMALL: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": (16, 32, 32),
    "norm_num_groups": 8,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "like SDXL's": {"layers_per_block": 2},
    "like FLUX's": {"layers_per_block": 1, "latent_channels": 16, "use_quant_conv": False, "shift_factor": 0.1},
    "without attention": {"layers_per_block": 1, "mid_block_add_attention": False},
}
COMPARE = """
import json, sys, torch
from diffusers import AutoencoderKL
from encode_pipeline.fused import FusedEncoder
torch.manual_seed(0)
model = AutoencoderKL(**json.loads(sys.argv[1])).eval().requires_grad_(False)
for parameter in model.parameters():  # biases and gains of a fresh model are zeros and ones, which would hide mistakes
    parameter.add_(0.05 * torch.randn_like(parameter))
model.to(memory_format=torch.channels_last)
images = torch.randn(2, 3, 40, 56).to(memory_format=torch.channels_last)
with torch.inference_mode():
    mean, std = FusedEncoder(model).moments(images)
    own = model.encode(images).latent_dist
print(json.dumps([float((mean - own.mean).abs().max()), float((std / own.std - 1).abs().max()), float(own.mean.std())]))
"""


@pytest.mark.parametrize("variant", VARIANTS)
def test_moments_equal_those_of_diffusers(variant: str) -> None:
    config = json.dumps({**SMALL, **VARIANTS[variant]})
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", COMPARE, config], env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    mean_error, std_error, spread = json.loads(ran.stdout)
    assert spread > 0.1 and mean_error < 1e-4 and std_error < 1e-4


def test_what_cannot_be_fused_is_told_apart() -> None:
    assert fits(AutoencoderKL(**SMALL)) is None
    tiny = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    assert fits(tiny) == "is a AutoencoderTiny"
    odd = AutoencoderKL(**{**SMALL, "block_out_channels": (24, 24, 24)})
    assert "24 channels in 8 groups, no powers of two" in str(fits(odd))
    other = AutoencoderKL(**{**SMALL, "down_block_types": ["AttnDownEncoderBlock2D"] * 3})
    assert fits(other) == "has blocks of another kind"
