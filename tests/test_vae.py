"""The VAE: known by content, refused when it does not fit, finite or counted."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from encode_pipeline.config import EncodeConfig
from encode_pipeline.devices import latents_of
from encode_pipeline.encoder import LatentEncoder
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import LatentSpec, SpecError
from encode_pipeline.randomness import posterior_noise, seed_of
from encode_pipeline.run import spec_of
from encode_pipeline.vae import LoadedVae, identify, load_vae, posterior
from tests.conftest import build_vae


def spec_for(vae: LoadedVae, **changes: object) -> LatentSpec:
    config = EncodeConfig(**{"vae": "x", "source": "x", "store": "x", "image_size": 64, **changes})
    return spec_of(config, vae)


def pictures(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8))


def noise(count: int) -> list[np.ndarray]:
    return [posterior_noise(number, (4, 8, 8)) for number in range(count)]


def test_identity_is_of_the_content(small_vae: Path, tmp_path: Path) -> None:
    copy = tmp_path / "another-name"
    shutil.copytree(small_vae, copy)
    original, renamed = load_vae(str(small_vae)), load_vae(str(copy))
    assert original.identity.weights_sha256 == renamed.identity.weights_sha256
    assert spec_for(original).fingerprint == spec_for(renamed).fingerprint
    other = load_vae(str(build_vae(tmp_path / "other", seed=1)))
    assert spec_for(other).fingerprint != spec_for(original).fingerprint
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.5}))
    assert spec_for(load_vae(str(copy))).fingerprint != spec_for(original).fingerprint


def test_a_vae_in_memory_stays_what_it_is_when_its_file_is_overwritten(tmp_path: Path) -> None:
    vae = build_vae(tmp_path / "vae", seed=1)
    loaded = load_vae(str(vae))
    for file in build_vae(tmp_path / "other", seed=2).iterdir():
        shutil.copy(file, vae / file.name)
    assert identify(str(vae), loaded.model) == loaded.identity != load_vae(str(vae)).identity


def test_a_pipeline_folder_has_its_vae_found(small_vae: Path, tmp_path: Path) -> None:
    shutil.copytree(small_vae, tmp_path / "pipeline" / "vae")
    found = load_vae(str(tmp_path / "pipeline"))
    assert found.identity.weights_sha256 == load_vae(str(small_vae)).identity.weights_sha256


def test_what_is_no_vae_is_refused_in_one_line(small_vae: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    missing_weights = tmp_path / "no-weights"
    shutil.copytree(small_vae, missing_weights)
    (missing_weights / "diffusion_pytorch_model.safetensors").unlink()
    other_config = tmp_path / "other-config"
    shutil.copytree(small_vae, other_config)
    config = json.loads((other_config / "config.json").read_text())
    (other_config / "config.json").write_text(json.dumps({**config, "layers_per_block": 2}))
    unet = tmp_path / "unet"
    shutil.copytree(small_vae, unet)
    (unet / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    for folder in (tmp_path / "nothing", tmp_path / "empty", missing_weights, other_config, unet):
        with pytest.raises(RequestError, match="vae: ") as caught:
            load_vae(str(folder))
        assert "\n" not in str(caught.value)


def test_latents_equal_diffusers_own(small_vae: Path) -> None:
    vae = load_vae(str(small_vae))
    encoder = LatentEncoder(vae, spec_for(vae, posterior="mean"), batch_size=3)
    encoded = encoder.encode(pictures(3), noise(3))
    images = torch.from_numpy(np.stack(pictures(3))).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        expected = vae.model.encode(images).latent_dist.mean.to(torch.float16).numpy()
    assert encoded.latents.dtype == np.float16 and encoded.finite.all()
    assert np.abs(encoded.latents.astype(np.float32) - expected).max() <= 2e-3


def test_model_scale_is_applied_once(small_vae: Path) -> None:
    vae = load_vae(str(small_vae))
    raw = LatentEncoder(vae, spec_for(vae), 2).encode(pictures(2), noise(2)).latents.astype(np.float32)
    model = LatentEncoder(vae, spec_for(vae, scale="model"), 2).encode(pictures(2), noise(2)).latents
    assert np.allclose(raw * vae.identity.scaling_factor, model, atol=2e-3)


def test_a_sample_does_not_depend_on_its_batch(small_vae: Path) -> None:
    vae = load_vae(str(small_vae))
    encoder = LatentEncoder(vae, spec_for(vae), batch_size=4)
    together = encoder.encode(pictures(4), noise(4)).latents
    alone = [encoder.encode([one], [its]).latents[0] for one, its in zip(pictures(4), noise(4), strict=True)]
    assert np.array_equal(together, np.stack(alone))


def test_latents_do_not_depend_on_the_number_of_threads(small_vae: Path) -> None:
    vae = load_vae(str(small_vae))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(LatentEncoder(vae, spec_for(vae), batch_size=8).encode(pictures(8), noise(8)).latents)
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_a_batch_at_once_gives_what_single_pictures_give(small_vae: Path) -> None:
    """The batched arithmetic of a GPU, run here on the CPU: within one step of float16 of the CPU's own way."""
    vae = load_vae(str(small_vae))
    spec = spec_for(vae)
    pixels, spread = torch.from_numpy(np.stack(pictures(5))), torch.from_numpy(np.stack(noise(5)))
    with torch.inference_mode():
        batched = latents_of(partial(posterior, vae.model), spec, torch.float32, pixels, spread).numpy()
    single = LatentEncoder(vae, spec, batch_size=8).encode(pictures(5), noise(5)).latents
    assert batched.shape == single.shape == (5, 4, 8, 8)
    assert (np.abs(batched.astype(np.float32) - single) <= np.spacing(np.abs(single))).all()


def test_a_foreign_vae_is_refused(small_vae: Path, tmp_path: Path) -> None:
    vae, other = load_vae(str(small_vae)), load_vae(str(build_vae(tmp_path / "other", seed=1)))
    with pytest.raises(SpecError, match="is not the one of version"):
        LatentEncoder(other, spec_for(vae), 2)


def test_overflow_is_rescued_in_a_wider_dtype_or_refused(small_vae: Path, tmp_path: Path) -> None:
    vae = load_vae(str(small_vae))
    with torch.no_grad():  # beyond float16 on the way, but not at the end
        vae.model.encoder.conv_in.weight.mul_(1e6)
    spec = spec_for(vae, dtype="float16", posterior="mean")
    narrow = LatentEncoder(vae, spec, batch_size=2)
    encoded = narrow.encode(pictures(2), noise(2))
    assert encoded.rescued == 2 and encoded.finite.all() and np.isfinite(encoded.latents).all()
    with torch.no_grad():  # and now beyond what is stored
        vae.model.quant_conv.weight.mul_(1e9)
    beyond = LatentEncoder(vae, spec, batch_size=2).encode(pictures(2), noise(2))
    assert beyond.rescued == 0 and not beyond.finite.any()


def test_noise_is_normal_and_a_function_of_its_seed() -> None:
    seed = seed_of(0, "shard", "key", 1, "posterior")
    assert seed == seed_of(0, "shard", "key", 1, "posterior")
    others = [seed_of(1, "shard", "key", 1, "posterior"), seed_of(0, "shard", "key", 1, "augment")]
    others += [seed_of(0, "shar", "dkey", 1, "posterior"), seed_of(0, "shard", "key", 2, "posterior")]
    assert len({seed, *others}) == 5
    values = posterior_noise(seed, (4, 64, 64))
    assert np.array_equal(values, posterior_noise(seed, (4, 64, 64)))
    assert abs(values.mean()) < 0.03 and abs(values.std() - 1) < 0.03
