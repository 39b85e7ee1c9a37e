"""A source tar into samples, strictly: what Python's tarfile passes over in silence is an error here."""

from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from encode_pipeline.latents.writer import BLOCK, END_OF_TAR, key_problem
from encode_pipeline.records import Reason, Rejected, Sample

IMAGE_PARTS = ("jpg", "jpeg", "png", "webp")
MAX_MEMBER_BYTES = 256 << 20

Members = dict[str, bytes | Reason]


class TarError(Exception):
    """A tar that cannot be trusted; the message names it and the fault."""


def read_samples(path: Path, name: str | None = None) -> Iterator[Sample | Rejected]:
    """Samples and refusals in the order of the tar. A damaged tar raises, at the latest at its end.

    A sample is a run of members that share a key; a part that comes twice begins the next sample.
    """
    seen: set[str] = set()
    for key, members in _groups(path, name or str(path)):
        if problem := key_problem(key):
            yield Rejected(key, Reason.UNSAFE_KEY, problem)
        elif key in seen:
            yield Rejected(key, Reason.DUPLICATE_KEY, "this key came before in the same tar")
        else:
            seen.add(key)
            yield _sample(key, members)


def _sample(key: str, members: Members) -> Sample | Rejected:
    for part, content in members.items():
        if isinstance(content, Reason):
            return Rejected(key, content, f"member .{part}")
    parts = {part: content for part, content in members.items() if isinstance(content, bytes)}
    image = next((parts[part] for part in IMAGE_PARTS if part in parts), None)
    if image is None:
        return Rejected(key, Reason.MISSING_IMAGE, f"parts: {', '.join(parts) or 'none'}")
    try:
        metadata = _metadata(parts["json"]) if "json" in parts else {}
    except (ValueError, RecursionError) as error:
        return Rejected(key, Reason.BAD_METADATA, " ".join(str(error).split())[:200])
    try:
        caption = parts["txt"].decode("utf-8") if "txt" in parts else metadata.get("caption")
        if isinstance(caption, str):
            caption.encode("utf-8")
    except UnicodeError as error:
        return Rejected(key, Reason.CAPTION_NOT_UTF8, str(error)[:200])
    if not isinstance(caption, str) or not caption.strip():
        return Rejected(key, Reason.MISSING_CAPTION, "no text" if caption is None else "empty text")
    return Sample(key, image, caption.strip(), metadata)


def _metadata(data: bytes) -> dict[str, Any]:
    """The record in a `.json` member. NaN and infinities, which JSON does not have, become null."""

    def number(text: str) -> float | None:
        value = float(text)
        return value if math.isfinite(value) else None

    loaded = json.loads(data, parse_constant=lambda _: None, parse_float=number)
    if not isinstance(loaded, dict):
        raise ValueError(f"a {type(loaded).__name__}, not an object")
    return loaded


def _groups(path: Path, name: str) -> Iterator[tuple[str, Members]]:
    key: str | None = None
    members: Members = {}
    for member_key, part, content in _members(path, name):
        if key is not None and (member_key != key or part in members):
            yield key, members
            members = {}
        key = member_key
        members[part] = content
    if key is not None:
        yield key, members


def _members(path: Path, name: str) -> Iterator[tuple[str, str, bytes | Reason]]:
    size = path.stat().st_size
    last = "the beginning"
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has seen; a large tar would fill memory
                last = member.name
                if member.isdir():
                    continue
                folder, _, base = member.name.removeprefix("./").rpartition("/")
                stem, _, part = base.partition(".")
                key = f"{folder}/{stem}" if folder or member.name.startswith("/") else stem
                if not member.isreg():
                    yield key, part.lower(), Reason.UNSAFE_MEMBER
                elif member.size > MAX_MEMBER_BYTES:
                    yield key, part.lower(), Reason.TOO_LARGE
                else:
                    stream = tar.extractfile(member)
                    content = stream.read() if stream is not None else b""
                    if len(content) != member.size:
                        raise TarError(f"{name}: {member.name}: cut short, {len(content)} bytes of {member.size}")
                    yield key, part.lower(), content
            end = tar.offset
            file.seek(min(end, size))
            _check_end(file.read(len(END_OF_TAR)), end, size, name, last)
            while rest := file.read(1 << 20):
                if any(rest):
                    raise TarError(f"{name}: bytes follow the end of the tar, after {last}")
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise TarError(f"{name}: not a readable tar after {last}: {error}") from None


def _check_end(end_blocks: bytes, end: int, size: int, name: str, last: str) -> None:
    """Two zero blocks where the last member ends; anything else means that members are missing."""
    if end_blocks == END_OF_TAR:
        return
    if any(end_blocks):
        raise TarError(f"{name}: damaged member header at byte {end}, after {last}")
    raise TarError(f"{name}: cut short at byte {size}, after {last}: no end of tar ({BLOCK * 2} zero bytes)")
