"""The Ray engine on real nodes: the same bytes as the local one, whatever happens to actors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.failpoints import ENVIRONMENT
from encode_pipeline.latents.spec import SpecError
from encode_pipeline.latents.store import Store
from encode_pipeline.listener import NOBODY
from encode_pipeline.on_ray.driver import check_room, run_on_ray
from encode_pipeline.run import prepare, run
from tests.conftest import Configure, build_vae, encode_and_seal, payload_hashes


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


def set_trap(monkeypatch: pytest.MonkeyPatch, **trap: object) -> None:
    monkeypatch.setenv(ENVIRONMENT, json.dumps([trap]))


@pytest.mark.parametrize("latent_dtype", ["float16", "int8"])
def test_ray_commits_what_local_commits(
    latent_dtype: str, cluster: Cluster, configure: Configure, tmp_path: Path
) -> None:
    local = encode_and_seal(configure(store=str(tmp_path / "local"), latent_dtype=latent_dtype))
    on_ray = encode_and_seal(configure(store=str(tmp_path / "ray"), engine="ray", latent_dtype=latent_dtype))
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
    set_trap(monkeypatch, at="mid-shard", do="kill", marks=str(tmp_path))
    disturbed = encode_and_seal(configure(store=str(tmp_path / "disturbed"), engine="ray", actors=1, views=2))
    assert (tmp_path / "mid-shard-1").exists()
    undisturbed = encode_and_seal(configure(store=str(tmp_path / "calm"), views=2))
    assert payload_hashes(disturbed) == payload_hashes(undisturbed)


def test_more_actors_than_there_is_room_for_do_not_hold_up_the_rest(cluster: Cluster, configure: Configure) -> None:
    """Two of four actors never find a place, as on a cluster that others fill."""
    result = run(configure(engine="ray", actors=4, views=1))
    assert result["ok"] and result["shards"]["done"] == 3


def test_a_tar_that_kills_every_actor_is_given_up_on(
    cluster: Cluster, configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_trap(monkeypatch, at="before-read", do="kill", shard="00001-*", times=None, marks=str(tmp_path))
    result = run(configure(engine="ray", views=1, max_attempts=2))
    assert result["shards"] == {"done": 2, "failed": 1, "done_by_others": 0}
    assert result["failures"][0]["attempts"] == 2
    assert len(list(tmp_path.glob("before-read-*"))) == 3  # once in company, twice alone


def test_an_own_cluster_without_gpus_is_refused_at_once(cluster: Cluster, configure: Configure) -> None:
    with pytest.raises(RequestError, match="set actors and gpus_per_actor"):
        check_room(configure(engine="ray", actors=5))


def test_a_vae_that_is_another_one_on_the_actors_machine_ends_the_run_in_one_line(
    cluster: Cluster, configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = configure(engine="ray", views=1, vae=str(build_vae(tmp_path / "vae", seed=1)))
    prepared = prepare(config)
    version = Store(config.store).create(prepared.spec)
    build_vae(tmp_path / "vae", seed=2)
    with pytest.raises(SpecError, match="is not the one of version"):
        list(run_on_ray(prepared.sources, version, config, NOBODY))
    assert version.done() == set() and version.storage.files("data") == {}
