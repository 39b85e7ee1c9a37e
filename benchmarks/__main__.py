"""`python -m benchmarks`: every benchmark that this machine can run, as a table and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from demo.report_machine import git_commit, processor, software
from encode_pipeline.latents.command import Settings, Verb, main


class BenchConfig(Settings):
    out: Path = Field(Path("runs/bench.json"), description="where the numbers go")


def run(config: BenchConfig) -> Mapping[str, Any]:
    from benchmarks import encode, reader

    results = {}
    for name, measure in {"reader": reader.measure, "encode": encode.measure}.items():
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        results[name] = measure()
    content = {"processor": processor(), "software": software(), "commit": git_commit(), "results": results}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps(content, indent=1) + "\n")
    return {"out": str(config.out), **content}


def show(content: Mapping[str, Any]) -> str:
    lines = [f"on {content['processor']}"]
    for benchmark, result in content["results"].items():
        lines.append(f"\n{benchmark:<28}{'a second':>12}{'ratio':>9}   least to most of {result['rounds']} rounds")
        for way, measured in result["ways"].items():
            rate, ratio = measured["per_second"], measured["ratio"]
            spread = f"{ratio['least']:.2f} to {ratio['most']:.2f}"
            lines.append(f"  {way:<26}{rate['median']:>12,.1f}{ratio['median']:>9.2f}   {spread}")
    return "\n".join([*lines, f"\n{content['out']}"])


VERBS = {"run": Verb(BenchConfig, run, "measure, compare and write the numbers down", show=show)}

if __name__ == "__main__":
    sys.exit(main("benchmarks", VERBS, sys.argv[1:], default="run"))
