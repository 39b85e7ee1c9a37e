"""A fleet under fire: machines to kill, freeze and drain, traps, drivers, and the reckoning that ends every test."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import numpy as np
import pytest
import ray
from PIL import Image
from ray._private.node import Node
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from encode_pipeline.__main__ import run_gc
from encode_pipeline.config import EncodeConfig, GcRequest
from encode_pipeline.latents.command import to_yaml
from encode_pipeline.latents.commit import Payload
from encode_pipeline.latents.failpoints import ENVIRONMENT
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.latents.verify import verify
from encode_pipeline.run import run
from encode_pipeline.sources import find_sources
from tests.conftest import SIDE, payload_hashes
from tests.tars import END, member

ROOT = Path(__file__).parent.parent
PATIENCE = 120.0
"""Seconds after which a test that waits for something fails."""
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 200,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 4,
}
"""A machine that does not answer is given up within seconds."""
T = TypeVar("T")


def wait_for(what: str, condition: Callable[[], T], busy: Run | Command | None = None, seconds: float = PATIENCE) -> T:
    """The first answer of a condition that is true; a test that waits too long fails, or for a run that has ended."""
    until = time.monotonic() + seconds
    while not (answer := condition()):
        assert busy is None or not busy.over, f"the run ended without {what}:\n{busy.end}"
        assert time.monotonic() < until, f"waited {seconds:g} s for {what}"
        time.sleep(0.02)
    return answer


# --- machines ---------------------------------------------------------------------------------


class Machines:
    """A Ray cluster: a head without a GPU, and machines that say they have one, which come and go."""

    def __init__(self) -> None:
        quiet = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": QUICK, **quiet})
        self.address = str(self._cluster.address)
        ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")

    def add(self, **options: Any) -> Node:
        """One more. On the main thread only: Ray sets a signal handler on the way."""
        return self._cluster.add_node(**{"num_cpus": 0, "num_gpus": 1, **options})

    def kill(self, node: Node) -> None:
        """What a power cut does."""
        for process in self.processes(node):
            _signal(process, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def freeze(self, node: Node) -> None:
        """Stops the machine in the middle of whatever it does; nobody is told."""
        for process in self.processes(node):
            _signal(process, signal.SIGSTOP)

    def thaw(self, node: Node) -> None:
        """Lets a frozen machine go on."""
        for process in self.processes(node):
            _signal(process, signal.SIGCONT)

    def drain(self, node: Node, seconds: float) -> float:
        """Says, as a cloud does of a spot machine, that it will be taken away; returns when, by `time.time()`."""
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline = time.time() + seconds
        accepted, why = GcsClient(address=self.address).drain_node(node.node_id, reason, "spot", int(deadline * 1000))
        assert accepted, why
        return deadline

    def processes(self, node: Node) -> list[int]:
        """The raylet of a machine and everything that it has started."""
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                children.setdefault(int(stat.read_text().rsplit(")", 1)[1].split()[1]), []).append(
                    int(stat.parent.name)
                )
        found = [node.all_processes["raylet"][0].process.pid]
        for process in found:
            found += children.get(process, [])
        return found

    def of(self, process: int) -> Node:
        """The machine that a process runs on."""
        return next(node for node in self._cluster.worker_nodes if process in self.processes(node))

    def clear(self) -> None:
        """Takes all of them away, and waits until Ray knows."""
        for node in list(self._cluster.worker_nodes):
            self.kill(node)
        wait_for("an empty cluster", lambda: not ray.cluster_resources().get("GPU"))

    def shut_down(self) -> None:
        self.clear()
        ray.shutdown()
        self._cluster.shutdown()


@contextmanager
def machines() -> Iterator[Machines]:
    """A cluster for a module's tests. Each adds the machines that it wants, and clears them away."""
    cluster = Machines()
    try:
        yield cluster
    finally:
        cluster.shut_down()


def thaw(process: int) -> None:
    """Lets one process of a frozen machine go on, alone."""
    _signal(process, signal.SIGCONT)


