"""One tar of pictures, strictly: every member belongs to a picture, and every sample has exactly one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.read import IMAGE_PARTS, key_and_part
from encode_pipeline.tar import BLOCK, Member, TarReader, shown

TEXT_PARTS = ("cls", "txt", "json")


@dataclass
class TarSample:
    """The members of a tar that share a key."""

    tar: str
    key: str
    start: int
    """Where its first header begins, counted from where the reading began."""
    image: bytes = b""
    """Nothing where pictures were not asked for."""
    parts: list[str] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)

    def add(self, part: str, member: Member, tar: TarReader, with_image: bool) -> None:
        """Takes a member in; parts that evaluation does not know are passed over."""
        if not member.is_file:
            raise self.fault(f"{shown(member.name)} is no plain file")
        if part in self.parts:
            raise self.fault(f"two members {shown(part)}")
        if part in IMAGE_PARTS:
            if other := set(IMAGE_PARTS).intersection(self.parts):
                raise self.fault(f"two pictures, {other.pop()} and {part}")
            if with_image:
                self.image = tar.content()
        elif part in TEXT_PARTS:
            self.texts[part] = tar.content()
        self.parts.append(part)

    def check(self) -> None:
        if not set(IMAGE_PARTS).intersection(self.parts):
            raise self.fault(f"no picture; its parts are {shown(', '.join(self.parts))}")

    @property
    def label(self) -> int | str | None:
        """The number in the `.cls`, else `class_name` in the `.json`."""
        if "cls" not in self.texts:
            name = self._record().get("class_name")
            return name if isinstance(name, str) else None
        text = self._text("cls").strip()
        if not (text.isascii() and text.isdigit()):
            raise self.fault(f"its .cls is not the number of a class: {shown(text)!r}")
        return int(text)

    @property
    def captions(self) -> tuple[str, ...]:
        """Those of the `.txt`, one a line, else `caption` in the `.json`."""
        if "txt" in self.texts:
            return tuple(line.strip() for line in self._text("txt").splitlines() if line.strip())
        caption = self._record().get("caption")
        return (caption.strip(),) if isinstance(caption, str) and caption.strip() else ()

    def fault(self, reason: str) -> CheckFailed:
        return CheckFailed(f"{self.tar}: {shown(self.key)}: {reason}")

    def _record(self) -> dict[str, object]:
        try:
            record = json.loads(self.texts.get("json", b"{}"))
        except (ValueError, RecursionError):
            raise self.fault("its .json is damaged") from None
        return record if isinstance(record, dict) else {}

    def _text(self, part: str) -> str:
        try:
            return self.texts[part].decode("utf-8")
        except UnicodeDecodeError:
            raise self.fault(f"its .{part} is not UTF-8") from None


def tar_samples(tar: TarReader, with_images: bool) -> Iterator[TarSample]:
    """The samples of a tar in their order, each with one picture at least in name."""
    keys: set[str] = set()
    sample: TarSample | None = None
    end = 0
    for member in tar:
        start, end = end, tar.position + member.size + -member.size % BLOCK
        key, part = key_and_part(member.name)
        if sample is None or key != sample.key:
            if sample is not None:
                sample.check()
                yield sample
            sample = TarSample(tar.name, key, start)
            if key in keys:
                raise sample.fault("comes twice, with others between")
            keys.add(key)
        sample.add(part, member, tar, with_images)
    if sample is not None:
        sample.check()
        yield sample
