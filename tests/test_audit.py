"""The audit trail: every decision once, in order, whatever the server answers."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from encode_pipeline.__main__ import VERBS
from encode_pipeline.latents.audit import Audit
from encode_pipeline.latents.command import main
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.storage import Storage, StorageError
from encode_pipeline.latents.store import Store
from tests.faults import Do
from tests.faulty_s3 import FaultyBucket, faulty, faulty_server
from tests.store_commands import versions_of
from tests.test_commit_protocol import OpenStore, open_store

__all__ = ["faulty", "faulty_server", "open_store"]


def test_entries_come_back_in_order(open_store: OpenStore) -> None:
    audit = Audit(open_store().storage)
    assert audit.entries() == [] and audit.last() == 0
    made = [audit.record("verified", name, "asked for", shards=3, by_view={"0": 1.5}) for name in ("a", "b", "a")]
    assert audit.entries() == made and [entry.number for entry in made] == [1, 2, 3]
    assert audit.of("a") == [made[0], made[2]]
    assert made[0].details == {"shards": 3, "by_view": {"0": 1.5}} and {"host", "pid", "user"} <= set(made[0].by)
    assert sorted(audit.storage.names("audit")) == ["000001.json", "000002.json", "000003.json"]


def test_racing_writers_take_a_number_each(faulty: FaultyBucket, tmp_path: Path) -> None:
    for address in (f"{faulty.url}/store", str(tmp_path), f"memory://{uuid.uuid4().hex}"):
        audit = Audit(Storage(address))
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(audit.record, ["verified"] * 12, map(str, range(12)), ["race"] * 12))
        entries = audit.entries()
        assert [entry.number for entry in entries] == list(range(1, 13))
        assert {entry.version for entry in entries} == {f"{number}" for number in range(12)}


def test_what_several_record_once_is_there_once(faulty: FaultyBucket, tmp_path: Path) -> None:
    for address in (f"{faulty.url}/store", str(tmp_path)):
        audit = Audit(Storage(address))
        audit.record("promoted", "a", "another time")

        def record(number: int, audit: Audit = audit) -> int:
            audit.record("verified", "a", f"in between {number}")
            return audit.record_once(1, "promoted", "a", f"by {number}").number

        with ThreadPoolExecutor(6) as pool:
            numbers = set(pool.map(record, range(6)))
        promoted = [entry.number for entry in audit.entries() if entry.event == "promoted"]
        assert len(numbers) == 1 and promoted == [1, *numbers] and audit.last() == 8


@pytest.mark.parametrize("do", ["503", "lose-reply", "reset", "409", "412", "flip-up"])
def test_a_server_in_trouble_neither_doubles_nor_loses_an_entry(faulty: FaultyBucket, do: Do) -> None:
    audit = Audit(Storage(f"{faulty.url}/store"))
    rule = faulty.s3.add(do, method="PUT", key="*/audit/*")
    audit.record("sealed", "a", "asked for")
    audit.record_once(1, "promoted", "a", "asked for")
    assert rule.met == 1
    assert [(entry.number, entry.event) for entry in audit.entries()] == [(1, "sealed"), (2, "promoted")]


def test_a_damaged_entry_is_named_and_stands_in_nobodys_way(open_store: OpenStore) -> None:
    storage = open_store().storage
    audit = Audit(storage)
    audit.record("sealed", "a", "asked for")
    for number, damage in enumerate((b"{", b'{"number": 2}', json.dumps({**vars(audit.entries()[0])}).encode()), 2):
        path = f"audit/{number:06}.json"
        storage.create(path, damage)
        with pytest.raises(StorageError, match=f"{storage.url(path)}: (damaged: not an entry|is entry 1) of the audit"):
            audit.entries()
        assert audit.record_once(number - 1, "promoted", f"{number}", "asked for").number == number + 1
        assert audit.record_once(number - 1, "promoted", f"{number}", "asked for").number == number + 1
        storage.delete(path)
        storage.delete(f"audit/{number + 1:06}.json")
        storage.create(path, audit_entry(number))


def audit_entry(number: int) -> bytes:
    entry = {"number": number, "event": "sealed", "version": "a", "why": "", "details": {}, "by": {}, "at": ""}
    return json.dumps(entry).encode()


def test_history_tells_what_was_decided_by_hand(
    open_store: OpenStore, spec: LatentSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = open_store().storage.url()
    first, second = versions_of(address, spec, tmp_path, 2)
    second.storage.delete("manifest.parquet")
    for words in (
        ["seal", address, f"version={second.fingerprint}"],
        ["seal", address, f"version={second.fingerprint}"],
        ["promote", address, f"version={first.fingerprint}"],
        ["promote", address, f"version={second.fingerprint}"],
        ["promote", address, f"version={second.fingerprint}"],
        ["gc", address, "keep=0", "dry_run=true"],
        ["gc", address, "keep=0"],
    ):
        assert main("encode_pipeline", VERBS, words) == 0
    capsys.readouterr()
    assert main("encode_pipeline", VERBS, ["history", address, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)["entries"]
    assert [(entry["event"], entry["version"]) for entry in entries] == [
        ("sealed", second.fingerprint),
        ("promoted", first.fingerprint),
        ("promoted", second.fingerprint),
        ("freed", first.fingerprint),
    ]
    assert entries[2]["details"] == {"promotion": 2, "before": first.fingerprint}
    assert main("encode_pipeline", VERBS, ["history", address]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert f"{first.fingerprint}  freed: retired, with keep=0; bytes {entries[3]['details']['bytes']} (" in lines[3]
    assert main("encode_pipeline", VERBS, ["history", address, f"version={first.fingerprint[:8]}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main("encode_pipeline", VERBS, ["history", address, "version=zz"]) == 2
    assert capsys.readouterr().err == f"error: {address}: nothing was decided about a version zz\n"


def test_history_of_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "else" / "where").mkdir(parents=True)
    for verb, nowhere in (("history", "nothing"), ("history", "else"), ("gc", "nothing")):
        assert main("encode_pipeline", VERBS, [verb, str(tmp_path / nowhere)]) == 2
        assert "no latent store here" in capsys.readouterr().err
    Store(tmp_path).storage.create("audit/000001.json", b"{")
    assert main("encode_pipeline", VERBS, ["history", str(tmp_path)]) == 1
    assert f"{tmp_path}/audit/000001.json: damaged" in capsys.readouterr().err
