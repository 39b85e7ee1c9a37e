"""`reencode`: when it does nothing, when it makes a new version, what it refuses, and what it leaves in the trail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("jinja2")

from encode_pipeline.__main__ import VERBS
from encode_pipeline.latents.audit import Audit
from encode_pipeline.latents.command import main
from encode_pipeline.latents.lease import leases
from encode_pipeline.latents.store import Store
from tests.changed_vaes import DEMO_VAE, blind, one_weight_changed, saved_again, untrained
from tests.conftest import Bucket
from tests.test_boundaries import ROOT, run_without
from tests.traps import Traps


@dataclass
class Schedule:
    """The same command again and again, with what a test wants otherwise."""

    store: Path
    words: list[str]
    capsys: pytest.CaptureFixture[str]

    def tick(self, *words: str, **changes: object) -> tuple[int, dict[str, Any]]:
        """Exit status and JSON of one call."""
        changed = {word.partition("=")[0] for word in self.words} & changes.keys()
        kept = [word for word in self.words if word.partition("=")[0] not in changed]
        new = [f"{key}={value}" for key, value in changes.items()]
        status = main("encode_pipeline", VERBS, ["reencode", *kept, *new, *words, "--json"])
        out, self.said = self.capsys.readouterr()
        return status, json.loads(out)

    said = ""
    """On standard error, by the last tick."""

    @property
    def trail(self) -> list[tuple[str, str]]:
        """Event and version of every entry."""
        return [(entry.event, entry.version) for entry in Audit(Store(self.store).storage).entries()]

    def files(self) -> dict[str, int]:
        return Store(self.store).storage.files()


Begin = Callable[..., Schedule]


@pytest.fixture
def begin(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Begin:
    """A schedule over the small world, with nothing promoted yet."""

    def words(**changes: object) -> Schedule:
        values = {"source": world / "train", "store": tmp_path / "store", "vae": DEMO_VAE, "image_size": 128}
        values |= {"views": 1, "batch_size": 8, "threads": 1, "compare_samples": 6, **changes}
        return Schedule(tmp_path / "store", [f"{key}={value}" for key, value in values.items()], capsys)

    return words


@pytest.fixture
def schedule(begin: Begin) -> Schedule:
    """One that has promoted its first version."""
    schedule = begin()
    assert schedule.tick()[0] == 0
    return schedule


ALL_STEPS = ["reencode-began", "sealed", "verified", "compared", "promoted"]

# --- nothing to do ------------------------------------------------------------------------------------


def test_the_first_version_keeps_the_limits_or_is_not_promoted(begin: Begin, tmp_path: Path) -> None:
    schedule = begin()
    status, result = schedule.tick(vae=untrained(tmp_path / "untrained"))
    assert status == 1 and result["outcome"] == "refused" and result["promoted"] is None
    assert "min_psnr is 18" in result["why"]
    status, result = schedule.tick("--if-changed")
    assert (status, result["outcome"], result["why"]) == (0, "promoted", "nothing is promoted yet")
    assert result["promoted"] == result["fingerprint"] and result["before"] is None
    assert result["compared"]["psnr"]["old"] is None and result["verified"]["problems"] == []
    mine = [event for event, version in schedule.trail if version == result["fingerprint"]]
    assert mine == ALL_STEPS


def test_a_vae_of_another_name_is_the_same_vae(
    schedule: Schedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = saved_again(tmp_path / "renamed")
    before = schedule.trail

    def no_gpu() -> None:
        raise AssertionError("a GPU was asked for")

    monkeypatch.setattr(torch.cuda, "_lazy_init", no_gpu)
    for _ in range(2):
        status, result = schedule.tick("if_changed=true", vae=again)
        assert (status, result["outcome"], result["changed"]) == (0, "unchanged", False)
        assert f"only the VAE's name has changed, from {DEMO_VAE} to {again}" in result["why"]
    assert schedule.trail == [*before, ("reencode-unchanged", result["fingerprint"])]  # once of the two
    schedule.tick("if_changed=true")
    assert schedule.trail[-2:] == [("reencode-unchanged", result["fingerprint"])] * 2  # for it says something else


def test_nothing_is_loaded_to_find_nothing_to_do(schedule: Schedule) -> None:
    code = (
        "from encode_pipeline.__main__ import VERBS, main\n"
        "status = main('encode_pipeline', VERBS, ['reencode', *sys.argv[1:]])\n"
        "heavy = {'torch', 'diffusers', 'ray', 'encode_pipeline.encoder', 'encode_pipeline.comparison.run'}\n"
        "assert status == 0 and not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    # Where it would look for tars or machines, it finds none.
    done = run_without({"ray"}, code, *schedule.words, "--if-changed", "engine=ray", "limit=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("unchanged: version ") and done.stderr == ""


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(schedule: Schedule, tmp_path: Path) -> None:
    before, promoted = schedule.files(), Store(schedule.store).current()
    status, result = schedule.tick("dry_run=true", "--if-changed")
    assert (status, result["ok"], result["changed"], result["promoted"]) == (0, True, False, promoted)
    status, result = schedule.tick("dry_run=true", vae=one_weight_changed(tmp_path / "off"))
    assert (status, result["ok"], result["changed"], result["promoted"]) == (0, True, True, promoted)
    assert result["fingerprint"] != promoted and result["why"].startswith(f"vae: {DEMO_VAE} (")
    assert schedule.files() == before


def test_a_dry_run_before_there_is_a_store_makes_none(begin: Begin) -> None:
    status, result = begin().tick("dry_run=true")
    assert (status, result["changed"], result["promoted"]) == (0, True, None)
    assert not begin().store.exists()


def test_new_tars_are_not_for_a_sealed_version(schedule: Schedule, world: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.tar"
    shutil.copy(world / "train" / "00000.tar", more)
    source = f"[{world / 'train'}, {more}]"
    assert schedule.tick("--if-changed", source=source)[1]["outcome"] == "unchanged"
    status, result = schedule.tick(source=source)
    assert (
        status == 2
        and f"sealed, with this VAE and these settings, and 1 of 4 tars are not in it ({more})" in result["error"]
    )
    assert "store of their own, and train on both" in result["error"]


# --- something to do ----------------------------------------------------------------------------------


def test_one_weight_is_enough(schedule: Schedule, tmp_path: Path) -> None:
    old = Store(schedule.store).current()
    off = one_weight_changed(tmp_path / "off")
    status, result = schedule.tick("--if-changed", vae=off)
    assert (status, result["outcome"], result["changed"], result["before"]) == (0, "promoted", True, old)
    assert Store(schedule.store).current() == result["fingerprint"] == result["promoted"] != old
    assert result["encoded"]["shards"]["done"] == 3 and result["compared"]["against"] == old
    assert abs(result["compared"]["psnr"]["loss"]) < 0.2
    assert [event for event, version in schedule.trail if version == result["fingerprint"]] == ALL_STEPS
    entries = Audit(Store(schedule.store).storage).of(result["fingerprint"])
    assert entries[-1].why == f"reencode: {result['why']}" and entries[-1].details["before"] == old
    assert Path(entries[-2].details["report"]).is_file()


def test_a_person_reads_what_was_done(schedule: Schedule, tmp_path: Path) -> None:
    words = [word for word in schedule.words if not word.startswith("vae=")]
    assert main("encode_pipeline", VERBS, ["reencode", *words, f"vae={one_weight_changed(tmp_path / 'off')}"]) == 0
    first, encoded, verified, compared, page, readers = schedule.capsys.readouterr().out.splitlines()
    assert first.startswith("promoted: version ") and f": vae: {DEMO_VAE} (" in first
    assert encoded == "encoded   3 shards now, 0 before, 0 given up on" and " bytes read" in verified
    assert (
        compared.startswith("compared  6 samples have ") and " on average and " in compared and ", and had " in compared
    )
    assert Path(page.split()[1]).is_file() and readers == f"readers   use {Store(schedule.store).current()}"


def test_without_if_changed_everything_is_looked_at_again(schedule: Schedule) -> None:
    status, result = schedule.tick()
    assert (status, result["outcome"], result["changed"]) == (0, "promoted", False)
    assert "entry" not in result["verified"] and "entry" not in result["compared"] and "encoded" not in result
    assert [event for event, _ in schedule.trail] == [*ALL_STEPS, *ALL_STEPS[:4]]  # it was promoted before


def test_rolled_back_by_hand_it_stays_so(schedule: Schedule, tmp_path: Path) -> None:
    store = Store(schedule.store)
    old, off = store.version(), one_weight_changed(tmp_path / "off")
    new = schedule.tick("--if-changed", vae=off)[1]["fingerprint"]
    store.promote(old)
    before = schedule.trail
    for _ in range(2):
        status, result = schedule.tick("--if-changed", vae=off)
        assert (status, result["outcome"], result["promoted"]) == (0, "held-back", old.fingerprint)
        assert f"it was promoted before, and {old.fingerprint} after it, which stays" in result["why"]
    assert schedule.trail == [*before, ("held-back", new)]
    assert schedule.tick("--if-changed", "dry_run=true", vae=off)[1]["changed"] is False
    status, result = schedule.tick(vae=off)
    assert (status, result["outcome"], store.current()) == (0, "promoted", new)


def test_what_was_refused_is_not_checked_again_until_somebody_asks(schedule: Schedule, tmp_path: Path) -> None:
    old, bad = Store(schedule.store).current(), untrained(tmp_path / "bad")
    status, result = schedule.tick("--if-changed", vae=bad)
    new, why = result["fingerprint"], result["why"]
    assert (status, result["outcome"], result["promoted"]) == (1, "refused", old)
    assert "min_psnr is 18" in why and "max_psnr_loss is 1" in why
    refusal = Audit(Store(schedule.store).storage).of(new)[-1]
    assert refusal.event == "refused" and refusal.details["psnr"]["new"]["mean"] < 18
    assert Path(refusal.details["report"]).is_file() and Store(schedule.store).version(new).sealed

    before = schedule.files()
    for more in ("dry_run=true", "dry_run=false"):
        status, result = schedule.tick("--if-changed", more, vae=bad)
        assert (status, result["outcome"], result["changed"]) == (1, "refused", False)
        assert result["why"].startswith(f"{why} (on {refusal.at[:10]}, audit entry {refusal.number})")
        assert "without --if-changed, it is checked again" in result["why"]
    assert schedule.files() == before and "verified" not in schedule.said

    schedule.capsys.readouterr()
    assert main("encode_pipeline", VERBS, ["gc", str(schedule.store), "refused=true"]) == 0
    assert Store(schedule.store).versions() == [old] and f"freed: {new}" in schedule.capsys.readouterr().out
    assert schedule.tick("--if-changed", vae=bad)[1]["why"].startswith(why)  # it need not be made again to be known

    status, result = schedule.tick(vae=bad)  # somebody asks
    assert status == 1 and "verified 3/3 shards" in schedule.said and result["outcome"] == "refused"
    lower = {"min_psnr": 5, "max_psnr_loss": 30, "accept_drift": "true", "min_worst_psnr": 0}
    status, result = schedule.tick("--if-changed", vae=bad, **lower)
    assert (status, result["outcome"], result["promoted"]) == (0, "promoted", new)
    assert "entry" in result["verified"] and "entry" not in result["compared"]  # only the limits were others


def test_a_damaged_byte_is_found_before_anybody_reads_it(
    schedule: Schedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encode_pipeline import reencode

    plain = reencode.verified

    def damaging(version: Any, *more: Any) -> Any:
        (payload, *_) = version.commit(sorted(version.done())[0]).payloads
        tar = version.storage.local_path(payload.path)
        data = bytearray(tar.read_bytes())
        data[-2000] ^= 1
        tar.write_bytes(data)
        return plain(version, *more)

    monkeypatch.setattr(reencode, "verified", damaging)
    status, result = schedule.tick("--if-changed", vae=one_weight_changed(tmp_path / "off"))
    assert (status, result["outcome"], result["promoted"]) == (1, "refused", result["before"])
    assert result["why"].startswith("verify found 1 problem(s): ") and "compared" not in result
    assert schedule.trail[-1] == ("refused", result["fingerprint"])


def test_a_tar_that_is_given_up_on_holds_the_version_back(schedule: Schedule, world: Path, tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    shutil.copytree(world / "train", tars)
    broken = tars / "00001.tar"
    broken.write_bytes(broken.read_bytes()[:5000])
    off, old = one_weight_changed(tmp_path / "off"), Store(schedule.store).current()
    for _ in range(2):
        status, result = schedule.tick("--if-changed", vae=off, source=tars)
        assert (status, result["outcome"], result["promoted"]) == (1, "given-up", old)
        assert result["why"] == f"not sealed: 1 of 3 tars were given up on: {broken}"
        assert not Store(schedule.store).version(result["fingerprint"]).sealed
    assert schedule.trail[-2:] == [("reencode-began", result["fingerprint"]), ("held-back", result["fingerprint"])]
    status, result = schedule.tick("--if-changed", "accept_failed=true", vae=off, source=tars)
    assert (
        status == 1 and result["outcome"] == "refused"
    )  # the tar lies elsewhere now: nobody knows that it is the same
    assert "16 of the promoted version's 48 samples are missing (1 tars are not in it: " in result["why"]
    status, result = schedule.tick("--if-changed", "accept_failed=true", vae=off, source=tars, max_lost=0.4)
    assert (status, result["outcome"]) == (0, "promoted")


def test_a_vae_without_finite_latents_is_told_and_written_down(schedule: Schedule, tmp_path: Path) -> None:
    vae = blind(tmp_path / "blind")
    for _ in range(2):
        status, result = schedule.tick("--if-changed", vae=vae)
        assert status == 1 and "nothing to seal: no committed shard holds a latent (48 non_finite_latent)" in str(
            result
        )
        assert [event for event, _ in schedule.trail] == [*ALL_STEPS, "reencode-began", "held-back"]
    assert Audit(Store(schedule.store).storage).entries()[-1].why in result["error"]


# --- killed -------------------------------------------------------------------------------------------

STEPS = ("mid-shard", "after-seal", "after-verify", "after-compare", "after-promotion")


def test_killed_at_every_step_it_goes_on(begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Averaged pixels under two seeds, for they come up in half the time of a VAE."""
    schedule = begin(vae="pixels", image_size=64)
    assert schedule.tick()[0] == 0
    old = Store(schedule.store).current()
    traps = Traps(monkeypatch, tmp_path)
    set_traps = [traps.set(step, "kill") for step in STEPS]
    command = [sys.executable, "-m", "encode_pipeline", "reencode", *schedule.words, "seed=1", "--if-changed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = []
    for trap in set_traps:
        assert Store(schedule.store).current() == old
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == -9 and len(trap.met()) == 1, done.stderr
        told.append(done.stderr)
    traps.lift()
    status, result = schedule.tick("--if-changed", seed=1)
    assert (status, result["outcome"], result["before"]) == (0, "promoted", old)
    assert ["verified 3/3" in text for text in told] == [False, False, True, False, False]
    assert "entry" in result["verified"] and "entry" in result["compared"]
    assert [event for event, version in schedule.trail if version == result["fingerprint"]] == ALL_STEPS
    assert [event for event, _ in schedule.trail].count("promoted") == 2
    assert "reencode" not in [lease.content["purpose"] for lease in leases(Store(schedule.store).storage)]


# --- elsewhere ----------------------------------------------------------------------------------------


def test_the_store_may_be_a_bucket(begin: Begin, tmp_path: Path, bucket: Bucket) -> None:
    schedule = begin(store=f"{bucket.url}/latents")
    old = schedule.tick()[1]["promoted"]
    status, result = schedule.tick("--if-changed", vae=one_weight_changed(tmp_path / "off"))
    assert (status, result["outcome"], result["before"]) == (0, "promoted", old)
    assert result["compared"]["psnr"]["old"]["samples"] == 6 and result["compared"]["counts"]["lost"] == 0
    page = result["compared"]["report"].removeprefix(f"{bucket.url}/")
    assert b"It may be promoted" in bucket.client.get_object(Bucket=bucket.name, Key=page)["Body"].read()


def test_on_ray_the_driver_holds_no_vae_and_no_picture(begin: Begin) -> None:
    """Verifying and comparing are tasks; here they run on this machine's cores."""
    code = (
        "import ray; ray.init('local', num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        "from encode_pipeline.__main__ import VERBS, main\n"
        "status = main('encode_pipeline', VERBS, ['reencode', *sys.argv[1:], '--json'])\n"
        "assert status == 0 and 'torch' not in sys.modules and 'PIL' not in sys.modules\n"
    )
    done = run_without(set(), code, *begin().words, "engine=ray", "gpus_per_actor=0", "actors=1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["outcome"] == "promoted" and result["compared"]["psnr"]["new"]["mean"] > 25
    assert Path(result["compared"]["report"]).is_file()
