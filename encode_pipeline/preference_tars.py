"""Pairs of pictures that people chose between, from parquet as Pick-a-Pic is published, to tars that `run` encodes.

OUT/00000-000.tar …      pictures, captions and labels: two samples a pair, `NNNNNNNNN_0` and `NNNNNNNNN_1`
OUT/pairs.json           which parquet files they are from
OUT/counts/00000.json    written last: a parquet file is done, and what became of its rows
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from encode_pipeline.latents.command import CheckFailed, RequestError, Settings
from encode_pipeline.latents.disk import replace
from encode_pipeline.latents.spec import canonical_json

ROWS_AT_ONCE = 32
"""Of a parquet file, with their pictures some 20 MB."""
KEPT = ("ranking_id", "user_id", "are_different")
"""Columns that go along with a pair if they are there."""


def _is_picture(kind: pa.DataType) -> bool:
    """Bytes, or bytes and a path as Hugging Face's image columns have them."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_picture(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


COLUMNS: Mapping[str, Callable[[pa.DataType], bool]] = {
    "caption": _is_text,
    "jpg_0": _is_picture,
    "jpg_1": _is_picture,
    "label_0": _is_number,
    "label_1": _is_number,
    "has_label": pa.types.is_boolean,
    "num_example_per_prompt": _is_number,
}
"""What a file must have, and of which type."""


