"""One shard after the other against its commit: which files are there, their hashes and, if asked, their content."""

from __future__ import annotations

import errno
import hashlib
import json
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.commit import Payload, ShardCommit, attempt_folder
from encode_pipeline.latents.reader import LatentShard, ShardError
from encode_pipeline.latents.spec import LatentSpec, SpecError, digest
from encode_pipeline.latents.storage import StorageError
from encode_pipeline.latents.store import Version
from encode_pipeline.latents.tables import MANIFEST_SCHEMA, rows_of
from encode_pipeline.latents.writer import is_finite, key_problem

THREADS = 32
"""Shards looked at together: most of the time of an object store goes by waiting for its answers."""
READERS = 8
"""Of those, shards whose payloads are read."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""On the scratch disk, for a copy to look into."""
DUPLICATE_KEY = "duplicate_key"
"""The one reason for which a refused sample has the key of another one, which came before it in the tar."""


@dataclass(frozen=True)
class Problem:
    path: str
    problem: str


@dataclass(frozen=True, slots=True)
class Errand:
    """A shard to be checked: by its commit and the sizes of its files alone, or with their bytes."""

    shard: str
    read: bool


@dataclass(frozen=True, slots=True)
class Findings:
    """What there is to say about one shard; small enough to travel."""

    shard: str
    files: int = 1
    bytes: int = 0
    """That were read."""
    problems: tuple[Problem, ...] = ()
    mark: int | None = None
    """Sum of the marks of the rows that the manifest should have for it; None where the commit is of no use."""


def check_shards(
    version: Version, errands: Sequence[Errand], deep: bool, readers: int = READERS
) -> Generator[Findings, None, None]:
    """The findings on each shard, in order. Once nobody wants them any more, what is being read is read to its end."""
    turn, stopped = threading.Semaphore(readers), threading.Event()
    pool = ThreadPoolExecutor(min(THREADS, len(errands) or 1), thread_name_prefix="verify")
    waiting: deque[Future[Findings]] = deque()
    try:
        for errand in errands:
            waiting.append(pool.submit(_check, version, errand, deep, turn, stopped))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def commit_url(version: Version, shard: str) -> str:
    return version.storage.url(f"commits/{shard}.json")


def mark_of(row: Mapping[str, Any]) -> int:
    """A row of a manifest as one number."""
    return int(digest([row[name] for name in MANIFEST_SCHEMA.names])[:16], 16)


def _check(
    version: Version, errand: Errand, deep: bool, turn: threading.Semaphore, stopped: threading.Event
) -> Findings:
    storage, where = version.storage, commit_url(version, errand.shard)
    try:
        commit = version.commit(errand.shard)
        problem = commit.problem() or _incomplete(commit, version.spec)
        there = {} if problem else storage.files(attempt_folder(commit.shard, commit.attempt))
    except (StorageError, OSError) as error:
        problem = _fault_of(error, where)
    if problem:
        return Findings(errand.shard, problems=(Problem(where, problem),))
    read = 0
    problems = []
    contents = _Contents(version, commit, deep)
    for payload in commit.payloads:
        fault = _size_fault(payload, there)
        if fault is None and errand.read:
            with turn:
                if stopped.is_set():
                    break
                fault = contents.payload_fault(payload)
                if fault and not storage.is_local:  # the damage may have been on the way
                    fault = contents.payload_fault(payload)
            read += payload.size
        if fault:
            problems.append(Problem(storage.url(payload.path), fault))
    mark = sum(map(mark_of, rows_of(commit)))
    return Findings(errand.shard, 1 + len(commit.payloads), read, tuple(problems), mark)


def _incomplete(commit: ShardCommit, spec: LatentSpec) -> str | None:
    """Why a commit does not vouch for all that its counts speak of."""
    views, wanted = [payload.view for payload in commit.views], list(range(spec.views)) if commit.encoded else []
    if views != wanted:
        return f"lists the views {views}, {wanted} should be there"
    listed = sum(payload.samples for payload in commit.payloads if payload.view is None)
    rejected = sum(commit.rejected.values())
    return None if listed == rejected else f"lists {listed} rejected samples, {rejected} are counted"


def _size_fault(payload: Payload, there: Mapping[str, int]) -> str | None:
    size = there.get(payload.path)
    if size is None:
        return "missing"
    return None if size == payload.size else f"truncated or altered: {size} bytes, {payload.size} committed"


