"""A Ray cluster of real nodes that can be killed, frozen and drained."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray._private.node import Node
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from encode_pipeline.latents.failpoints import ENVIRONMENT
from tests.traps import wait_for

QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 200,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 8,
}
"""A machine that does not answer is given up within ten seconds. Not sooner: on a busy one Ray would end the test."""


class Machines:
    """A Ray cluster: a head without a GPU, and machines that say they have one, which come and go."""

    def __init__(self) -> None:
        quiet = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": QUICK, **quiet})
        self.address = str(self._cluster.address)
        ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")

    def add(self, **environment: str) -> Node:
        """One more, with an environment of its own. On the main thread only: Ray sets a signal handler on the way."""
        own = {ENVIRONMENT: "", **environment}  # a test's traps come with its drivers, and not with the machine
        return self._cluster.add_node(num_cpus=0, num_gpus=1, env_vars=own)

    def kill(self, node: Node) -> None:
        """What a power cut does."""
        for process in self.processes(node):
            _signal(process, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def shut_down_in_order(self, node: Node) -> None:
        """What a system does that ends: everything is asked to stop."""
        _signal(node.all_processes["raylet"][0].process.pid, signal.SIGTERM)

    def head_process(self, name: str) -> int:
        """One of the head's processes, by Ray's name for it."""
        process: int = self._cluster.head_node.all_processes[name][0].process.pid
        return process

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
                parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(stat.parent.name))
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
