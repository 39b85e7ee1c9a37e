"""Leases against gc: whoever reads keeps its version, whoever frees it is alone, whatever comes in between."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from encode_pipeline.__main__ import VERBS
from encode_pipeline.latents.audit import Audit
from encode_pipeline.latents.command import RequestError, main
from encode_pipeline.latents.lease import leased, leases, write_lease
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.latents.verify import verify
from tests.faulty_s3 import FaultyBucket, faulty, faulty_server
from tests.store_commands import StoreCommand, versions_of
from tests.test_commit_protocol import OpenStore, open_store
from tests.test_promotion import address, traps
from tests.traps import Traps

__all__ = ["address", "faulty", "faulty_server", "open_store", "traps"]


def two_versions(address: str, spec: LatentSpec, scratch: Path) -> tuple[Store, Version, Version]:
    """A store with a version that was promoted before, and one that is now."""
    old, new = versions_of(address, spec, scratch, 2)
    store = Store(address)
    store.promote(old)
    store.promote(new)
    return store, old, new


def gc(store: Store, *words: str) -> StoreCommand:
    return StoreCommand("gc", store.storage.url(), *words)


def gc_here(store: Store, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main("encode_pipeline", VERBS, ["gc", store.storage.url(), *words, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def is_whole(version: Version) -> bool:
    return verify(version).to_dict()["ok"] is True and version.sealed and version.storage.exists("spec.json")


def is_gone(store: Store, version: Version) -> bool:
    """Nothing is left of it but what the audit trail says, once."""
    freed = [entry.version for entry in Audit(store.storage).of(version.fingerprint) if entry.event == "freed"]
    return (
        store.storage.files(version.fingerprint, unfinished=True) == {}
        and leases(store.storage) == []
        and freed == [version.fingerprint]
    )


# --- a lease by itself --------------------------------------------------------------------------------


def test_a_lease_says_who_and_goes_with_its_holder(open_store: OpenStore, spec: LatentSpec, tmp_path: Path) -> None:
    (version,) = versions_of(open_store().storage.url(), spec, tmp_path, 1)
    storage = open_store().storage
    with leased(version, "train", "runs/my run"):
        (lease,) = leases(storage)
        assert lease.version == version.fingerprint and lease.holder.startswith("train-my-run-")
        assert lease.content["purpose"] == "train" and lease.content["of"] == str(Path("runs/my run").resolve())
        assert lease.content["by"]["pid"] == os.getpid()
        assert list(storage.files("leases")) == [f"leases/{version.fingerprint}/{lease.holder}.json"]
        with leased(version, "train", tmp_path / "other"), leased(version, "eval", "runs/my run"):
            assert len(leases(storage)) == 3
    assert leases(storage) == []
    with pytest.raises(ZeroDivisionError), leased(version, "train", "s3://bucket/runs/b8"):
        assert leases(storage)[0].holder.startswith("train-b8-")
        raise ZeroDivisionError
    assert leases(storage) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signal_takes_the_lease_along_and_a_kill_leaves_it(
    address: str, spec: LatentSpec, tmp_path: Path, traps: Traps, number: int, status: int
) -> None:
    (version,) = versions_of(address, spec, tmp_path, 1)
    held = traps.set("before-read", "hold", shard="reading")
    reader = StoreCommand.reader(version, tmp_path / "run")
    held.wait(1, reader)
    (lease,) = leases(Store(address).storage)
    reader.send(number)
    assert reader.status == status
    traps.lift()
    left = leases(Store(address).storage)
    assert left == ([lease] if status == -9 else [])
    assert StoreCommand.reader(version, tmp_path / "run").status == 0  # the same run, and so the same lease
    assert leases(Store(address).storage) == []


def test_a_forked_child_does_not_give_the_lease_back(spec: LatentSpec, tmp_path: Path) -> None:
    (version,) = versions_of(tmp_path / "store", spec, tmp_path, 1)
    storage = Store(tmp_path / "store").storage
    child = 0
    try:
        with leased(version, "train", tmp_path / "run"):
            child = os.fork()
            if child == 0:
                raise KeyboardInterrupt  # leaves the block, as whoever unwinds does
            os.waitpid(child, 0)
            assert len(leases(storage)) == 1
    finally:
        if child == 0:
            os._exit(0)
    assert leases(storage) == []


def test_a_store_that_may_not_be_written_is_read_all_the_same(
    faulty: FaultyBucket, spec: LatentSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (version,) = versions_of(f"{faulty.url}/store", spec, tmp_path, 1)
    (local,) = versions_of(tmp_path / "store", spec, tmp_path / "local", 1)
    (tmp_path / "store" / "leases").symlink_to("nowhere")  # to the root user nothing else is forbidden
    for method in ("PUT", "POST", "DELETE"):
        faulty.s3.add("403", method=method, times=None)
    capsys.readouterr()
    for each in (version, local):
        with leased(each, "train", tmp_path / "run"):
            assert is_whole(each)
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1 and told[0].startswith("warning: "), told
        assert "/leases" in told[0]
        assert told[0].endswith(f"no lease, so gc cannot know that version {each.fingerprint} is in use")


def test_a_store_that_may_not_be_written_still_says_what_is_being_freed(
    faulty: FaultyBucket, spec: LatentSpec, tmp_path: Path
) -> None:
    (version,) = versions_of(f"{faulty.url}/store", spec, tmp_path, 1)
    write_lease(Store(f"{faulty.url}/store").storage, f"leases/{version.fingerprint}/freeing-1.json", {})
    faulty.s3.add("403", method="PUT", times=None)
    with pytest.raises(RequestError, match="is being freed by gc"), leased(version, "train", tmp_path):
        raise AssertionError("it was read")


# --- gc and who holds what ----------------------------------------------------------------------------


def test_gc_leaves_what_is_held_says_by_whom_and_frees_it_once_released(
    open_store: OpenStore, spec: LatentSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, old, new = two_versions(open_store().storage.url(), spec, tmp_path)
    with leased(old, "train", tmp_path / "b8"):
        (lease,) = leases(store.storage)
        write_lease(store.storage, lease.path, {"purpose": "train", "of": "/runs/b8", "since": "1999-12-31"})
        (lease,) = leases(store.storage)
        for words in ("keep=0", "dry_run=true"), ("keep=0",):
            result = gc_here(store, capsys, *words)
            assert result["freed"] == {} and result["kept"] == {old.fingerprint: [vars(lease)]}
        assert main("encode_pipeline", VERBS, ["gc", store.storage.url(), "keep=0"]) == 0
        told = capsys.readouterr().out.splitlines()
        by = lease.content["by"]
        assert told[0] == (
            f"kept: {old.fingerprint}, in use by {lease.holder} (train of /runs/b8, {by['user']} on {by['host']}, "
            f"process {os.getpid()}, since {lease.content['since']})"
        )
        assert gc_here(store, capsys)["kept"] == {}  # it was not to be freed
        assert main("encode_pipeline", VERBS, ["gc", store.storage.url(), "release=nobody"]) == 2
        assert f"no such lease in {store.storage.url()}; held by {lease.holder}" in capsys.readouterr().err
        dry = gc_here(store, capsys, "keep=0", f"release={lease.holder}", "dry_run=true")
        assert dry["released"] == [vars(lease)] and list(dry["freed"]) == [old.fingerprint]
        assert leases(store.storage) == [lease] and is_whole(old)
        result = gc_here(store, capsys, "keep=0", f"release={lease.holder}")
        assert result == {**dry, "dry_run": False}
    assert is_gone(store, old) and is_whole(new)
    released = Audit(store.storage).of(old.fingerprint)[-2]
    assert released.event == "released" and lease.holder in released.why and released.details["lease"] == lease.content


def test_a_damaged_lease_holds_too(tmp_path: Path, spec: LatentSpec, capsys: pytest.CaptureFixture[str]) -> None:
    store, old, _ = two_versions(str(tmp_path / "store"), spec, tmp_path)
    for number, damage in enumerate((b"", b"{}", b'{"by": 3}', b"[]")):
        store.storage.replace(f"leases/{old.fingerprint}/run-{number}.json", damage)
    assert len(gc_here(store, capsys, "keep=0")["kept"][old.fingerprint]) == 4
    assert main("encode_pipeline", VERBS, ["gc", store.storage.url(), "keep=0"]) == 0
    assert "in use by run-0 (its record is damaged)" in capsys.readouterr().out
    assert is_whole(old)


def test_gc_frees_what_was_refused_and_nothing_else(
    open_store: OpenStore, spec: LatentSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = open_store().storage.url()
    current, refused, forgiven, compared, again, held, unfinished = versions_of(address, spec, tmp_path, 7)
    store, audit = Store(address), Audit(Store(address).storage)
    for version in (current, refused, forgiven, again, held, unfinished):
        audit.record("compared", version.fingerprint, "asked for")
        audit.record("refused", version.fingerprint, "the error is 3 times that of before")
    audit.record("compared", compared.fingerprint, "asked for")
    store.promote(forgiven)
    store.promote(current)
    audit.record("verified", again.fingerprint, "once more")
    unfinished.storage.delete("manifest.parquet")
    for audited in ("sealed", "freed", "reencode-began"):
        audit.record(audited, refused.fingerprint, "no verdict")
    with leased(held, "reencode", tmp_path):
        dry = gc_here(store, capsys, "refused=true", "dry_run=true")
        assert list(dry["freed"]) == [refused.fingerprint] and list(dry["kept"]) == [held.fingerprint]
        assert gc_here(store, capsys)["freed"] == {}
        assert {**gc_here(store, capsys, "refused=true"), "dry_run": True} == dry
    left = {version.fingerprint for version in (current, forgiven, compared, again, held, unfinished)}
    assert set(store.versions()) == left
    assert audit.of(refused.fingerprint)[-1].why == "refused: the error is 3 times that of before"


# --- a reader and a gc at the same moment --------------------------------------------------------------


def test_a_reader_that_comes_before_gc_says_so_is_seen_by_it(
    address: str, spec: LatentSpec, tmp_path: Path, traps: Traps
) -> None:
    store, old, _ = two_versions(address, spec, tmp_path)
    held = traps.set("before-freeing", "hold")
    freeing = gc(store, "keep=0")
    held.wait(1, freeing)
    with leased(old, "train", tmp_path / "run"):
        held.release()
        assert list(freeing.result["kept"]) == [old.fingerprint]
        assert is_whole(old) and len(leases(store.storage)) == 1
        store.version(old.fingerprint)


@pytest.mark.parametrize("at", ["after-freeing", "mid-freeing"])
def test_a_reader_that_comes_after_gc_said_so_is_turned_away(
    address: str, spec: LatentSpec, tmp_path: Path, traps: Traps, at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store, old, _ = two_versions(address, spec, tmp_path)
    held = traps.set(at, "hold")
    freeing = gc(store, "keep=0")
    held.wait(1, freeing)
    refusal = f"{store.storage.url(old.fingerprint)}: is being freed by gc"
    with pytest.raises(RequestError, match=refusal), leased(old, "train", tmp_path / "run"):
        raise AssertionError("it was read")
    with pytest.raises(RequestError, match=refusal):
        store.version(old.fingerprint[:8])
    with pytest.raises(RequestError, match=refusal):
        store.create(old.spec)
    if old.sealed:
        with pytest.raises(RequestError, match=refusal):
            store.promote(old)
    for verb in ("status", "verify", "history"):
        words = [verb, store.storage.url(), f"version={old.fingerprint}"]
        capsys.readouterr()
        assert main("encode_pipeline", VERBS, words) == (0 if verb == "history" else 2)
        told = capsys.readouterr().err.splitlines()
        assert len(told) == (verb != "history") and all(refusal in line for line in told)
    assert [lease.is_freeing for lease in leases(store.storage)] == [True]
    assert list(gc(store).result["freed"]) == [old.fingerprint]  # another one does not wait for the first
    held.release()
    assert freeing.status == 0
    assert is_gone(store, old)
    made = store.create(old.spec)  # there is room for it again
    with leased(made, "train", tmp_path / "run"):
        assert store.version(old.fingerprint).done() == set()


@pytest.mark.parametrize("first", ["reader", "gc"])
def test_of_a_reader_and_a_gc_that_have_both_said_so_never_both_go_on(
    address: str, spec: LatentSpec, tmp_path: Path, traps: Traps, first: str
) -> None:
    store, old, _ = two_versions(address, spec, tmp_path)
    held = {"gc": traps.set("after-freeing", "hold"), "reader": traps.set("after-lease", "hold", shard="train-*")}
    reading = traps.set("before-read", "pass", shard="reading")
    opened = traps.set("before-read", "hold", shard="opened")
    running = {"reader": StoreCommand.reader(old, tmp_path / "run")}
    opened.wait(1, running["reader"])
    running["gc"] = gc(store, "keep=0")
    held["gc"].wait(1, running["gc"])
    opened.release()
    held["reader"].wait(1, running["reader"])
    held[first].release()
    assert running[first].status == (2 if first == "reader" else 0)
    if first == "reader":  # it saw that gc was about to free it
        held["gc"].release()
        assert list(running["gc"].result["freed"]) == [old.fingerprint]
        assert is_gone(store, old) and reading.met() == []
    else:  # gc saw the lease and took back what it said
        assert list(running["gc"].result["kept"]) == [old.fingerprint]
        held["reader"].release()
        assert running["reader"].status == 0 and len(reading.met()) == 1
        assert is_whole(old) and leases(store.storage) == []


def test_a_reader_that_opened_a_version_which_then_was_freed_is_told(
    address: str, spec: LatentSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, old, _ = two_versions(address, spec, tmp_path)
    opened = store.version(old.fingerprint)
    assert list(gc_here(store, capsys, "keep=0")["freed"]) == [old.fingerprint]
    with pytest.raises(RequestError, match="has been freed by gc"), leased(opened, "train", tmp_path / "run"):
        raise AssertionError("it was read")
    assert is_gone(store, old)


def test_what_is_being_promoted_is_not_freed(address: str, spec: LatentSpec, tmp_path: Path, traps: Traps) -> None:
    store, old, new = two_versions(address, spec, tmp_path)
    held = traps.set("before-promotion", "hold")
    rolling_back = StoreCommand("promote", address, f"version={old.fingerprint}")
    held.wait(1, rolling_back)
    assert list(gc(store, "keep=0").result["kept"]) == [old.fingerprint]
    held.release()
    assert rolling_back.result == {"before": new.fingerprint, "promoted": old.fingerprint}
    assert list(gc(store, "keep=0").result["freed"]) == [new.fingerprint]
    assert is_whole(old)


def test_what_a_killed_promoter_has_promoted_is_not_freed_nor_what_readers_still_use(
    address: str, spec: LatentSpec, tmp_path: Path, traps: Traps, capsys: pytest.CaptureFixture[str]
) -> None:
    store, old, new = two_versions(address, spec, tmp_path)
    traps.set("after-promotion", "kill")
    assert StoreCommand("promote", address, f"version={old.fingerprint}").status == -9
    (lease,) = leases(store.storage)
    assert gc_here(store, capsys, "keep=0", f"release={lease.holder}")["freed"] == {}
    assert is_whole(old) and is_whole(new)


# --- a gc that is killed ------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["after-freeing", "mid-freeing"])
@pytest.mark.parametrize("words", [["keep=0"], []])
def test_an_interrupted_freeing_is_finished_by_the_next(
    address: str,
    spec: LatentSpec,
    tmp_path: Path,
    traps: Traps,
    at: str,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, old, new = two_versions(address, spec, tmp_path)
    traps.set(at, "kill")
    assert gc(store, "keep=0").status == -9
    with pytest.raises(RequestError, match="if that was interrupted, the next gc finishes it"):
        store.version(old.fingerprint)
    (begun,) = leases(store.storage)
    status = main("encode_pipeline", VERBS, ["gc", address, f"release={begun.holder}", "dry_run=true"])
    assert status == (0 if at == "after-freeing" else 2)  # what has begun to go is not to be taken back
    assert list(gc_here(store, capsys, *words, "dry_run=true")["freed"]) == [old.fingerprint]
    assert list(gc_here(store, capsys, *words)["freed"]) == [old.fingerprint]
    assert is_gone(store, old) and is_whole(new)
    assert gc_here(store, capsys, "keep=0")["freed"] == {}


def test_a_reader_from_before_an_interrupted_freeing_keeps_its_version(
    address: str, spec: LatentSpec, tmp_path: Path, traps: Traps, capsys: pytest.CaptureFixture[str]
) -> None:
    store, old, _ = two_versions(address, spec, tmp_path)
    held = traps.set("before-freeing", "hold")
    traps.set("after-freeing", "kill")
    freeing = gc(store, "keep=0")
    held.wait(1, freeing)
    with leased(old, "train", tmp_path / "run"):
        held.release()
        assert freeing.status == -9
        assert list(gc_here(store, capsys, "keep=0")["kept"]) == [old.fingerprint]
        assert is_whole(old)
    assert list(gc_here(store, capsys)["freed"]) == [old.fingerprint]
    assert is_gone(store, old)


def test_what_was_promoted_while_a_gc_was_killed_is_read_again(
    address: str, spec: LatentSpec, tmp_path: Path, traps: Traps, capsys: pytest.CaptureFixture[str]
) -> None:
    store, old, _ = two_versions(address, spec, tmp_path)
    freeing_held, promoting_held = traps.set("before-freeing", "hold"), traps.set("before-promotion", "hold")
    traps.set("after-freeing", "kill")
    freeing = gc(store, "keep=0")
    freeing_held.wait(1, freeing)
    promoting = StoreCommand("promote", address, f"version={old.fingerprint}")
    promoting_held.wait(1, promoting)
    freeing_held.release()
    assert freeing.status == -9
    promoting_held.release()
    assert promoting.result["promoted"] == old.fingerprint
    with pytest.raises(RequestError, match="the next gc finishes it"):
        store.version()
    assert gc_here(store, capsys)["freed"] == {}
    assert store.version().fingerprint == old.fingerprint and is_whole(old) and leases(store.storage) == []


def test_two_gcs_at_once_free_a_version_once(address: str, spec: LatentSpec, tmp_path: Path, traps: Traps) -> None:
    store, old, new = two_versions(address, spec, tmp_path)
    held = traps.set("mid-freeing", "hold", times=2)
    both = [gc(store, "keep=0")]
    held.wait(1, both[0])
    both.append(gc(store, "keep=0"))
    held.wait(2, both[1])
    held.release()
    assert [command.status for command in both] == [0, 0]
    assert is_gone(store, old) and is_whole(new)
