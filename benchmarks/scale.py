"""Scaling on paper: the tables of docs/scale.md, made from what was measured. `write=FILE` writes them into it anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.documents import table_of, with_tables
from benchmarks.scale_plan import DTYPES, MEASURED, MODELS, Plan, ScaleConfig

S3_WRITES, S3_READS = 3500, 5500
"""A second and prefix, at least: docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html"""
GCS_WRITES, GCS_READS = 1000, 5000
"""A second and bucket, to begin with: cloud.google.com/storage/docs/request-rate"""
TB, GB, MB = 1e12, 1e9, 1e6


def run(config: ScaleConfig) -> Mapping[str, Any]:
    plan = Plan(config)
    found = tables(plan)
    if config.write is not None:
        text = config.write.read_text(encoding="utf-8")
        config.write.write_text(with_tables(text, found), encoding="utf-8")
    return {"tables": found, "breaks": {name: round(gpus) for name, gpus, _ in limits(plan)}}


def show(result: Mapping[str, Any]) -> str:
    return "\n\n".join(result["tables"].values())


def tables(plan: Plan) -> dict[str, str]:
    """Every table, by name, as Markdown."""
    return {
        "measured": table_of(("measured", "", "where"), [*_measured(plan)]),
        "assumed": table_of(("assumed", "", "key"), [*_assumed(plan.config)]),
        "whole": table_of(("", *DTYPES), [*_whole(plan)]),
        "fleets": table_of(("GPUs", *(f"{gpus:,}" for gpus in plan.config.gpus)), [*_fleets(plan)]),
        "limits": table_of(("what", "limit", "reached by so many GPUs"), [*_limits(plan)]),
        "training": table_of(("", *MODELS), [*_training(plan)]),
    }


def _measured(plan: Plan) -> Iterator[tuple[str, str, str]]:
    for name, source in MEASURED.items():
        yield source.what, number(plan.measured[name]), f"[{source.file}](../benchmarks/results/{source.file})"


def _assumed(config: ScaleConfig) -> Iterator[tuple[str, str, str]]:
    for key, field in type(config).model_fields.items():
        value = getattr(config, key)
        if isinstance(value, (int, float)):
            yield field.description or "", number(value), f"`{key}`"
    yield "prices", config.prices, "`prices`"


def _whole(plan: Plan) -> Iterator[Sequence[str]]:
    """What does not depend on how many GPUs there are."""

    def both(name: str, one: str) -> tuple[str, str, str]:
        return name, one, one

    def each(name: str, of: Callable[[str], str]) -> tuple[str, ...]:
        return name, *(of(dtype) for dtype in DTYPES)

    config = plan.config
    yield both("latents", number(plan.latents))
    yield both("GPU-hours", number(plan.gpu_hours))
    yield both("GPU-hours with what spot machines lose", number(plan.gpu_hours / (1 - plan.lost)))
    yield both("share of it that goes with losses", f"{plan.lost:.1%}")
    yield both("dollars for GPUs", dollars(plan.gpu_hours / (1 - plan.lost) * config.gpu_hour_price))
    yield both("source tars, shards, commits", number(plan.shards))
    yield both("seconds of a GPU for each", number(plan.shard_seconds))
    memory = f"{plan.measured['driver']:.0f} MiB"
    yield both(f"driver's memory, as with {plan.measured['shards']:,.0f} of them", memory)
    yield both("latent tars", number(plan.shards * config.views))
    yield each("bytes of a latent tar", lambda dtype: f"{plan.tar_bytes(dtype) / MB:,.0f} MB")
    yield each("store", lambda dtype: f"{plan.store_bytes(dtype) / TB:,.0f} TB")
    yield each(
        "dollars a month for it", lambda dtype: dollars(plan.store_bytes(dtype) / TB * config.terabyte_month_price)
    )
    yield both("source tars to read", f"{plan.shards * plan.source_bytes / TB:,.0f} TB")
    yield each("writes a shard: PUT, POST, LIST", lambda dtype: number(plan.asked(dtype)[0]))
    yield each("reads a shard: GET, HEAD", lambda dtype: number(plan.asked(dtype)[1]))
    yield each("requests in all", lambda dtype: number(sum(plan.asked(dtype)) * plan.shards))
    yield each("dollars for requests", lambda dtype: dollars(plan.requests_price(dtype)))
    yield both("manifest", f"{plan.manifest_bytes / MB:,.0f} MB")
    yield both("`seal`", f"{plan.seal_seconds / 60:.0f} min")
    yield each("`verify`, every byte", lambda dtype: f"{plan.verify_core_hours(dtype):,.0f} core-hours")


def _fleets(plan: Plan) -> Iterator[Sequence[str]]:
    """What does."""

    def row(name: str, of: Callable[[int], str]) -> tuple[str, ...]:
        return name, *(of(gpus) for gpus in plan.config.gpus)

    def a_second(amount: float) -> Callable[[int], float]:
        """Of an amount a shard."""
        return lambda gpus: amount * gpus / plan.shard_seconds

    sources, tars = plan.source_bytes, plan.config.views * plan.tar_bytes("float16")
    writes, reads = plan.asked("float16")
    yield row("views a second", lambda gpus: number(gpus * plan.measured["views"]))
    yield row("wall time", lambda gpus: duration(plan.hours(gpus)))
    yield row("tars, commits a second", lambda gpus: f"{gpus / plan.shard_seconds:.2f}")
    yield row(
        "share of what the driver gives out", lambda gpus: f"{gpus / plan.shard_seconds / plan.measured['tasks']:.1%}"
    )
    yield row(
        "machines lost an hour",
        lambda gpus: number(gpus / plan.config.gpus_a_machine / plan.config.hours_between_losses),
    )
    yield row("GB/s of source tars in", lambda gpus: f"{a_second(sources)(gpus) / GB:.1f}")
    yield row("GB/s of latents out, and as much read back", lambda gpus: f"{a_second(tars)(gpus) / GB:.1f}")
    yield row(
        "the same of int8",
        lambda gpus: f"{a_second(tars)(gpus) / GB * plan.sample_bytes('int8') / plan.sample_bytes('float16'):.1f}",
    )
    yield row("writes a second", lambda gpus: f"{a_second(writes)(gpus):.0f}")
    yield row("of S3's for one prefix, writes", lambda gpus: f"{a_second(writes)(gpus) / S3_WRITES:.1%}")
    yield row("of Google's first for a bucket, writes", lambda gpus: f"{a_second(writes)(gpus) / GCS_WRITES:.1%}")
    yield row("reads a second", lambda gpus: f"{a_second(reads)(gpus):,.0f}")
    yield row("of S3's for one prefix, reads", lambda gpus: f"{a_second(reads)(gpus) / S3_READS:.1%}")
    yield row("cores that decode, 4 a GPU", lambda gpus: number(4 * gpus))


def limits(plan: Plan) -> list[tuple[str, float, str]]:
    """What there is an end to, the GPUs that come to it, and the limit in words; the nearest first."""
    writes, reads = plan.asked("float16")
    of_a_gpu = 1 / plan.shard_seconds
    tasks = plan.measured["tasks"]
    found = [
        ("encoding: writes to a bucket of Google's, at first", GCS_WRITES / writes / of_a_gpu, GCS_WRITES),
        ("encoding: reads of a bucket of Google's, at first", GCS_READS / reads / of_a_gpu, GCS_READS),
        ("encoding: writes to one prefix of S3", S3_WRITES / writes / of_a_gpu, S3_WRITES),
        ("encoding: reads of one prefix of S3", S3_READS / reads / of_a_gpu, S3_READS),
        ("encoding: tars that the driver gives out", tasks / of_a_gpu, tasks),
    ]
    for model in MODELS:
        for dtype in DTYPES:
            name = f"training {model} on {dtype}: reads of one prefix of S3"
            found.append((name, plan.trains_from(model, dtype, S3_READS), S3_READS))
    in_words = [(name, gpus, f"{limit:,.0f} a second") for name, gpus, limit in found]
    return sorted(in_words, key=lambda limit: limit[1])


def _limits(plan: Plan) -> Iterator[tuple[str, str, str]]:
    for name, gpus, limit in limits(plan):
        yield name, limit, number(gpus)


def _training(plan: Plan) -> Iterator[Sequence[str]]:
    def row(name: str, of: Callable[[str], str]) -> tuple[str, ...]:
        return name, *(of(model) for model in MODELS)

    config, machines = plan.config, plan.machines
    hours = 24 * config.training_gpus
    seen = number(config.training_samples)
    yield row(f"samples a second of {config.training_gpus} GPUs", lambda model: number(plan.samples_per_second(model)))
    yield row(f"days for {seen} samples", lambda model: f"{plan.training_days(model):.1f}")
    yield row("dollars for them", lambda model: dollars(plan.training_days(model) * hours * config.gpu_hour_price))
    for dtype in DTYPES:
        once = partial(plan.read_bytes, dtype=dtype)
        gets = partial(plan.copying_gets, dtype=dtype)
        yield row(f"{dtype}: GB/s, each sample once", _in_gb(once))
        yield row(f"{dtype}: GB/s of a shared filesystem to each machine", _in_gb(once, 1 / machines))
        yield row(f"{dtype}: GB/s of an object store to {machines:.0f} machines", _in_gb(once, machines))
        yield row(f"{dtype}: GETs a second for that", lambda model, gets=gets: number(gets(model)))  # type: ignore[misc]
    read, tokenised = plan.measured["read"], plan.measured["tokenised"]
    yield row(
        "share of its process's time in which a GPU's samples are read",
        lambda model: f"{plan.measured[model] / read:.1%}",
    )
    yield row(
        "processes of a machine that tokenise in the first epoch",
        lambda model: number(plan.samples_per_second(model) / machines / tokenised),
    )


def _in_gb(bytes_of: Callable[[str], float], times: float = 1.0) -> Callable[[str], str]:
    return lambda model: number(bytes_of(model) * times / GB)


def number(value: float) -> str:
    """Three digits; of large ones in words."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if abs(value) >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration(hours: float) -> str:
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours"


def dollars(value: float) -> str:
    return f"${value:,.0f}"
