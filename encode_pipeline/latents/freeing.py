"""Versions that nobody needs any more, and how one is freed while others may just begin to read it.

A `gc` writes down that it is about to free a version, then looks whether somebody uses it, and only then deletes:
`spec.json` first, so that nobody finds the rest, and what it wrote down last. Whatever it is killed at, the next one
finishes. A lease is written before its holder looks for such a file; so of a reader and a `gc` one always sees the
other.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from encode_pipeline.latents.audit import Audit, Entry, Event
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.failpoints import failpoint
from encode_pipeline.latents.lease import FREEING, Lease, lease_path, leases, write_lease
from encode_pipeline.latents.promotion import Promotions
from encode_pipeline.latents.store import Store
from encode_pipeline.latents.version import MANIFEST

VERDICTS: tuple[Event, ...] = ("verified", "compared", "refused", "held-back", "promoted")


@dataclass
class Freed:
    """What became of the versions that were to be freed."""

    versions: dict[str, int] = field(default_factory=dict)
    """Those that are gone, with their bytes."""
    kept: dict[str, list[Lease]] = field(default_factory=dict)
    """Those in use, and by whom."""


def free_versions(
    store: Store, keep: int | None, refused: bool, dry_run: bool = False, released: Collection[Lease] = ()
) -> Freed:
    """Frees what was once promoted, but for the last `keep`, what was refused, and what others began to free.

    A dry run takes no notice of leases that would have been `released`.
    """
    found = Freed()
    if not dry_run:
        _forget_promoted(store)
    wanted = unneeded(store, keep, refused)
    for fingerprint, why in sorted(wanted.items()):
        size = sum(store.storage.files(fingerprint).values())
        if dry_run:
            holders: list[Lease] | None = [each for each in _holders(store, fingerprint) if each not in released]
        else:
            holders = _free(store, fingerprint, why, size)
        if holders:
            found.kept[fingerprint] = holders
        elif holders is not None:
            found.versions[fingerprint] = size
    return found


def unneeded(store: Store, keep: int | None, refused: bool) -> dict[str, str]:
    """The versions to be freed if nobody uses them, and why; never what readers use, or will in a moment."""
    begun = _begun(store)
    wanted = {lease.version: str(lease.content.get("of", "begun before")) for lease in begun}
    if refused:
        wanted |= {name: f"refused: {entry.why}" for name, entry in _refused(store).items()}
    if keep is not None:
        wanted |= dict.fromkeys(store.retired(keep), f"retired, with keep={keep}")
    promoted = _promoted(store)
    return {name: why for name, why in wanted.items() if name not in promoted}


def release(store: Store, holder: str, dry_run: bool) -> list[Lease]:
    """Takes a holder's leases away, who is gone and cannot give them back."""
    known = leases(store.storage)
    found = [lease for lease in known if lease.holder == holder]
    if not found:
        names = ", ".join(sorted({lease.holder for lease in known})) or "nobody"
        raise RequestError(f"release={holder}: no such lease in {store.storage.url()}; held by {names}")
    for lease in found:
        if lease.is_freeing and not store.storage.exists(f"{lease.version}/spec.json"):
            raise RequestError(f"release={holder}: version {lease.version} is freed in part; gc frees the rest")
    for lease in found if not dry_run else []:
        store.storage.delete(lease.path)
        Audit(store.storage).record("released", lease.version, f"{holder} is said to be gone", lease=lease.content)
    return found


def _free(store: Store, fingerprint: str, why: str, size: int) -> list[Lease] | None:
    """Frees a version; or says who uses it. None if it is no longer there to be freed."""
    storage, audit = store.storage, Audit(store.storage)
    if holders := _holders(store, fingerprint):
        return holders  # nobody who is about to open it need hear of this
    failpoint("before-freeing", fingerprint)
    own = lease_path(fingerprint, f"{FREEING}{uuid.uuid4().hex[:8]}")
    about = {"purpose": "gc", "of": why, "audit": audit.last()}
    write_lease(storage, own, about)
    try:
        failpoint("after-freeing", fingerprint)
        holders = _holders(store, fingerprint)
        known = leases(storage, fingerprint)
        begun = [lease for lease in known if lease.is_freeing and lease.path != own]
        is_there = storage.exists(f"{fingerprint}/spec.json")
        if holders or fingerprint in _promoted(store) or not (is_there or begun):
            storage.delete(own)
            return holders or None
    except BaseException:
        with suppress(Exception):
            storage.delete(own)
        raise
    storage.delete(f"{fingerprint}/spec.json")
    failpoint("mid-freeing", fingerprint)
    while storage.files(fingerprint, unfinished=True):  # on a disk, two at once trip over each other
        for folder in storage.folders(fingerprint):
            storage.delete(f"{fingerprint}/{folder}")
        storage.delete(fingerprint)  # with the manifest: as long as that is there, no run adds shards
    after = [about["audit"], *(lease.content["audit"] for lease in begun if "audit" in lease.content)]
    audit.record_once(min(after), "freed", fingerprint, why, bytes=size)
    for lease in sorted(known, key=lambda lease: lease.is_freeing):  # of the dead, and of those who see that it is gone
        storage.delete(lease.path)
    return []


def _begun(store: Store) -> list[Lease]:
    return [lease for lease in leases(store.storage) if lease.is_freeing]


def _forget_promoted(store: Store) -> None:
    """Takes back what a `gc` said that was killed just then, of a version that somebody was promoting already.

    Whoever promotes holds a lease until it is done, so a `gc` that is still alive sees the one or the other.
    """
    begun = _begun(store)
    promoted = _promoted(store) if begun else ()
    for lease in begun:
        if lease.version in promoted:
            store.storage.delete(lease.path)


def _holders(store: Store, fingerprint: str) -> list[Lease]:
    """Who uses a version. Of one without a spec nothing can be read any more: its leases are of the dead."""
    if not store.storage.exists(f"{fingerprint}/spec.json"):
        return []
    return [lease for lease in leases(store.storage, fingerprint) if not lease.is_freeing]


def _promoted(store: Store) -> set[str]:
    """What readers use, and what they will once a promotion is finished that others began."""
    promotions = Promotions(store.storage)
    history = promotions.history()
    return {*history[-1:], *(promotion.fingerprint for promotion in promotions.begun(history))}


def _refused(store: Store) -> Mapping[str, Entry]:
    """The finished versions whose last verdict was a refusal."""
    last = {entry.version: entry for entry in Audit(store.storage).entries() if entry.event in VERDICTS}
    return {
        name: entry
        for name, entry in last.items()
        if entry.event == "refused" and store.storage.exists(f"{name}/{MANIFEST}")
    }
