"""The whole line over the S3 protocol: tars read from it, latents written to it, the trainer reading them back."""

from __future__ import annotations

from pathlib import Path

import pytest

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.store import Store
from encode_pipeline.latents.verify import verify
from encode_pipeline.run import run
from eval.zero_shot import ZeroShotConfig, zero_shot
from tests.conftest import Bucket, Configure, encode_and_seal, payload_hashes
from tests.faulty_s3 import FaultyBucket, faulty, faulty_server
from tests.test_train import tiny_model
from train.config import TrainConfig
from train.loop import train

__all__ = ["faulty", "faulty_server", "tiny_model"]


def test_from_s3_to_s3_and_into_the_trainer(
    bucket: Bucket, configure: Configure, world: Path, tiny_model: str, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        for path in sorted((world / split).glob("*.tar")):
            bucket.client.upload_file(str(path), bucket.name, f"tars/{split}/{path.name}")
    version = encode_and_seal(configure(source=f"{bucket.url}/tars/train/*.tar", store=f"{bucket.url}/latents"))
    assert verify(version).problems == []
    assert all(commit.source.etag for commit in version.commits())
    again = encode_and_seal(configure(source=f"{bucket.url}/tars/train/*.tar", store=str(tmp_path / "local")))
    assert payload_hashes(version) == payload_hashes(again)  # where it is stored does not change what is stored

    held_out = f"{bucket.url}/tars/test/{{00000..00002}}.tar"
    encode_and_seal(configure(source=held_out, store=f"{bucket.url}/test-latents", views=1))
    train(TrainConfig(model=tiny_model, data=f"{bucket.url}/latents", out=tmp_path / "run", steps=3))
    data = f"{bucket.url}/test-latents"
    result = zero_shot(ZeroShotConfig(checkpoint=tmp_path / "run", data=data, classes=world / "test"))
    assert result["n"] == 48


def test_a_shard_that_changed_on_the_way_is_refused(
    bucket: Bucket, configure: Configure, tiny_model: str, tmp_path: Path
) -> None:
    version = encode_and_seal(configure(store=f"{bucket.url}/latents", views=1))
    row = version.manifest().to_pylist()[0]
    key = f"latents/{version.fingerprint}/{row['path']}"
    data = bytearray(bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read())
    data[3000] ^= 1
    bucket.client.put_object(Bucket=bucket.name, Key=key, Body=bytes(data))
    assert [problem.path for problem in verify(version).problems] == [f"{bucket.url}/{key}"]
    config = TrainConfig(model=tiny_model, data=f"{bucket.url}/latents", out=tmp_path / "run", steps=1)
    with pytest.raises(CheckFailed, match=r"arrived with sha256 .* in the manifest"):
        train(config)
    assert not list((tmp_path / "run" / "cache").rglob(f"*{row['sha256']}*"))


def test_versions_on_s3_are_seen_at_once_by_another_process(bucket: Bucket, configure: Configure) -> None:
    before = Store(f"{bucket.url}/latents")
    assert before.versions() == []
    version = encode_and_seal(configure(store=f"{bucket.url}/latents", views=1, limit=1))
    assert before.versions() == [version.fingerprint] and before.current() == version.fingerprint


def test_on_a_server_that_does_everything_wrong_now_and_then(
    faulty: FaultyBucket, configure: Configure, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    for path in (world / "train").glob("*.tar"):
        faulty.client.upload_file(str(path), faulty.name, f"tars/{path.name}")
    calm, wild = (
        configure(source=f"{faulty.url}/tars", store=f"{faulty.url}/{name}", max_attempts=5)
        for name in ("calm", "wild")
    )
    expected = payload_hashes(encode_and_seal(calm))
    rules = [faulty.s3.add(do, times=None, chance=0.03) for do in ("503", "reset", "lose-reply", "flip", "flip-up")]
    rules += [faulty.s3.add(do, times=None, chance=0.1) for do in ("cut", "short", "409", "412")]

    def sealed() -> bool:
        """Whether the whole of it went well; what cannot be done now is an error in one line."""
        try:
            return run(wild)["ok"] and Store(wild.store).version().seal() > 0
        except (CheckFailed, RequestError, OSError):
            return False

    assert any(sealed() for _ in range(20)) and sum(rule.met for rule in rules) > 10
    faulty.s3.clear()
    version = Store(wild.store).version()
    assert payload_hashes(version) == expected and verify(version).problems == []
