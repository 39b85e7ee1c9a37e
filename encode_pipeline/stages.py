"""Stages that overlap: bounded queues between threads, and whose fault it is when one of them waits."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
POLL = 0.1
"""Seconds after which a thread that waits for another looks whether it is still wanted."""
LULL = 1.0
"""Seconds without a result after which the one who waits is told so."""
PATIENCE = 5.0
"""Seconds that are given to a reader to end; one that hangs in a read is left to itself."""


@dataclass
class Stopwatch:
    """Seconds that the loop spent in, or waiting for, each stage."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started


class Room:
    """So much of something may be under way at once; a single piece larger than all of it goes alone."""

    def __init__(self, size: int) -> None:
        self._size, self._taken = size, 0
        self._changed = threading.Condition()

    def take(self, amount: int, wanted: Callable[[], bool]) -> None:
        """Waits until there is room, or until the piece is not wanted any more."""
        with self._changed:
            while self._taken and self._taken + amount > self._size and wanted():
                self._changed.wait(POLL)
            self._taken += amount

    def give(self, amount: int) -> None:
        with self._changed:
            self._taken -= amount
            self._changed.notify_all()


class WorkAhead(Generic[In, Out]):
    """Results of `work` in the order of the items, which a thread of its own reads ahead.

    At most `ahead` items are read and not yet taken, and those not yet worked on weigh at most `room` together. A
    wait counts as "input" while the next item has not been read, and as "decode" while it is being worked on. When
    nothing comes for a while, a None says so, again and again.
    """

    def __init__(
        self,
        items: Iterable[In],
        work: Callable[[In], Out],
        weigh: Callable[[In], int],
        threads: int,
        ahead: int,
        room: int,
        clock: Stopwatch,
    ) -> None:
        self._items, self._work, self._weigh, self._clock = items, work, weigh, clock
        self._room = Room(room)
        self._ready: queue.Queue[Future[Out] | None] = queue.Queue(ahead)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._reader = threading.Thread(target=self._read, name="read", daemon=True)
        self._stopped = False

    def __enter__(self) -> WorkAhead[In, Out]:
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._reader.join(PATIENCE)

    def __iter__(self) -> Iterator[Out | None]:
        while True:
            try:
                with self._clock("input"):
                    future = self._ready.get(timeout=LULL)
            except queue.Empty:
                yield None
                continue
            if future is None:
                return
            with self._clock("decode"):
                result = future.result()
            yield result

    def _read(self) -> None:
        try:
            for item in self._items:
                weight = self._weigh(item)
                self._room.take(weight, lambda: not self._stopped)
                if self._stopped:
                    return
                future = self._pool.submit(self._work, item)
                future.add_done_callback(lambda _, weight=weight: self._room.give(weight))  # type: ignore[misc]
                self._put(future)
            self._put(None)
        except BaseException as error:  # the loop's to raise, in its place in the order
            failed: Future[Out] = Future()
            failed.set_exception(error)
            self._put(failed)

    def _put(self, future: Future[Out] | None) -> None:
        while not self._stopped:
            with suppress(queue.Full):
                self._ready.put(future, timeout=POLL)
                return


class Behind(Generic[In]):
    """Does something with items, in order, on a thread of its own; what fails there is raised here.

    A wait counts as "writer" when too many items are still to be done.
    """

    def __init__(self, work: Callable[[In], None], ahead: int, clock: Stopwatch) -> None:
        self._work, self._clock = work, clock
        self._waiting: queue.Queue[In | None] = queue.Queue(ahead)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="write", daemon=True)

    def __enter__(self) -> Behind[In]:
        self._thread.start()
        return self

    def put(self, item: In) -> None:
        with self._clock("writer"):
            self._waiting.put(item)
        if self._error is not None:
            raise self._error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            if self._error is None:  # after an error the rest is only taken away, so that nobody waits
                try:
                    self._work(item)
                except BaseException as error:
                    self._error = error
