"""One version of a latent store: what was planned, what is committed, what is sealed.

STORE/<fingerprint>/spec.json    what the bytes mean
                    plans/       which source shards runs were asked for
                    data/        payloads under attempt-unique names
                    commits/     create-only: the one fact that a source shard is done
                    failures/    source shards given up on, with the error
                    manifest.parquet  shards.txt    written once by `seal`
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.commit import Payload, ShardCommit, SourceShard, attempt_folder
from encode_pipeline.latents.disk import is_unfinished, place_of
from encode_pipeline.latents.failpoints import failpoint
from encode_pipeline.latents.spec import LatentSpec, canonical_json, digest
from encode_pipeline.latents.storage import Storage, StorageError
from encode_pipeline.latents.tables import (
    COMMITS_AT_ONCE,
    manifest_table,
    plan_table,
    read_manifest,
    read_plan,
    to_parquet,
)

MANIFEST = "manifest.parquet"
SHARD_LIST = "shards.txt"
READ_THREADS = 32
HANDED_OVER = 8
"""Commits that a thread reads before it is given more: that takes longer than to read one from a disk."""
LISTED_AT_ONCE = 4000


@dataclass(frozen=True)
class Failure:
    """A source shard that was given up on."""

    shard: str
    uri: str
    error: str
    attempts: int


class Version:
    """One version of a store: all latents of one meaning."""

    def __init__(self, storage: Storage, spec: LatentSpec) -> None:
        self.storage, self.spec = storage, spec
        self.fingerprint = spec.fingerprint

    @property
    def sealed(self) -> bool:
        return self.storage.exists(MANIFEST)

    # --- what there is to do, and what is done -------------------------------------------------

    def record_plan(self, sources: Iterable[SourceShard]) -> None:
        """Remembers which source shards were asked for; the same plan twice is one plan."""
        name, content = plan_table(sources)
        self.storage.create(f"plans/{name}", content)

    def planned(self) -> dict[str, SourceShard]:
        """Every source shard that any run was asked for, by shard name."""
        return {source.name: source for path in sorted(self.plans()) for source in self.plan(path)}

    def plans(self) -> set[str]:
        """The plans' files: a new one for every other set of source shards that a run was asked for."""
        return set(self.storage.files("plans"))

    def plan(self, path: str) -> list[SourceShard]:
        return read_plan(self.storage, path)

    def done(self, cuts: Sequence[str] = ()) -> set[str]:
        """The names of the shards that have a commit. `cuts`, some names in order, let object stores answer sooner."""
        names = self.storage.names("commits", [f"{cut}.json" for cut in cuts])
        return {name.removesuffix(".json") for name in names if name.endswith(".json")}

    def is_done(self, shard: str) -> bool:
        return self.storage.exists(_commit_path(shard))

    def missing(self, sources: Iterable[SourceShard]) -> list[SourceShard]:
        """Those of the source shards that have no commit yet, in their order."""
        named = [(source.name, source) for source in sources]
        done = self.done(sorted(name for name, _ in named)[::LISTED_AT_ONCE])
        return [source for name, source in named if name not in done]

    def commit(self, shard: str) -> ShardCommit:
        return self._commit(shard, self.storage.read(_commit_path(shard)))

    def commits(self, shards: Iterable[str] | None = None) -> Iterator[ShardCommit]:
        """The commits of some shards, or of all, in order of name; a damaged one is an error."""
        names = sorted(self.done() if shards is None else shards)
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for start in range(0, len(names), COMMITS_AT_ONCE):  # a pool would read them all and keep what nobody took
                some = names[start : start + COMMITS_AT_ONCE]
                share = min(HANDED_OVER, -(-len(some) // READ_THREADS))
                pieces = [some[first : first + share] for first in range(0, len(some), share)]
                # Threads wait for bytes. Were they to parse them too, they would mostly wait for each other.
                yield from map(self._commit, some, chain.from_iterable(pool.map(self._read, pieces)))

    def _read(self, shards: Sequence[str]) -> list[bytes]:
        return [self.storage.read(_commit_path(shard)) for shard in shards]

    def _commit(self, shard: str, data: bytes) -> ShardCommit:
        path = _commit_path(shard)
        where = self.storage.url(path)
        commit = self.storage.parsed(path, lambda data: ShardCommit.from_json(data, where), data)
        if commit.shard != shard or commit.fingerprint != self.fingerprint:
            raise StorageError(f"{where}: is the commit of {commit.shard} in version {commit.fingerprint}")
        return commit

    def publish(self, commit: ShardCommit, files: Mapping[str, Path]) -> bool:
        """Publishes a finished shard and commits it. False if another attempt had committed before.

        Payloads go first, under names of this attempt alone, then the commit, create-only. Whatever
        happens in between leaves files that no commit refers to, and nothing worse.
        """
        hashes = {payload.path: payload.sha256 for payload in commit.payloads}
        try:
            for path, local in files.items():
                self.storage.publish(local, path, hashes[path])
                failpoint("after-payload", commit.shard)
        except FileNotFoundError:
            if not self.is_done(commit.shard):  # else another attempt has won, and `gc` freed this one's files
                raise
        failpoint("before-commit", commit.shard)
        created = self.storage.create(_commit_path(commit.shard), commit.to_json())
        failpoint("after-commit", commit.shard)
        if created:
            return True
        winner = self.commit(commit.shard)
        if winner.attempt == commit.attempt:
            return True  # ours had been made, only the answer was lost on the way
        for payload in winner.payloads:
            self._check_size(payload)
        with suppress(StorageError, OSError):  # of no use any more, and `gc` frees it too
            self.storage.delete(attempt_folder(commit.shard, commit.attempt))
        return False

    def _check_size(self, payload: Payload) -> None:
        try:
            size = self.storage.size(payload.path)
        except FileNotFoundError:
            raise StorageError(f"{self.storage.url(payload.path)}: committed, and not there") from None
        if size != payload.size:
            raise StorageError(f"{self.storage.url(payload.path)}: committed with another size")

    def record_failure(self, failure: Failure) -> None:
        """Remembers that a shard was given up on; a later commit outweighs it."""
        content = canonical_json(vars(failure))
        self.storage.create(f"failures/{failure.shard}/{digest(vars(failure))[:16]}.json", content)

    def failures(self) -> list[Failure]:
        """The shards that were given up on and have no commit since."""
        done = self.done()
        latest: dict[str, Failure] = {}  # any one of a shard's: they differ in the run that gave up
        for path in self.storage.files("failures"):
            shard = path.split("/")[-2]
            if shard not in done:
                try:
                    latest[shard] = Failure(**json.loads(self.storage.read(path)))
                except (ValueError, TypeError):
                    raise StorageError(f"{self.storage.url(path)}: damaged: not the record of a failure") from None
        return [latest[shard] for shard in sorted(latest)]

    # --- closing and reading a version ----------------------------------------------------------

    def seal(self, accept_failed: bool = False, accept_missing: bool = False) -> int:
        """Writes the manifest once all planned shards are done; returns how many tars it lists.

        With `accept_failed`, shards that were given up on are left out instead of standing in the way; with
        `accept_missing`, so is every planned shard that has no commit, such as one whose source is gone.
        """
        if not self.sealed:
            self._write_manifest(accept_failed, accept_missing)
        addresses = self.addresses()
        text = "".join(f"{address}\n" for address in addresses).encode()
        # The list only repeats the manifest under today's address, so that of a store that was moved is renewed.
        if not self.storage.create(SHARD_LIST, text) and self.storage.read(SHARD_LIST) != text:
            self.storage.replace(SHARD_LIST, text)
        return len(addresses)

    def _write_manifest(self, accept_failed: bool, accept_missing: bool) -> None:
        done = self.done()
        given_up = {failure.shard for failure in self.failures()}
        undone = set(self.planned()) - done
        missing = sorted(undone - given_up if accept_failed else undone)
        if missing and not accept_missing:
            names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            raise CheckFailed(
                f"{self.storage.url()}: {len(missing)} planned shards have no commit ({names}); "
                "run again, or seal with accept_failed=true or accept_missing=true"
            )
        table = manifest_table(self.commits(done))
        if not table.num_rows:
            refused = sum((Counter(commit.rejected) for commit in self.commits(done)), Counter[str]())
            reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(refused.items())) or "no samples"
            raise CheckFailed(f"{self.storage.url()}: nothing to seal: no committed shard holds a latent ({reasons})")
        about = {"fingerprint": self.fingerprint, "shards": sorted(done), "left_out": sorted(undone)}
        self.storage.create(MANIFEST, to_parquet(table.replace_schema_metadata({"latents": canonical_json(about)})))

    def addresses(self) -> list[str]:
        """The addresses of all tars of the sealed version, as `shards.txt` lists them."""
        return [self.storage.url(path) for path in self.manifest().column("path").to_pylist()]

    def manifest(self) -> pa.Table:
        """One row for every tar of the sealed version."""
        if not self.sealed:
            raise RequestError(f"{self.storage.url()}: not sealed; run: python -m encode_pipeline seal STORE")
        return read_manifest(self.storage, MANIFEST)

    def sealed_shards(self) -> set[str]:
        """The shards that the manifest vouches for, those without a usable sample included."""
        return self._sealed("shards")

    def left_out(self) -> set[str]:
        """The shards that had been planned, and that the version was sealed without."""
        return self._sealed("left_out")

    def _sealed(self, which: str) -> set[str]:
        try:
            about = json.loads((self.manifest().schema.metadata or {})[b"latents"])
            return set(about[which])
        except (KeyError, ValueError, TypeError):
            raise StorageError(f"{self.storage.url(MANIFEST)}: damaged: does not list its shards") from None

    def rejected(self, commit: ShardCommit) -> list[dict[str, str]]:
        """Key, reason and detail of each sample that was refused in a shard."""
        paths = [payload.path for payload in commit.payloads if payload.view is None]
        return [json.loads(line) for path in paths for line in self.storage.read(path).splitlines()]

    def unreferenced(self) -> dict[str, int]:
        """Attempt folders that no commit refers to and none ever can, and files never finished, with their sizes.

        What belongs to a shard without a commit may be another writer's work of this minute: it stays.
        """
        kept = {commit.shard: commit.attempt for commit in self.commits()}
        sizes: Counter[str] = Counter()
        for path, size in self.storage.files("data", unfinished=True).items():
            parts = path.split("/")
            if len(parts) == 4 and parts[1] in kept and kept[parts[1]] != parts[2]:
                sizes[attempt_folder(parts[1], parts[2])] += size
        for path, size in self.storage.files("commits", unfinished=True).items():
            if is_unfinished(path) and place_of(path).removeprefix("commits/").removesuffix(".json") in kept:
                sizes[path] = size
        return dict(sizes)


def _commit_path(shard: str) -> str:
    return f"commits/{shard}.json"
