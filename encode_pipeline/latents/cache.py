"""Shards of a sealed version as local files: the store's own on disk, else a checked copy."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.storage import StorageError
from encode_pipeline.latents.store import Version


class ShardCache:
    """Opens the tars that a manifest lists; remote ones are fetched once and checked on arrival."""

    def __init__(self, version: Version, folder: Path) -> None:
        self.version, self.folder = version, folder

    def open(self, row: Mapping[str, Any]) -> LatentShard:
        """The shard of a manifest row."""
        local = self.version.storage.local_path(row["path"])
        if local is None:
            local = self.folder / self.version.fingerprint / f"{row['sha256']}.tar"
            if not local.exists():
                self._fetch(row, local)
        if local.stat().st_size != row["size"]:
            raise StorageError(f"{local}: {local.stat().st_size} bytes, {row['size']} in the manifest")
        shard = LatentShard(local, self.version.spec)
        if len(shard) != row["samples"]:
            raise StorageError(f"{local}: {len(shard)} samples, {row['samples']} in the manifest")
        return shard

    def _fetch(self, row: Mapping[str, Any], local: Path) -> None:
        local.parent.mkdir(parents=True, exist_ok=True)
        arriving = local.with_name(f".arriving-{uuid.uuid4().hex}")
        try:
            sha256 = self.version.storage.fetch(row["path"], arriving)
            if sha256 != row["sha256"]:
                where = self.version.storage.url(row["path"])
                raise StorageError(
                    f"{where}: arrived with sha256 {sha256[:12]}…, {row['sha256'][:12]}… in the manifest"
                )
            arriving.replace(local)
        finally:
            arriving.unlink(missing_ok=True)
