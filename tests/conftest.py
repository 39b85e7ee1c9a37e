"""Small real parts: a VAE with random weights, image tars, an S3 server on loopback."""

from __future__ import annotations

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")

import dataclasses
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.warts import WartPlan, write_warty_tar
from demo.world import WorldSpec, write_world
from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.spec import LatentSpec, VaeIdentity
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.read import read_samples
from encode_pipeline.records import Rejected, Sample
from encode_pipeline.run import run

SIDE = 64
"""Of the encoded pictures in most tests: latents of 4x8x8, a thousand times less work than 512."""


@pytest.fixture(scope="session")
def small_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real AutoencoderKL with random weights, as `save_pretrained` leaves it."""
    return build_vae(tmp_path_factory.mktemp("vae"), seed=0)


def build_vae(folder: Path, seed: int) -> Path:
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tuned_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's VAE after a few more steps: another VAE, and as good."""
    from tests.changed_vaes import fine_tuned

    return fine_tuned(tmp_path_factory.mktemp("tuned") / "vae")


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory, small_vae: Path) -> Path:
    """A real SDXL pipeline with random weights, as `save_pretrained` leaves it; its VAE is the small one."""
    from eval.generator import build_tiny_pipeline

    folder = tmp_path_factory.mktemp("generator") / "tiny"
    build_tiny_pipeline(folder, seed=0, vae_folder=small_vae)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 training pictures in three tars and 48 held-out ones."""
    out = tmp_path_factory.mktemp("world")
    write_world(out, WorldSpec(seed=1, train_pictures=48, test_pictures=48, pictures_per_tar=16))
    return out


@pytest.fixture(scope="session")
def warty_tar(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WartPlan]:
    path = tmp_path_factory.mktemp("warts") / "warty.tar"
    return path, write_warty_tar(path, 3, 10)


Configure = Callable[..., EncodeConfig]


@pytest.fixture
def configure(world: Path, small_vae: Path, tmp_path: Path) -> Configure:
    """An encode configuration for the small world, with what a test wants otherwise."""

    def make(**changes: Any) -> EncodeConfig:
        values = {"vae": str(small_vae), "source": str(world / "train"), "store": str(tmp_path / "store")}
        return EncodeConfig(**{**values, "image_size": SIDE, "batch_size": 8, "threads": 2, **changes})

    return make


@pytest.fixture
def sealed(configure: Configure) -> Version:
    """A sealed and promoted store of the small world."""
    return encode_and_seal(configure())


def encode_and_seal(config: EncodeConfig) -> Version:
    result = run(config)
    assert result["ok"], result
    store = Store(config.store)
    version = store.version(result["fingerprint"])
    version.seal()
    store.promote(version)
    return version


def samples_in(tar: Path) -> list[Sample | Rejected]:
    """What a tar on disk holds."""
    with tar.open("rb") as file:
        return list(read_samples(file, str(tar)))


def payload_hashes(version: Version) -> dict[str, list[str]]:
    """The hashes of every shard's payloads: what two runs must agree on."""
    return {commit.shard: [payload.sha256 for payload in commit.payloads] for commit in version.commits()}


@pytest.fixture
def spec() -> LatentSpec:
    """A spec that no VAE stands behind, for tests of the format alone."""
    return LatentSpec(
        vae=VaeIdentity(name="none", weights_sha256="0" * 64, config={}, scaling_factor=0.5, shift_factor=0.25),
        shape=(4, 8, 8),
        image_size=64,
        views=2,
        recipe={},
        seed=0,
    )


@dataclasses.dataclass(frozen=True)
class Bucket:
    url: str
    client: Any
    name: str


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A moto server on loopback, for the time of the tests."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket; `s3://` addresses reach it through the environment, as a user's would."""
    import boto3
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    return Bucket(f"s3://{name}", client, name)
