"""The verbs by which people decide about a store, and the one that shows what was decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from encode_pipeline.config import GcRequest, SealRequest, StoreRequest
from encode_pipeline.latents.audit import Audit
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.freeing import free_versions, release
from encode_pipeline.latents.lease import Lease, is_being_freed
from encode_pipeline.latents.store import Store


def run_seal(request: SealRequest) -> Mapping[str, Any]:
    store = Store(request.store)
    version = store.version(request.version)
    was_sealed = version.sealed
    tars = version.seal(request.accept_failed, request.accept_missing)
    if not was_sealed:
        Audit(store.storage).record("sealed", version.fingerprint, "asked for", tars=tars)
    return {"fingerprint": version.fingerprint, "tars": tars, "manifest": version.storage.url("manifest.parquet")}


def run_promote(request: StoreRequest) -> Mapping[str, Any]:
    store = Store(request.store)
    version = store.version(request.version)
    return {"before": store.promote(version), "promoted": version.fingerprint}


def run_gc(request: GcRequest) -> Mapping[str, Any]:
    store = _there(request.store)
    released = release(store, request.release, request.dry_run) if request.release else []
    found = free_versions(store, request.keep, request.refused, request.dry_run, released)
    freed = dict(found.versions)
    for fingerprint in set(store.versions()) - set(freed):
        if is_being_freed(store.storage, fingerprint):
            continue
        lost = store.version(fingerprint).unreferenced()
        unreferenced = {f"{fingerprint}/{folder}": size for folder, size in lost.items()}
        freed |= unreferenced
        for path in unreferenced if not request.dry_run else ():
            store.storage.delete(path)
    return {
        "dry_run": request.dry_run,
        "released": [vars(lease) for lease in released],
        "freed": freed,
        "bytes": sum(freed.values()),
        "kept": {name: [vars(lease) for lease in holders] for name, holders in found.kept.items()},
    }


def show_gc(result: Mapping[str, Any]) -> str:
    will = "would be " if result["dry_run"] else ""
    lines = [f"{will}released: {Lease(**lease)}" for lease in result["released"]]
    lines += [f"{will}freed: {path}, {size} bytes" for path, size in result["freed"].items()]
    for version, holders in result["kept"].items():
        lines += [f"kept: {version}, in use by {Lease(**lease)}" for lease in holders]
    return "\n".join([*lines, f"{result['bytes']} bytes {will}freed"])


def run_history(request: StoreRequest) -> Mapping[str, Any]:
    entries = Audit(_there(request.store).storage).entries()
    told = [vars(entry) for entry in entries if entry.version.startswith(request.version or "")]
    if request.version and not told:
        raise RequestError(f"{request.store}: nothing was decided about a version {request.version}")
    return {"entries": told}


def _there(url: str) -> Store:
    """A store that holds versions, or once held some."""
    store = Store(url)
    if not store.versions() and not {"audit", "leases"} & set(store.storage.folders()):
        store.version()  # says that there is none
    return store


def show_history(result: Mapping[str, Any]) -> str:
    return "\n".join(
        f"{entry['number']:>6}  {entry['at'][:19]}Z  {entry['version']}  {entry['event']}: {entry['why']}"
        f"{_scalars(entry['details'])} ({entry['by']['user']} on {entry['by']['host']})"
        for entry in result["entries"]
    )


def _scalars(details: Mapping[str, Any]) -> str:
    """What fits into a line; the rest is for `--json`."""
    return "".join(f"; {key} {value}" for key, value in details.items() if isinstance(value, str | int | float))
