"""The encoders of a run as the driver sees them: started, asked, given rest, moved off machines that go away."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray._private.state import state as cluster_state

from encode_pipeline.config import EngineSettings
from encode_pipeline.latents import failpoints
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.listener import Listener
from encode_pipeline.on_ray.cluster import was_shut_down
from encode_pipeline.on_ray.messages import Post
from encode_pipeline.workload import SHARDS_IN_FLIGHT

LOOK = 1.0
"""Seconds between two looks at the cluster."""
BEAT = 5.0
"""Seconds between two questions for how many latents there are."""
RESTART_PAUSE = 2.0
"""Seconds until an encoder that went away is asked again."""
LONGEST_REST = 60.0
FAILS_ALWAYS = 3
"""Tries in a row that fail on an encoder, from which on it is taken to be the encoder's fault."""
STALLED = 900.0
"""Seconds without a latent after which an encoder that has shards is started anew."""


@dataclass(eq=False)
class Encoder:
    """An actor, and what the driver knows of it."""

    name: str
    handle: Any
    up: bool = False
    node: str = ""
    last_node: str = ""
    shards: dict[str, SourceShard] = field(default_factory=dict)
    asked: bool = False
    """Whether a question is under way that only tells if it is there."""
    rests_until: float = 0.0
    failures: int = 0
    """Tries that failed on it, one after the other."""
    no_room: bool = False
    was_up: bool = False
    refuses: bool = False
    """The last thing it said was that it cannot work."""
    leaves: bool = False
    """Its machine is about to go away."""
    excused: set[str] = field(default_factory=set)
    """Shards that it lost with a machine that went away in good order."""
    latents: int = 0
    heard: float = 0.0
    """When it last got any further."""


@dataclass(frozen=True)
class Answered:
    """A call to an encoder that has come to its end."""

    encoder: Encoder
    source: SourceShard | None
    """None where it was only asked whether it is there."""
    future: Future[Any]