class PairsRequest(Settings):
    """Preference pairs to tars. The same command again goes on with the parquet files that are missing."""

    parquet: tuple[str, ...] = Field(
        description="files with Pick-a-Pic's columns: paths, folders, globs; one or a list"
    )
    out: Path = Field(description="folder for the tars")
    per_tar: Annotated[int, Field(gt=0)] = Field(1000, description="pairs a tar; no tar holds those of two files")

    @field_validator("parquet", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


@dataclass(frozen=True)
class _PairFile:
    path: Path
    rows: int
    first: int
    """The number of its first row, counted over all files."""


def write_pairs(request: PairsRequest) -> dict[str, Any]:
    """Writes the tars that are missing. Every row of the files is a pair, or left out for a reason that is counted."""
    files = _open_all(request.parquet)
    _claim(request, files)
    total: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for number, file in enumerate(files):
        done = request.out / "counts" / f"{number:05d}.json"
        if not done.exists():
            replace(done, canonical_json(_convert(file, request.out / f"{number:05d}", request.per_tar)))
            print(f"{file.path}: done, {number + 1} of {len(files)} files", file=sys.stderr, flush=True)
        counts = json.loads(done.read_bytes())
        left_out.update(counts.pop("left_out"))
        total.update(counts)
    if not total["pairs"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "no row"
        raise CheckFailed(f"{files[0].path}: no usable pair: {reasons}")
    return {"out": str(request.out), **total, "left_out": dict(sorted(left_out.items()))}


def _open_all(patterns: Iterable[str]) -> list[_PairFile]:
    """The files that the patterns name, in order, with their columns checked before anything is written."""
    files: list[_PairFile] = []
    first = 0
    for path in _paths(patterns):
        try:
            footer = pq.read_metadata(path)
            schema = footer.schema.to_arrow_schema()
        except (pa.ArrowException, OSError) as error:
            raise RequestError(f"{path}: not a readable parquet file: {_one_line(error)}") from None
        for name, fits in COLUMNS.items():
            if name not in schema.names:
                raise RequestError(f"{path}: no column {name}; it has {', '.join(schema.names)}")
            if not fits(schema.field(name).type):
                raise RequestError(f"{path}: column {name} holds {schema.field(name).type}, not what Pick-a-Pic's does")
        files.append(_PairFile(path, footer.num_rows, first))
        first += footer.num_rows
    if repeated := [name for name, count in Counter(file.path.name for file in files).items() if count > 1]:
        raise RequestError(f"{repeated[0]}: two files of this name; pairs are known by file and row")
    return files


def _paths(patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        path = Path(pattern).expanduser()
        found = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.is_file() else []
        found = found or sorted(path.parent.glob(path.name))
        if not found:
            raise RequestError(f"{pattern}: no parquet file there")
        yield from found


def _claim(request: PairsRequest, files: list[_PairFile]) -> None:
    """Makes the folder this command's; one that holds anything else is refused."""
    marker = request.out / "pairs.json"
    asked = {
        "per_tar": request.per_tar,
        "parquet": [[file.path.name, file.path.stat().st_size, file.rows] for file in files],
    }
    if marker.exists():
        if json.loads(marker.read_bytes()) != asked:
            raise RequestError(f"{request.out}: holds pairs of other files, or as many a tar; use another out=")
        return
    if request.out.exists() and any(request.out.iterdir()):
        raise RequestError(f"{request.out}: not empty, and not begun by this command; use another out=")
    replace(marker, canonical_json(asked))


def _convert(file: _PairFile, stem: Path, per_tar: int) -> dict[str, Any]:
    """Writes the tars of one file and counts its rows."""
    left_out: Counter[str] = Counter()
    rows = ties = pairs = tars = 0

    def usable() -> Iterator[tuple[int, Mapping[str, Any]]]:
        nonlocal rows
        for row in _rows(file.path):
            number, rows = rows, rows + 1
            if reason := why_left_out(row):
                left_out[reason] += 1
            else:
                yield number, row

    source = usable()
    while first := next(source, None):
        path = stem.with_name(f"{stem.name}-{tars:03d}.tar")
        unfinished = path.with_name(f".{path.name}.unfinished")
        with tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, row in (first, *islice(source, per_tar - 1)):
                _add(tar, f"{file.first + number:09d}", f"{file.path.name}:{number}", row)
                pairs, ties = pairs + 1, ties + (row["label_0"] == row["label_1"])
        unfinished.replace(path)
        tars += 1
    if rows != file.rows:
        raise CheckFailed(f"{file.path}: {rows} rows came, {file.rows} in its footer")
    return {"rows": rows, "pairs": pairs, "ties": ties, "tars": tars, "left_out": dict(left_out)}


def why_left_out(row: Mapping[str, Any]) -> str | None:
    """The reason why a row is of no use, if there is one."""
    labels, examples = (row["label_0"], row["label_1"]), row["num_example_per_prompt"]
    if not row["has_label"]:
        return "no_label"
    if not (_picture(row["jpg_0"]) and _picture(row["jpg_1"])):
        return "missing_image"
    if not (row["caption"] or "").strip():
        return "missing_caption"
    if any(label is None or not 0 <= label <= 1 for label in labels) or abs(sum(labels) - 1) > 1e-6:
        return "bad_labels"
    if examples is None or not 1 <= examples < float("inf"):
        return "bad_num_example_per_prompt"
    return None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file in their order, a few in memory at a time.

    Parquet itself takes up to three times a row group, however long the file.
    """
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            columns = [*COLUMNS, *(name for name in KEPT if name in file.schema_arrow.names)]
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CheckFailed(f"{path}: damaged: {_one_line(error)}") from None


def _add(tar: tarfile.TarFile, key: str, pair: str, row: Mapping[str, Any]) -> None:
    """Both samples of a pair, each with all that is known of it."""
    for side in (0, 1):
        about = {
            "pair": pair,
            "side": side,
            "label": float(row[f"label_{side}"]),
            "num_example_per_prompt": int(row["num_example_per_prompt"]),
            **{name: row[name] for name in KEPT if name in row},
        }
        members = {"jpg": _picture(row[f"jpg_{side}"]), "txt": row["caption"].encode(), "json": canonical_json(about)}
        for part, content in members.items():
            # A bare TarInfo has mtime 0, owner 0 and no names: the same rows give the same bytes.
            info = tarfile.TarInfo(f"{key}_{side}.{part}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _picture(value: Any) -> bytes:
    return (value["bytes"] if isinstance(value, dict) else value) or b""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
