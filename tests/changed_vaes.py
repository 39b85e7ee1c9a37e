"""The demo's VAE as it may come another time: trained on, saved again, with one weight off, or never trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DEMO_VAE = Path(__file__).parent.parent / "demo" / "vae"
TUNING_STEPS = 6


def fine_tuned(folder: Path, steps: int = TUNING_STEPS) -> Path:
    """A VAE that differs from the demo's and is as good: a few more steps of its training."""
    import torch
    import torch.nn.functional as F

    from demo.train_vae import crops

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small pieces: threads would wait for each other more than work
    model = _demo_model().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    for step, pixels in zip(range(steps), crops(seed=1000, first_step=0), strict=False):
        latents = model.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(step))
        loss = F.mse_loss(model.decode(latents).sample, pixels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    return _saved(model, folder)


def saved_again(folder: Path) -> Path:
    """The demo's VAE in another folder, in files of other names, by another version of the library that says more."""
    model = _demo_model()
    model.save_pretrained(folder, max_shard_size="1MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    config = json.loads((folder / "config.json").read_text())
    config |= {"_name_or_path": "somebody/else", "_diffusers_version": "0.99.0", "_remark": "renamed"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("# A VAE\n")
    return folder


def one_weight_changed(folder: Path) -> Path:
    """The demo's VAE with a thousandth more in one of its weights."""
    model = _demo_model()
    model.decoder.conv_out.bias.data[0] += 1e-3
    return _saved(model, folder)


def rescaled(folder: Path, factor: float) -> Path:
    """The demo's VAE with latents so many times as wide, decoded as well, and promised by its config as before."""
    import torch

    model = _demo_model()
    channels = model.config.latent_channels
    with torch.no_grad():
        for parameter in (model.quant_conv.weight, model.quant_conv.bias):
            parameter[:channels] *= factor
        model.quant_conv.bias[channels:] += 2 * torch.log(torch.tensor(factor))
        model.post_quant_conv.weight /= factor
    return _saved(model, folder)


def blind(folder: Path) -> Path:
    """The demo's VAE with a weight that is no number, so that no latent is finite."""
    model = _demo_model()
    model.quant_conv.bias.data[0] = float("nan")
    return _saved(model, folder)


def untrained(folder: Path, seed: int = 0) -> Path:
    """A VAE of the demo's architecture that has learnt nothing."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    return _saved(AutoencoderKL.from_config(AutoencoderKL.load_config(DEMO_VAE)), folder)


def _demo_model() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(DEMO_VAE)


def _saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder
