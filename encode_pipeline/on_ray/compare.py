"""The comparison of two versions where the GPUs are: one task, for the head of a cluster has none."""

from __future__ import annotations

import sys
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from encode_pipeline.comparison.checks import Checks, Contest
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.on_ray.cluster import joined

RETRIES = 10
"""Of the task, when its worker or node goes away."""
QUIET = 60.0
"""Seconds without an answer after which a person is told, again and again."""


def compare_on_ray(contest: Contest, checks: Checks, gpus_per_actor: float) -> dict[str, Any]:
    """What `compare` finds, on a share of a GPU like an encoder's, or on a core."""
    share = min(1.0, gpus_per_actor)
    with joined():
        cores = 0 if share else 1  # beside a GPU nothing else needs them
        task = ray.remote(num_gpus=share, num_cpus=cores, max_retries=RETRIES, name="compare")(_compare)
        answer = task.remote(contest, checks)
        try:
            while not ray.wait([answer], timeout=QUIET)[0]:
                print("comparing, or waiting for a machine that has room for it", file=sys.stderr, flush=True)
        except BaseException:  # only one without an answer: to cancel what has just ended can end Ray, and with it us
            ray.cancel(answer, force=True)
            raise
        try:
            found: dict[str, Any] = ray.get(answer)
        except RayTaskError as error:
            raise error.cause or error from None
        except RayError as error:
            raise CheckFailed(
                f"not compared: {type(error).__name__}, again and again; run the same command again"
            ) from None
    return found


def _compare(contest: Contest, checks: Checks) -> dict[str, Any]:
    # Here and not above: the driver imports this file too, and it stands on a small machine.
    from encode_pipeline.comparison.run import compare

    return compare(contest, checks)
