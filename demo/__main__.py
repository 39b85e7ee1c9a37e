"""`python -m demo run`: the whole line on a small world, from image tars to a page; `latents`: half of it."""

from __future__ import annotations

import sys

from demo.judge import JudgeConfig, judge
from demo.pairs import DemoPairs, write_demo_pairs
from demo.run import DemoConfig, make_latents, run_demo
from demo.steer import SteerConfig, steer_demo
from demo.table1 import TableConfig, make_table
from encode_pipeline.latents.command import Verb, main

VERBS = {
    "run": Verb(
        DemoConfig,
        run_demo,
        "world, encode on local Ray, seal, verify, promote, train, zero-shot, report; again: resume",
        show=lambda result: f"report: {result['report']}",
    ),
    "latents": Verb(DemoConfig, make_latents, "the same as far as the latents, for `make train`"),
    "table1": Verb(
        TableConfig,
        make_table,
        "a latent tower against its twin of pixels, on the same pictures, real and generated; again: resume",
        show=lambda result: "\n".join(result[kind] for kind in ("md", "html")),
    ),
    "steer": Verb(
        SteerConfig,
        steer_demo,
        "a generator of the world led by the shipped latent tower, towards its prompt and away from red; again: resume",
        show=lambda result: "\n".join(result[kind] for kind in ("md", "html")),
    ),
    "judge": Verb(JudgeConfig, judge, "what a tower that took no part in it thinks of the steered pictures", "out"),
    "pairs": Verb(DemoPairs, write_demo_pairs, "preference pairs of the small world, as parquet like Pick-a-Pic's"),
}

if __name__ == "__main__":
    sys.exit(main("demo", VERBS, sys.argv[1:], default="run"))
