"""Our own scheduler over plain actors: one task is one source tar, and whoever is free takes the next."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import ray
from ray.exceptions import RayTaskError

from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.spec import SpecError
from encode_pipeline.latents.store import Version
from encode_pipeline.listener import Listener
from encode_pipeline.on_ray.actors import VaeActor
from encode_pipeline.on_ray.cluster import joined
from encode_pipeline.on_ray.fleet import LONGEST_REST, RESTART_PAUSE, Answered, Encoder, Fleet
from encode_pipeline.on_ray.messages import Answer
from encode_pipeline.on_ray.metrics import FleetMetrics
from encode_pipeline.records import Blame, FailedAttempt, ShardFailure, ShardReport, describe_error
from encode_pipeline.workload import Workload

PAUSE = 0.5
"""Seconds between two looks at what is due, at most."""
QUIET = 30.0
"""Seconds without any encoder after which a person is told, again and again."""
GRACE = 5.0
"""Seconds that other encoders are given to come up when one has refused to work."""
FAREWELL = 5.0
"""Seconds that encoders are given to give their shards back when a run is broken off."""
MEASURE = 2.0
"""Seconds between two updates of the metrics."""
Outcome = ShardReport | ShardFailure


def run_on_ray(
    missing: Iterable[SourceShard],
    version: Version,
    config: EncodeConfig,
    listener: Listener,
    actor: type = VaeActor,
) -> Iterator[Outcome]:
    """What became of each shard, as soon as it is known. Joins the cluster at RAY_ADDRESS, or starts one here."""
    with joined() as started_here:
        if started_here:  # nobody will add to this one
            check_room(config)
        fleet = Fleet(actor, version.fingerprint, config, listener)
        metrics = FleetMetrics(version.fingerprint, config.gpus_per_actor)
        try:
            yield from Run(Workload(missing, config.max_attempts, listener), fleet, listener, metrics).outcomes()
        except BaseException:
            fleet.call_back(FAREWELL)
            raise
        finally:
            fleet.end()


class Run:
    """Brings shards and encoders together, and decides what becomes of both when something fails."""

    def __init__(self, work: Workload, fleet: Fleet, listener: Listener, metrics: FleetMetrics) -> None:
        self._work, self._fleet, self._listener, self._metrics = work, fleet, listener, metrics
        self._done = self._given_up = 0
        self._refusal: Exception | None = None
        self._refused = self._measured = 0.0
        self._quiet_since = time.monotonic()

    def outcomes(self) -> Iterator[Outcome]:
        while not self._work.finished:
            self._fleet.look_after()
            self._look_for_trouble()
            self._give()
            for answered in self._fleet.answers(min(PAUSE, self._work.pause() or PAUSE)):
                outcome = self._settle(answered)
                self._give()  # to whoever has just become free, before anybody else is heard
                if outcome is not None:
                    self._done += isinstance(outcome, ShardReport)
                    self._given_up += isinstance(outcome, ShardFailure)
                    yield outcome
            self._measure()

    def _give(self) -> None:
        """Shards to those who have room; one that may kill its process gets an encoder to itself."""
        while (encoder := self._fleet.freest(self._work.is_suspect)) is not None:
            source = (None if encoder.shards else self._work.take_suspect()) or self._work.take()
            if source is None:
                return
            self._fleet.give(encoder, source)

    def _settle(self, call: Answered) -> Outcome | None:
        """What an answer means for its shard and for the encoder that gave it."""
        encoder, source = call.encoder, call.source
        error = call.future.exception()
        if source is None:
            encoder.asked = False
            if error is None:
                self._fleet.is_there(encoder, call.future.result())
            elif isinstance(error, RayTaskError):
                self._cannot_work(encoder, error)
            else:
                self._fleet.went_away(encoder, error)
            return None
        if error is None:
            del encoder.shards[source.name]
            answer: Answer = call.future.result()
            self._fleet.heard(encoder, answer.latents)
            return self._tried(encoder, source, answer.outcome)
        if isinstance(error, RayTaskError):
            self._cannot_work(encoder, error)
        else:
            self._fleet.went_away(encoder, error)
        del encoder.shards[source.name]
        if source.name in encoder.excused or getattr(error, "preempted", False):
            encoder.excused.discard(source.name)
            self._metrics.retry("preempted")
            self._work.give_back(source)
            return None
        self._metrics.retry("lost")
        return self._work.lost(source, describe_error(error))

    def _tried(self, encoder: Encoder, source: SourceShard, outcome: ShardReport | FailedAttempt) -> Outcome | None:
        if isinstance(outcome, ShardReport):
            encoder.failures, encoder.no_room = 0, False
        else:
            self._metrics.retry(outcome.blame)
            if outcome.blame is Blame.NO_ROOM:
                self._listener.event("no room", f"{encoder.name}: {outcome.error}", encoder=encoder.name)
                encoder.no_room, encoder.rests_until = True, time.monotonic() + LONGEST_REST
            elif outcome.blame is Blame.CHANCE and not self._work.is_outage:
                self._fleet.rest(encoder)
        return self._work.settle(source, outcome)

    def _cannot_work(self, encoder: Encoder, error: RayTaskError) -> None:
        """It has no VAE, or the wrong one, or no GPU: it is asked again later, perhaps on another machine."""
        cause = error.cause if isinstance(error.cause, Exception) else error
        self._listener.event("encoder failed", f"{encoder.name}: {describe_error(cause)}", encoder=encoder.name)
        self._refusal, self._refused = cause, time.monotonic()
        encoder.refuses = True
        self._fleet.restart(encoder, LONGEST_REST if isinstance(cause, (RequestError, SpecError)) else RESTART_PAUSE)

    def _look_for_trouble(self) -> None:
        """Ends a run in which nobody can do anything any more; while that may change, a person is told."""
        now, encoders = time.monotonic(), self._fleet.encoders
        up = [encoder for encoder in encoders if encoder.up]
        if up:
            self._quiet_since = now
            if all(encoder.no_room and not encoder.shards for encoder in up):
                raise CheckFailed("no machine has room left to write to; make room, and run the same command again")
            return
        hopeless = all(encoder.refuses or not encoder.was_up for encoder in encoders)
        if self._refusal is not None and hopeless and now - self._refused > GRACE:
            raise self._refusal
        if now - self._quiet_since > QUIET:
            text = f"waiting: none of {len(encoders)} encoders is up; the cluster is full, or has no GPUs now"
            self._listener.event("waiting", text, encoders=len(encoders))
            self._quiet_since = now

    def _measure(self) -> None:
        """What Prometheus is told, now and then and at the end."""
        if time.monotonic() - self._measured < MEASURE and not self._work.finished:
            return
        self._measured = time.monotonic()
        self._metrics.encoders(sum(encoder.up for encoder in self._fleet.encoders), len(self._fleet.encoders))
        self._metrics.shards(
            waiting=self._work.waiting, running=self._work.under_way, done=self._done, failed=self._given_up
        )


def check_room(config: EncodeConfig) -> None:
    """Refuses what a cluster that cannot grow has no place for."""
    gpus, share = ray.cluster_resources().get("GPU", 0), config.gpus_per_actor
    if share * (config.actors or 1) > gpus:
        raise RequestError(
            f"engine=ray: {config.actors or 'any'} actors of {share} GPU need more than the {gpus:g} of this machine; "
            "set actors and gpus_per_actor (0 encodes on CPUs), or RAY_ADDRESS to join a cluster"
        )
