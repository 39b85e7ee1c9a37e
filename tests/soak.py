"""`make soak`: a run on machines and a server on which something goes wrong every few seconds, and the reckoning.

Everything is drawn from a seed. What a run ends with is settled round by round: a round is over when a driver says
that all is done, and then every sample and byte of it is accounted for, as after every test of the fleet.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, redirect_stderr
from pathlib import Path
from typing import Any

from pydantic import Field
from ray._private.node import Node

from benchmarks.figures import Measured
from benchmarks.record import entry, record_of, write_record
from encode_pipeline.config import EncodeConfig, PositiveInt
from encode_pipeline.latents.command import CheckFailed, Settings, Verb, main
from encode_pipeline.latents.failpoints import ENVIRONMENT
from tests.faulty_s3 import FaultyS3
from tests.fleet import Command, settings, write_tars
from tests.machines import Machines, machines
from tests.reckoning import reconcile

ABOUT = "Faults every few seconds, and then the reckoning"
PLACES = ("before-read", "mid-shard", "after-build", "after-payload", "before-commit", "after-commit")
STORMS = ("503", "reset", "delay", "cut", "short", "flip", "flip-up", "lose-reply", "409", "412")
LONGEST_ROUND = 900.0
"""Seconds of peace after which a round that is not over has hung."""


class SoakConfig(Settings):
    out: Path | None = Field(None, description="also write the record to this JSON file")
    minutes: float = Field(20.0, gt=0, description="of faults; the last round then ends in peace")
    seed: int = Field(0, description="of all that goes wrong")
    machines: PositiveInt = Field(3, description="that there are when nothing is wrong")
    tars: PositiveInt = Field(60, description="in a round")
    pause: float = Field(8.0, gt=0, description="seconds between two faults, at most")


class Soak:
    """One seed's disasters, on a cluster and a server of its own."""

    def __init__(self, config: SoakConfig, cluster: Machines, s3: FaultyS3, folder: Path) -> None:
        self.config, self.cluster, self.s3, self.folder = config, cluster, s3, folder
        self.chance = random.Random(config.seed)
        self.bucket = s3.make_bucket()
        for tar in sorted(write_tars(folder / "tars", config.tars).glob("*.tar")):
            self.bucket.client.upload_file(str(tar), self.bucket.name, f"tars/{tar.name}")
        self.nodes = [cluster.add() for _ in range(config.machines)]
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.commands = 0
        self.driver: Command | None = None
        self.others: list[Command] = []
        self.events: list[dict[str, Any]] = []
        self.rounds: list[dict[str, Any]] = []
        self.in_peace = False
        self.began = time.monotonic()

    # --- what can go wrong ------------------------------------------------------------------

    def encoder_killed(self) -> str | None:
        found = [process for node in self.nodes for process in self.cluster.processes(node) if _is_encoder(process)]
        if not found:
            return None
        process = self.chance.choice(found)
        os.kill(process, signal.SIGKILL)
        return str(process)

    def machine_killed(self) -> str:
        node = self._some_machine()
        self.cluster.kill(node)
        self._in(self.chance.uniform(0, 10), self._replace)
        return node.node_id[:8]

    def machine_frozen(self) -> str:
        node = self._some_machine()
        self.cluster.freeze(node)
        self._replace()
        self._in(self.chance.uniform(5, 30), lambda: self._thaw(node))
        return node.node_id[:8]

    def machine_drained(self) -> str:
        node = self._some_machine()
        self.cluster.drain(node, 5.0)
        self._replace()
        self._in(5.0, lambda: self.cluster.kill(node))
        return node.node_id[:8]

    def all_machines_killed(self) -> str:
        count = len(self.nodes)
        while self.nodes:
            self.cluster.kill(self._some_machine())
        for _ in range(self.config.machines):
            self._in(self.chance.uniform(3, 15), self._replace)
        return f"{count} machines"

    def driver_killed(self) -> str | None:
        if self.driver is None:
            return None
        self.driver.process.kill()
        return "SIGKILL"

    def driver_told_to_end(self) -> str | None:
        if self.driver is None:
            return None
        number = self.chance.choice((signal.SIGTERM, signal.SIGINT))
        self.driver.process.send_signal(number)
        return signal.Signals(number).name

    def second_driver(self) -> str | None:
        if len(self.others) > 1:
            return None
        self.others.append(self._command(self.round.model_copy(update={"engine": "local"})))
        return "engine=local"

    def storm(self) -> str:
        do, likely = self.chance.choice(STORMS), round(self.chance.uniform(0.05, 0.3), 2)
        seconds = self.chance.uniform(5, 15)
        rule = self.s3.add(do, times=None, chance=likely, seconds=1.0)
        self._in(seconds, lambda: setattr(rule, "times", 0))
        return f"{do}, {likely:.0%} of requests, {seconds:.0f} s"

    def trap(self) -> str:
        """The next driver's encoders die at some place; the present one's are not told."""
        place, folder = self.chance.choice(PLACES), self.folder / f"marks-{len(self.events)}"
        folder.mkdir()
        trap = {"at": place, "do": "kill", "times": self.chance.randint(1, 3), "marks": str(folder)}
        os.environ[ENVIRONMENT] = json.dumps([trap])
        return place

    # --- the course of it ---------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        faults: list[tuple[Callable[[], str | None], int]] = [
            (self.encoder_killed, 4),
            (self.machine_killed, 2),
            (self.machine_frozen, 2),
            (self.machine_drained, 2),
            (self.all_machines_killed, 1),
            (self.driver_killed, 1),
            (self.driver_told_to_end, 1),
            (self.second_driver, 1),
            (self.storm, 6),
            (self.trap, 2),
        ]
        kinds, weights = zip(*faults, strict=True)
        until = time.monotonic() + 60 * self.config.minutes
        self._start_round()
        next_fault = 0.0
        while time.monotonic() < until:
            self._what_is_due()
            self._look_at_driver()
            if time.monotonic() >= next_fault:
                next_fault = time.monotonic() + self.chance.uniform(1, self.config.pause)
                (fault,) = self.chance.choices(kinds, weights)
                if (detail := fault()) is not None:
                    self._note(fault.__name__, detail)
            time.sleep(0.1)
        self._peace()
        return self._record()

    def _peace(self) -> None:
        """Nothing goes wrong any more; what is under way must come to its end."""
        self._note("peace", "")
        self.in_peace = True
        self.s3.clear()
        os.environ.pop(ENVIRONMENT, None)
        until = time.monotonic() + LONGEST_ROUND
        while self.driver is not None:
            if time.monotonic() > until:
                raise CheckFailed(f"round {len(self.rounds)} hangs: {self.driver.said}")
            self._what_is_due()
            while len(self.nodes) < self.config.machines:
                self._replace()
            self._look_at_driver()
            time.sleep(0.1)

    def _look_at_driver(self) -> None:
        """Starts the same command again, unless it says that all is done."""
        if self.driver is None or not self.driver.over:
            return
        status = self.driver.process.returncode
        self._note("driver ended", str(status))
        if status not in (0, 1, 130, 143, -signal.SIGKILL):
            self._note("driver said", (self.driver.said.splitlines() or [""])[-1])
        if status != 0:
            self.driver = self._command(self.round)
            return
        self._end_round()
        self.driver = None
        if not self.in_peace:
            self._start_round()

    def _start_round(self) -> None:
        number = len(self.rounds)
        self.round = settings(
            self.folder,
            source=f"{self.bucket.url}/tars/*.tar",
            store=f"{self.bucket.url}/round-{number}",
            seed=number,
            max_attempts=5,
        )
        self.driver = self._command(self.round)

    def _end_round(self) -> None:
        """The reckoning. The server answers as it should meanwhile, or nothing could be told."""
        for other in self.others:
            other.process.kill()
            other.process.wait()
        self.others.clear()
        self.s3.clear()
        with redirect_stderr(io.StringIO()):  # the undisturbed run that it compares with speaks too
            version = reconcile(self.round)
        commits = list(version.commits())
        read, encoded = sum(commit.read for commit in commits), sum(commit.encoded for commit in commits)
        rejected: Counter[str] = Counter()
        for commit in commits:
            rejected.update(commit.rejected)
        facts = {"shards": len(commits), "read": read, "encoded": encoded, "rejected": dict(rejected)}
        self.rounds.append(facts)
        self._note("round reconciled", json.dumps(facts))

    def _command(self, config: EncodeConfig) -> Command:
        self.commands += 1
        return Command(config, self.cluster.address, self.folder / f"command-{self.commands}")

    def _some_machine(self) -> Node:
        """One that goes away; there is always one."""
        if not self.nodes:
            self._replace()
        return self.nodes.pop(self.chance.randrange(len(self.nodes)))

    def _replace(self) -> None:
        if len(self.nodes) < self.config.machines:
            self.nodes.append(self.cluster.add())

    def _thaw(self, node: Node) -> None:
        """It goes on where it stopped, and ends when it hears that it was taken for dead."""
        self.cluster.thaw(node)
        self._in(5.0, lambda: self.cluster.kill(node))

    def _in(self, seconds: float, what: Callable[[], None]) -> None:
        self.later.append((time.monotonic() + seconds, what))

    def _what_is_due(self) -> None:
        due = [item for item in self.later if item[0] <= time.monotonic()]
        self.later = [item for item in self.later if item not in due]
        for _, what in due:
            what()

    def _note(self, what: str, detail: str) -> None:
        seconds = round(time.monotonic() - self.began, 1)
        self.events.append({"second": seconds, "what": what, "detail": detail})
        print(f"{seconds:8.1f}  {what}: {detail}", file=sys.stderr, flush=True)

    def _record(self) -> dict[str, Any]:
        count = Counter(event["what"] for event in self.events)
        return {
            "faults": {name: number for name, number in sorted(count.items()) if name not in NO_FAULTS},
            "drivers_started": self.commands,
            "drivers_ended": dict(Counter(e["detail"] for e in self.events if e["what"] == "driver ended")),
            "rounds_reconciled": len(self.rounds),
            "shards": sum(facts["shards"] for facts in self.rounds),
            "read": sum(facts["read"] for facts in self.rounds),
            "encoded": sum(facts["encoded"] for facts in self.rounds),
            "rejected": sum(sum(facts["rejected"].values()) for facts in self.rounds),
            "requests": self.s3.asked,
            "rounds": self.rounds,
            "events": self.events,
        }


