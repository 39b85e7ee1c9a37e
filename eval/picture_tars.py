"""Pictures in tars: the webdataset layout of CLIP_benchmark, and tars whose samples say their class themselves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.spec import digest
from encode_pipeline.latents.storage import Storage
from encode_pipeline.places import Places
from encode_pipeline.sources import SourceChanged, find_sources, open_source
from encode_pipeline.tar import PIECE, Readable, TarError, TarReader
from eval.class_names import ClassList, listed_classes, own_classes
from eval.picture_set import MOST_IN_A_PART, Layout, Part, Picture, PictureSet, part_sizes
from eval.picture_tar import TarSample, tar_samples

TAR_COUNT, KIND = "nshards.txt", "dataset_type.txt"


@dataclass
class _Seen:
    """What the first reading of all tars has found."""

    listed: ClassList | None
    times: Counter[str]
    """How often each name stands in the list, or in the data if there is none."""
    no_label: str | None = None
    no_caption: str | None = None


def split_of(address: str) -> tuple[str, str] | None:
    """The folders of a data set of CLIP_benchmark and of its split, if one lies at the address: `test` unless said."""
    parent = address.rpartition("/")[0] or "."
    for root, split in ((address, f"{address}/test"), (parent, address)):
        if Storage(split).exists(TAR_COUNT):
            return root, split
    return None


def open_wds(address: str, root: str, split: str, classes: Path | None) -> PictureSet:
    """A data set of CLIP_benchmark: as many tars as `nshards.txt` says, no fewer and no more."""
    try:
        count = int(Storage(split).read(TAR_COUNT))
    except ValueError:
        raise RequestError(f"{split}/{TAR_COUNT}: not a number") from None
    about = Storage(root)
    if about.exists(KIND) and about.read(KIND).strip() == b"multilabel":
        raise RequestError(f"{root}/{KIND}: multilabel: pictures of several classes each are not evaluated here")
    sources = _numbered_tars(split, count, f"{split}/{TAR_COUNT} says {count}")
    return _open(address, "wds", sources, listed_classes(classes, root))


def open_tars(address: str, classes: Path | None) -> PictureSet:
    """The tars at an address: a folder, a tar, a glob or a range; a list of classes may lie beside them."""
    sources = find_sources([address])
    return _open(address, "tars", sources, listed_classes(classes, sources[0].uri.rpartition("/")[0]))


def _numbered_tars(split: str, count: int, said: str) -> list[SourceShard]:
    """The tars `0.tar` and on of a split, whose folder may hold no others."""
    place = Places().of(split)
    sources = []
    wanted = [place.full(f"{split}/{number}.tar") for number in range(count)]
    for uri, entry in zip(wanted, place.look_up(wanted), strict=True):
        if entry is None:
            raise RequestError(f"{uri}: no such tar, and {said}")
        if entry.size is None:
            raise RequestError(f"{uri}: the server does not say how large it is")
        sources.append(SourceShard(uri, entry.size, entry.etag))
    if place.protocol not in ("http", "https"):  # where nothing can be listed
        for uri, _ in place.tars_in(place.full(split)):
            if uri not in wanted:
                raise RequestError(f"{uri}: one tar too many: {said}")
    return sources


def _open(address: str, layout: Layout, sources: list[SourceShard], listed: ClassList | None) -> PictureSet:
    seen = _Seen(listed, Counter(listed.names if listed else ()))
    parts: list[Part] = []
    stretches: dict[str, tuple[SourceShard, int]] = {}
    marks = []
    for number, source in enumerate(sources):
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", source.uri.rpartition("/")[2].removesuffix(".tar"))[:60]
        starts, sha256 = [], ""
        try:
            with open_source(source) as stream:
                tar = TarReader(stream, source.uri, source.size)
                for sample in tar_samples(tar, with_images=False):
                    starts.append(sample.start)
                    _look_at(sample, seen)
                sha256 = stream.sha256()
        except (TarError, SourceChanged) as error:
            raise CheckFailed(str(error)) from None
        for place, size in enumerate(part_sizes(len(starts))):
            part = Part(f"{number:05d}-{stem}-{place:03d}", size)
            parts.append(part)
            stretches[part.name] = source, starts[place * MOST_IN_A_PART]
        marks.append([stem, sha256])
    if not parts:
        raise RequestError(f"{address}: no picture in {len(sources)} tars")
    listed = listed or own_classes(sorted(seen.times))
    numbers = {name: number for number, name in enumerate(listed.names)}

    def read(part: Part) -> Iterator[Picture]:
        source, start = stretches[part.name]
        place = Places().of(source.uri)
        try:
            with place.open(source.uri) as stream, place.told_plainly(source.uri):
                _go_to(stream, start)
                samples = tar_samples(TarReader(stream, source.uri, source.size - start), with_images=True)
                for sample in islice(samples, part.size):
                    label = numbers[sample.label] if isinstance(sample.label, str) else sample.label
                    yield Picture(sample.key, sample.image, label, sample.captions)
        except TarError as error:
            raise CheckFailed(str(error)) from None

    return PictureSet(
        address=address,
        layout=layout,
        names=listed.names,
        templates=listed.templates,
        identity=digest([listed.names, marks]),
        parts=parts,
        no_label=seen.no_label,
        no_caption=seen.no_caption,
        reader=read,
    )


def _look_at(sample: TarSample, seen: _Seen) -> None:
    """Checks what a sample says about its picture, and remembers what matters of it."""
    label, listed = sample.label, seen.listed
    if label is None:
        seen.no_label = seen.no_label or str(sample.fault("no label: neither a .cls nor class_name in a .json"))
    elif isinstance(label, str):
        if listed is None:
            seen.times[label] = 1
        elif (times := seen.times[label]) != 1:
            said = "is not in" if times == 0 else "names two classes of"
            raise RequestError(f"{sample.fault(f'class_name {label!r} {said} {listed.where}')}")
    elif listed is None:
        raise RequestError(f"{sample.fault('its class is a number, and no list has its name; say classes=DIR')}")
    elif label >= len(listed.names):
        raise RequestError(f"{sample.fault(f'class {label} is not one of the {len(listed.names)} in {listed.where}')}")
    if not sample.captions:
        seen.no_caption = seen.no_caption or str(sample.fault("no caption: neither a .txt nor caption in a .json"))


def _go_to(stream: Readable, start: int) -> None:
    """Leaves out the beginning of a tar; what cannot jump there is read."""
    with suppress(AttributeError, ValueError, OSError):
        stream.seek(start)  # type: ignore[attr-defined]
        return
    while start > 0 and (piece := stream.read(min(PIECE, start))):
        start -= len(piece)
