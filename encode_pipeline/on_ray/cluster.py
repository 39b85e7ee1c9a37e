"""The cluster that a command works on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray
from ray.core.generated.common_pb2 import NodeDeathInfo

from encode_pipeline.latents.command import RequestError


@contextmanager
def joined() -> Iterator[bool]:
    """Joins the cluster at RAY_ADDRESS, or starts one on this machine; tells which: True if it was started here."""
    if ray.is_initialized():
        yield False
        return
    # Without an address Ray would join, or wait for, whatever another program has left on this machine.
    where = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "include_dashboard": False}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **where)
    except (RuntimeError, ValueError, ConnectionError) as error:
        raise RequestError(f"engine=ray: {' '.join(str(error).split()) or type(error).__name__}") from None
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would end the program at once
    try:
        yield bool(where)
    finally:
        ray.shutdown()


def was_shut_down(node: str) -> bool:
    """Whether a machine took its leave, as when its system ends: no tar can have brought that about."""
    expected = NodeDeathInfo.Reason.Value("EXPECTED_TERMINATION")
    return any(facts["NodeID"] == node and facts["DeathReason"] == expected for facts in ray.nodes())