NO_FAULTS = ("peace", "driver ended", "driver said", "round reconciled")


def _is_encoder(process: int) -> bool:
    try:
        name = Path(f"/proc/{process}/cmdline").read_bytes()
    except FileNotFoundError:
        return False
    return name.startswith(b"ray::") and b"IDLE" not in name  # Ray gives its workers the name of what they do


def soak(config: SoakConfig) -> Mapping[str, Any]:
    folder, began = Path(tempfile.mkdtemp(prefix="soak-")), time.perf_counter()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        s3 = stack.enter_context(FaultyS3(config.seed))
        os.environ.update(s3.environment)
        cluster = stack.enter_context(machines())
        course = Soak(config, cluster, s3, folder)
        try:
            result = course.run()
        finally:
            for command in [course.driver, *course.others]:
                if command is not None:
                    command.process.kill()
                    command.process.wait()
    took, told = time.perf_counter() - began, config.model_dump(mode="json", exclude={"out"})
    record = record_of({"soak": entry(ABOUT, told, Measured((), result), took)}, took)
    if config.out is not None:
        write_record(record, config.out)
    return record


def show(result: Mapping[str, Any]) -> str:
    facts = result["benchmarks"]["soak"]["details"]
    lines = [f"{count:>5}  {name}" for name, count in facts["faults"].items()]
    total = f"{facts['read']} samples read = {facts['encoded']} encoded + {facts['rejected']} rejected"
    return "\n".join(
        [*lines, f"{facts['rounds_reconciled']} rounds of {facts['shards']} shards in all reconciled: {total}"]
    )


VERBS = {"run": Verb(SoakConfig, soak, ABOUT, show=show)}

if __name__ == "__main__":
    sys.exit(main("tests.soak", VERBS, sys.argv[1:], default="run"))
