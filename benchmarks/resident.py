"""`python -m benchmarks.resident ENCODE.yaml`: encodes in this process and says, as JSON, what memory it took."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import encode_pipeline.augment
import encode_pipeline.vae  # noqa: F401  # imported before the first look at memory, as is all else that is heavy
from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.command import build, read_yaml
from encode_pipeline.latents.store import Store
from encode_pipeline.records import ShardReport
from encode_pipeline.run import prepare
from encode_pipeline.run_local import run_local

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(name: str) -> int:
    """Bytes in memory: `VmRSS` now, `VmHWM` at most since the last reset."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"error: {STATUS} has no {name}")
    return int(found[1]) * 1024


def main(path: Path) -> dict[str, object]:
    """Memory of the imported libraries alone, the most above it, and what is left above it after each shard."""
    config = build(EncodeConfig, read_yaml(path))
    libraries = resident("VmRSS")
    CLEAR.write_text("5")  # the high-water mark starts again from here
    prepared = prepare(config)
    version = Store(config.store).create(prepared.spec)
    after, encoded = [], 0
    for outcome in run_local(prepared.sources, version, prepared.vae, config):
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
