"""What a run will take, before any of it is paid for: GPU-hours, days, dollars and bytes, from measured rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field, model_validator

from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.spec import bytes_of
from encode_pipeline.latents.store import Store
from encode_pipeline.progress import ends_of_runs
from encode_pipeline.read import read_samples
from encode_pipeline.records import Sample
from encode_pipeline.sources import find_sources, open_source
from encode_pipeline.tar import TarError

OPENED = 3
"""Tars that are read to know how many pictures the others hold."""
FLEETS = (1, 8, 64, 512)
"""GPUs to show the time for when nobody said how many."""
LOOKED_AT = 100
"""Commits of a version from which the size of a view is taken."""
SHA256_BYTES = 1.8e9
"""Bytes that `verify` reads in a second on one core, as measured."""


@dataclass(frozen=True)
class Rate:
    """How fast one GPU makes latents of 512-pixel views, and what each of them takes in the store."""

    views_per_second: float
    bytes_per_view: float
    how: str


MEASURED = Rate(399.7, 344_080_384 / 9600, "measured on one NVIDIA H200: benchmarks/results/gpu-h200.json")
"""The whole pipeline with a VAE of SDXL's size in float16. Another record is made by `python -m benchmarks gpu`."""


class PlanRequest(EncodeConfig):
    """What `run` would be told, and how an estimate is to be made; one of so many `images` needs nothing else."""

    source: tuple[str, ...] = Field((), description="as for `run`; not needed for an estimate of `images`")
    store: str = Field("", description="as for `run`; an estimate takes the rate of earlier runs there")
    vae: str = Field("", description="as for `run`")
    estimate: bool = Field(False, description="say what the run would take instead: time, dollars, bytes")
    images: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="for the estimate; by default counted from the source's tars"
    )
    views_per_second: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="what one GPU does; by default as in earlier runs into this store, else as measured on an H200",
    )
    terabyte_month_price: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="dollars for keeping a terabyte for a month"
    )

    @model_validator(mode="after")
    def _said_what_is_needed(self) -> PlanRequest:
        if self.estimate and self.images:
            return self
        needed = ("source",) if self.estimate else ("source", "store", "vae")
        if missing := [key for key in needed if not getattr(self, key)]:
            hint = "; or say images=" if self.estimate else ""
            raise ValueError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} required{hint}")
        for key in ("images", "views_per_second", "terabyte_month_price"):
            if not self.estimate and getattr(self, key) is not None:
                raise ValueError(f"{key} is for an estimate: say --estimate too")
        return self


def estimate(request: PlanRequest) -> dict[str, Any]:
    """What encoding so many pictures takes."""
    rate = _rate(request)  # before tars are read
    images, how_many, source_bytes = _images(request)
    latents = images * request.views
    hours = latents / rate.views_per_second / 3600
    size = latents * rate.bytes_per_view
    fleets = [request.actors * request.gpus_per_actor] if request.actors else list(FLEETS)
    return {
        "images": round(images),
        "images_how": how_many,
        "views": request.views,
        "latents": round(latents),
        "views_per_second": round(rate.views_per_second, 1),
        "rate_how": rate.how,
        "gpu_hours": round(hours, 4),
        "hours_on_gpus": {f"{gpus:g}": round(hours / gpus, 4) for gpus in fleets if gpus},
        "cost": request.gpu_hour_price and round(hours * request.gpu_hour_price, 2),
        "gpu_hour_price": request.gpu_hour_price,
        "store_bytes": round(size),
        "store_per_month": request.terabyte_month_price and round(size / 1e12 * request.terabyte_month_price, 2),
        "source_bytes": source_bytes,
        "megabytes_per_second_of_a_gpu": {
            "in": source_bytes and round(source_bytes / (hours * 3600) / 1e6, 1),
            "out": round(rate.views_per_second * rate.bytes_per_view / 1e6, 1),
        },
        "verify_core_hours": round(size / SHA256_BYTES / 3600, 4),
    }


