"""Who is using a version, so that it is not freed meanwhile.

STORE/leases/<fingerprint>/<holder>.json       a run that reads the version
                           freeing-<id>.json   a `gc` that wants to free it

Each writes its own file first and looks for the other's then, so that never both go on. No clock decides anything:
a lease holds until its holder ends, or until somebody says that it is gone.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encode_pipeline.latents.audit import now, this_process
from encode_pipeline.latents.command import RequestError, one_line
from encode_pipeline.latents.failpoints import failpoint
from encode_pipeline.latents.spec import canonical_json, digest
from encode_pipeline.latents.storage import Storage, StorageError
from encode_pipeline.latents.version import Version

FOLDER = "leases"
FREEING = "freeing-"


@dataclass(frozen=True)
class Lease:
    """That somebody is using a version, or about to free it."""

    version: str
    holder: str
    content: dict[str, Any]
    """Empty if it is damaged, and it holds nevertheless."""

    @property
    def is_freeing(self) -> bool:
        return self.holder.startswith(FREEING)

    @property
    def path(self) -> str:
        return lease_path(self.version, self.holder)

    def __str__(self) -> str:
        if not self.content:
            return f"{self.holder} (its record is damaged)"
        about, by = self.content, self.content["by"]
        return (
            f"{self.holder} ({about['purpose']} of {about['of']}, {by['user']} on {by['host']}, "
            f"process {by['pid']}, since {about['since']})"
        )


@contextmanager
def leased(version: Version, purpose: str, holder_of: str | Path) -> Iterator[None]:
    """Holds a version while something reads it: `purpose` says what, `holder_of` where that leaves its results.

    The same started again on the same machine has the same lease. A store that cannot be written is read without one.
    """
    storage, process = store_of(version), os.getpid()
    holder = holder_name(purpose, holder_of)
    path = lease_path(version.fingerprint, holder)
    written = _written(storage, version, path, {"purpose": purpose, "of": _place(holder_of)})
    try:
        failpoint("after-lease", holder)
        check_not_freed(storage, version.fingerprint)
        yield
    finally:
        if os.getpid() == process:  # not in a child that this process was forked into
            _withdraw(storage, path, tell=written)


def check_not_freed(storage: Storage, fingerprint: str) -> None:
    """Refuses a version that is being freed, or has been."""
    check_not_being_freed(storage, fingerprint)
    if not storage.exists(f"{fingerprint}/spec.json"):
        raise RequestError(f"{storage.url(fingerprint)}: has been freed by gc")


def check_not_being_freed(storage: Storage, fingerprint: str) -> None:
    if is_being_freed(storage, fingerprint):
        raise RequestError(
            f"{storage.url(fingerprint)}: is being freed by gc; if that was interrupted, the next gc finishes it"
        )


def is_being_freed(storage: Storage, fingerprint: str) -> bool:
    return any(name.startswith(FREEING) for name in storage.names(f"{FOLDER}/{fingerprint}"))


def leases(storage: Storage, fingerprint: str = "") -> list[Lease]:
    """Who uses a version, or any; and which `gc` is about to free it."""
    found = []
    for path in storage.files(f"{FOLDER}/{fingerprint}" if fingerprint else FOLDER):
        parts = path.split("/")
        if len(parts) != 3 or not parts[2].endswith(".json"):
            continue
        with suppress(FileNotFoundError):  # given back in between
            found.append(Lease(parts[1], parts[2].removesuffix(".json"), _content(storage.read(path))))
    return found


def write_lease(storage: Storage, path: str, about: dict[str, Any]) -> None:
    storage.replace(path, canonical_json({**about, "by": this_process(), "since": now()}))


def lease_path(fingerprint: str, holder: str) -> str:
    return f"{FOLDER}/{fingerprint}/{holder}.json"


def holder_name(purpose: str, holder_of: str | Path) -> str:
    """Readable, and the same for the same work on the same machine."""
    place = _place(holder_of)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{purpose}-{place.rstrip('/').rpartition('/')[2]}")[:80]
    return f"{stem}-{digest([socket.gethostname(), purpose, place])[:8]}"


def store_of(version: Version) -> Storage:
    """The folder that a version lies in."""
    return Storage(version.storage.url().rpartition("/")[0] or "/")


def _written(storage: Storage, version: Version, path: str, about: dict[str, Any]) -> bool:
    try:
        write_lease(storage, path, about)
    except (OSError, StorageError, NotImplementedError) as error:
        why = one_line(error) if isinstance(error, OSError) else str(error)
        told = f"warning: {why}: no lease, so gc cannot know that version {version.fingerprint} is in use"
        print(told, file=sys.stderr, flush=True)
        return False
    return True


def _withdraw(storage: Storage, path: str, tell: bool) -> None:
    try:
        storage.delete(path)
    except (OSError, StorageError, NotImplementedError) as error:
        if tell:
            why = one_line(error) if isinstance(error, OSError) else str(error)
            print(f"warning: {why}: the lease stays; gc release= takes it away", file=sys.stderr, flush=True)


def _place(holder_of: str | Path) -> str:
    text = str(holder_of)
    return text if "://" in text else str(Path(text).resolve())


def _content(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
        content["purpose"], content["of"], content["since"]
        content["by"]["host"], content["by"]["pid"], content["by"]["user"]
    except (ValueError, KeyError, TypeError):
        return {}
    return dict(content)
