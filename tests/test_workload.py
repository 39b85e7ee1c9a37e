"""Which shard is tried next, and when a try counts."""

from __future__ import annotations

from typing import Any

import pytest

from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.commit import ShardCommit, SourceShard
from encode_pipeline.listener import Listener
from encode_pipeline.records import Blame, FailedAttempt, ShardFailure, ShardReport
from encode_pipeline.workload import LONGEST_PAUSE, OUTAGE, PATIENCE, PROBE, ROOM_TRIES, Workload


class Heard(Listener):
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, name: str, text: str | None, /, **facts: Any) -> None:
        self.events.append((name, facts))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def heard() -> Heard:
    return Heard()


def shards(count: int) -> list[SourceShard]:
    return [SourceShard(f"/tars/{number:05d}.tar", 1) for number in range(count)]


def report(source: SourceShard, won: bool = True) -> ShardReport:
    commit = ShardCommit(
        fingerprint="f", shard=source.name, attempt="a", source=source, source_sha256="", read=0, encoded=0,
        rejected={}, payloads=(), made_by={},
    )  # fmt: skip
    return ShardReport(commit, won)


def take(work: Workload) -> SourceShard:
    source = work.take()
    assert source is not None
    return source


CHANCE = FailedAttempt("OSError: 503", Blame.CHANCE)


def test_shards_come_in_order_and_end(clock: Clock, heard: Heard) -> None:
    work = Workload(shards(3), 3, heard, clock)
    taken = [take(work) for _ in range(3)]
    assert taken == shards(3) and work.take() is None and work.pause() is None and not work.finished
    for source in taken:
        assert work.settle(source, report(source)) is not None
    assert work.finished and heard.events == []


def test_bad_luck_is_tried_again_after_ever_longer_pauses(clock: Clock, heard: Heard) -> None:
    work = Workload(shards(1), 4, heard, clock)
    pauses = []
    for _ in range(3):
        assert work.settle(take(work), CHANCE) is None
        assert work.take() is None
        pauses.append(work.pause())
        clock.now += work.pause() or 0
    assert pauses == [2.0, 4.0, 8.0]
    given_up = work.settle(take(work), CHANCE)
    assert isinstance(given_up, ShardFailure) and (given_up.attempts, given_up.error) == (4, CHANCE.error)
    assert work.finished and len(heard.events) == 4


def test_pauses_do_not_grow_for_ever(clock: Clock, heard: Heard) -> None:
    work = Workload(shards(1), 100, heard, clock)
    for _ in range(20):
        work.settle(take(work), CHANCE)
        clock.now += work.pause() or 0
    work.settle(take(work), CHANCE)
    assert work.pause() == LONGEST_PAUSE


def test_a_bad_tar_is_read_twice_and_no_more(clock: Clock, heard: Heard) -> None:
    work = Workload(shards(1), 5, heard, clock)
    bad = FailedAttempt("TarError: no end", Blame.TAR)
    assert work.settle(take(work), bad) is None
    given_up = work.settle(take(work), bad)  # at once
    assert isinstance(given_up, ShardFailure) and given_up.attempts == 2


def test_a_tar_that_fails_otherwise_the_second_time_was_damaged_on_the_way(clock: Clock, heard: Heard) -> None:
    work = Workload(shards(1), 5, heard, clock)
    assert work.settle(take(work), FailedAttempt("TarError: no end", Blame.TAR)) is None
    assert work.settle(take(work), FailedAttempt("TarError: strange header", Blame.TAR)) is None
    source = take(work)
    assert work.settle(source, report(source)) is not None


def test_what_was_called_back_is_next_and_does_not_count(clock: Clock, heard: Heard) -> None:
    work = Workload(shards(2), 1, heard, clock)
    source = take(work)
    assert work.settle(source, FailedAttempt("CalledBack", Blame.CALLED_BACK)) is None
    assert take(work) is source


def test_a_full_disk_is_tried_elsewhere_later_and_a_tar_too_large_for_all_is_given_up_on(
    clock: Clock, heard: Heard
) -> None:
    work = Workload(shards(2), 2, heard, clock)
    full = FailedAttempt("OSError: no space left", Blame.NO_ROOM)
    large, other = take(work), take(work)
    assert work.settle(large, full) is None and work.take() is None
    work.settle(other, report(other))
    tries, outcome = 1, None
    while outcome is None:
        clock.now += work.pause() or 0
        outcome = work.settle(take(work), full)
        tries += 1
    assert isinstance(outcome, ShardFailure) and outcome.source is large and tries == ROOM_TRIES * 2 + 1


def test_a_try_where_everything_fails_does_not_count_while_others_succeed(clock: Clock, heard: Heard) -> None:
    work = Workload(shards(2), 1, heard, clock)
    source = take(work)
    for _ in range(5):
        assert work.settle(source, CHANCE, excused=True) is None
        clock.now += LONGEST_PAUSE
        assert take(work) is source
    assert work.lost(source, "died", excused=True) is None
    assert work.take_suspect() is source
    assert work.lost(source, "died", excused=True) is None and work.has_suspects


def test_when_every_process_dies_it_is_an_outage_too(clock: Clock, heard: Heard) -> None:
    work = Workload(shards(1000), 3, heard, clock)
    together = [take(work) for _ in range(3)]
    for source in together:
        work.lost(source, "died")
    given_up = 0
    with pytest.raises(CheckFailed, match=r"nothing has succeeded for 30 minutes; the last error: .*: died"):
        while clock.now < 3 * PATIENCE:
            while (suspect := work.take_suspect() or work.take()) is not None:
                given_up += work.lost(suspect, "died") is not None
            clock.now += 1.0
    assert given_up == 0


