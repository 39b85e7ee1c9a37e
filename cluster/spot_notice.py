"""Watches the cloud's notice that this machine will be taken away, and drains its Ray node before it goes.

    python -m cluster.spot_notice --cloud aws       # on every worker, beside Ray, for as long as the machine lives
    python -m cluster.spot_notice --now 100         # drain at once: a preStop hook, a stop by systemd

A drained node gets no more work. Encoders on it finish what they can before the deadline and give the rest back, and
none of that counts as a try. Once nothing runs on a drained node, Ray ends it.

It runs for weeks beside the work and needs 22 MB: Ray is not loaded, a node's id and its cluster's address stand in its
raylet's command line, and the drain itself is Ray's own command in a process of its own, which may hang or die.
"""

from __future__ import annotations

import argparse
import fcntl
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from cluster.metadata import Aws, Cloud, Google, Notice, Unclear

PATIENCE = 15.0
"""Seconds for Ray's command: it takes one or two, and for ever where the cluster cannot be reached."""
STARTING = 2.0
"""Seconds until Ray's command has started, from when on it counts the seconds that it was told."""
LOOK = 0.5
"""Seconds between two looks whether a drained node is still there, and between two tries to drain."""
SEARCHES, SEARCH_PAUSE = 3, 2.0
"""Times that `auto` asks the clouds before it takes the machine to be in neither, and seconds between them."""


@dataclass(frozen=True)
class RayNode:
    """A node of a Ray cluster on this machine."""

    id: str
    address: str
    """Its cluster's."""


class Drainer:
    """Drains the Ray nodes of this machine, each of them once; says what it does, and nothing twice."""

    def __init__(self, only: str | None) -> None:
        self._only = only
        self._drained: set[str] = set()
        self._said: set[str] = set()

    def drain(self, notice: Notice) -> bool:
        """Drains what is not drained yet, and waits until it has ended or the time is over; whether all is drained."""
        self._say_once(f"notice: {notice.what}, in {max(0.0, notice.ends - time.monotonic()):.0f} s", notice.what)
        leaving: set[RayNode] = set()
        while here := self._here(leaving):
            leaving |= here
            for node in here:
                if node.id not in self._drained:
                    self._try(node, notice)
            if time.monotonic() >= notice.ends:
                break
            time.sleep(LOOK)
        for node in leaving - here:
            say(f"{node.id}: handed back: nothing is left on it, and it has ended")
        for node in here:
            how = "drained, but still at work" if node.id in self._drained else "not drained"
            self._say_once(f"{node.id}: the time is over: {how}")
        if not (self._drained or here):
            self._say_once("no Ray node on this machine: nothing to hand back")
        return {node.id for node in here} <= self._drained

    def _here(self, leaving: set[RayNode]) -> set[RayNode]:
        """Those that are still there of the leaving ones, and any that is new."""
        return {node for node in ray_nodes(self._only) if node in leaving or node.id not in self._drained}

    def _try(self, node: RayNode, notice: Notice) -> None:
        seconds = math.floor(max(0.0, notice.ends - time.monotonic() - STARTING))
        if (error := drain_node(node, seconds, notice.what)) is None:
            self._drained.add(node.id)
            say(f"{node.id}: drained, with {seconds} s to go")
        elif node in ray_nodes(self._only):  # one that has just ended needs no drain
            self._say_once(f"{node.id}: cannot be drained, tries again: {error}")

    def _say_once(self, text: str, what: str | None = None) -> None:
        if (what or text) not in self._said:
            self._said.add(what or text)
            say(text)


