"""`verify engine=ray` on real nodes: the verdict of the local one, whatever happens to workers and nodes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import Version
from encode_pipeline.latents.verify import verify
from encode_pipeline.on_ray import verify as module
from encode_pipeline.on_ray.verify import check_bunch, check_on_ray
from tests.conftest import Bucket
from tests.test_boundaries import run_without
from tests.test_killed import PATIENCE, hear_interrupts
from tests.test_verify_deep import WRITTEN_WRONG, flip_all_and_cut_one, rewrite, rewrite_manifest, small_store

ROOT = Path(__file__).parent.parent
SHARDS = 30
QUICK_HEALTH_CHECKS = {"health_check_period_ms": 200, "health_check_failure_threshold": 15}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes to work on and a head that does not."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": QUICK_HEALTH_CHECKS}, connect=False
    )
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def version(spec: LatentSpec, tmp_path: Path) -> Version:
    return small_store(str(tmp_path / "store"), spec, tmp_path / "scratch", shards=SHARDS)


def damage(version: Version) -> None:
    """A bit of everything: commits lost and damaged, files lost, cut and flipped, a wrong writer, a false manifest."""
    rewrite(version, 0, WRITTEN_WRONG["a NaN"][1])
    version.seal()
    rewrite_manifest(version, lambda rows: [*rows[:20], {**rows[20], "samples": 6}, *rows[21:]])
    flip_all_and_cut_one(version)
    names = sorted(version.done())
    folder = version.storage.local_path("commits")
    assert folder is not None
    (folder / f"{names[3]}.json").unlink()
    (folder / f"{names[4]}.json").write_text("{}")
    for payload in version.commit(names[5]).payloads:
        version.storage.delete(payload.path)


@pytest.mark.parametrize("how", [{}, {"deep": True}, {"sample": 7, "seed": 3}, {"sample": 7, "deep": True}])
def test_the_verdict_is_the_local_one(how: dict[str, Any], cluster: Cluster, version: Version) -> None:
    assert verify(version, engine=check_on_ray, **how) == verify(version, **how)
    damage(version)
    found = verify(version, engine=check_on_ray, **how)
    assert found == verify(version, **how) and len(found.problems) > 10


def test_tasks_are_few_shards_each_and_named_by_them(
    cluster: Cluster, version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "tasks"
    seen.mkdir()

    def noted(url, spec, bunch, deep):
        context = ray.get_runtime_context()
        (seen / f"{bunch[0].shard}").write_text(f"{len(bunch)} {context.get_node_id()} {context.get_task_name()}")
        return check_bunch(url, spec, bunch, deep)

    monkeypatch.setattr(module, "check_bunch", noted)
    monkeypatch.setattr(module, "SHARDS_A_TASK", 4)
    monkeypatch.setattr(module, "TASKS_A_CPU", 1)
    assert verify(version, engine=check_on_ray).problems == []
    tasks = [path.read_text().split(" ", 2) for path in sorted(seen.iterdir())]
    assert [int(size) for size, _, _ in tasks] == [4] * 7 + [2]
    assert {name for _, _, name in tasks} == {"verify"}  # each other name would cost Ray 14 KB for ever
    assert len({node for _, node, _ in tasks}) == 2


def kills_its_process(marker: Path) -> Callable[..., Any]:
    """The task, which once kills the worker it is in, with some of its shards checked."""

    def check(url, spec, bunch, deep):
        found = check_bunch(url, spec, bunch[:1], deep)
        if any(errand.shard.startswith("00008") for errand in bunch):
            with contextlib.suppress(FileExistsError):
                marker.touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return found + check_bunch(url, spec, bunch[1:], deep)

    return check


def test_a_killed_worker_changes_nothing(
    cluster: Cluster, version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(version)
    monkeypatch.setattr(module, "SHARDS_A_TASK", 4)
    monkeypatch.setattr(module, "TASKS_A_CPU", 1)
    monkeypatch.setattr(module, "check_bunch", kills_its_process(tmp_path / "killed"))
    disturbed = verify(version, deep=True, engine=check_on_ray)
    assert (tmp_path / "killed").exists()
    assert disturbed == verify(version, deep=True)


def test_a_lost_node_changes_nothing(
    cluster: Cluster, version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks on a third node end it: its raylet, and then every process that they run in."""
    damage(version)
    marker = tmp_path / "killed"
    doomed = cluster.add_node(num_cpus=2)
    node = doomed.node_id

    def check(url, spec, bunch, deep):
        found = check_bunch(url, spec, bunch, deep)
        if ray.get_runtime_context().get_node_id() == node:
            with contextlib.suppress(FileExistsError):
                marker.touch(exist_ok=False)
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        given_up = time.monotonic() + PATIENCE
        while not marker.exists() and time.monotonic() < given_up:  # the others would be done before it has begun
            time.sleep(0.05)
        return found

    monkeypatch.setattr(module, "SHARDS_A_TASK", 1)
    monkeypatch.setattr(module, "check_bunch", check)
    try:
        disturbed = verify(version, deep=True, engine=check_on_ray)
    finally:
        cluster.remove_node(doomed, allow_graceful=False)
    assert marker.exists()
    assert disturbed == verify(version, deep=True)


