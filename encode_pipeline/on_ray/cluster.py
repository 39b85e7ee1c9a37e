"""The cluster that work is spread over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray


@contextmanager
def joined() -> Iterator[None]:
    """A cluster to work on: one that this process is in already, else that at RAY_ADDRESS, else one started here."""
    if ray.is_initialized():
        yield
        return
    # Without an address Ray would join, or wait for, whatever another program has left on this machine.
    where = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "include_dashboard": False}
    ray.init(log_to_driver=False, logging_level="ERROR", **where)
    try:
        yield
    finally:
        ray.shutdown()
