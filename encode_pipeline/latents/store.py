"""A latent store: versions by fingerprint, one of them promoted for readers.

STORE/current.json  promotions/  which version to read; only `promote` changes it
STORE/<fingerprint>/             a version, as version.py has it
STORE/leases/                    who reads which version, so that `gc` leaves it
STORE/audit/                     what was decided, by whom and why
"""

from __future__ import annotations

import os
from pathlib import Path
from types import EllipsisType

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.lease import check_not_being_freed, leased
from encode_pipeline.latents.promotion import Promotions
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.storage import Storage, StorageError
from encode_pipeline.latents.version import LISTED_AT_ONCE, MANIFEST, SHARD_LIST, Failure, Version

__all__ = ["LISTED_AT_ONCE", "MANIFEST", "SHARD_LIST", "Failure", "Store", "Version"]


class Store:
    """The folder that holds all versions, and which of them readers should use."""

    def __init__(self, url: str | Path) -> None:
        self.storage = Storage(url)

    def versions(self) -> list[str]:
        """The fingerprints of the versions there are."""
        return [name for name in self.storage.folders() if self.storage.exists(f"{name}/spec.json")]

    def current(self) -> str | None:
        """The promoted version's fingerprint."""
        history = Promotions(self.storage).history()
        return history[-1] if history else None

    def create(self, spec: LatentSpec) -> Version:
        """The version for a spec, made if it is not there."""
        check_not_being_freed(self.storage, spec.fingerprint)
        path = f"{spec.fingerprint}/spec.json"
        self.storage.create(path, spec.to_json())
        if self.storage.create(path, spec.to_json()):
            raise RequestError(
                f"{self.storage.url()}: the server overwrites what is there when it should refuse to (If-None-Match), "
                "so it cannot keep two writers apart"
            )
        return self.version(spec.fingerprint)

    def version(self, fingerprint: str | None = None) -> Version:
        """A version by the beginning of its fingerprint; by default the promoted one, or the only one."""
        versions = self.versions()
        if not versions:
            raise RequestError(f"{self.storage.url()}: no latent store here (no version with a spec.json)")
        if fingerprint is None:
            fingerprint = self.current()
        if fingerprint is None:
            if len(versions) > 1:
                raise RequestError(
                    f"{self.storage.url()}: none is promoted; say version=, one of {', '.join(versions)}"
                )
            fingerprint = versions[0]
        matches = [name for name in versions if name.startswith(fingerprint)]
        if len(matches) != 1:
            for name in self.storage.folders("leases"):
                if name.startswith(fingerprint):
                    check_not_being_freed(self.storage, name)  # its spec is the first that goes
            raise RequestError(f"{self.storage.url()}: no one version {fingerprint}; there are {', '.join(versions)}")
        check_not_being_freed(self.storage, matches[0])
        path = f"{matches[0]}/spec.json"
        spec = self.storage.parsed(path, lambda data: LatentSpec.from_json(data, self.storage.url(path)))
        if spec.fingerprint != matches[0]:
            raise StorageError(f"{self.storage.url(path)}: is the spec of version {spec.fingerprint}")
        return Version(Storage(self.storage.url(matches[0])), spec)

    def promote(
        self, version: Version, why: str = "asked for", instead_of: str | EllipsisType | None = ...
    ) -> str | None:
        """Makes a sealed version the one that readers use; returns the one before. May be tied to which one that is."""
        if not version.sealed:
            raise CheckFailed(f"{version.storage.url()}: not sealed, so not to be promoted")
        with leased(version, "promote", f"process-{os.getpid()}"):
            return Promotions(self.storage).promote(version.fingerprint, why, instead_of)

    def retired(self, keep: int) -> list[str]:
        """The versions that were once promoted, but are neither now nor among the `keep` before it."""
        latest: list[str] = []
        for name in reversed(Promotions(self.storage).history()):
            if name not in latest:
                latest.append(name)
        there = set(self.versions())
        return [name for name in latest[1 + keep :] if name in there]
