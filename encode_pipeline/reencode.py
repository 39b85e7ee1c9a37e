"""Re-encoding when the VAE has changed: notice, encode, seal, verify, compare, and only then promote.

Every step can be killed, and the same command goes on: shards by their commits, and what was verified or compared by
the store's audit trail, for a sealed version never changes. Two of these commands at once waste work and do no harm:
they make one version, and one of them promotes it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from encode_pipeline.comparison.checks import CHECKS, Checks
from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.audit import Audit, Entry
from encode_pipeline.latents.command import CheckFailed, RequestError, build
from encode_pipeline.latents.failpoints import failpoint
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.run import do_shards, spec_by_child
from encode_pipeline.sources import find_sources
from encode_pipeline.verification import verified

Outcome = Literal["changed", "unchanged", "held-back", "refused", "promoted"]
SHOWN_PROBLEMS = 5


class ReencodeConfig(EncodeConfig, Checks):
    """A run of the encoder into a new version, what that version is held to, and whether it is to be promoted."""

    if_changed: bool = Field(
        False, description="do nothing if the promoted version is of this VAE and these settings, was promoted before "
        "and rolled back, or was refused before by the same checks; for schedulers"
    )
    dry_run: bool = Field(False, description="only say whether there is anything to do; nothing is written")
    accept_failed: bool = Field(False, description="leave out the tars that are given up on")

    @property
    def checks(self) -> Checks:
        return build(Checks, {key: getattr(self, key) for key in CHECKS})


@dataclass(frozen=True)
class Verdict:
    """What is to be done, or was, and why."""

    outcome: Outcome
    why: str
    ok: bool = True


def reencode(config: ReencodeConfig) -> dict[str, Any]:
    """Sees to it that the promoted version is the one that this configuration makes, if it is good enough."""
    spec = spec_by_child(config)
    store = Store(config.store)
    swap = Swap(store, Audit(store.storage), config, spec, _promoted(store))
    verdict = swap.look()
    if config.dry_run:
        return swap.told(verdict)
    if verdict.outcome == "changed" or not config.if_changed:
        return swap.told(*swap.make(verdict.why))
    swap.note(f"reencode-{verdict.outcome}" if verdict.outcome == "unchanged" else verdict.outcome, verdict.why)
    return swap.told(verdict)