def _fault_of(error: CheckFailed | SpecError | OSError, path: str) -> str:
    """An error as what is wrong with a file. That of a full scratch disk, which is nobody's fault, is raised again."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        raise error
    return " ".join(str(error).split()).removeprefix(f"{path}: ") or type(error).__name__


@dataclass(frozen=True)
class _Samples:
    """The samples of one view, which those of the others must be like."""

    file: str
    keys: list[str]
    captions: list[bytes]
    """Their hashes."""


class _Contents:
    """Reads the payloads of one shard, one after the other.

    A hash that is right says that the bytes are the writer's. They are looked into where it is wrong, to say more,
    and with `deep`, to find what the writer itself did wrong.
    """

    def __init__(self, version: Version, commit: ShardCommit, deep: bool) -> None:
        self._version, self._commit, self._deep = version, commit, deep
        self._first: _Samples | None = None

    def payload_fault(self, payload: Payload) -> str | None:
        storage = self._version.storage
        local = storage.local_path(payload.path)
        try:
            sha256 = "" if self._deep and local is None else storage.sha256(payload.path)
            if sha256 == payload.sha256 and not self._deep:
                return None
            with tempfile.TemporaryDirectory() as scratch:
                if local is None:
                    fetched = storage.fetch(payload.path, local := Path(scratch) / "payload")
                    sha256 = sha256 or fetched
                sound = sha256 == payload.sha256
                if payload.view is None:
                    fault = self._list_fault(payload, local)
                else:
                    fault = self._tar_fault(payload, local, sound)
        except (StorageError, OSError) as error:
            return _fault_of(error, storage.url(payload.path))
        if sound:
            return fault
        return f"sha256 {sha256[:12]}… is not the committed {payload.sha256[:12]}…" + (f" ({fault})" if fault else "")

    def _tar_fault(self, payload: Payload, local: Path, sound: bool) -> str | None:
        file = payload.path.rsplit("/", 1)[-1]
        try:
            with LatentShard(local, self._version.spec) as shard:
                if len(shard) != payload.samples:
                    return f"{len(shard)} samples, {payload.samples} committed"
                samples = _Samples(file, shard.keys, [])
                for index in range(0, len(shard), 1 if self._deep else max(1, len(shard) - 1)):
                    fault = self._sample_fault(shard, index, payload, samples)
                    if fault:
                        return f"{_shown(samples.keys[index])}: {fault}"
        except (ShardError, SpecError) as error:
            return _fault_of(error, str(local))
        if self._deep and sound:
            self._first = self._first or samples
        return None

    def _sample_fault(self, shard: LatentShard, index: int, payload: Payload, samples: _Samples) -> str | None:
        key, record, source = samples.keys[index], shard.metadata(index), self._commit.source
        if (record.get("view"), record.get("source")) != (payload.view, source.uri):
            return f"is of view {record.get('view')} of {record.get('source')}"
        if (owner := record.get("spec")) != self._version.fingerprint:
            return f"is of version {owner}"
        if record.get("collection", "") != source.collection:
            return f"is of collection {record.get('collection')}"
        if not is_finite(shard.latent(index)):
            return "not finite"
        caption = hashlib.blake2b(shard.caption(index).encode(), digest_size=16).digest()
        samples.captions.append(caption)
        if self._first is None:
            problem = key_problem(key)
            return f"{problem} in its key" if problem else None
        if self._first.keys[index] != key:
            return f"stands where {self._first.file} has {_shown(self._first.keys[index])}"
        if self._first.captions[index] != caption:
            return f"another caption than in {self._first.file}"
        return None

    def _list_fault(self, payload: Payload, local: Path) -> str | None:
        reasons: Counter[str] = Counter()
        refused: set[str] = set()
        repeated: set[str] = set()
        with local.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    record = json.loads(line)
                    key, reason = str(record["key"]), str(record["reason"])
                except (ValueError, KeyError, TypeError, RecursionError):
                    return f"line {number}: not the record of a rejected sample"
                reasons[reason] += 1
                (repeated if reason == DUPLICATE_KEY else refused).add(key)
        if reasons.total() != payload.samples:
            return f"{reasons.total()} lines, {payload.samples} committed"
        for reason in sorted(reasons | Counter(self._commit.rejected)):
            if reasons[reason] != (committed := self._commit.rejected.get(reason, 0)):
                return f"{reasons[reason]} {reason}, {committed} committed"
        if self._first is None and self._commit.encoded:
            return None  # the views have problems of their own, and which keys they hold is not known
        encoded = set(self._first.keys) if self._first else set()
        if both := encoded & refused:
            return f"{_shown(min(both))}: rejected, and encoded too"
        if alone := repeated - encoded - refused:
            return f"{_shown(min(alone))}: rejected as the second of its key, and there is no first"
        return None


def _shown(key: str) -> str:
    return key if key.isprintable() else ascii(key)
