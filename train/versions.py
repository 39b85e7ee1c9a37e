"""Which version of each store a run reads: the one that it began with, whatever is promoted meanwhile.

OUT/versions.json    the version of each store, by its address
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.disk import replace
from encode_pipeline.latents.lease import leased
from encode_pipeline.latents.spec import canonical_json
from encode_pipeline.latents.store import Store, Version
from train.distributed import Ranks

FILE = "versions.json"


@contextmanager
def held_versions(
    purpose: str, out: Path, stores: Mapping[str, str | None], ranks: Ranks
) -> Iterator[dict[str, Version]]:
    """The versions that a run reads, by the addresses of their stores, held by leases until it ends.

    `stores` has the version that is asked for, or None for the one that the run in `out` began with, and for a new run
    the promoted one. All processes read the same.
    """
    begun = _begun_with(out)
    mine = {address: _choose(address, asked, begun, out, ranks) for address, asked in stores.items()}
    versions = {address: Store(address).version(name) for address, name in ranks.collect(mine)[0].items()}
    with ExitStack() as leases:
        if ranks.is_first:
            for version in {version.storage.url(): version for version in versions.values()}.values():
                leases.enter_context(leased(version, purpose, out))
        ranks.wait()
        yield versions


def remember(out: Path, versions: Mapping[str, Version]) -> None:
    """Has the same command go on with these versions."""
    names = {Store(address).storage.url(): version.fingerprint for address, version in versions.items()}
    if _begun_with(out) != names:
        replace(out / FILE, canonical_json(names, indent=1) + b"\n")


def _choose(address: str, asked: str | None, begun: Mapping[str, str], out: Path, ranks: Ranks) -> str:
    """The fingerprint of the version to read in a store."""
    store = Store(address)
    name = begun.get(store.storage.url())
    if asked is not None or name is None:
        return store.version(asked).fingerprint
    if name not in store.versions():
        raise RequestError(
            f"{store.storage.url()}: version {name}, with which {out} was begun, has been freed; use another out="
        )
    promoted = store.current()
    if promoted not in (name, None) and ranks.is_first:
        told = f"goes on with version {name} of {store.storage.url()}, though {promoted} is promoted by now"
        print(f"{out}: {told}", file=sys.stderr, flush=True)
    return name


def _begun_with(out: Path) -> dict[str, str]:
    path = out / FILE
    try:
        names = json.loads(path.read_bytes())
        if isinstance(names, dict) and all(isinstance(name, str) for name in names.values()):
            return names
    except FileNotFoundError:
        return {}
    except ValueError:
        pass
    raise RequestError(f"{path}: damaged: does not say which versions the run was begun with")
