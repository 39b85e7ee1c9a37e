"""`python -m benchmarks.resident ENCODE.yaml`: encodes in this process and says, as JSON, what memory it took."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import encode_pipeline.augment
import encode_pipeline.vae  # noqa: F401  # imported before the first look at memory, as is all else that is heavy
from benchmarks.process import forget_peak, resident
from encode_pipeline.config import EncodeConfig
from encode_pipeline.encode_shard import ShardEncoder
from encode_pipeline.latents.command import build, read_yaml
from encode_pipeline.latents.store import Store
from encode_pipeline.records import ShardReport
from encode_pipeline.run import prepare
from encode_pipeline.run_local import run_local


def main(path: Path) -> dict[str, object]:
    """Memory of the imported libraries alone, the most above it, and what is left above it after each shard."""
    config = build(EncodeConfig, read_yaml(path))
    libraries = resident("VmRSS")
    forget_peak()
    prepared = prepare(config)
    version = Store(config.store).create(prepared.spec)
    after, encoded = [], 0
    for outcome in run_local(prepared.sources, ShardEncoder(prepared.vae, version, config), config):
        if not isinstance(outcome, ShardReport):
            raise SystemExit(f"error: {outcome.source.uri}: {outcome.error}")
        encoded += outcome.commit.encoded
        after.append(resident("VmRSS") - libraries)
    return {
        "libraries": libraries,
        "peak_above": resident("VmHWM") - libraries,
        "after_each_shard": after,
        "encoded": encoded,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
