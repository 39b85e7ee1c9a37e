"""The record that says a source shard is done, and the building of what it vouches for."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ConfigDict, ValidationError

from encode_pipeline.latents.command import Settings
from encode_pipeline.latents.reader import LatentShard, ShardError
from encode_pipeline.latents.spec import LatentSpec, canonical_json, digest
from encode_pipeline.latents.storage import CHUNK, StorageError
from encode_pipeline.latents.writer import Latent, ShardWriter

REJECTED_LIST = "rejected.jsonl"


@dataclass(frozen=True, slots=True)  # no pydantic model: a run may hold a quarter of a million of them
class SourceShard:
    """One input tar, by address and content mark. Its name is the shard's name everywhere."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    uri: str
    size: int
    etag: str = ""
    collection: str = ""
    """Which data set it belongs to, where the user said so; kept with every sample, and no part of the name."""
    sha256: str = ""
    """Of the whole tar, where somebody has said it; what is read must give it. No part of the name either."""

    @property
    def name(self) -> str:
        """Readable and stable: the file's stem and a short hash of what identifies it."""
        stem = self.uri.rstrip("/").rsplit("/", 1)[-1].removesuffix(".tar")
        readable = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:60] or "shard"
        mark = hashlib.sha256(canonical_json([self.uri, self.size, self.etag])).hexdigest()[:10]
        return f"{readable}-{mark}"


class Payload(Settings):
    """One published file of a shard."""

    path: str
    """Relative to the version's folder."""
    size: int
    sha256: str
    samples: int
    view: int | None
    """Which view the tar holds; None for the list of rejected samples."""


class ShardCommit(Settings):
    """Says that a source shard is done: what was read, what became of it, and every file's hash."""

    fingerprint: str
    shard: str
    attempt: str
    source: SourceShard
    source_sha256: str
    read: int
    encoded: int
    rejected: dict[str, int]
    rescued: int = 0
    """Latents that were not finite at first and came out right in a wider dtype."""
    payloads: tuple[Payload, ...]
    made_by: dict[str, Any]
    """Versions, device and times: for people, never for decisions."""

    @property
    def views(self) -> tuple[Payload, ...]:
        """The latent tars, one a view; none if no sample was usable."""
        return tuple(payload for payload in self.payloads if payload.view is not None)

    def problem(self) -> str | None:
        """What contradicts itself in this commit, or None."""
        if self.read != self.encoded + sum(self.rejected.values()):
            return f"read {self.read} is not encoded {self.encoded} + rejected {sum(self.rejected.values())}"
        if self.shard != self.source.name:
            return f"shard {self.shard} is not the name of its source, {self.source.name}"
        if self.source.sha256 not in ("", self.source_sha256):
            return f"made from a tar of sha256 {self.source_sha256}, not of {self.source.sha256} as planned"
        if any(payload.samples != self.encoded for payload in self.views):
            return f"a view holds another number of samples than the {self.encoded} encoded"
        folder = attempt_folder(self.shard, self.attempt)
        if any(not payload.path.startswith(folder + "/") for payload in self.payloads):
            return f"a payload lies outside {folder}"
        return None

    def to_json(self) -> bytes:
        content = self.model_dump(mode="json")
        for name in ("collection", "sha256"):
            if not content["source"][name]:
                del content["source"][name]
        return canonical_json({**content, "digest": digest(content)}, indent=1)

    @classmethod
    def from_json(cls, data: bytes, where: str) -> ShardCommit:
        """The commit in a file; one that was edited or damaged is an error."""
        try:
            content = json.loads(data)
            claimed = content.pop("digest")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise StorageError(f"{where}: not a commit") from None
        if digest(content) != claimed:
            raise StorageError(f"{where}: edited or damaged: its content does not give its digest")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            raise StorageError(f"{where}: not a commit ({'.'.join(map(str, first['loc']))}: {first['msg']})") from None


class ShardBuild:
    """A shard in the making, on local scratch: one tar a view and a list of what was refused.

    Samples come whole, with all their views, so that a sample is either encoded or rejected.
    """

    def __init__(self, folder: Path, spec: LatentSpec, source: SourceShard) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.spec, self.source = folder, spec, source
        self.attempt = uuid.uuid4().hex
        self.encoded = 0
        self.rejected: Counter[str] = Counter()
        self._writers: list[ShardWriter] = []
        self._refusals: list[bytes] = []

    def add(self, key: str, latents: Sequence[Latent], caption: str, metadata: Sequence[Mapping[str, Any]]) -> None:
        """Appends a sample: a latent and a record for each view."""
        if not self._writers:
            paths = [self.folder / f"view{view}.tar" for view in range(self.spec.views)]
            self._writers = [ShardWriter(path, self.spec) for path in paths]
        for writer, latent, record in zip(self._writers, latents, metadata, strict=True):
            writer.add(key, latent, caption, dict(record))
        self.encoded += 1

    def reject(self, key: str, reason: str, detail: str) -> None:
        """Counts a sample that is refused, and keeps why."""
        self.rejected[reason] += 1
        self._refusals.append(canonical_json({"key": key, "reason": reason, "detail": detail}))

    def finish(
        self, source_sha256: str, made_by: Mapping[str, Any], rescued: int = 0
    ) -> tuple[ShardCommit, dict[str, Path]]:
        """The commit to be, and the local file behind each payload; every file re-opened and checked."""
        prefix = attempt_folder(self.source.name, self.attempt)
        payloads: list[Payload] = []
        files: dict[str, Path] = {}
        for view, writer in enumerate(self._writers):
            summary = writer.close()
            if _sha256(summary.path) != summary.sha256:
                raise StorageError(f"{summary.path}: the disk did not keep what was written")
            with LatentShard(summary.path, self.spec) as shard:
                if len(shard) != self.encoded:
                    raise ShardError(f"{summary.path}: {len(shard)} samples of {self.encoded}")
            path = f"{prefix}/view{view}.tar"
            files[path] = summary.path
            payloads.append(
                Payload(path=path, size=summary.size, sha256=summary.sha256, samples=summary.samples, view=view)
            )
        if self._refusals:
            local = self.folder / REJECTED_LIST
            text = b"".join(line + b"\n" for line in sorted(self._refusals))  # in no order of threads or batches
            local.write_bytes(text)
            path = f"{prefix}/{REJECTED_LIST}"
            files[path] = local
            mark = hashlib.sha256(text).hexdigest()
            payloads.append(Payload(path=path, size=len(text), sha256=mark, samples=len(self._refusals), view=None))
        commit = ShardCommit(
            fingerprint=self.spec.fingerprint,
            shard=self.source.name,
            attempt=self.attempt,
            source=self.source,
            source_sha256=source_sha256,
            read=self.encoded + self.rejected.total(),
            encoded=self.encoded,
            rejected=dict(sorted(self.rejected.items())),
            rescued=rescued,
            payloads=tuple(payloads),
            made_by=dict(made_by),
        )
        return commit, files

    def __enter__(self) -> ShardBuild:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers:
            writer.__exit__(kind, error, trace)


def attempt_folder(shard: str, attempt: str) -> str:
    """Where an attempt at a shard keeps its files, relative to the version."""
    return f"data/{shard}/{attempt}"


def _sha256(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            hasher.update(piece)
    return hasher.hexdigest()
