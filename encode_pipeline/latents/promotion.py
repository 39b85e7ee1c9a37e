"""Which version readers should use, and which they used before.

STORE/current.json               what readers read; replaced by `promote` alone
STORE/promotions/000003.json     create-only: the one fact that the third promotion was of this version

Of several that promote at once, one creates the next number. One that is killed after that has promoted: whoever
promotes next finishes what it began.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from types import EllipsisType
from typing import Any

from encode_pipeline.latents.audit import Audit, create_own, now, this_process
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.failpoints import failpoint
from encode_pipeline.latents.spec import canonical_json
from encode_pipeline.latents.storage import Storage, StorageError

CURRENT = "current.json"


@dataclass(frozen=True)
class Promotion:
    """One change of the version that readers use."""

    number: int
    fingerprint: str
    before: str | None
    audit: int
    """Its own entry in the audit trail comes after this one."""
    why: str


class Promotions:
    """All changes of the version that readers use."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def history(self) -> list[str]:
        """What readers use, last, and before it all that they used, as `current.json` says."""
        if not self.storage.exists(CURRENT):
            return []
        return self.storage.parsed(CURRENT, self._parse_history)

    def begun(self, history: list[str]) -> Iterator[Promotion]:
        """The promotions that a history lacks, for those who made them did not come to it."""
        for number in count(len(history) + 1):
            if not self.storage.exists(_path(number)):
                return
            yield self._promotion(number)

    def finish(self) -> tuple[list[str], list[Promotion]]:
        """The history with all promotions in it, and those that were not before this."""
        history, finished = self.history(), []
        while begun := list(self.begun(history)):
            for promotion in begun:
                self._record(promotion)
            finished += begun
            history = [*history, *(promotion.fingerprint for promotion in begun)]
            failpoint("before-current", history[-1])
            self.storage.replace(CURRENT, canonical_json({"fingerprint": history[-1], "history": history}))
        return history, finished

    def promote(self, fingerprint: str, why: str, instead_of: str | EllipsisType | None = ...) -> str | None:
        """Makes a version the one that readers use; returns the one before. May be tied to which one that is."""
        history, finished = self.finish()
        for one in finished:
            told = f"promotion {one.number}, of {one.fingerprint}, had been begun by another process: finished"
            print(f"{self.storage.url()}: {told}", file=sys.stderr, flush=True)
        before = history[-1] if history else None
        if before == fingerprint:
            return finished[-1].before if finished else before
        if instead_of is not ... and before != instead_of:
            raise CheckFailed(
                f"{self.storage.url()}: {before} was promoted meanwhile, and {fingerprint} was to take the place of "
                f"{instead_of or 'nothing'}; run the same command again"
            )
        number = len(history) + 1
        promotion = Promotion(number, fingerprint, before, Audit(self.storage).last(), why)
        content = canonical_json({**vars(promotion), "by": this_process(), "at": now()})
        failpoint("before-promotion", fingerprint)
        if not create_own(self.storage, _path(number), content):
            winner = self._promotion(number)
            if winner.fingerprint != fingerprint:
                raise CheckFailed(
                    f"{self.storage.url()}: another process promoted {winner.fingerprint} meanwhile, "
                    f"so {fingerprint} was not; promote it again if it is wanted all the same"
                )
        failpoint("after-promotion", fingerprint)
        self.finish()
        return before

    def _record(self, promotion: Promotion) -> None:
        details = {"promotion": promotion.number, "before": promotion.before}
        Audit(self.storage).record_once(promotion.audit, "promoted", promotion.fingerprint, promotion.why, **details)

    def _promotion(self, number: int) -> Promotion:
        return self.storage.parsed(_path(number), lambda data: self._parse_promotion(data, number))

    def _parse_promotion(self, data: bytes, number: int) -> Promotion:
        try:
            content: dict[str, Any] = json.loads(data)
            promotion = Promotion(**{key: content[key] for key in Promotion.__dataclass_fields__})
        except (ValueError, KeyError, TypeError):
            raise StorageError(f"{self.storage.url(_path(number))}: damaged: not the record of a promotion") from None
        return promotion

    def _parse_history(self, data: bytes) -> list[str]:
        try:
            content = json.loads(data)
            history, fingerprint = [str(name) for name in content["history"]], str(content["fingerprint"])
        except (ValueError, KeyError, TypeError):
            raise StorageError(f"{self.storage.url(CURRENT)}: does not name a version") from None
        return history if history[-1:] == [fingerprint] else [*history, fingerprint]


def _path(number: int) -> str:
    return f"promotions/{number:06}.json"
