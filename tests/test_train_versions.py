"""A new version promoted while others read the old one: they keep it and go on with it; who comes new gets the new."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from encode_pipeline.__main__ import VERBS
from encode_pipeline.latents.command import RequestError, main
from encode_pipeline.latents.lease import leases
from encode_pipeline.latents.spec import LatentSpec, VaeIdentity
from encode_pipeline.latents.store import Store, Version
from tests.conftest import Configure, encode_and_seal
from tests.latent_stores import latent_store
from tests.test_boundaries import ROOT
from tests.test_eval_resume import command, words
from tests.test_pickscore import DEMO_VAE, base, convert, encode, pickscore, rows_of, stores
from tests.test_pickscore import Configure as ConfigurePickScore
from tests.test_train import store_of, tiny_model
from tests.test_train_ranks import torchrun
from tests.test_train_resume import wait_for_step
from tests.traps import Traps
from train.checkpoint import checkpoints, load_checkpoint
from train.config import TrainConfig
from train.loop import train
from train.pickscore import fine_tune
from train.versions import FILE

__all__ = ["base", "pickscore", "stores", "tiny_model"]
A = VaeIdentity(name="first/vae", weights_sha256="a" * 64, config={}, scaling_factor=0.5)
B = VaeIdentity(name="second/vae", weights_sha256="b" * 64, config={}, scaling_factor=0.5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def old(store: Store, spec: LatentSpec, tmp_path: Path) -> Version:
    """Latents of the first VAE, promoted."""
    version = latent_store(store.storage.url(), tmp_path / "a", spec.model_copy(update={"vae": A}), [12, 12])
    store.promote(version)
    return version


@pytest.fixture
def new(store: Store, old: Version, spec: LatentSpec, tmp_path: Path) -> Version:
    """Latents of the second VAE, not promoted as yet."""
    return latent_store(store.storage.url(), tmp_path / "b", spec.model_copy(update={"vae": B}), [12, 12])


def config(store: Store, model: str, out: Path, **changes: object) -> TrainConfig:
    values = {"model": model, "data": store.storage.url(), "out": out, "batch_size": 8, "steps": 4, **changes}
    return TrainConfig(**values)


def trained_on(out: Path) -> str:
    return str(load_checkpoint(out)["spec"]["fingerprint"])


def start(config: TrainConfig) -> subprocess.Popen[str]:
    keys = ("model", "data", "out", "batch_size", "steps", "checkpoint_every")
    line = [f"{key}={getattr(config, key)}" for key in keys]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "train", *line], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("every", [20, 1000], ids=["from a checkpoint", "before there is one"])
def test_a_killed_trainer_goes_on_with_the_version_it_began_with(
    store: Store, old: Version, new: Version, tiny_model: str, tmp_path: Path, every: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "run"
    same = config(store, tiny_model, out, steps=150, checkpoint_every=every)
    run = start(same)
    wait_for_step(out, 22 if every == 20 else 5, run)
    (lease,) = leases(store.storage)
    assert lease.version == old.fingerprint and lease.content["of"] == str(out)
    store.promote(new)
    assert main("encode_pipeline", VERBS, ["gc", store.storage.url(), "keep=0"]) == 0
    assert f"kept: {old.fingerprint}, in use by {lease.holder} (train of {out}" in capsys.readouterr().out
    assert run.poll() is None, "it had ended before it could be killed"
    run.kill()
    run.communicate()
    assert bool(checkpoints(out / "checkpoints")) == (every == 20)
    assert [each.holder for each in leases(store.storage)] == [lease.holder]

    assert train(same)["steps"] == 150
    told = f"{out}: goes on with version {old.fingerprint} of {store.storage.url()}, though {new.fingerprint} is"
    assert [line for line in capsys.readouterr().err.splitlines() if told in line] != []
    assert trained_on(out) == old.fingerprint and leases(store.storage) == []

    train(config(store, tiny_model, tmp_path / "another"))
    assert "goes on with" not in capsys.readouterr().err
    assert trained_on(tmp_path / "another") == new.fingerprint
    with pytest.raises(RequestError, match="first/vae .weights aaaaaaaaaaaa. against second/vae .weights bbbbbbbbbbbb"):
        train(same.model_copy(update={"version": new.fingerprint}))
    assert json.loads((out / FILE).read_bytes()) == {store.storage.url(): old.fingerprint}
    assert main("encode_pipeline", VERBS, ["gc", store.storage.url(), "keep=0"]) == 0
    with pytest.raises(RequestError, match=f"version {old.fingerprint}, with which {out} was begun, has been freed"):
        train(same)


def test_the_lease_is_there_before_anything_is_read(
    store: Store, old: Version, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Traps(monkeypatch, tmp_path).set("after-lease", "kill")
    run = start(config(store, tiny_model, tmp_path / "run"))
    assert run.wait() == -signal.SIGKILL, run.communicate()
    assert [lease.version for lease in leases(store.storage)] == [old.fingerprint]
    assert not (tmp_path / "run").exists()  # where it keeps copies of what it reads


def test_a_version_that_is_asked_for_is_read_and_remembered(
    store: Store, old: Version, new: Version, tiny_model: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(config(store, tiny_model, out, version=new.fingerprint[:6]))
    assert trained_on(out) == new.fingerprint
    train(config(store, tiny_model, out, checkpoint_every=7))  # old is the promoted one
    assert trained_on(out) == new.fingerprint
    (out / FILE).write_text("{")
    with pytest.raises(RequestError, match=f"{out / FILE}: damaged"):
        train(config(store, tiny_model, out))


def test_a_run_from_before_is_told_which_version_it_needs(
    store: Store, old: Version, new: Version, tiny_model: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(config(store, tiny_model, out))
    (out / FILE).unlink()
    store.promote(new)
    with pytest.raises(RequestError, match=f"use another out=, or version={old.fingerprint}"):
        train(config(store, tiny_model, out))
    assert train(config(store, tiny_model, out, version=old.fingerprint))["steps_now"] == 0


def test_several_stores_are_each_read_as_before(
    store: Store, old: Version, new: Version, spec: LatentSpec, tiny_model: str, tmp_path: Path
) -> None:
    other = Store(tmp_path / "other")
    second = latent_store(other.storage.url(), tmp_path / "c", old.spec, [8])
    both = [store.storage.url(), other.storage.url()]
    train(config(store, tiny_model, tmp_path / "run", data=both))
    store.promote(new)
    assert train(config(store, tiny_model, tmp_path / "run", data=both))["steps_now"] == 0
    known = json.loads((tmp_path / "run" / FILE).read_bytes())
    assert known == {both[0]: old.fingerprint, both[1]: second.fingerprint}
    with pytest.raises(RequestError, match=r"other latents than in .*: vae: .* against"):
        train(config(store, tiny_model, tmp_path / "another", data=both))


RANKS = """
import sys
from dataclasses import dataclass
from pathlib import Path
from encode_pipeline.latents.lease import leases
from encode_pipeline.latents.store import Store
from tests.traps import wait_for
from train.distributed import Ranks, ranks_of_torchrun
from train.versions import held_versions