def test_a_short_trouble_at_the_end_counts_against_nobody(clock: Clock, heard: Heard) -> None:
    """The last six shards, all under way, and the network away for a minute."""
    work = Workload(shards(6), 3, heard, clock)
    while clock.now < 60:
        while (source := work.take()) is not None:
            assert work.settle(source, CHANCE) is None
        clock.now += max(0.1, work.pause() or 0)
    while (source := work.take()) is not None or not work.finished:
        if source is not None:
            assert work.settle(source, report(source)) is not None
        clock.now += 0.1


def test_a_long_stretch_of_bad_tars_does_not_keep_a_run_from_the_others(clock: Clock, heard: Heard) -> None:
    """The first 400 of 2,000 cannot be read, as when they were moved to an archive; the end says which."""
    bad = {source.name for source in shards(400)}
    work = Workload(shards(2000), 2, heard, clock)
    done = 0
    with pytest.raises(CheckFailed, match="the last error: /tars/00.*: OSError: 503"):
        while not work.finished:
            while (source := work.take()) is not None:
                done += work.settle(source, CHANCE if source.name in bad else report(source)) is not None
            clock.now += work.pause() or 0
    assert done >= 1600


def test_only_a_death_met_alone_counts(clock: Clock, heard: Heard) -> None:
    work = Workload(shards(3), 2, heard, clock)
    together = [take(work) for _ in range(3)]
    for source in together:
        assert work.lost(source, "died") is None
    assert work.take() is None  # suspects go alone
    poison, *innocent = together
    assert work.take_suspect() is poison and work.is_suspect(poison.name)
    assert work.lost(poison, "died") is None  # one attempt
    for source in innocent:
        assert work.take_suspect() is source
        assert work.settle(source, report(source)) is not None
        assert not work.is_suspect(source.name)
    assert work.take_suspect() is poison
    given_up = work.lost(poison, "died")
    assert isinstance(given_up, ShardFailure) and given_up.attempts == 2 and work.finished


def test_a_suspect_that_was_called_back_stays_one(clock: Clock, heard: Heard) -> None:
    work = Workload(shards(1), 2, heard, clock)
    source = take(work)
    work.lost(source, "died")
    assert work.take_suspect() is source
    work.give_back(source)
    assert work.take() is None and work.take_suspect() is source


def test_an_outage_counts_against_nobody(clock: Clock, heard: Heard) -> None:
    """Everything fails for a while, then nothing does: with two attempts each, all shards are done in the end."""
    work = Workload(shards(100), 2, heard, clock)
    tries = 0
    while clock.now < PATIENCE / 2:
        while (source := work.take()) is not None:
            tries += 1
            assert work.settle(source, CHANCE) is None
        clock.now += work.pause() or 0
    assert ("outage", {"over": False}) in heard.events
    assert tries < 10 + PATIENCE / 2 / PROBE
    done = 0
    while not work.finished:
        while (source := work.take()) is not None:
            done += work.settle(source, report(source)) is not None
        clock.now += work.pause() or 0
    assert done == 100 and heard.events[-1] == ("outage", {"over": True})


def test_an_outage_that_does_not_end_ends_the_run(clock: Clock, heard: Heard) -> None:
    work = Workload(shards(1000), 2, heard, clock)
    with pytest.raises(CheckFailed, match="nothing has succeeded for 30 minutes"):
        while clock.now < 3 * PATIENCE:
            while (source := work.take()) is not None:
                work.settle(source, CHANCE)
            clock.now += work.pause() or 1


def test_a_few_bad_shards_among_good_ones_are_no_outage(clock: Clock, heard: Heard) -> None:
    bad = {source.name for source in shards(40)[::2]}
    work = Workload(shards(40), 3, heard, clock)
    given_up = []
    while not work.finished:
        while (source := work.take()) is not None:
            outcome = work.settle(source, CHANCE if source.name in bad else report(source))
            given_up += [outcome.source.name] if isinstance(outcome, ShardFailure) else []
        clock.now += work.pause() or 0
    assert set(given_up) == bad
    assert not [event for event in heard.events if event[0] == "outage"]


def test_bad_shards_in_a_row_cost_a_pause_and_are_given_up_on(clock: Clock, heard: Heard) -> None:
    """More than an outage takes, all at the beginning: the first good one shows what is what."""
    bad = {source.name for source in shards(40)[: 3 * OUTAGE]}
    work = Workload(shards(40), 3, heard, clock)
    given_up = []
    while not work.finished:
        while (source := work.take()) is not None:
            outcome = work.settle(source, CHANCE if source.name in bad else report(source))
            given_up += [outcome.source.name] if isinstance(outcome, ShardFailure) else []
        clock.now += work.pause() or 0
    assert set(given_up) == bad and clock.now < 60 * PROBE


def test_all_the_last_shards_bad_are_given_up_on(clock: Clock, heard: Heard) -> None:
    work = Workload(shards(2 * OUTAGE), 3, heard, clock)
    given_up = 0
    while not work.finished:
        while (source := work.take()) is not None:
            given_up += isinstance(work.settle(source, CHANCE), ShardFailure)
        clock.now += work.pause() or 0
        assert clock.now < PATIENCE
    assert given_up == 2 * OUTAGE


def test_a_lost_race_sends_a_driver_elsewhere(clock: Clock, heard: Heard) -> None:
    """Two drivers at once over the same list: after one lost race they hardly meet again."""
    work = Workload(shards(100), 3, heard, clock)
    first = take(work)
    work.settle(first, report(first, won=False))
    assert take(work) not in shards(50)
    rest = 1
    while work.take() is not None:
        rest += 1
    assert rest == 99
