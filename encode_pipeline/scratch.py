"""A folder for each shard in the making, on a disk that processes killed outright do not fill."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "latents-"
LOCK = ".in-use"
_cleared: set[Path] = set()
_clearing = threading.Lock()


@contextmanager
def scratch_folder(where: Path | None) -> Iterator[Path]:
    """An empty folder, in the system's temporary folder by default; it goes when it is left.

    A file in it is locked as long as the process lives, whatever ends it. Folders of processes that are dead are
    removed the first time that a process makes one beside them.
    """
    place = Path(where or tempfile.gettempdir())
    _clear(place)
    folder = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=place))
    try:
        with (folder / LOCK).open("wb") as lock:
            with suppress(OSError):  # where nothing can be locked, nothing is ever taken for dead
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder = folder.rename(folder.with_name(folder.name.removeprefix(".")))  # seen by others only now
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _clear(place: Path) -> None:
    """Removes what dead processes left, once in the life of this one."""
    with _clearing:
        if place in _cleared:
            return
        _cleared.add(place)
    for folder in place.glob(f"{PREFIX}*"):
        # What cannot be opened or locked is another user's, or none of ours, or still held by its process.
        with suppress(OSError), (folder / LOCK).open("rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