address, new, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])

class FirstHasChosen(Ranks):
    def collect(self, mine):
        (folder / f"chosen-{self.rank}").write_text(mine[address])
        return super().collect(mine)

with ranks_of_torchrun() as ranks:
    ranks = FirstHasChosen(**vars(ranks))
    if ranks.rank == 1:
        wait_for("the first to choose", (folder / "chosen-0").exists)
        Store(address).promote(Store(address).version(new))
    with held_versions("train", folder / "run", {address: None}, ranks) as versions:
        (folder / f"read-{ranks.rank}").write_text(versions[address].fingerprint)
        if ranks.rank == 1:
            (folder / "leases").write_text(" ".join(lease.version for lease in leases(Store(address).storage)))
        ranks.wait()
"""


def test_all_processes_read_the_version_that_the_first_has_chosen(
    store: Store, old: Version, new: Version, tmp_path: Path
) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    done = torchrun(2, str(tmp_path / "ranks.py"), store.storage.url(), new.fingerprint, str(tmp_path))
    assert done.returncode == 0, done.stderr
    told = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    assert (told["chosen-0"], told["chosen-1"]) == (old.fingerprint, new.fingerprint)
    assert told["read-0"] == told["read-1"] == told["leases"] == old.fingerprint
    assert leases(store.storage) == []


def test_pickscore_goes_on_with_the_pairs_it_began_with(
    stores: dict[str, str], pickscore: ConfigurePickScore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = shutil.copytree(stores["held-out"], tmp_path / "pairs")
    short = pickscore(data=str(pairs), validation=str(pairs), steps=2, warmup=0)
    fine_tune(short)
    before = Store(pairs).current()
    encode([convert(rows_of(48, 1), tmp_path, "again")], pairs, DEMO_VAE, seed=5)  # and promoted
    after = Store(pairs).current()
    assert before != after and leases(Store(pairs).storage) == []
    assert fine_tune(short)["steps_now"] == 0
    assert f"goes on with version {before} of {pairs}, though {after} is promoted by now" in capsys.readouterr().err


def test_an_evaluation_holds_the_store_that_it_reads(
    tiny_model: str, configure: Configure, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = encode_and_seal(configure(source=str(world / "test"), store=str(tmp_path / "test-store"), views=1))
    store = Store(store_of(version))
    train(config(store, tiny_model, tmp_path / "run", steps=2))
    traps = Traps(monkeypatch, tmp_path)
    for verb in ("zero-shot", "retrieval"):
        line = words(verb, tmp_path / "run", Path(store_of(version)), tmp_path / verb)
        traps.set("before-commit", "kill")
        assert command(*line).returncode == -signal.SIGKILL
        (lease,) = leases(store.storage)
        assert lease.version == version.fingerprint and lease.holder.startswith(f"eval-{verb}-")
        traps.lift()
        done = torchrun(2, *line) if verb == "zero-shot" else command(*line)
        assert done.returncode == 0, done.stderr
        assert leases(store.storage) == []
