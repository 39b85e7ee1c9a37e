"""The reckoning that ends every test of a fleet: each sample and byte of what was made under fire accounted for."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Collection

import fsspec

from encode_pipeline.__main__ import run_gc
from encode_pipeline.config import EncodeConfig, GcRequest
from encode_pipeline.latents.commit import Payload
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.latents.verify import verify
from encode_pipeline.run import run
from encode_pipeline.sources import find_sources
from tests.conftest import payload_hashes


def reconcile(config: EncodeConfig, failed: Collection[str] = ()) -> Version:
    """The version that was made under fire, once every sample and byte of it has been accounted for.

    `failed` are the addresses of the tars that must have been given up on; all others must be done.
    """
    version = Store(config.store).version()
    sources = {source.name: source for source in find_sources(config.source) if source.uri not in failed}
    commits = {commit.shard: commit for commit in version.commits()}
    assert commits.keys() == sources.keys()
    assert {failure.uri for failure in version.failures()} == set(failed)
    problems = [problem.problem for problem in verify(version, deep=True).problems]
    assert problems == ["missing: no commit for this shard"] * len(failed)
    keys: list[str] = []
    for shard, commit in commits.items():
        inputs = sorted(set(_keys(_content(sources[shard].uri))))
        rejected = [key for payload in commit.payloads if payload.view is None for key in _rejected(version, payload)]
        assert [payload.view for payload in commit.views] == list(range(config.views))
        for payload in commit.views:
            encoded = _keys(version.storage.read(payload.path), ".npy")
            assert sorted(encoded + rejected) == inputs
            assert (commit.encoded, sum(commit.rejected.values())) == (len(encoded), len(rejected))
        keys += inputs
    assert len(keys) == len(set(keys))

    hashes = payload_hashes(version)
    assert hashes == {shard: mark for shard, mark in _undisturbed(config).items() if shard in commits}
    run_gc(GcRequest(store=config.store))
    committed = {payload.path for commit in commits.values() for payload in commit.payloads}
    left = {path for path in version.storage.files("data") if path.split("/")[1] in commits}
    assert left == committed and payload_hashes(version) == hashes
    if not failed:
        version.seal()
        views = {payload.path for commit in commits.values() for payload in commit.views}
        assert set(version.manifest().column("path").to_pylist()) == views and not verify(version).problems
    return version


def _undisturbed(config: EncodeConfig) -> dict[str, list[str]]:
    """The hashes that the same run gives in this process, with nobody about."""
    with tempfile.TemporaryDirectory() as folder:
        calm = config.model_copy(update={"engine": "local", "store": f"{folder}/store", "scratch": None})
        run(calm)
        return payload_hashes(Store(calm.store).version())


def _rejected(version: Version, payload: Payload) -> list[str]:
    return [json.loads(line)["key"] for line in version.storage.read(payload.path).splitlines()]


def _content(uri: str) -> bytes:
    with fsspec.open(uri, "rb") as file:
        return bytes(file.read())


def _keys(tar: bytes, ending: str = "") -> list[str]:
    """The keys in a tar as Python's own reader finds them."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as file:
        return [name.partition(".")[0] for name in file.getnames() if name.endswith(ending)]
