"""Our own scheduler over plain actors: one task is one source tar, and whoever is free takes the next."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator

import ray
from ray.exceptions import RayTaskError

from encode_pipeline.config import EngineSettings
from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.spec import SpecError
from encode_pipeline.latents.store import Version
from encode_pipeline.listener import Listener
from encode_pipeline.on_ray.actors import ShardActor
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
"""Seconds that a state must last in which nobody can work before it ends a run."""
LOADING = 180.0
"""Seconds that other encoders are given to come up when some have refused to work."""
FAREWELL = 5.0
"""Seconds that encoders are given to give their shards back when a run is broken off."""
MEASURE = 2.0
"""Seconds between two updates of the metrics."""
Outcome = ShardReport | ShardFailure


def run_on_ray(
    missing: Iterable[SourceShard],
    version: Version,
    config: EngineSettings,
    listener: Listener,
    actor: type = ShardActor,
) -> Generator[Outcome, None, None]:
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
        self._kept: Encoder | None = None
        self._refusal: BaseException | None = None
        self._measured = 0.0
        self._quiet_since = self._room_since = self._refused_since = time.monotonic()

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
        """Shards to those who have room. What may kill its process gets an encoder to itself, and a good one."""
        self._kept = self._kept_free()
        for encoder in self._fleet.able() if self._kept else ():
            if not encoder.shards and (encoder is self._kept or not encoder.failures):
                if (source := self._work.take_suspect()) is None:
                    break
                self._fleet.give(encoder, source)
        while (freest := self._fleet.freest(self._kept, self._work.is_suspect)) is not None:
            if (source := self._work.take()) is None:
                return
            self._fleet.give(freest, source)

    def _kept_free(self) -> Encoder | None:
        """An encoder that gets no more shards while suspects wait, so that one of them can have it to itself."""
        if not self._work.has_suspects:
            return None
        able = self._fleet.able()
        if self._kept in able and self._kept is not None and not self._kept.failures:
            return self._kept
        return min(able, key=lambda encoder: (encoder.failures, len(encoder.shards)), default=None)

    def _settle(self, call: Answered) -> Outcome | None:
        """What an answer means for its shard and for the encoder that gave it."""
        encoder, source = call.encoder, call.source
        error = call.future.exception()
        if source is None:
            encoder.asked = False
            if error is None:
                self._fleet.is_there(encoder, call.future.result())
            else:
                self._failed(encoder, error)
            return None
        if error is None:
            del encoder.shards[source.name]
            answer: Answer = call.future.result()
            self._fleet.heard(encoder, answer.latents)
            encoder.heard = time.monotonic()
            return self._tried(encoder, source, answer.outcome)
        self._failed(encoder, error)
        del encoder.shards[source.name]
        if source.name in encoder.excused or getattr(error, "preempted", False):
            encoder.excused.discard(source.name)
            self._metrics.retry("preempted")
            text = describe_error(error)
            self._listener.event("retry", None, shard=source.name, blame="preempted", error=text)
            self._work.give_back(source)
            return None
        self._metrics.retry("lost")
        return self._work.lost(source, describe_error(error), excused=self._fleet.is_to_blame(encoder))

    def _tried(self, encoder: Encoder, source: SourceShard, outcome: ShardReport | FailedAttempt) -> Outcome | None:
        if isinstance(outcome, ShardReport):
            if encoder.no_room:  # there was some after all
                encoder.no_room, encoder.rests_until = False, 0.0
            encoder.failures = 0
        else:
            self._metrics.retry(outcome.blame)
            if outcome.blame is Blame.NO_ROOM:
                self._listener.event("no room", f"{encoder.name}: {outcome.error}", encoder=encoder.name)
                encoder.no_room, encoder.rests_until = True, time.monotonic() + LONGEST_REST
            elif outcome.blame is Blame.CHANCE and not self._work.is_outage:
                self._fleet.rest(encoder)
        return self._work.settle(source, outcome, excused=self._fleet.is_to_blame(encoder))

    def _failed(self, encoder: Encoder, error: BaseException) -> None:
        """A call that came to nothing: its process is gone, or it cannot work and says why."""
        could_be_made = not getattr(error, "actor_init_failed", False)
        if could_be_made and not isinstance(error, RayTaskError):
            self._fleet.went_away(encoder, error)
            return
        cause = getattr(error, "cause", None) or error
        text = describe_error(cause) if could_be_made else f"cannot be made: {str(error).strip().splitlines()[-1]}"
        self._listener.event("encoder failed", f"{encoder.name}: {text}", encoder=encoder.name)
        as_it_is = isinstance(cause, (RequestError, SpecError, CheckFailed))
        self._refusal = cause if as_it_is else CheckFailed(f"no encoder can work: {text}")
        encoder.refuses = True
        if could_be_made:
            self._fleet.restart(encoder, LONGEST_REST if as_it_is else RESTART_PAUSE)
        else:
            self._fleet.replace(encoder, LONGEST_REST)

    def _look_for_trouble(self) -> None:
        """Ends a run in which nobody can do anything any more; while that may change, a person is told."""
        now, encoders = time.monotonic(), self._fleet.encoders
        up = [encoder for encoder in encoders if encoder.up]
        if not (up and all(encoder.no_room and not encoder.shards for encoder in up)):
            self._room_since = now
        elif now - self._room_since > GRACE:
            raise CheckFailed("no machine has room left to write to; make room, and run the same command again")
        if up or self._refusal is None:
            self._refused_since = now
        if up:
            self._quiet_since, self._refusal = now, None
            return
        waits_for = LOADING if any(not encoder.refuses for encoder in encoders) else GRACE
        hopeless = all(encoder.refuses or not encoder.was_up for encoder in encoders)
        if self._refusal is not None and hopeless and now - self._refused_since > waits_for:
            raise self._refusal
        if now - self._quiet_since > QUIET:
            text = f"waiting: none of {len(encoders)} encoders is up; the cluster is full, or has no GPUs now"
            if not encoders:  # nobody has asked for any
                text += "; one that can grow is asked for machines by actors="
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


def check_room(config: EngineSettings) -> None:
    """Refuses what a cluster that cannot grow has no place for."""
    gpus, share = ray.cluster_resources().get("GPU", 0), config.gpus_per_actor
    if share * (config.actors or 1) > gpus:
        raise RequestError(
            f"engine=ray: {config.actors or 'any'} actors of {share} GPU need more than the {gpus:g} of this machine; "
            "set actors and gpus_per_actor (0 encodes on CPUs), or RAY_ADDRESS to join a cluster"
        )
