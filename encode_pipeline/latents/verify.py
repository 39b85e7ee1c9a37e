"""Is every byte of a version what its commits say? Each fault is named with the file it is in."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encode_pipeline.latents.commit import Payload, ShardCommit, all_finite
from encode_pipeline.latents.reader import LatentShard, ShardError
from encode_pipeline.latents.spec import SpecError
from encode_pipeline.latents.storage import StorageError
from encode_pipeline.latents.store import SHARD_LIST, Version

CHECK_THREADS = 4


@dataclass(frozen=True)
class Problem:
    path: str
    problem: str


@dataclass
class Verdict:
    """What `verify` found; an empty list of problems is the good news."""

    fingerprint: str
    checked: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "ok": not self.problems,
            "fingerprint": self.fingerprint,
            "checked": self.checked,
            "bytes": self.bytes,
            "problems": [vars(problem) for problem in self.problems],
        }


def verify(version: Version, on_shard: Callable[[int, int], None] | None = None) -> Verdict:
    """Checks every commit and re-reads every payload of a version."""
    verdict = Verdict(version.fingerprint)
    done = version.done()
    try:
        verdict.problems += list(_missing_commits(version, done))
    except StorageError as error:  # a damaged plan or manifest, which names itself
        verdict.problems.append(_problem_of(error))
    names = sorted(done)
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        for count, (checked, size, problems) in enumerate(pool.map(lambda name: _check_shard(version, name), names), 1):
            verdict.checked += checked
            verdict.bytes += size
            verdict.problems += problems
            if on_shard:
                on_shard(count, len(names))
    if version.sealed:
        try:
            verdict.problems += list(_check_manifest(version, done))
        except StorageError as error:
            if _problem_of(error) not in verdict.problems:
                verdict.problems.append(_problem_of(error))
    return verdict


def _problem_of(error: StorageError) -> Problem:
    path, _, fault = str(error).partition(": ")
    return Problem(path, fault)


def _missing_commits(version: Version, done: set[str]) -> Iterator[Problem]:
    """Shards that should be done: the manifest's if sealed, else every planned one."""
    expected = version.sealed_shards() if version.sealed else set(version.planned())
    for shard in sorted(expected - done):
        yield Problem(version.storage.url(f"commits/{shard}.json"), "missing: no commit for this shard")


def _check_shard(version: Version, shard: str) -> tuple[int, int, list[Problem]]:
    path = f"commits/{shard}.json"
    try:
        commit = version.commit(shard)
    except (StorageError, OSError) as error:
        return 1, 0, [Problem(version.storage.url(path), _without_path(error, version.storage.url(path)))]
    if problem := commit.problem():
        return 1, 0, [Problem(version.storage.url(path), problem)]
    problems = []
    for payload in commit.payloads:
        if fault := _payload_fault(version, commit, payload):
            problems.append(Problem(version.storage.url(payload.path), fault))
    return 1 + len(commit.payloads), sum(payload.size for payload in commit.payloads), problems


def _payload_fault(version: Version, commit: ShardCommit, payload: Payload) -> str | None:
    storage = version.storage
    where = storage.url(payload.path)
    try:
        size = storage.size(payload.path)
        if size != payload.size:
            return f"truncated or altered: {size} bytes, {payload.size} committed"
        with tempfile.TemporaryDirectory() as scratch:
            local = storage.local_path(payload.path)
            if local is None:
                local = Path(scratch) / "payload"
                sha256 = storage.fetch(payload.path, local)
            else:
                sha256 = storage.sha256(payload.path)
            fault = _content_fault(version, commit, payload, local)
        if sha256 != payload.sha256:
            return f"sha256 {sha256[:12]}… is not the committed {payload.sha256[:12]}…" + (
                f" ({fault})" if fault else ""
            )
        return fault
    except FileNotFoundError:
        return "missing"
    except (StorageError, OSError) as error:
        return _without_path(error, where)


def _content_fault(version: Version, commit: ShardCommit, payload: Payload, local: Path) -> str | None:
    if payload.view is None:
        lines = local.read_bytes().splitlines()
        return None if len(lines) == payload.samples else f"{len(lines)} lines, {payload.samples} committed"
    try:
        with LatentShard(local, version.spec) as shard:
            if len(shard) != payload.samples:
                return f"{len(shard)} samples, {payload.samples} committed"
            if (key := all_finite(shard)) is not None:
                return f"{key}: not finite"
            for index in (0, len(shard) - 1):
                record = shard.metadata(index)
                if record.get("view") != payload.view or record.get("source") != commit.source.uri:
                    return f"{shard.keys[index]}: is of view {record.get('view')} of {record.get('source')}"
    except (ShardError, SpecError) as error:
        return _without_path(error, str(local))
    return None


def _check_manifest(version: Version, done: set[str]) -> Iterator[Problem]:
    """Where manifest and commits disagree."""
    where = version.storage.url("manifest.parquet")
    listed = {row["path"]: (row["size"], row["sha256"], row["samples"]) for row in version.manifest().to_pylist()}
    for shard in sorted(done & version.sealed_shards()):
        try:
            commit = version.commit(shard)
        except (StorageError, OSError):  # named already, and so its rows have nothing to agree with
            listed = {path: row for path, row in listed.items() if path.split("/")[1] != shard}
            continue
        for payload in commit.views:
            if listed.pop(payload.path, None) != (payload.size, payload.sha256, payload.samples):
                yield Problem(where, f"disagrees with the commit of {shard} about {payload.path}")
    for path in listed:
        if path.split("/")[1] in done:
            yield Problem(where, f"lists {path}, which no commit vouches for")
    addresses = "".join(f"{address}\n" for address in version.addresses())
    try:
        found = version.storage.read(SHARD_LIST).decode("utf-8", "replace")
    except FileNotFoundError:
        yield Problem(version.storage.url(SHARD_LIST), "missing; seal again to write it")
        return
    if found != addresses:
        yield Problem(
            version.storage.url(SHARD_LIST), "does not list the manifest's tars; if the store was moved, seal again"
        )


def _without_path(error: Exception, path: str) -> str:
    return " ".join(str(error).split()).removeprefix(f"{path}: ")
