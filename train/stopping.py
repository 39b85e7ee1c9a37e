"""Being told to end: by Ctrl-C, or by SIGTERM before a machine is taken away."""

from __future__ import annotations

import signal
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from encode_pipeline.latents.command import Terminated


class Stop:
    """While it is entered, the first signal is only remembered, so that the step under way can end; a second one ends
    the program at once."""

    def __init__(self) -> None:
        self.told: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        with suppress(ValueError):  # not the main thread, which alone hears signals
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def error(self) -> KeyboardInterrupt:
        """What ends the program once all is saved; told by another process, this one ends as if terminated."""
        return KeyboardInterrupt() if self.told == signal.SIGINT else Terminated()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.told = number
        self.__exit__(None, None, None)
