"""What was decided about a store, by whom and why, in order: STORE/audit/000001.json, 000002.json, …

An entry is created under the next free number and never changed. Times are for people: nothing is decided by them.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from encode_pipeline.latents.spec import canonical_json
from encode_pipeline.latents.storage import Storage, StorageError

FOLDER = "audit"
READ_THREADS = 32

Event = Literal[
    "reencode-unchanged",
    "reencode-began",
    "sealed",
    "verified",
    "compared",
    "refused",
    "promoted",
    "held-back",
    "freed",
    "released",
]


@dataclass(frozen=True)
class Entry:
    """One decision."""

    number: int
    event: Event
    version: str
    why: str
    details: dict[str, Any]
    by: dict[str, Any]
    """Host, process and user."""
    at: str


class Audit:
    """The decisions about a store."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def record(self, event: Event, version: str, why: str, **details: Any) -> Entry:
        """Writes a decision down, under the next number that is free."""
        number = self.last() + 1
        while (entry := self._created(number, event, version, why, details)) is None:
            number += 1
        return entry

    def record_once(self, after: int, event: Event, version: str, why: str, **details: Any) -> Entry:
        """Writes a decision down, unless an entry after this number already says so.

        There is no gap between numbers, so of several that record the same, each meets the entry of the first.
        """
        number = after + 1
        while True:
            try:
                entry = self._said(number)
            except FileNotFoundError:
                if own := self._created(number, event, version, why, details):
                    return own
                continue
            if entry is not None and (entry.event, entry.version) == (event, version):
                return entry
            number += 1

    def entries(self) -> list[Entry]:
        """Every decision, in order; a damaged entry is an error."""
        with ThreadPoolExecutor(READ_THREADS) as pool:
            return list(pool.map(self._entry, self._numbers()))

    def of(self, version: str) -> list[Entry]:
        """The decisions about one version, in order."""
        return [entry for entry in self.entries() if entry.version == version]

    def last(self) -> int:
        """The number of the latest entry, 0 if there is none."""
        return max(self._numbers(), default=0)

    def _numbers(self) -> list[int]:
        stems = (name.removesuffix(".json") for name in self.storage.names(FOLDER) if name.endswith(".json"))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def _entry(self, number: int) -> Entry:
        where = self.storage.url(_path(number))
        return self.storage.parsed(_path(number), lambda data: _parsed(data, number, where))

    def _said(self, number: int) -> Entry | None:
        """An entry, or None for one that is damaged."""
        data = self.storage.read(_path(number))
        try:
            return _parsed(data, number, "")
        except StorageError:
            return None

    def _created(self, number: int, event: Event, version: str, why: str, details: dict[str, Any]) -> Entry | None:
        """The entry under this number, or None if another has it."""
        entry = Entry(number, event, version, why, details, this_process(), now())
        return entry if create_own(self.storage, _path(number), canonical_json(vars(entry))) else None


def create_own(storage: Storage, path: str, data: bytes) -> bool:
    """Makes an object that no one else would write the same; also True if only the answer was lost on its way."""
    return storage.create(path, data) or storage.read(path) == data


def this_process() -> dict[str, Any]:
    """Who is at work here, for people to find."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "user": _user()}


def now() -> str:
    """The time for people, as ISO 8601 has it."""
    return datetime.now(UTC).isoformat()


def _path(number: int) -> str:
    return f"{FOLDER}/{number:06}.json"


def _parsed(data: bytes, number: int, where: str) -> Entry:
    try:
        entry = Entry(**json.loads(data))
    except (ValueError, TypeError):
        raise StorageError(f"{where}: damaged: not an entry of the audit trail") from None
    if entry.number != number:
        raise StorageError(f"{where}: is entry {entry.number} of the audit trail")
    return entry


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