def is_alive(process: int) -> bool:
    """Whether there is such a process, and not only its exit status left."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def _signal(process: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


# --- traps ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """Who met a trap."""

    shard: str
    process: int


class Trap:
    """A failpoint that was set for a test."""

    def __init__(self, folder: Path, at: str, do: str, shard: str, times: int | None) -> None:
        folder.mkdir()
        self.at, self.folder = at, folder
        self.facts = {"at": at, "do": do, "shard": shard, "times": times, "marks": str(folder)}

    def met(self) -> list[Mark]:
        """By whom it was met, in order."""
        files = sorted(self.folder.glob(f"{self.at}-*"), key=lambda file: int(file.name.rsplit("-", 1)[1]))
        lines = [line for file in files if (line := file.read_text()).endswith("\n")]
        return [Mark(words[0], int(words[1])) for words in map(str.split, lines)]

    def wait(self, count: int, busy: Run | Command) -> list[Mark]:
        """Those who met it, once there are so many."""
        wait_for(f"{count} at {self.at}", lambda: len(self.met()) >= count, busy)
        return self.met()

    def release(self) -> None:
        """Lets everybody go who is held, and who comes later."""
        (self.folder / "release").touch()

    def hold(self) -> None:
        """Holds whoever comes after a release."""
        (self.folder / "release").unlink()


class Traps:
    """The failpoints of a test, in the environment that drivers hand on to their encoders."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch, self._folder = monkeypatch, folder
        self._traps: list[Trap] = []

    def set(self, at: str, do: str, shard: str = "*", times: int | None = 1) -> Trap:
        trap = Trap(self._folder / f"trap-{len(self._traps)}", at, do, shard, times)
        self._traps.append(trap)
        self._monkeypatch.setenv(ENVIRONMENT, json.dumps([trap.facts for trap in self._traps]))
        return trap

    def lift(self) -> None:
        """Nothing goes wrong on purpose in what is started from now on."""
        self._monkeypatch.delenv(ENVIRONMENT)


# --- work and who does it ---------------------------------------------------------------------


def write_tars(folder: Path, tars: int = 6, good: int = 10) -> Path:
    """Small tars: in each a few pictures, one that is broken, and one without a caption."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for tar in range(tars):
        content = b""
        for number in range(good):
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (72, 96, 3), dtype=np.uint8)).save(picture, "JPEG")
            key = f"{tar:02d}-{number:03d}"
            content += member(f"{key}.jpg", picture.getvalue()) + member(f"{key}.txt", b"noise")
        content += member(f"{tar:02d}-broken.jpg", b"\xff\xd8 no picture") + member(f"{tar:02d}-broken.txt", b"t")
        content += member(f"{tar:02d}-mute.jpg", picture.getvalue())
        (folder / f"{tar:02d}.tar").write_bytes(content + END)
    return folder


def settings(folder: Path, **changes: Any) -> EncodeConfig:
    """A run on Ray over small tars in `folder`, by averaged pixels: encoders come up in half the time of a VAE's."""
    values = {"source": str(folder / "tars"), "store": str(folder / "store"), "vae": "pixels", "engine": "ray"}
    return EncodeConfig(**{**values, "image_size": SIDE, "views": 2, "batch_size": 4, "threads": 1, **changes})


class Run:
    """A run in a thread of this process, so that a test can do things to it meanwhile."""

    def __init__(self, config: EncodeConfig) -> None:
        self._future: Future[dict[str, Any]] = Future()
        threading.Thread(target=self._run, args=(config,), daemon=True).start()

    @property
    def over(self) -> bool:
        return self._future.done()

    @property
    def end(self) -> object:
        """How it ended."""
        return self._future.exception(0) or self._future.result(0)

    def result(self) -> dict[str, Any]:
        """What it returns; what it raises is raised."""
        wait_for("the end of the run", lambda: self.over)
        return self._future.result()

    def _run(self, config: EncodeConfig) -> None:
        try:
            self._future.set_result(run(config))
        except BaseException as error:
            self._future.set_exception(error)


