"""A source tar into samples, strictly: every member belongs to a sample, and every sample is used or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from encode_pipeline.latents.writer import key_problem
from encode_pipeline.records import Reason, Rejected, Sample
from encode_pipeline.tar import Member, Readable, TarError, TarReader, shown

__all__ = ["IMAGE_PARTS", "TarError", "read_samples"]

IMAGE_PARTS = ("jpg", "jpeg", "png", "webp", "avif", "tif", "tiff", "bmp", "gif")
"""The endings of pictures. Of a sample that has several, the first of these is taken."""
PICKLE_ENDINGS = frozenset({"pkl", "pickle", "pyd", "pt", "pth", "ckpt", "joblib", "dill", "cloudpickle"})
"""To open one is to run what is in it. Nobody here would, but whoever packed it is not to be trusted."""
MAX_MEMBER_BYTES = 256 << 20
MAX_TEXT_BYTES = 128 << 10
"""Of a caption or a metadata record, which take many times their size once parsed."""
MAX_DEPTH = 64
"""Of objects and lists within a metadata record: what Python's own limit lets in, it may not let out again."""
MAX_SAMPLES = 1 << 20
"""In one tar, refused ones included: each is remembered until its tar is done. LAION's have ten thousand."""
MAX_PARTS = 1000
"""Members that one sample may have; the next one begins another."""


def read_samples(
    stream: Readable, name: str, size: int | None = None, caption_field: str | None = None
) -> Iterator[Sample | Rejected]:
    """Samples and refusals in the order of the tar. A damaged tar raises, at the latest at its end.

    A sample is a run of members that share a key; a part that comes twice begins the next sample. Captions
    are those of the `.txt`, else `caption` in the `.json`; with `caption_field`, that field of the `.json` alone.
    At most one member that matters is held at a time beside the sample's metadata.
    """
    seen: set[str] = set()
    tar = TarReader(stream, name, size)
    run: _Run | None = None
    count = 0
    for member in tar:
        key, part = key_and_part(member.name)
        if run is None or key != run.key or part in run.parts or len(run.parts) == MAX_PARTS:
            if run is not None:
                yield run.finish()
            if (count := count + 1) > MAX_SAMPLES:
                raise TarError(f"{name}: more than {MAX_SAMPLES} samples, at {shown(member.name)}")
            refusal = _refusal(key, seen)
            if refusal is None:
                seen.add(key)
            run = _Run(key, refusal, caption_field)
        run.add(part, member, tar)
    if run is not None:
        yield run.finish()


def key_and_part(name: str) -> tuple[str, str]:
    """The sample that a member belongs to, and what of it the member is: everything from the first dot on."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, part = base.partition(".")
    key = f"{folder}/{stem}" if folder or name.startswith("/") else stem
    return key, part.lower()


def _refusal(key: str, seen: set[str]) -> Rejected | None:
    """Why a sample is refused for its key alone, before any of it is read."""
    if problem := key_problem(key):
        return Rejected(key, Reason.UNSAFE_KEY, problem)
    if key in seen:
        return Rejected(key, Reason.DUPLICATE_KEY, "this key came before in the same tar")
    return None


class _Run:
    """Neighbouring members that share a key: a sample in the making, or its refusal."""

    def __init__(self, key: str, refusal: Rejected | None, caption_field: str | None) -> None:
        self.key, self.caption_field = key, caption_field
        self.parts: dict[str, None] = {}  # in the order of the tar
        self._refusal = refusal
        self._image: bytes | None = None
        self._image_rank = len(IMAGE_PARTS)
        self._texts: dict[str, bytes] = {}

    def add(self, part: str, member: Member, tar: TarReader) -> None:
        """Takes a member in. Its content is read only if the sample may still need it."""
        self.parts[part] = None
        if self._refusal is not None:
            return
        if not member.is_file or part.rpartition(".")[2] in PICKLE_ENDINGS:
            self._refuse(Reason.UNSAFE_MEMBER, f"member {shown(member.name)}")
            return
        is_text = part == "json" or (part == "txt" and self.caption_field is None)
        if not is_text and part not in IMAGE_PARTS:
            return
        limit = MAX_TEXT_BYTES if is_text else MAX_MEMBER_BYTES
        if member.size > limit:
            self._refuse(Reason.TOO_LARGE, f"member {shown(member.name)}: {member.size} bytes, {limit} at most")
        elif is_text:
            self._texts[part] = tar.content()
        elif (rank := IMAGE_PARTS.index(part)) < self._image_rank:
            self._image = None  # before the better one is read: one picture at a time
            self._image, self._image_rank = tar.content(), rank

    def finish(self) -> Sample | Rejected:
        """What all the members come to."""
        if self._refusal is not None:
            return self._refusal
        if self._image is None:
            named = ", ".join(list(self.parts)[:8]) + (", …" if len(self.parts) > 8 else "")
            return Rejected(self.key, Reason.MISSING_IMAGE, f"parts: {shown(named)}")
        try:
            metadata = _metadata(self._texts["json"]) if "json" in self._texts else {}
        except (ValueError, RecursionError) as error:
            return Rejected(self.key, Reason.BAD_METADATA, shown(" ".join(str(error).split())))
        try:
            if "txt" in self._texts:
                caption: Any = self._texts["txt"].decode("utf-8")
            else:
                caption = metadata.get(self.caption_field or "caption")
            if isinstance(caption, str):
                caption.encode("utf-8")
        except UnicodeError as error:
            return Rejected(self.key, Reason.CAPTION_NOT_UTF8, str(error)[:200])
        if not isinstance(caption, str) or not caption.strip():
            return Rejected(self.key, Reason.MISSING_CAPTION, "empty text" if isinstance(caption, str) else "no text")
        return Sample(self.key, self._image, caption.strip(), metadata)

    def _refuse(self, reason: Reason, detail: str) -> None:
        self._refusal = Rejected(self.key, reason, detail)
        self._image = None
        self._texts.clear()


def _metadata(data: bytes) -> dict[str, Any]:
    """The record in a `.json` member. NaN and infinities, which JSON does not have, become null."""

    def number(text: str) -> float | None:
        value = float(text)
        return value if math.isfinite(value) else None

    loaded = json.loads(data, parse_constant=lambda _: None, parse_float=number)
    if not isinstance(loaded, dict):
        raise ValueError(f"a {type(loaded).__name__}, not an object")
    level: list[Any] = [loaded]
    for _ in range(MAX_DEPTH):
        level = [inner for value in level for inner in _inside(value) if isinstance(inner, (dict, list))]
        if not level:
            return loaded
    raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _inside(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
