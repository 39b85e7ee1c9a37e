"""Promoting happens once: two at the same moment, a kill in between, a late writer, answers that are lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from encode_pipeline.latents.audit import Audit, Entry
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.spec import LatentSpec, canonical_json
from encode_pipeline.latents.storage import StorageError
from encode_pipeline.latents.store import Store, Version
from tests.faults import Do
from tests.faulty_s3 import FaultyBucket, faulty, faulty_server
from tests.store_commands import StoreCommand, versions_of
from tests.test_commit_protocol import OpenStore, open_store
from tests.traps import Traps

__all__ = ["faulty", "faulty_server", "open_store"]


@pytest.fixture(params=["file", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a store that other processes reach, too; on S3 with conditional writes that are of one piece."""
    if request.param == "file":
        return str(tmp_path / "store")
    bucket: FaultyBucket = request.getfixturevalue("faulty")
    return f"{bucket.url}/store"


@pytest.fixture
def traps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Traps:
    return Traps(monkeypatch, tmp_path)


def promoted(store: Store) -> list[Entry]:
    return [entry for entry in Audit(store.storage).entries() if entry.event == "promoted"]


def history(store: Store) -> list[str]:
    """What is promoted, last, and all before it; the same by all three records."""
    recorded = [entry.version for entry in promoted(store)]
    for number, name in enumerate(recorded, 1):
        assert f'"fingerprint":"{name}"'.encode() in store.storage.read(f"promotions/{number:06}.json")
    assert len(list(store.storage.names("promotions"))) == len(recorded)
    content = canonical_json({"fingerprint": recorded[-1], "history": recorded})
    assert store.storage.read("current.json") == content
    return recorded


def promote(version: Version) -> StoreCommand:
    url = version.storage.url()
    return StoreCommand("promote", url.removesuffix(f"/{version.fingerprint}"), f"version={version.fingerprint}")


def test_every_promotion_is_recorded_and_a_roll_back_is_one(
    open_store: OpenStore, spec: LatentSpec, tmp_path: Path
) -> None:
    store = open_store()
    first, second = versions_of(store.storage.url(), spec, tmp_path, 2)
    befores = [store.promote(version) for version in (first, second, second, first)]
    assert befores == [None, first.fingerprint, second.fingerprint, second.fingerprint]
    assert history(store) == [first.fingerprint, second.fingerprint, first.fingerprint]
    assert [entry.details["promotion"] for entry in promoted(store)] == [1, 2, 3]
    assert list(store.storage.files("leases")) == []


def test_a_promotion_tied_to_the_version_before_does_not_follow_another(
    open_store: OpenStore, spec: LatentSpec, tmp_path: Path
) -> None:
    store = open_store()
    first, second, third = versions_of(store.storage.url(), spec, tmp_path, 3)
    assert store.promote(first, instead_of=None) is None
    store.promote(second)
    with pytest.raises(CheckFailed, match=f"{second.fingerprint} was promoted meanwhile, and {third.fingerprint} was"):
        store.promote(third, instead_of=first.fingerprint)
    assert history(store) == [first.fingerprint, second.fingerprint]
    assert store.promote(third, instead_of=second.fingerprint) == second.fingerprint
    assert store.promote(third, instead_of=second.fingerprint) == third.fingerprint  # it is there: nothing to do


def test_two_at_once_promote_the_same_version_once(
    address: str, spec: LatentSpec, tmp_path: Path, traps: Traps
) -> None:
    old, new = versions_of(address, spec, tmp_path, 2)
    store = Store(address)
    store.promote(old)
    held = traps.set("before-promotion", "hold", times=2)
    both = [promote(new), promote(new)]
    for number, command in enumerate(both, 1):
        held.wait(number, command)
    held.release()
    results = [command.result for command in both]
    assert results == [{"before": old.fingerprint, "promoted": new.fingerprint}] * 2
    assert history(store) == [old.fingerprint, new.fingerprint]


def test_of_two_at_once_that_promote_different_versions_one_is_told(
    address: str, spec: LatentSpec, tmp_path: Path, traps: Traps
) -> None:
    old, *others = versions_of(address, spec, tmp_path, 3)
    store = Store(address)
    store.promote(old)
    held = traps.set("before-promotion", "hold", times=2)
    both = [promote(version) for version in others]
    for number, command in enumerate(both, 1):
        held.wait(number, command)
    held.release()
    statuses = [command.status for command in both]
    assert sorted(statuses) == [0, 1]
    winner, loser = statuses.index(0), statuses.index(1)
    told = f"promoted {others[winner].fingerprint} meanwhile, so {others[loser].fingerprint} was not"
    assert told in both[loser].complaints and len(both[loser].complaints.splitlines()) == 1
    assert history(store) == [old.fingerprint, others[winner].fingerprint]