class Command:
    """A run as a person starts it: a process of its own, on the cluster at an address or, without one, on its own."""

    def __init__(self, config: EncodeConfig, address: str, folder: Path) -> None:
        folder.mkdir()
        (folder / "run.yaml").write_text(to_yaml(config))
        self._out, self._err = folder / "out", folder / "err"
        words = [sys.executable, "-m", "encode_pipeline", "run", "--config", str(folder / "run.yaml"), "--json"]
        environment = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                words,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
                preexec_fn=_hear_interrupts,
            )

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    @property
    def end(self) -> object:
        return f"exit {self.process.returncode}\n{self.said}"

    @property
    def said(self) -> str:
        """What it has told a person so far."""
        return self._err.read_text()

    def status(self) -> int:
        """Its exit status."""
        wait_for("the end of the command", lambda: self.over)
        return self.process.wait()

    def result(self) -> dict[str, Any]:
        """The JSON that it printed."""
        self.status()
        answer: dict[str, Any] = json.loads(self._out.read_text())
        return answer

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def _hear_interrupts() -> None:
    """What a shell starts in the background is deaf to them, and so are its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def done(config: EncodeConfig) -> set[str]:
    """The shards that have a commit now."""
    store = Store(config.store)
    return store.version().done() if store.versions() else set()


def events(config: EncodeConfig, name: str) -> list[dict[str, Any]]:
    """What the logs of all runs on a store hold of one kind of event."""
    storage = Store(config.store).version().storage
    lines = [
        json.loads(line)
        for path in storage.files("runs")
        if path.endswith(".jsonl")
        for line in storage.read(path).splitlines()
    ]
    return [line for line in sorted(lines, key=lambda line: line["at"]) if line["event"] == name]


# --- the reckoning ----------------------------------------------------------------------------


def reconcile(config: EncodeConfig, failed: Collection[str] = ()) -> Version:
    """The version that was made under fire, once every sample and byte of it has been accounted for.

    `failed` are the addresses of the tars that must have been given up on; all others must be done.
    """
    version = Store(config.store).version()
    sources = {source.name: source for source in find_sources(config.source) if source.uri not in failed}
    commits = {commit.shard: commit for commit in version.commits()}
    assert commits.keys() == sources.keys()
    assert {failure.uri for failure in version.failures()} == set(failed)
    assert {problem.problem for problem in verify(version).problems} <= {"missing: no commit for this shard"}
    keys: list[str] = []
    for shard, commit in commits.items():
        inputs = sorted(set(_keys(_content(sources[shard].uri))))
        rejected = [key for payload in commit.payloads if payload.view is None for key in _rejected(version, payload)]
        assert [payload.view for payload in commit.views] == list(range(config.views))
        for payload in commit.views:
            encoded = _keys(version.storage.read(payload.path), ".npy")
            assert sorted(encoded + rejected) == inputs
            assert (commit.encoded, sum(commit.rejected.values())) == (len(encoded), len(rejected))
        keys += inputs
    assert len(keys) == len(set(keys))

    hashes = payload_hashes(version)
    assert hashes == {shard: mark for shard, mark in _undisturbed(config).items() if shard in commits}
    run_gc(GcRequest(store=config.store))
    committed = {payload.path for commit in commits.values() for payload in commit.payloads}
    left = {path for path in version.storage.files("data") if path.split("/")[1] in commits}
    assert left == committed and payload_hashes(version) == hashes
    if not failed:
        version.seal()
        views = {payload.path for commit in commits.values() for payload in commit.views}
        assert set(version.manifest().column("path").to_pylist()) == views and not verify(version).problems
    return version


def _undisturbed(config: EncodeConfig) -> dict[str, list[str]]:
    """The hashes that the same run gives in this process, with nobody about."""
    with tempfile.TemporaryDirectory() as folder:
        calm = config.model_copy(update={"engine": "local", "store": f"{folder}/store", "scratch": None})
        run(calm)
        return payload_hashes(Store(calm.store).version())


def _rejected(version: Version, payload: Payload) -> list[str]:
    return [json.loads(line)["key"] for line in version.storage.read(payload.path).splitlines()]


def _content(uri: str) -> bytes:
    with fsspec.open(uri, "rb") as file:
        return bytes(file.read())


def _keys(tar: bytes, ending: str = "") -> list[str]:
    """The keys in a tar as Python's own reader finds them."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as file:
        return [name.partition(".")[0] for name in file.getnames() if name.endswith(ending)]
