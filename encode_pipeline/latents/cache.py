"""Shards of a sealed version as local files: the store's own on disk, else a checked copy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encode_pipeline.latents.bounded import BoundedFolder
from encode_pipeline.latents.reader import LatentShard, ShardError
from encode_pipeline.latents.store import Version


class ShardCache:
    """Opens the tars that a manifest lists; remote ones are fetched once and checked on arrival.

    The folder may belong to several processes. With a limit in bytes, copies not used for longest make room.
    """

    def __init__(self, version: Version, folder: Path, limit: int | None = None) -> None:
        self.version, self.files = version, BoundedFolder(folder, limit)

    def open(self, row: Mapping[str, Any]) -> LatentShard:
        """The shard of a manifest row."""
        local = self.local(row)
        shard = LatentShard(local, self.version.spec)
        if len(shard) != row["samples"]:
            shard.close()
            raise ShardError(f"{local}: {len(shard)} samples, {row['samples']} in the manifest")
        return shard

    def local(self, row: Mapping[str, Any]) -> Path:
        """The tar of a manifest row as a file of the right size; a copy has also the right hash."""
        own = self.version.storage.local_path(row["path"])
        if own is not None:
            if not own.is_file():
                raise ShardError(f"{own}: not there")
            if (size := own.stat().st_size) != row["size"]:
                raise ShardError(f"{own}: {size} bytes, {row['size']} in the manifest")
            return own
        name = self.place(row)
        if not self.files.touch(name, row["size"]):
            with self.files.locked(name):
                if not self.files.touch(name, row["size"]):  # nobody else has fetched it meanwhile
                    return self.files.add(name, row["size"], lambda arriving: self._fetch(row, arriving))
        return self.files.folder / name

    def place(self, row: Mapping[str, Any], kind: str = "tar") -> str:
        """The name in the cache of a tar's copy, or of what else is kept about it."""
        return f"{self.version.fingerprint}/{row['sha256']}.{kind}"

    def _fetch(self, row: Mapping[str, Any], arriving: Path) -> None:
        where = self.version.storage.url(row["path"])
        for _ in range(2):  # the damage may have been on the way
            try:
                sha256 = self.version.storage.fetch(row["path"], arriving)
            except FileNotFoundError:
                raise ShardError(f"{where}: not there") from None
            if sha256 == row["sha256"]:
                return
        raise ShardError(f"{where}: arrived with sha256 {sha256[:12]}…, {row['sha256'][:12]}… in the manifest")
