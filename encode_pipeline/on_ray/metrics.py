"""What Prometheus sees of a fleet, through the endpoint that Ray has on every node.

Ray puts `ray_` before these names and `_total` behind the counters. They are for people who watch: a killed encoder
takes its last seconds with it, so the truth about what is done is in the commits.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from ray.util.metrics import Counter, Gauge

from encode_pipeline.latents.status import STAGES
from encode_pipeline.records import Reason, ShardReport

NEXT_TO_NOTHING = 1e-300
"""What a counter starts with: Prometheus sees an increase only in what was there before, and Ray refuses a zero."""


class ActorMetrics:
    """What one encoder does. Made and used in the actor's process."""

    def __init__(self, fingerprint: str) -> None:
        count = partial(_counter, fingerprint)
        self._made = count("made", "latents, as they leave the VAE")
        self._committed = count("committed", "latents in commits of this encoder")
        self._rescued = count("rescued", "latents that came out finite in float32 only")
        self._read = count("samples_read", "samples of committed shards")
        self._encoded = count("samples_encoded", "samples that became latents")
        self._rejected = count("samples_rejected", "samples refused", "reason", Reason)
        self._shards = count("shards_committed", "shards committed")
        self._lost_races = count("shards_done_by_others", "shards that another had committed before")
        self._bytes = count("bytes_written", "bytes of committed shards")
        self._seconds = count("seconds", "seconds of committed shards, by what they went to", "stage", STAGES)
        self._failed = count("attempts_failed", "tries at a shard that ended without a commit", "kind")

    def latents(self, count: int) -> None:
        """Counts latents as they are made, long before their shard is finished."""
        _add(self._made, count)

    def shard(self, report: ShardReport) -> None:
        """Counts a finished shard; one that another had committed before as that, and not its samples again."""
        if not report.won:
            _add(self._lost_races, 1)
            return
        commit = report.commit
        _add(self._shards, 1)
        _add(self._committed, commit.encoded * len(commit.views))
        _add(self._rescued, commit.rescued)
        _add(self._read, commit.read)
        _add(self._encoded, commit.encoded)
        for reason, count in commit.rejected.items():
            _add(self._rejected, count, reason=reason)
        _add(self._bytes, sum(payload.size for payload in commit.payloads))
        for stage, spent in commit.made_by["seconds"].items():
            _add(self._seconds, spent, stage=stage)

    def failed(self, kind: str) -> None:
        """Counts a try that ended without a commit."""
        _add(self._failed, 1, kind=kind)


class FleetMetrics:
    """How the whole fleet stands. Made and used in the driver's process.

    `encoders` and `shards` want to be told at every turn of the driver's loop, changed or not: Ray drops a gauge that
    nobody has set for twenty seconds.
    """

    def __init__(self, fingerprint: str, gpus_per_actor: float) -> None:
        self._gpus_per_actor = gpus_per_actor
        gauge = partial(_gauge, fingerprint)
        self._live = gauge("encoders_live", "encoders that are up")
        self._wanted = gauge("encoders_wanted", "encoders that the run would use")
        self._gpus = gauge("gpus_held", "GPUs that the encoders hold, in use or not")
        self._shards = gauge("shards", "shards of this run, by where they stand", "state")
        self._retries = _counter(fingerprint, "retries", "shards put back to be tried again", "why")

    def encoders(self, live: int, wanted: int) -> None:
        """How many encoders are up, and how many there would be if the cluster gave all."""
        self._live.set(live)
        self._wanted.set(wanted)
        self._gpus.set(live * self._gpus_per_actor)

    def shards(self, *, waiting: int, running: int, done: int, failed: int) -> None:
        """Where the shards of this run stand."""
        for state, count in (("waiting", waiting), ("running", running), ("done", done), ("failed", failed)):
            self._shards.set(count, {"state": state})

    def retry(self, why: str) -> None:
        """Counts a shard that goes back to the others."""
        _add(self._retries, 1, why=why)


def _counter(
    fingerprint: str, name: str, description: str, label: str | None = None, values: Iterable[str] = ()
) -> Counter:
    """A counter that already shows at its beginning, for each value of its label that is known before."""
    counter = Counter(f"latents_{name}", description, tag_keys=("version", label) if label else ("version",))
    counter.set_default_tags({"version": fingerprint[:8]})
    for tags in [{label: str(value)} for value in values] if label else [{}]:
        counter.inc(NEXT_TO_NOTHING, tags)
    return counter


def _gauge(fingerprint: str, name: str, description: str, label: str | None = None) -> Gauge:
    gauge = Gauge(f"latents_{name}", description, tag_keys=("version", label) if label else ("version",))
    return gauge.set_default_tags({"version": fingerprint[:8]})


def _add(counter: Counter, amount: float, **tags: str) -> None:
    if amount:  # Ray refuses a zero
        counter.inc(amount, tags)
