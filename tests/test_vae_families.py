"""Every family of VAE through the same commands: encoded, sealed, read by plain tools and trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.spec import convert_scale
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.latents.verify import verify
from encode_pipeline.records import Reason
from encode_pipeline.run import run
from encode_pipeline.vae import load_vae
from tests.conftest import SIDE, Configure, build_vae, encode_and_seal
from train.config import TrainConfig
from train.loop import train


def flux_like(folder: Path) -> Path:
    """As FLUX's and SD3's: 16 channels, a shift, no convolution after the encoder."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        mid_block_add_attention=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    model.save_pretrained(folder)
    return folder


def tiny(folder: Path) -> Path:
    torch.manual_seed(0)
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    AutoencoderTiny(**blocks, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4).save_pretrained(folder)
    return folder


MODEL = """
architecture:
  embed_dim: 16
  vision_cfg: {width: 32, layers: 1, head_width: 16, patch_size: 2}
  text_cfg: {context_length: 16, vocab_size: 49408, width: 16, heads: 2, layers: 1}
settings: {steps: 2, batch_size: 8, lr: 1.0e-3, warmup: 1, precision: float32}
"""


@pytest.mark.parametrize(
    ("family", "channels", "posterior"), [("flux", 16, "sample"), ("tiny", 4, "mean"), ("pixels", 3, "mean")]
)
def test_any_family_is_encoded_and_trained_on(
    family: str, channels: int, posterior: str, configure: Configure, tmp_path: Path
) -> None:
    makers = {"flux": flux_like, "tiny": tiny}
    vae = str(makers[family](tmp_path / "vae")) if family in makers else "pixels"
    version = encode_and_seal(configure(vae=vae, views=2))
    assert version.spec.shape == (channels, SIDE // 8, SIDE // 8) and version.spec.posterior == posterior
    assert verify(version).to_dict()["ok"]
    (tmp_path / "model.yaml").write_text(MODEL)
    store = str(Path(version.storage.root).parent)
    result = train(TrainConfig(model=str(tmp_path / "model.yaml"), data=store, out=tmp_path / "run"))
    assert result["steps"] == 2


def test_the_shift_reaches_the_spec_and_the_stored_scale(configure: Configure, tmp_path: Path) -> None:
    vae = str(flux_like(tmp_path / "vae"))
    raw, model = (
        encode_and_seal(configure(vae=vae, views=1, limit=1, scale=scale, store=str(tmp_path / scale)))
        for scale in ("raw", "model")
    )
    assert (raw.spec.vae.scaling_factor, raw.spec.vae.shift_factor) == (0.3611, 0.1159)
    expected = convert_scale(latents(raw).astype(np.float32), raw.spec.vae, "raw", "model")
    assert np.allclose(latents(model), expected, atol=2e-3)


def test_pixels_are_the_mean_colours_of_the_view(configure: Configure, tmp_path: Path) -> None:
    """Checked against Pillow's own box filter on the view that `replay` writes."""
    from encode_pipeline.config import ReplayRequest
    from encode_pipeline.replay import replay

    version = encode_and_seal(configure(vae="pixels", views=1, limit=1))
    store = str(Path(version.storage.root).parent)
    with shard_of(version) as shard:
        key, stored = shard.keys[0], shard.latent(0).astype(np.float32)
    told = replay(ReplayRequest(store=store, key=key, out=tmp_path / "again"))
    assert told["latents"] == "identical"
    small = Image.open(tmp_path / "again" / "view0.png").resize((SIDE // 8, SIDE // 8), Image.Resampling.BOX)
    assert (
        np.abs((stored.transpose(1, 2, 0) + 1) * 127.5 - np.asarray(small, np.float32)).max() <= 0.75
    )  # half a step of Pillow's rounding, and float16's own


def test_a_vae_without_a_spread_cannot_be_sampled(configure: Configure) -> None:
    with pytest.raises(RequestError, match="gives one latent and no distribution; set posterior=mean"):
        run(configure(vae="pixels", posterior="sample"))


def test_overflow_in_float16_is_rescued_and_counted_to_the_shard(configure: Configure, tmp_path: Path) -> None:
    vae = scaled(tmp_path / "vae", inside=1e6)
    result = run(configure(vae=vae, dtype="float16", views=2, limit=1))
    assert result["ok"] and result["samples"]["encoded"] == 16 and result["rescued_latents"] == 32
    version = Store(result["store"]).version()
    assert [commit.rescued for commit in version.commits()] == [32]
    assert np.isfinite(latents(version)).all()


def test_what_no_dtype_can_hold_is_refused_and_never_stored(configure: Configure, tmp_path: Path) -> None:
    vae = scaled(tmp_path / "vae", inside=1e6, after=1e9)
    result = run(configure(vae=vae, dtype="float16", posterior="mean", views=2, limit=1))
    assert result["ok"] and result["rejected"] == {Reason.NON_FINITE_LATENT: 16} and result["rescued_latents"] == 0
    (commit,) = Store(result["store"]).version().commits()
    assert commit.views == () and commit.problem() is None


def test_batches_of_any_size_give_the_same_shards(configure: Configure, tmp_path: Path) -> None:
    from tests.conftest import payload_hashes

    four, sixteen = (
        encode_and_seal(configure(batch_size=size, store=str(tmp_path / str(size)), limit=1)) for size in (4, 16)
    )
    assert payload_hashes(four) == payload_hashes(sixteen)


def scaled(folder: Path, inside: float, after: float = 1.0) -> str:
    """A VAE with weights that take its values beyond float16 on the way, or at its end."""
    model = load_vae(str(build_vae(folder, seed=0))).model
    with torch.no_grad():
        model.encoder.conv_in.weight.mul_(inside)
        model.quant_conv.weight.mul_(after)
    model.save_pretrained(folder)
    return str(folder)


def shard_of(version: Version) -> LatentShard:
    (commit,) = version.commits()
    path = version.storage.local_path(commit.views[0].path)
    assert path is not None
    return LatentShard(path, version.spec)


def latents(version: Version) -> np.ndarray:
    with shard_of(version) as shard:
        return np.stack([shard.latent(index) for index in range(len(shard))])
