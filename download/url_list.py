"""What a list of URLs holds: its format and its columns, known before anything is asked of the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from encode_pipeline.latents.command import RequestError

FORMATS = ("parquet", "csv", "csv.gz", "tsv", "tsv.gz", "txt")
TAKEN = {
    *("url", "caption", "key", "status", "error_message", "exif", "md5", "sha256", "sha512"),
    *("width", "height", "original_width", "original_height"),
}
"""Names that img2dataset gives to its own columns."""


@dataclass(frozen=True)
class UrlList:
    path: Path
    format: str
    """As img2dataset names it."""
    columns: tuple[str, ...]
    plain_columns: tuple[str, ...]
    """Those that a sample's JSON record can hold."""


def read_url_list(path: Path) -> UrlList:
    """A file, or a folder of files of one kind, as LAION and COYO are published."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _format(file) is not None)
        if not files:
            raise RequestError(f"{path}: no {', '.join(FORMATS)} files in it")
    elif not path.is_file():
        raise RequestError(f"{path}: no such file or folder")
    formats = {_format(file) for file in files}
    if len(formats) > 1:
        raise RequestError(f"{path}: holds files of several kinds: {', '.join(sorted(map(str, formats)))}")
    kind = formats.pop()
    if kind is None:
        raise RequestError(f"{path}: none of {', '.join(FORMATS)}")
    if kind == "txt" and path.is_dir():
        raise RequestError(f"{path}: name .txt files one by one, or call tables .tsv")
    schema = _schema(files[0], kind)
    plain = tuple(field.name for field in schema if _is_plain(field.type))
    return UrlList(path.absolute(), "tsv" if kind == "txt" else kind, tuple(schema.names), plain)


def _format(file: Path) -> str | None:
    return next((name for name in FORMATS if file.name.endswith(f".{name}")), None)


def _schema(file: Path, kind: str) -> pa.Schema:
    try:
        if kind == "parquet":
            return pa.parquet.read_schema(file)
        options = pa.csv.ParseOptions(delimiter="," if kind.startswith("csv") else "\t")
        with pa.csv.open_csv(file, parse_options=options) as reader:
            schema = reader.schema
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise RequestError(f"{file}: not a readable {kind} table: {' '.join(str(error).split())}") from None
    if kind == "txt" and len(schema.names) == 1:
        raise RequestError(f"{file}: URLs without captions, and the encoder takes no picture without one")
    return schema


def _is_plain(kind: pa.DataType) -> bool:
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_integer)
    return any(check(kind) for check in checks) or pa.types.is_floating(kind)
