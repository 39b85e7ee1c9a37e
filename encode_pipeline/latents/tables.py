"""Plans and manifests as Parquet: which source shards were asked for, and which tars a sealed version has."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from encode_pipeline.latents.commit import ShardCommit, SourceShard
from encode_pipeline.latents.spec import digest
from encode_pipeline.latents.storage import Storage, StorageError

MANIFEST_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("view", pa.int32()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("samples", pa.int64()),
        ("source", pa.string()),
    ]
)
PLAN_SCHEMA = pa.schema(
    [("uri", pa.string()), ("size", pa.int64()), ("etag", pa.string()), ("collection", pa.string())]
)
HASHED_PLAN_SCHEMA = PLAN_SCHEMA.append(pa.field("sha256", pa.string()))
"""Of a plan in which the hash of some source shard is known."""


COMMITS_AT_ONCE = 1024


def manifest_table(commits: Iterator[ShardCommit]) -> pa.Table:
    """A row for every latent tar of some commits, which are a million at full size and never all in memory."""
    batches = []
    while some := list(islice(commits, COMMITS_AT_ONCE)):
        rows = [row for commit in some for row in rows_of(commit)]
        batches.append(pa.RecordBatch.from_pylist(rows, schema=MANIFEST_SCHEMA))
    return pa.Table.from_batches(batches, schema=MANIFEST_SCHEMA).combine_chunks()


def rows_of(commit: ShardCommit) -> list[dict[str, Any]]:
    """What a manifest says of a shard: a row for each of its latent tars."""
    about = {"shard": commit.shard, "source": commit.source.uri}
    return [{**payload.model_dump(), **about} for payload in commit.views]


def plan_table(sources: Iterable[SourceShard]) -> tuple[str, bytes]:
    """The name of a plan and its content: the same shards give the same, in whatever order."""
    shards = list(sources)
    schema = HASHED_PLAN_SCHEMA if any(shard.sha256 for shard in shards) else PLAN_SCHEMA
    rows = sorted(tuple(getattr(shard, name) for name in schema.names) for shard in shards)
    columns = [list(column) for column in zip(*rows, strict=True)]
    return _plan_name(rows), to_parquet(pa.table(columns, schema=schema))


def read_plan(storage: Storage, path: str) -> list[SourceShard]:
    where = storage.url(path)

    def parse(data: bytes) -> list[SourceShard]:
        columns = _table(data, where, PLAN_SCHEMA, HASHED_PLAN_SCHEMA).to_pydict()
        rows = list(zip(*columns.values(), strict=True))
        if path.rpartition("/")[2] != _plan_name(rows):
            raise StorageError(f"{where}: damaged: its content does not give its name")
        return [SourceShard(**dict(zip(columns, row, strict=True))) for row in rows]

    return storage.parsed(path, parse)


def read_manifest(storage: Storage, path: str) -> pa.Table:
    return storage.parsed(path, lambda data: _table(data, storage.url(path), MANIFEST_SCHEMA))


def to_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, write_page_checksum=True)
    return buffer.getvalue()


def _table(data: bytes, where: str, *schemas: pa.Schema) -> pa.Table:
    """A table whose columns are those of one of the schemas."""
    try:
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, KeyError, UnicodeError) as error:
        raise StorageError(f"{where}: damaged: {' '.join(str(error).split())[:200]}") from None
    if not any(table.schema.equals(schema, check_metadata=False) for schema in schemas):
        raise StorageError(f"{where}: damaged: has other columns than it should")
    return table


def _plan_name(rows: list[tuple[Any, ...]]) -> str:
    return f"{digest(rows)[:16]}.parquet"