@pytest.mark.parametrize("at", ["after-promotion", "before-current"])
@pytest.mark.parametrize("next_is", ["the same", "another"])
def test_what_a_killed_promoter_began_is_finished_by_the_next(
    address: str, spec: LatentSpec, tmp_path: Path, traps: Traps, at: str, next_is: str
) -> None:
    old, new, other = versions_of(address, spec, tmp_path, 3)
    store = Store(address)
    store.promote(old)
    traps.set(at, "kill")
    killed = promote(new)
    assert killed.status == -9
    assert store.current() == old.fingerprint  # until somebody finishes it
    assert store.version().fingerprint == old.fingerprint
    command = promote(new if next_is == "the same" else other)
    result = command.result
    assert f"promotion 2, of {new.fingerprint}, had been begun by another process: finished" in command.complaints
    if next_is == "the same":
        assert result == {"before": old.fingerprint, "promoted": new.fingerprint}
        assert history(store) == [old.fingerprint, new.fingerprint]
    else:
        assert result == {"before": new.fingerprint, "promoted": other.fingerprint}
        assert history(store) == [old.fingerprint, new.fingerprint, other.fingerprint]


@pytest.mark.parametrize("at", ["after-promotion", "before-current"])
def test_one_that_comes_late_takes_nothing_back(
    address: str, spec: LatentSpec, tmp_path: Path, traps: Traps, at: str
) -> None:
    old, new, newer = versions_of(address, spec, tmp_path, 3)
    store = Store(address)
    store.promote(old)
    held = traps.set(at, "hold")
    late = promote(new)
    held.wait(1, late)
    traps.lift()
    assert promote(newer).result["before"] == new.fingerprint
    held.release()
    assert late.result == {"before": old.fingerprint, "promoted": new.fingerprint}
    assert history(store) == [old.fingerprint, new.fingerprint, newer.fingerprint]


def test_a_store_from_before_promotions_were_recorded(open_store: OpenStore, spec: LatentSpec, tmp_path: Path) -> None:
    store = open_store()
    first, second, third = versions_of(store.storage.url(), spec, tmp_path, 3)
    before = [first.fingerprint, second.fingerprint]
    store.storage.replace("current.json", canonical_json({"fingerprint": before[-1], "history": before}))
    assert store.version().fingerprint == second.fingerprint
    assert store.promote(third) == second.fingerprint
    assert list(store.storage.names("promotions")) == ["000003.json"]
    assert store.storage.parsed("current.json", bytes) == canonical_json(
        {"fingerprint": third.fingerprint, "history": [*before, third.fingerprint]}
    )
    assert store.retired(keep=1) == [first.fingerprint]
    assert store.promote(second) == third.fingerprint
    assert [entry.details for entry in promoted(store)] == [
        {"promotion": 3, "before": second.fingerprint},
        {"promotion": 4, "before": third.fingerprint},
    ]


@pytest.mark.parametrize("do", ["503", "lose-reply", "reset", "409", "412", "flip-up"])
@pytest.mark.parametrize("key", ["*/promotions/*", "*/audit/*", "*/current.json"])
def test_a_server_in_trouble_promotes_once(
    faulty: FaultyBucket, spec: LatentSpec, tmp_path: Path, do: Do, key: str
) -> None:
    old, new = versions_of(f"{faulty.url}/store", spec, tmp_path, 2)
    store = Store(f"{faulty.url}/store")
    store.promote(old)
    rule = faulty.s3.add(do, method="PUT", key=key)
    assert store.promote(new) == old.fingerprint
    assert rule.met == (key != "*/current.json" or do not in ("409", "412"))
    assert history(store) == [old.fingerprint, new.fingerprint]


def test_damage_is_named(tmp_path: Path, spec: LatentSpec) -> None:
    old, new = versions_of(tmp_path / "store", spec, tmp_path, 2)
    store = Store(tmp_path / "store")
    store.promote(old)
    store.storage.create("promotions/000002.json", b'{"fingerprint": "x"}')
    with pytest.raises(StorageError, match=r"promotions/000002.json: damaged: not the record of a promotion"):
        store.promote(new)
    assert store.current() == old.fingerprint
    store.storage.replace("current.json", b"{}")
    with pytest.raises(StorageError, match=r"current.json: does not name a version"):
        store.version()
