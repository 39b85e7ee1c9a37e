"""The Ray engine on real nodes: the same bytes as the local one, whatever happens to actors."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.store import Store
from encode_pipeline.on_ray.actors import VaeActor
from encode_pipeline.run import run
from tests.conftest import Configure, encode_and_seal, payload_hashes


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes that say they have a GPU each; a head without one."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=2, num_gpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_ray_commits_what_local_commits(cluster: Cluster, configure: Configure, tmp_path: Path) -> None:
    local = encode_and_seal(configure(store=str(tmp_path / "local")))
    on_ray = encode_and_seal(configure(store=str(tmp_path / "ray"), engine="ray"))
    assert payload_hashes(local) == payload_hashes(on_ray)
    assert {commit.made_by["device"] for commit in on_ray.commits()} == {"cpu"}


def test_bad_tars_are_reported_by_ray_too(cluster: Cluster, configure: Configure, tmp_path: Path, world: Path) -> None:
    broken = tmp_path / "broken.tar"
    broken.write_bytes((world / "train" / "00000.tar").read_bytes()[:5000])
    config = configure(source=[str(broken), str(world / "train" / "00001.tar")], engine="ray", views=1)
    result = run(config)
    assert not result["ok"] and result["shards"] == {"done": 1, "failed": 1, "done_by_others": 0}
    assert result["failures"][0]["error"].startswith("TarError: ") and str(broken) in result["failures"][0]["error"]


def test_a_killed_actor_comes_back_and_nothing_is_lost(
    cluster: Cluster, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt at one shard kills its own process, as an out-of-memory kill would."""
    marker = tmp_path / "killed"

    class Suicidal(VaeActor):
        def encode(self, source):
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode(source)

    monkeypatch.setattr("encode_pipeline.on_ray.driver.VaeActor", Suicidal)
    disturbed = encode_and_seal(configure(store=str(tmp_path / "disturbed"), engine="ray", actors=1, views=2))
    assert marker.exists()
    undisturbed = encode_and_seal(configure(store=str(tmp_path / "calm"), views=2))
    assert payload_hashes(disturbed) == payload_hashes(undisturbed)


def test_more_actors_than_there_is_room_for_do_not_hold_up_the_rest(
    cluster: Cluster, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of four actors never find a place, as on a cluster that others fill."""
    monkeypatch.setattr("encode_pipeline.on_ray.driver.ray.cluster_resources", lambda: {"GPU": 4.0, "CPU": 4.0})
    result = run(configure(engine="ray", actors=4, views=1))
    assert result["ok"] and result["shards"]["done"] == 3


def test_a_tar_that_kills_every_actor_is_given_up_on(
    cluster: Cluster, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Poisoned(VaeActor):
        def encode(self, source):
            if source.uri.endswith("00001.tar"):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode(source)

    monkeypatch.setattr("encode_pipeline.on_ray.driver.VaeActor", Poisoned)
    result = run(configure(engine="ray", views=1, max_attempts=2))
    assert result["shards"] == {"done": 2, "failed": 1, "done_by_others": 0}
    assert result["failures"][0]["attempts"] == 2


def test_more_gpus_than_there_are_is_refused(cluster: Cluster, configure: Configure) -> None:
    with pytest.raises(RequestError, match="set actors and gpus_per_actor"):
        run(configure(engine="ray", actors=5))


def test_a_vae_that_cannot_be_loaded_ends_the_run_in_one_line(
    cluster: Cluster, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unloadable(VaeActor):
        def __init__(self, config, fingerprint):
            raise RequestError("vae: gone: no such directory")

    monkeypatch.setattr("encode_pipeline.on_ray.driver.VaeActor", Unloadable)
    config = configure(engine="ray", views=1)
    with pytest.raises(RequestError, match="vae: gone: no such directory"):
        run(config)
    assert Store(config.store).version().done() == set()