def drain_node(node: RayNode, seconds: int, why: str) -> str | None:
    """Has Ray drain a node; None, or what it says against it."""
    words = ["drain-node", "--address", node.address, "--node-id", node.id, "--reason-message", why]
    words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds", str(seconds)]
    command = [sys.executable, "-m", "ray.scripts.scripts", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"no answer from the cluster at {node.address} in {PATIENCE:g} s"
    except OSError as error:  # no memory for it just now
        return str(error)
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
    return lines[-1].strip() if done.returncode else None


def ray_nodes(only: str | None = None) -> set[RayNode]:
    """The Ray nodes whose raylet runs on this machine: all of them go when it goes. Or the one that is asked for."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            program, *words = file.read_bytes().decode(errors="replace").split("\0")
            if Path(program).name == "raylet":
                keys = dict(word.split("=", 1) for word in words if "=" in word)
                found.add(RayNode(keys.get("--node_id", ""), keys.get("--gcs-address", "")))
    return {node for node in found if node.id and node.address and only in (None, node.id)}


def watch(cloud: Cloud, drainer: Drainer, every: float) -> None:
    """Looks for a notice, again and again. A server in trouble is no notice; that is said once, and when it is over."""
    say(f"{cloud.name}: looks for a notice every {every:g} s")
    in_trouble = False
    while True:
        began, notice = time.monotonic(), None
        try:
            notice = cloud.look()
            if in_trouble:
                say(f"{cloud.name}: the metadata server answers again")
            in_trouble = False
        except Unclear as error:
            if not in_trouble:
                say(f"{cloud.name}: no clear answer from the metadata server, asks on: {error}")
            in_trouble = True
        if notice is not None:
            drainer.drain(notice)
        time.sleep(max(0.0, began + every - time.monotonic()))


def the_cloud(name: str, url: str | None, every: float) -> Cloud | None:
    """The cloud of this machine; None if none answers."""
    clouds: dict[str, Cloud] = {"aws": Aws(url, say), "gcp": Google(url, every)}
    if name != "auto":
        return clouds[name]
    for search in range(SEARCHES):
        time.sleep(SEARCH_PAUSE if search else 0.0)
        for cloud in clouds.values():
            if cloud.is_here():
                return cloud
    return None


def say(text: str) -> None:
    with suppress(OSError):  # a full disk is no reason not to drain
        print(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} spot_notice: {text}", flush=True)


def read_words(argv: Sequence[str]) -> argparse.Namespace:
    """What is asked for; ends the program where that cannot be meant."""
    parser = argparse.ArgumentParser(prog="python -m cluster.spot_notice", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cloud", choices=["aws", "gcp", "auto"], default="auto", help="auto asks both (default)")
    parser.add_argument("--metadata-url", metavar="URL", help="another metadata server than the cloud's")
    parser.add_argument("--every", metavar="SECONDS", type=float, default=2.0, help="between two looks (default: 2)")
    parser.add_argument("--now", metavar="SECONDS", type=float, help="drain at once, with so long to go, and end")
    parser.add_argument("--node-id", metavar="ID", help="this Ray node only (default: all on this machine)")
    keys = parser.parse_args(argv)
    if not 0 < keys.every < math.inf or (keys.now is not None and not 0 <= keys.now < math.inf):
        parser.error("--every must be more than 0 seconds, and --now no less")
    if keys.metadata_url and not re.fullmatch(r"http://[^/:]+(:\d+)?/?", keys.metadata_url):
        parser.error(f"--metadata-url: {keys.metadata_url} is not http://HOST or http://HOST:PORT")
    return keys


def main(argv: Sequence[str]) -> int:
    keys = read_words(argv)
    drainer = Drainer(keys.node_id)
    if keys.now is not None:
        return 0 if drainer.drain(Notice("asked to drain now", time.monotonic() + keys.now)) else 1
    # A worker's start commands run again whenever its cluster's file has changed; one watcher is enough.
    if (lock := _only_one(keys.node_id)) is None:
        say("another one is watching already: ends")
        return 0
    with lock:
        cloud = the_cloud(keys.cloud, keys.metadata_url, keys.every)
        if cloud is None:
            # Not a failure: the same start command serves machines on which there is nothing to watch.
            say("neither AWS nor Google Cloud answers: this machine gets no notice, nothing to watch, ends")
            return 0
        watch(cloud, drainer, keys.every)
    return 0


def _only_one(node: str | None) -> IO[str] | None:
    """A lock that lasts as long as this process; None if another one has it."""
    file = (Path(tempfile.gettempdir()) / f"spot_notice-{os.getuid()}-{node or 'all'}.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
