"""Two records beside one another: what became better or worse by more than the noise that both state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from benchmarks.record import Stated, read_record, stated
from encode_pipeline.latents.command import RequestError, Settings

EXACT = 1e-3
"""What is counted is the same every time but for the last digits of a library."""


class CompareConfig(Settings):
    records: list[Path] = Field(description="OLD.json NEW.json")
    at_least: float = Field(0.05, ge=0, description="changes of a ratio smaller than this share are not flagged")
    rates_at_least: float = Field(0.1, ge=0, description="of rates and times, which drift with the machine, this one")

    @field_validator("records")
    @classmethod
    def _two(cls, records: list[Path]) -> list[Path]:
        if len(records) != 2:
            raise ValueError(f"two records are compared, OLD.json and NEW.json; {len(records)} given")
        return records


@dataclass(frozen=True)
class Change:
    """A figure in both records."""

    benchmark: str
    name: str
    unit: str
    old: float
    new: float
    ratio: float
    """New to old."""
    noise: tuple[float, float]
    """The least and the most that the ratio of two rounds can be."""
    verdict: str
    """`better`, `worse`, `changed`, `same`, or `-`: not judged, since the machines differ."""


def compare_records(config: CompareConfig) -> Mapping[str, Any]:
    """Ratios of all figures that two records share; not ok if one became worse."""
    old_path, new_path = config.records
    records = [read_record(path) for path in config.records]
    old, new = (stated(record, path) for record, path in zip(records, config.records, strict=True))
    shared = [key for key in old if key in new and old[key].settings == new[key].settings]
    if not shared:
        raise RequestError(f"{old_path} and {new_path} share no figure measured with the same settings")
    machines = [_machine(record) for record in records]
    same = machines[0] == machines[1]
    changes = [_change(key, old[key], new[key], config, same) for key in shared]
    return {
        "ok": not any(change.verdict in ("worse", "changed") for change in changes),
        "machines": machines if not same else machines[:1],
        "commits": [record.get("commit") for record in records],
        "changes": [asdict(change) for change in changes],
        "only_in_old": _names(old, new),
        "only_in_new": _names(new, old),
        "other_settings": sorted({f"{key[0]}: {key[1]}" for key in old if key in new and key not in shared}),
    }


def _change(key: tuple[str, str, str], old: Stated, new: Stated, config: CompareConfig, same_machine: bool) -> Change:
    exact, is_ratio = old.exact and new.exact, old.unit.startswith("times ")
    at_least = EXACT if exact else config.at_least if is_ratio else config.rates_at_least
    ratio, noise = _over(new.median, old.median), (_over(new.least, old.most), _over(new.most, old.least))
    beyond = not noise[0] <= 1 <= noise[1] and abs(ratio - 1) > at_least
    if not (same_machine or exact or is_ratio):
        verdict = "-"
    elif not beyond:
        verdict = "same"
    elif old.better == "neither":
        verdict = "changed"
    else:
        verdict = "better" if (ratio > 1) == (old.better == "more") else "worse"
    return Change(*key, old.median, new.median, round(ratio, 4), (round(noise[0], 4), round(noise[1], 4)), verdict)


def _over(one: float, other: float) -> float:
    """One over the other, where both may be nothing."""
    return one / other if other else (1.0 if one == other else float("inf"))


def _machine(record: Mapping[str, Any]) -> str:
    about = record["machine"]
    gpu = about.get("gpu") or {}
    return ", ".join(filter(None, [str(about.get("processor")), gpu.get("name")]))


def _names(one: Mapping[tuple[str, str, str], Stated], other: Mapping[tuple[str, str, str], Stated]) -> list[str]:
    return sorted({f"{benchmark}: {name}" for benchmark, name, unit in one if (benchmark, name, unit) not in other})


def show(content: Mapping[str, Any]) -> str:
    """The table, and at its end once more what stands out."""
    return "\n".join(_lines(content))


def _lines(content: Mapping[str, Any]) -> Iterator[str]:
    changes = content["changes"]
    width = max(len(f"{change['name']}, {change['unit']}") for change in changes)
    benchmark = None
    for change in changes:
        if change["benchmark"] != benchmark:
            benchmark = change["benchmark"]
            yield f"{benchmark:<{width + 2}}{'old':>12}{'new':>12}{'ratio':>8}   noise"
        yield _line(change, f"  {change['name']}, {change['unit']}", width + 2)
    for key, said in (("only_in_old", "only in the old"), ("only_in_new", "only in the new")):
        if content[key]:
            yield f"{said}: {'; '.join(content[key])}"
    if content["other_settings"]:
        yield f"not compared, measured with other settings: {'; '.join(content['other_settings'])}"
    if len(content["machines"]) > 1:
        yield f"two machines ({'; '.join(content['machines'])}): only ratios and counts are judged"
    flagged = [change for change in changes if change["verdict"] in ("better", "worse", "changed")]
    yield ""
    judged = sum(change["verdict"] != "-" for change in changes)
    yield f"{judged} figures judged, {len(flagged)} beyond the noise" + (":" if flagged else "")
    for change in flagged:
        yield _line(change, f"  {change['benchmark']}: {change['name']}, {change['unit']}", width + 2)


def _line(change: Mapping[str, Any], label: str, width: int) -> str:
    numbers = f"{change['old']:>12,.5g}{change['new']:>12,.5g}{change['ratio']:>8.3f}"
    mark = "" if change["verdict"] in ("same", "-") else f"   {change['verdict']}"
    return f"{label:<{width}}{numbers}   {change['noise'][0]:.3f} to {change['noise'][1]:.3f}{mark}"