class Fleet:
    """Keeps as many encoders as the cluster has room for, and asks them things."""

    def __init__(self, actor: type, fingerprint: str, config: EngineSettings, listener: Listener) -> None:
        self._actor, self._fingerprint, self._config, self._listener = actor, fingerprint, config, listener
        self._names = f"{config.actor_name}-{fingerprint[:8]}"
        self._answers: SimpleQueue[Answered] = SimpleQueue()
        self.encoders: list[Encoder] = []
        self._next_look = self._next_beat = 0.0
        self._live = self._started = 0
        self._cpus = 0.0 if config.gpus_per_actor else _cores_each(config.actors)

    def look_after(self) -> None:
        """What is due: new encoders on new machines, none on machines that go away, questions to the quiet ones."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK
            self._grow()
            self._leave_draining()
        beat = now >= self._next_beat
        if beat:
            self._next_beat = now + BEAT
        for encoder in self.encoders:
            if encoder.leaves and not encoder.shards:
                self.restart(encoder, RESTART_PAUSE)
            elif encoder.up and encoder.shards and now - encoder.heard > STALLED:
                self._listener.event("encoder lost", f"{encoder.name}: no latent for {STALLED:g} s, started anew")
                self.restart(encoder, RESTART_PAUSE)
            elif not encoder.asked and now >= encoder.rests_until and (beat or not encoder.up):
                self._ask(encoder)
        live = sum(encoder.up for encoder in self.encoders)
        if live != self._live:
            self._live = live
            self._listener.live(live)

    def freest(self, kept: Encoder | None, is_suspect: Callable[[str], bool]) -> Encoder | None:
        """The least busy of those that can take another shard, and have none that must be alone."""
        free = (e for e in self.able() if len(e.shards) < SHARDS_IN_FLIGHT and e is not kept)
        return min(
            (encoder for encoder in free if not any(map(is_suspect, encoder.shards))),
            key=lambda encoder: len(encoder.shards),
            default=None,
        )

    def able(self) -> list[Encoder]:
        """Those that work now, and need no rest."""
        now = time.monotonic()
        return [
            encoder for encoder in self.encoders if encoder.up and not encoder.leaves and now >= encoder.rests_until
        ]

    def give(self, encoder: Encoder, source: SourceShard) -> None:
        if not encoder.shards:
            encoder.heard = time.monotonic()
        encoder.shards[source.name] = source
        reference = encoder.handle.encode.remote(source)
        self._expect(encoder, source, reference)

    def answers(self, timeout: float) -> Iterator[Answered]:
        """Those answers that are there, once there is one; what comes meanwhile is for the next time."""
        try:
            yield self._answers.get(timeout=timeout)
            for _ in range(self._answers.qsize()):
                yield self._answers.get_nowait()
        except Empty:
            return

    def heard(self, encoder: Encoder, latents: int) -> None:
        """Takes note of how many latents an encoder's process has made."""
        if latents != encoder.latents:
            self._listener.tell(max(0, latents - encoder.latents))
            encoder.latents, encoder.heard = latents, time.monotonic()

    def is_there(self, encoder: Encoder, answer: Post | int) -> None:
        """Takes note of an answer to a question: it has come up, or has made so many latents."""
        if not isinstance(answer, Post):
            self.heard(encoder, answer)
            return
        if answer.node != encoder.last_node:  # what was wrong with another machine is forgotten
            encoder.failures, encoder.last_node = 0, answer.node
        encoder.up, encoder.was_up, encoder.refuses, encoder.node = True, True, False, answer.node
        encoder.no_room = False
        encoder.latents, encoder.heard = 0, time.monotonic()
        text = None
        if answer.device == "cpu" and self._config.gpus_per_actor:
            text = f"{encoder.name}: holds {self._config.gpus_per_actor:g} GPU, sees none, and encodes on the CPU"
        self._listener.event("encoder up", text, encoder=encoder.name, **asdict(answer))

    def went_away(self, encoder: Encoder, error: BaseException | str) -> None:
        """Its process or machine is gone. Ray starts it again where there is room."""
        if encoder.up:
            self._listener.event("encoder lost", None, encoder=encoder.name, error=" ".join(str(error).split()))
            leaves = encoder.leaves or was_shut_down(encoder.node)  # before it could be drained
            encoder.excused = set(encoder.shards) if leaves else set()
            encoder.failures += bool(encoder.shards) and not leaves
            encoder.rests_until = time.monotonic() + max(RESTART_PAUSE, _rest_after(encoder.failures))
        encoder.up, encoder.leaves, encoder.node = False, False, ""
        encoder.rests_until = max(encoder.rests_until, time.monotonic() + RESTART_PAUSE)

    def replace(self, encoder: Encoder, rest: float) -> None:
        """Another actor for one that could not even be made: the one end from which Ray brings nobody back."""
        self.went_away(encoder, "could not be made")
        encoder.handle = self._start()
        encoder.rests_until = time.monotonic() + rest

    def restart(self, encoder: Encoder, rest: float) -> None:
        """Ends its process; Ray starts another one, wherever there is room."""
        ray.kill(encoder.handle, no_restart=False)
        self.went_away(encoder, "started anew")
        encoder.rests_until = time.monotonic() + rest

    def rest(self, encoder: Encoder) -> None:
        """Gives an encoder on which tries fail less to do, so that it does not eat up all shards."""
        encoder.failures += 1
        rest = _rest_after(encoder.failures)
        if encoder.failures >= FAILS_ALWAYS and not encoder.shards:
            self.restart(encoder, rest)
        encoder.rests_until = time.monotonic() + rest

    def is_to_blame(self, encoder: Encoder) -> bool:
        """Whether everything fails on this one, and not on others."""
        well = (other.up and not other.failures for other in self.encoders if other is not encoder)
        return encoder.failures >= FAILS_ALWAYS and any(well)

    def call_back(self, seconds: float) -> None:
        """Has every encoder give back its shards, and waits so long for it."""
        busy = [encoder for encoder in self.encoders if encoder.up and encoder.shards]
        for encoder in busy:
            encoder.handle.wind_down.remote(0.0)
        if busy:
            text = f"ending: {sum(len(encoder.shards) for encoder in busy)} shards under way are given back"
            self._listener.event("called back", text)
        until = time.monotonic() + seconds
        while any(e.up and e.shards for e in self.encoders) and time.monotonic() < until:
            for answered in self.answers(0.1):
                if answered.source is not None:
                    answered.encoder.shards.pop(answered.source.name, None)

    def end(self) -> None:
        for encoder in self.encoders:
            ray.kill(encoder.handle)

    def _ask(self, encoder: Encoder) -> None:
        encoder.asked = True
        question = encoder.handle.latents if encoder.up else encoder.handle.ready
        self._expect(encoder, None, question.remote())

    def _expect(self, encoder: Encoder, source: SourceShard | None, reference: Any) -> None:
        # Nothing here may refer to the future itself, which keeps its callbacks: a circle would outlive its answer.
        reference.future().add_done_callback(lambda future: self._answers.put(Answered(encoder, source, future)))

    def _grow(self) -> None:
        for _ in range(len(self.encoders), self._config.actors or self._room()):
            self.encoders.append(Encoder(f"{self._names}-{len(self.encoders)}", self._start()))

    def _room(self) -> int:
        """Encoders that fit into the cluster as it is now, machine by machine and GPU by GPU."""
        what, share = ("GPU", self._config.gpus_per_actor) if self._config.gpus_per_actor else ("CPU", self._cpus)
        amounts = [node["Resources"].get(what, 0) for node in ray.nodes() if node["Alive"]]
        if share < 1:
            return sum(int(amount) * int(1 / share + 1e-9) for amount in amounts)
        return sum(int(amount / share) for amount in amounts)

    def _start(self) -> Any:
        self._started += 1
        name = f"{self._names}-{self._started - 1}"
        # Two calls more than it has shards, so that it always has an ear for questions.
        options: dict[str, Any] = {"name": name, "max_concurrency": SHARDS_IN_FLIGHT + 2}
        if traps := os.environ.get(failpoints.ENVIRONMENT):
            options["runtime_env"] = {"env_vars": {failpoints.ENVIRONMENT: traps}}
        actor = ray.remote(
            num_gpus=self._config.gpus_per_actor, num_cpus=self._cpus, max_restarts=-1, max_task_retries=0
        )(self._actor)
        return actor.options(**options).remote(self._config, self._fingerprint)

    def _leave_draining(self) -> None:
        draining = cluster_state.get_draining_nodes()
        for encoder in self.encoders:
            if encoder.up and not encoder.leaves and encoder.node in draining:
                ends = draining[encoder.node] / 1000 or time.time() + 1e9  # by that machine's clock; 0 for none
                encoder.leaves = True
                encoder.handle.wind_down.remote(ends)
                text = f"{encoder.name}: its machine goes away in {max(0.0, ends - time.time()):.0f} s"
                self._listener.event("draining", text, encoder=encoder.name, node=encoder.node)


def _rest_after(failures: int) -> float:
    return min(LONGEST_REST, 2.0 ** min(failures, 10)) if failures else 0.0


def _cores_each(actors: int | None) -> float:
    """The cores of an encoder without a GPU: one, or its part of them all, as far as a machine has so many."""
    cores = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    each = min(sum(cores) / actors, max(cores)) if actors and any(cores) else 1.0
    return float(int(each)) if each >= 1 else each
