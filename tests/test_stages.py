"""Stages that overlap: order kept, room bounded, faults raised where somebody waits, nobody left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from encode_pipeline.stages import Behind, Room, Stopwatch, WorkAhead


def ahead(items: Iterator[int], work=lambda item: item, weigh=lambda item: 1, limit: int = 4, room: int = 100):
    return WorkAhead(items, work, weigh, threads=3, ahead=limit, room=room, clock=Stopwatch())


def test_results_come_in_order_whatever_takes_longest() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item % 4 == 0 else 0)
        return item * item

    with ahead(iter(range(40)), slow_first) as results:
        assert list(results) == [item * item for item in range(40)]


def test_no_more_is_read_ahead_than_allowed() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    with ahead(items(), limit=4) as results:
        iterator = iter(results)
        for expected in range(20):
            assert next(iterator) == expected
            time.sleep(0.005)
            assert len(taken) <= expected + 1 + 4 + 2  # taken, waiting in the queue, and one in the reader's hand


def test_heavy_items_wait_for_room_and_the_heaviest_goes_alone() -> None:
    under_way: set[int] = set()
    most = 0
    lock = threading.Lock()
    weights = [60, 60, 60, 500, 60, 60]

    def work(item: int) -> int:
        nonlocal most
        with lock:
            under_way.add(item)
            most = max(most, sum(weights[other] for other in under_way if other != 3))
            assert item != 3 or under_way == {3}
        time.sleep(0.01)
        with lock:
            under_way.remove(item)
        return item

    with ahead(iter(range(6)), work, lambda item: weights[item], limit=6, room=130) as results:
        assert list(results) == list(range(6))
    assert most <= 130


def test_a_fault_of_the_items_or_of_the_work_is_raised_in_its_place() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the cable is out")

    seen = []
    with pytest.raises(OSError, match="the cable is out"), ahead(broken()) as results:
        for result in results:
            seen.append(result)
    assert seen == [1, 2]
    with pytest.raises(ZeroDivisionError), ahead(iter([1, 0, 2]), lambda item: 1 // item) as results:
        list(results)


def test_leaving_early_stops_the_reader() -> None:
    with ahead(iter(range(10**9))) as results:
        assert next(iter(results)) == 0
    assert not results._reader.is_alive()


def test_waits_are_told_apart() -> None:
    clock = Stopwatch()

    def slow_items() -> Iterator[int]:
        for item in range(3):
            time.sleep(0.05)
            yield item

    with WorkAhead(slow_items(), lambda item: item, lambda item: 1, 2, 4, 100, clock) as results:
        list(results)
    assert clock.seconds["input"] > clock.seconds["decode"]
    clock = Stopwatch()
    with WorkAhead(iter(range(3)), lambda item: time.sleep(0.1), lambda item: 1, 1, 4, 100, clock) as results:
        list(results)
    assert clock.seconds["decode"] > clock.seconds["input"]


def test_what_is_put_behind_is_done_in_order_and_before_the_end() -> None:
    done: list[int] = []
    clock = Stopwatch()
    with Behind[int](lambda item: (time.sleep(0.01), done.append(item))[0], 2, clock) as later:
        for item in range(10):
            later.put(item)
    assert done == list(range(10)) and clock.seconds["writer"] > 0.02


def test_a_fault_behind_is_raised_in_front_and_the_rest_left_undone() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == 2:
            raise OSError("disk full")
        done.append(item)

    with pytest.raises(OSError, match="disk full"), Behind[int](work, 2, Stopwatch()) as later:
        for item in range(1000):
            later.put(item)
    assert done == [0, 1]
    with pytest.raises(OSError, match="disk full"), Behind[int](work, 8, Stopwatch()) as later:
        later.put(2)  # the last: nobody puts anything any more


def test_room_is_not_waited_for_by_what_is_not_wanted() -> None:
    room = Room(10)
    room.take(8, lambda: True)
    room.take(8, lambda: False)
    room.give(16)
    room.take(10, lambda: True)


def test_a_lull_is_told_and_a_reader_that_hangs_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encode_pipeline.stages.LULL", 0.05)
    monkeypatch.setattr("encode_pipeline.stages.PATIENCE", 0.1)
    hangs = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        hangs.wait(60)
        yield 2

    with ahead(items()) as results:
        iterator = iter(results)
        assert next(iterator) == 1
        assert next(iterator) is None and next(iterator) is None
    assert results._reader.is_alive()  # and nobody waited for it
    hangs.set()
    results._reader.join(10)
    assert not results._reader.is_alive()
