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
MAX_SIZE = 0o77777777777
"""That a ustar header can state."""
EXPONENT = np.uint16(0x7C00)
"""Of a float16: all ones in an infinity and in a NaN, and nowhere else."""

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
        self._fingerprint = spec.fingerprint  # which takes as long to compute as a sample to write
        self._size = 0
        self._hash = hashlib.sha256()
        self._npy_header = npy_header(spec)
        self._file = path.open("xb")
        self.summary: TarSummary | None = None

    def add(self, key: str, latent: Latent, caption: str, metadata: dict[str, Any]) -> None:
        """Appends a sample; what readers would refuse is refused here."""
        if latent.dtype != np.float16 or latent.shape != self.spec.shape:
            raise SpecError(f"{key}: a {latent.dtype} latent of shape {latent.shape}; {self.spec.shape} float16 wanted")
        if not is_finite(latent):
            raise SpecError(f"{key}: a latent that is not finite")
        is_int8 = self.spec.dtype == "int8"
        numbers = quantise(latent).to_bytes() if is_int8 else np.ascontiguousarray(latent, "<f2").data
        pieces = (
            *_member(f"{key}.npy", self._npy_header, numbers),
            *_member(f"{key}.txt", caption.encode("utf-8")),
            *_member(f"{key}.json", canonical_json({**metadata, "spec": self._fingerprint})),
        )
        self._write(b"".join(pieces))
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
    encoded, digits = name.encode("utf-8"), b"%011o" % size
    if len(encoded) > MAX_NAME_BYTES or size > MAX_SIZE:
        raise ValueError(f"{name}: a name of {len(encoded)} bytes, and {size} bytes of content: not for a tar")
    checksum = _EMPTY_SUM + sum(encoded) + sum(digits)
    return b"%b%b%b%b%06o%b" % (
        *(encoded.ljust(MAX_NAME_BYTES, b"\0"), _EMPTY_HEADER[100:124], digits, _EMPTY_HEADER[135:148]),
        *(checksum, _EMPTY_HEADER[154:]),
    )


def _empty_header() -> bytes:
    """What is the same in all headers; the name and the size, which are not, add nothing to the sum of its bytes."""
    info = tarfile.TarInfo()
    info.mtime, info.mode = 0, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


_EMPTY_HEADER = _empty_header()
_EMPTY_SUM = int(_EMPTY_HEADER[148:154], 8) - sum(_EMPTY_HEADER[124:135])


def _member(name: str, *content: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
    """A member in pieces, to be joined with those of its sample: so a latent is copied once."""
    size = sum(len(part) if isinstance(part, bytes) else part.nbytes for part in content)
    return (member_header(name, size), *content, bytes(-size % BLOCK))


def is_finite(latent: Latent) -> bool:
    """Whether all numbers are; in an eighth of the time of numpy's `isfinite`."""
    return not (latent.view(np.uint16) & EXPONENT == EXPONENT).any()


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