def _images(request: PlanRequest) -> tuple[float, str, int | None]:
    """How many pictures, how that is known, and the bytes of their tars if those are known."""
    if not request.source:
        assert request.images is not None
        return request.images, "as said", None
    sources = find_sources(request.source, request.limit)
    size = sum(source.size for source in sources)
    if request.images is not None:
        return request.images, "as said", size
    opened = sources[:: -(-len(sources) // OPENED)]
    found = sum(1 for source in opened for _ in _samples(source, request.caption_field))
    read = sum(source.size for source in opened)
    if not found:
        raise RequestError(f"{opened[0].uri}: holds no usable sample, nor do {len(opened) - 1} other tars; say images=")
    how = f"counted in {len(opened)} of {len(sources)} tars"
    return found / read * size, how if len(opened) == len(sources) else f"{how}, the rest by their bytes", size


def _samples(source: SourceShard, caption_field: str | None) -> Iterator[Sample]:
    try:
        with open_source(source) as tar:
            for item in read_samples(tar, source.uri, source.size, caption_field):
                if isinstance(item, Sample):
                    yield item
    except TarError as error:
        raise RequestError(f"{error}; say images=") from None


def _rate(request: PlanRequest) -> Rate:
    if request.views_per_second is not None:
        return Rate(request.views_per_second, _bytes_per_view(request), "as said")
    if request.store and (rate := _rate_of_store(request)):
        return rate
    if request.image_size != 512:
        unknown = f", and {request.store} knows no GPU's rate" if request.store else ""
        raise RequestError(f"image_size={request.image_size}: measured for 512 only{unknown}; say views_per_second=")
    return replace(MEASURED, bytes_per_view=_bytes_per_view(request))


def _bytes_per_view(request: PlanRequest) -> float:
    """A latent of four channels at an eighth of the picture's side, with what else is in a tar beside it."""
    beside = MEASURED.bytes_per_view - bytes_of((4, 64, 64), "float16")
    side = request.image_size // 8
    return beside + bytes_of((4, side, side), request.latent_dtype)


def _rate_of_store(request: PlanRequest) -> Rate | None:
    """What a GPU did in earlier runs into this store at this size, idle hours of its encoders included."""
    store = Store(request.store)
    latents, hours, size, count = 0.0, 0.0, 0, 0
    for fingerprint in store.versions():
        version = store.version(fingerprint)
        if version.spec.image_size != request.image_size or version.spec.is_generated:
            continue
        ends = [end for end in ends_of_runs(version.storage) if end.get("gpu_hours")]
        if not ends:
            continue
        shape, dtype = version.spec.shape, version.spec.dtype
        latents += sum(end["latents_per_second"] * end["seconds"] for end in ends)
        hours += sum(end["gpu_hours"] for end in ends)
        for commit in version.commits(sorted(version.done())[:LOOKED_AT]):
            here = commit.encoded * version.spec.views
            size += sum(payload.size for payload in commit.views)
            size += here * (bytes_of(shape, request.latent_dtype) - bytes_of(shape, dtype))
            count += here
    if not (latents and hours and count):
        return None
    how = f"measured in {store.storage.url()}: {latents:,.0f} latents in {hours:.2f} GPU-hours"
    return Rate(latents / hours / 3600, size / count, how)


def show_estimate(result: Mapping[str, Any]) -> str:
    """The estimate as people read it."""
    traffic = result["megabytes_per_second_of_a_gpu"]
    into = f"{traffic['in']} MB/s in, " if traffic["in"] else ""
    lines = [
        f"pictures   {result['images']:,} ({result['images_how']})",
        f"latents    {result['latents']:,} in {result['views']} view(s)",
        f"rate       {result['views_per_second']:g} views/s a GPU ({result['rate_how']})",
        f"work       {result['gpu_hours']:,.1f} GPU-hours" + _dollars(result["cost"], result["gpu_hour_price"]),
        *(f"           {_time(h)} on {gpus} GPU{'s' * (gpus != '1')}" for gpus, h in result["hours_on_gpus"].items()),
        f"store      {_bytes(result['store_bytes'])}"
        + (f", ${result['store_per_month']:,.2f} a month" if result["store_per_month"] else ""),
        f"traffic    {into}{traffic['out']} MB/s out, of each GPU",
        f"verify     {_time(result['verify_core_hours'])} of one core for every byte",
        "not in it: machines that are lost and do their last tars again, requests and traffic of the object store",
    ]
    return "\n".join(lines)


def _dollars(cost: float | None, price: float | None) -> str:
    return f", ${cost:,.2f} at ${price:g}" if cost and price else " (say gpu_hour_price= for dollars)"


def _time(hours: float) -> str:
    """A duration with the unit that suits it; what is this long is not known to the second."""
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.1f} hours" if hours >= 1 else f"{max(1, round(hours * 60))} min"


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
