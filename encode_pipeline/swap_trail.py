"""What the audit trail says of a version that is to be promoted: how far it came, and what was decided about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from encode_pipeline.latents.audit import Audit, Entry, Event
from encode_pipeline.latents.storage import Storage

ENDS: tuple[Event, ...] = ("freed", "promoted", "refused")
"""What an attempt at promoting a version ends with."""


class SwapTrail:
    """The entries about one version. Steps count that were taken since the last attempt at it ended.

    For a `schedule`, what was verified or compared once stays so, unless the version was freed meanwhile: only a person
    asks for it to be done anew.
    """

    def __init__(self, storage: Storage, fingerprint: str, schedule: bool) -> None:
        self.audit, self.fingerprint = Audit(storage), fingerprint
        self._ends = ("freed",) if schedule else ENDS

    def known(self, event: Event, asked: Mapping[str, Any]) -> Entry | None:
        """A step of this attempt, taken by this process or another, if the latest of its kind was asked the same."""
        entry = self._latest(self.audit.of(self.fingerprint), event)
        return entry if entry and asked.items() <= entry.details.items() else None

    def refusal(self, asked: Mapping[str, Any]) -> Entry | None:
        """That the version was refused when the same was asked of it, if that is the last word on it.

        Even if it was freed since: made once more, it would be the same.
        """
        words = [entry for entry in self.audit.of(self.fingerprint) if entry.event in ("promoted", "refused")]
        last = words[-1] if words else None
        return last if last and last.event == "refused" and asked.items() <= last.details.items() else None

    def record(self, event: Event, why: str, **details: Any) -> None:
        """Writes down a step of this attempt. Of two processes that take it at once, one does."""
        entries = self.audit.of(self.fingerprint)
        same = self._latest(entries, event)
        if same is None or same.details != details:
            after = same.number if same else self._begun_after(entries)
            self.audit.record_once(after, event, self.fingerprint, why, **details)

    def note(self, event: Event, why: str) -> None:
        """Writes down that nothing was to be done, the first time of a row.

        A schedule asks every hour. That it heard the same as the hour before is in its own log; the trail says since
        when, and says it again as soon as anything else has happened in between.
        """
        entries = self.audit.entries()
        last = entries[-1] if entries else None
        if last is None or (last.event, last.version, last.why) != (event, self.fingerprint, why):
            self.audit.record_once(last.number if last else 0, event, self.fingerprint, why)

    def _latest(self, entries: list[Entry], event: Event) -> Entry | None:
        after = self._begun_after(entries)
        return next((entry for entry in reversed(entries) if entry.event == event and entry.number > after), None)

    def _begun_after(self, entries: list[Entry]) -> int:
        return max((entry.number for entry in entries if entry.event in self._ends), default=0)