def test_a_frozen_worker_holds_nobody_up(
    cluster: Cluster, version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    damage(version)
    marker = tmp_path / "frozen"

    def check(url, spec, bunch, deep):
        if any(errand.shard.startswith("00008") for errand in bunch):
            with contextlib.suppress(FileExistsError), marker.open("x") as file:
                file.write(str(os.getpid()))
                file.flush()
                os.kill(os.getpid(), signal.SIGSTOP)
        return check_bunch(url, spec, bunch, deep)

    monkeypatch.setattr(module, "SHARDS_A_TASK", 4)
    monkeypatch.setattr(module, "TASKS_A_CPU", 1)
    monkeypatch.setattr(module, "PATIENCE", 2.0)
    monkeypatch.setattr(module, "check_bunch", check)
    try:
        disturbed = verify(version, deep=True, engine=check_on_ray)
    finally:
        os.kill(int(marker.read_text()), signal.SIGKILL)
    assert disturbed == verify(version, deep=True)
    assert "no answer for 2 s; asked again" in capsys.readouterr().err


def test_a_shard_that_kills_every_worker_is_a_problem_and_the_rest_goes_on(
    cluster: Cluster, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(url, spec, bunch, deep):
        if bunch[0].shard.startswith("00008"):
            os.kill(os.getpid(), signal.SIGKILL)
        return check_bunch(url, spec, bunch, deep)

    monkeypatch.setattr(module, "RETRIES", 1)
    monkeypatch.setattr(module, "SHARDS_A_TASK", 2)
    monkeypatch.setattr(module, "TASKS_A_CPU", 1)
    monkeypatch.setattr(module, "check_bunch", poisoned)
    verdict = verify(version, engine=check_on_ray)
    names = sorted(version.done())
    assert [problem.path for problem in verdict.problems] == [
        version.storage.url(f"commits/{name}.json") for name in names[8:10]
    ]
    assert all(
        "not checked: WorkerCrashedError" in problem.problem and f"verify {names[8]}..{names[9]}" in problem.problem
        for problem in verdict.problems
    )
    assert verdict.checked == 4 * (SHARDS - 2)


def test_a_fault_of_the_program_is_raised_as_it_is(
    cluster: Cluster, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(url, spec, bunch, deep):
        raise ZeroDivisionError("this was never thought of")

    monkeypatch.setattr(module, "check_bunch", broken)
    with pytest.raises(ZeroDivisionError, match="never thought of"):
        verify(version, engine=check_on_ray)


# --- by command -------------------------------------------------------------------------------------


def command(*words: str, **environment: str) -> tuple[int, dict[str, Any], str]:
    line = [sys.executable, "-m", "encode_pipeline", "verify", *words, "--json"]
    env = {**os.environ, **environment}
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=env, timeout=PATIENCE, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def test_the_cluster_at_ray_address_is_joined(cluster: Cluster, version: Version) -> None:
    damage(version)
    store = str(Path(version.storage.root).parent)
    on_ray = command(store, "engine=ray", "deep=true", RAY_ADDRESS=cluster.address)
    assert on_ray[0] == 1 and on_ray[1] == verify(version, deep=True).to_dict()
    assert len(ray.nodes()) >= 3 and ray.is_initialized()  # it is still there for others


def test_without_an_address_one_is_started_here_and_s3_is_read(
    spec: LatentSpec, bucket: Bucket, tmp_path: Path
) -> None:
    version = small_store(f"{bucket.url}/store", spec, tmp_path / "scratch", shards=4)
    names = sorted(version.done())
    version.storage.delete(version.commit(names[1]).payloads[0].path)
    rewrite(version, 1, WRITTEN_WRONG["another caption"][1])
    status, verdict, said = command(f"{bucket.url}/store", "engine=ray", "--deep", RAY_ADDRESS="")
    assert status == 1 and verdict == verify(version, deep=True).to_dict()
    assert [problem["problem"] for problem in verdict["problems"]] == [
        "003: another caption than in view0.tar",
        "missing",
    ]
    assert "verified 4/4 shards" in said
    sampled = command(f"{bucket.url}/store", "sample=1")[1]
    assert sampled["read"] == 1 and [problem["problem"] for problem in sampled["problems"]] == ["missing"]


def test_an_interrupt_ends_it(version: Version, tmp_path: Path) -> None:
    """Tasks that never end are left behind, and so is the cluster that was started for them."""
    marker = tmp_path / "begun"
    code = (
        "import sys, time; from pathlib import Path\n"
        "from encode_pipeline.__main__ import VERBS, main; from encode_pipeline.on_ray import verify\n"
        "def hold(*bunch):\n"
        f"    Path({str(marker)!r}).touch()\n"
        "    while True: time.sleep(1)\n"
        "verify.check_bunch = hold\n"
        "sys.exit(main('encode_pipeline', VERBS, sys.argv[1:]))"
    )
    line = [sys.executable, "-c", code, "verify", str(Path(version.storage.root).parent), "engine=ray"]
    environment = {**os.environ, "RAY_ADDRESS": "", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(line, stderr=subprocess.PIPE, env=environment, cwd=ROOT, preexec_fn=hear_interrupts)
    try:
        until = time.monotonic() + PATIENCE
        while not marker.exists():
            assert process.poll() is None and time.monotonic() < until, "no task was begun"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130 and "Traceback" not in said.decode()
    assert said.decode().splitlines()[-1].startswith("interrupted; ")


def test_neither_torch_nor_any_vae_is_needed(version: Version) -> None:
    code = "from encode_pipeline.on_ray import verify"
    done = run_without({"torch", "diffusers", "PIL", "cv2", "albumentations"}, code)
    assert done.returncode == 0, done.stderr


def test_without_ray_the_command_says_what_to_install(version: Version) -> None:
    code = "from encode_pipeline.__main__ import VERBS, main; sys.exit(main('encode_pipeline', VERBS, sys.argv[1:]))"
    store = str(Path(version.storage.root).parent)
    assert run_without({"ray"}, code, "verify", store, "deep=true").returncode == 0
    refused = run_without({"ray"}, code, "verify", store, "engine=ray")
    assert refused.returncode == 2 and "install latent-clip-pipeline[ray]" in refused.stderr
