"""A latent shard tar: the same samples give the same bytes, on any machine, at any time.

A sample is three members, in this order: `KEY.npy` (float16, channels x height x width; in an int8 store the record
of `quantised.py`), `KEY.txt` (caption) and `KEY.json` (where it came from). Plain `webdataset` reads it.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from encode_pipeline.latents.disk import sync
from encode_pipeline.latents.quantised import quantise, record_type
from encode_pipeline.latents.spec import LatentSpec, SpecError, canonical_json

BLOCK = 512
END_OF_TAR = bytes(2 * BLOCK)
MAX_NAME_BYTES = 100
MAX_KEY_BYTES = MAX_NAME_BYTES - len(".json")

Latent = npt.NDArray[np.float16]


@dataclass(frozen=True)
class TarSummary:
    """What was written: enough to check it anywhere later."""

    path: Path
    size: int
    sha256: str
    samples: int


class ShardWriter:
    """Writes one tar of one view to local disk, hashing on the way.

    Leaving the `with` block by an exception leaves a tar without an end, which no reader accepts.
    """

    def __init__(self, path: Path, spec: LatentSpec) -> None:
        self.path, self.spec = path, spec
        self.samples = 0
        self._size = 0
        self._hash = hashlib.sha256()
        self._npy_header = npy_header(spec)
        self._file = path.open("xb")
        self.summary: TarSummary | None = None

    def add(self, key: str, latent: Latent, caption: str, metadata: dict[str, Any]) -> None:
        """Appends a sample; what readers would refuse is refused here."""
        if latent.dtype != np.float16 or latent.shape != self.spec.shape:
            raise SpecError(f"{key}: a {latent.dtype} latent of shape {latent.shape}; {self.spec.shape} float16 wanted")
        if not np.isfinite(latent).all():
            raise SpecError(f"{key}: a latent that is not finite")
        is_int8 = self.spec.dtype == "int8"
        numbers = quantise(latent).to_bytes() if is_int8 else latent.astype("<f2", copy=False).tobytes()
        self._member(f"{key}.npy", self._npy_header + numbers)
        self._member(f"{key}.txt", caption.encode("utf-8"))
        self._member(f"{key}.json", canonical_json({**metadata, "spec": self.spec.fingerprint}))
        self.samples += 1

    def close(self) -> TarSummary:
        """Ends the tar, has the disk hold it, and says what it is."""
        if self.summary is None:
            self._write(END_OF_TAR)
            self._file.close()
            sync(self.path)
            self.summary = TarSummary(self.path, self._size, self._hash.hexdigest(), self.samples)
        return self.summary

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()

    def _member(self, name: str, data: bytes) -> None:
        self._write(member_header(name, len(data)) + data + bytes(-len(data) % BLOCK))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)


def npy_header(spec: LatentSpec) -> bytes:
    """The bytes that every `.npy` member of a store begins with."""
    buffer = io.BytesIO()
    descr, shape = ("<f2", spec.shape) if spec.dtype == "float16" else (record_type(spec.shape).descr, ())
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def member_header(name: str, size: int) -> bytes:
    """A plain ustar header with nothing of the machine or the moment in it."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 0, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


def key_problem(key: str) -> str | None:
    """Why a sample cannot be stored under this key, or None if it can."""
    if not key or key.startswith("/") or any(part in ("", ".", "..") for part in key.split("/")):
        return "an absolute, empty or climbing path"
    if "." in key.rsplit("/", 1)[-1]:
        return "a dot in the name"
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) <= 0xDFFF for letter in key):
        return "control or undecodable letters"
    if len(key.encode("utf-8")) > MAX_KEY_BYTES:
        return f"longer than {MAX_KEY_BYTES} bytes"
    return None
