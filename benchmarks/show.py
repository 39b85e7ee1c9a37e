"""Results as a person reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def show(content: Mapping[str, Any]) -> str:
    """A table for each benchmark."""
    lines = [f"on {content['processor']}, load average at the end {content['load_average'][0]}"]
    for name, result in content["results"].items():
        lines.append("")
        lines += next(show(name, result) for mark, show in SHOWN.items() if mark in result)
    if "out" in content:
        lines += ["", str(content["out"])]
    return "\n".join(lines)


def _timed(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    rounds = f"least to most of {result['rounds']} rounds"
    if "ways" in result:
        yield f"{name}, {result['unit']:<40}{'median':>12}{'ratio':>9}{'by CPU':>9}   {rounds}"
        for way, measured in result["ways"].items():
            rate, ratio, cpu_ratio = (measured[kind] for kind in ("per_second", "ratio", "cpu_ratio"))
            medians = f"{rate['median']:>12,.1f}{ratio['median']:>9.2f}{cpu_ratio['median']:>9.2f}"
            yield f"  {way:<{len(name) + 40}}{medians}   {_range(ratio)}"
        return
    yield f"{name}, {result['views']} views on {result['cores']} cores; {rounds}"
    for part, seconds in result["seconds"].items():
        yield f"  {part:<24}{seconds['median']:>9.2f} s   {_range(seconds)}"
    ratio = result["pipeline_to_sum"]
    yield f"  {'pipeline to their sum':<24}{ratio['median']:>9.3f}     {_range(ratio)}"
    by_cpu = result["pipeline_to_sum_by_cpu"]
    yield f"  {'  by CPU time':<24}{by_cpu['median']:>9.3f}     {_range(by_cpu)}"


def _memory(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    large, shards = result["large_tar"], result["shards"]
    yield f"{name}, MiB above the {result['libraries_mib']} of imported libraries"
    yield f"  a tar of {large['bytes'] / 1e9:.2f} GB, at most: {large['peak_above_libraries_mib']}"
    yield f"  {shards['count']} tars, at most: {shards['peak_above_libraries_mib']}"
    yield f"  after each of them: {', '.join(map(str, shards['above_libraries_after_each_mib']))}"


def _contrast(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    yield f"{name}: {result['samples']} pairs of width {result['width']}; differences are from the first"
    for way, measured in result["loss_ways"].items():
        memory = f"{measured['peak_mib']:>9,.0f} MiB ({measured['memory_ratio']:.3f})"
        differences = f"loss {measured['loss_difference']:.0e}, gradients {measured['gradient_difference']:.0e}"
        yield f"  {way:<30}{memory}{measured['seconds']:>8.2f} s   {differences}"


SHOWN = {"loss_ways": _contrast, "large_tar": _memory, "rounds": _timed}
"""Which result is shown how: by a key that only it has; the last is what most of them look like."""


def _range(values: Mapping[str, float]) -> str:
    return f"{values['least']:.2f} to {values['most']:.2f}"
