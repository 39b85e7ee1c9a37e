"""Is every byte of a version what its commits say? Each fault is named with the file it is in."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from encode_pipeline.latents.shard_check import Errand, Findings, Problem, check_shards, commit_url, mark_of
from encode_pipeline.latents.storage import StorageError
from encode_pipeline.latents.store import LISTED_AT_ONCE, MANIFEST, SHARD_LIST, Version
from encode_pipeline.latents.tables import rows_of

ROWS = 10_000
"""Of the manifest, turned into Python's objects at once."""

Engine = Callable[[Version, Sequence[Errand], bool], Generator[Findings, None, None]]
"""Does the errands, wherever it does them, and gives the findings in their order."""


@dataclass
class Verdict:
    """What `verify` found; an empty list of problems is the good news."""

    fingerprint: str
    deep: bool = False
    shards: int = 0
    """That were checked."""
    read: int = 0
    """Of those, shards whose payloads were read."""
    checked: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        found = {**vars(self), "problems": [vars(problem) for problem in self.problems]}
        return {"ok": not self.problems, **found}


def verify(
    version: Version,
    deep: bool = False,
    sample: int | None = None,
    seed: int = 0,
    engine: Engine = check_shards,
    tell: Callable[[Verdict, int], None] = lambda verdict, shards: None,
) -> Verdict:
    """Checks every commit, and reads every payload or those of so many shards drawn at random.

    `deep` also looks into what is read, sample by sample. `tell` hears after every shard how far it is, of how many.
    """
    verdict = Verdict(version.fingerprint, deep)
    manifest: _Manifest | None = None
    expected: set[str] = set()
    try:
        manifest = _read_manifest(version) if version.sealed else None
        expected = set(version.planned()) if manifest is None else manifest.shards
    except StorageError as error:  # a damaged plan or manifest, which names itself
        path, _, fault = str(error).partition(": ")
        verdict.problems.append(Problem(path, fault))
    done = version.done(sorted(expected)[::LISTED_AT_ONCE])
    verdict.problems += [
        Problem(commit_url(version, shard), "missing: no commit for this shard") for shard in sorted(expected - done)
    ]
    names = sorted(done)
    drawn = done if sample is None else set(random.Random(seed).sample(names, min(sample, len(names))))
    disputed: set[str] = set()
    with closing(engine(version, [Errand(name, name in drawn) for name in names], deep)) as all_findings:
        for findings in all_findings:
            verdict.shards += 1
            verdict.read += findings.shard in drawn
            verdict.checked += findings.files
            verdict.bytes += findings.bytes
            verdict.problems += findings.problems
            if manifest and findings.mark is not None and not manifest.agrees(findings):
                disputed.add(findings.shard)
            tell(verdict, len(names))
    if manifest:
        disputed |= manifest.marks.keys() - manifest.shards - done
        verdict.problems += _disagreements(version, disputed, done) if disputed else []
        verdict.problems += _list_problems(version, manifest)
    return verdict


@dataclass(frozen=True)
class _Manifest:
    """A manifest of a million rows, as little of it as has to be kept."""

    shards: set[str]
    """That it vouches for, those without a usable sample included."""
    marks: dict[str, int]
    """Of each shard's rows, added up."""
    addresses_sha256: str
    """Of the shard list that belongs to it."""

    def agrees(self, findings: Findings) -> bool:
        """Whether it has the rows that the commit asks for; of a shard committed after the seal it need have none."""
        mark = self.marks.get(findings.shard)
        return mark == findings.mark or (mark is None and (findings.mark == 0 or findings.shard not in self.shards))


def _read_manifest(version: Version) -> _Manifest:
    marks: defaultdict[str, int] = defaultdict(int)
    addresses = hashlib.sha256()
    for row in _rows(version):
        marks[row["shard"]] += mark_of(row)
        addresses.update(f"{version.storage.url(row['path'])}\n".encode())
    return _Manifest(version.sealed_shards(), dict(marks), addresses.hexdigest())


def _rows(version: Version) -> Iterator[dict[str, Any]]:
    for batch in version.manifest().to_batches(max_chunksize=ROWS):
        yield from batch.to_pylist()


def _disagreements(version: Version, disputed: set[str], done: set[str]) -> Iterator[Problem]:
    """Row by row, what manifest and commits of these shards say of each other."""
    where = version.storage.url(MANIFEST)
    listed: dict[str, dict[str, Any]] = {}
    for row in _rows(version):
        if row["shard"] in disputed:
            if row["path"] in listed:
                yield Problem(where, f"lists {row['path']} twice")
            listed[row["path"]] = row
    for commit in version.commits(disputed & done):
        for row in rows_of(commit):
            if listed.pop(row["path"], None) != row:
                yield Problem(where, f"disagrees with the commit of {commit.shard} about {row['path']}")
    for path in listed:
        yield Problem(where, f"lists {path}, which no commit vouches for")


def _list_problems(version: Version, manifest: _Manifest) -> Iterator[Problem]:
    where = version.storage.url(SHARD_LIST)
    try:
        if version.storage.sha256(SHARD_LIST) != manifest.addresses_sha256:
            yield Problem(where, "does not list the manifest's tars; if the store was moved, seal again")
    except FileNotFoundError:
        yield Problem(where, "missing; seal again to write it")
