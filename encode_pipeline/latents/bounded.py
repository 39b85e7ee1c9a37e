"""A folder of files that can be made again: whole or not there, shared by processes, and never too full."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.disk import files_under, sync

LOCKS = 256
"""Lock files, for any number of names: two names on one lock only wait for each other."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_ARRIVING = ".arriving-"


class BoundedFolder:
    """Keeps files up to a number of bytes; those not used for longest make room for others.

    What one process removes another may have open, which is no harm, or look for, and then has to make again.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder, self.limit = folder, limit

    def touch(self, name: str, size: int | None = None) -> bool:
        """Whether a file is there, of this size if one is said; it then counts as used just now."""
        path = self.folder / name
        try:
            if size is not None and path.stat().st_size != size:
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """While this process makes a file of that name, no other does."""
        with self._lock(f"{zlib.crc32(name.encode()) % LOCKS:02x}"):
            yield

    def add(self, name: str, size: int, write: Callable[[Path], object]) -> Path:
        """Has a file of this size written and makes it appear whole."""
        target = self.folder / name
        unfinished = target.with_name(f"{_ARRIVING}{size}-{uuid.uuid4().hex}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as writing:
                with self._lock("room"):  # unmarked, it would be taken for what a killed writer left
                    mine = writing.enter_context(unfinished.open("xb"))
                    fcntl.flock(mine, fcntl.LOCK_EX)  # as long as this process lives and writes
                    self._make_room()
                write(unfinished)
                sync(unfinished)
                unfinished.replace(target)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise CheckFailed(f"{self.folder}: no room on this disk for a file of {size} bytes") from None
        finally:
            unfinished.unlink(missing_ok=True)
        return target

    def _make_room(self) -> None:
        """Removes what was not used for longest, once there is too much, and what killed writers left."""
        if self.limit is None:
            return
        used, total = [], 0
        for name, size in files_under(self.folder):
            path = Path(name)
            if path.name.startswith(_ARRIVING):
                total += 0 if _removed_if_abandoned(path) else int(path.name.split("-")[1])
            elif size:  # the locks have none
                used.append((path, size))
                total += size
        if total > self.limit:
            for _, path, size in sorted((_last_use(path), path, size) for path, size in used):
                path.unlink(missing_ok=True)
                total -= size
                if total <= self.limit:
                    break

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        path = self.folder / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _removed_if_abandoned(unfinished: Path) -> bool:
    """Whether the writer of a file was killed, or it is gone."""
    try:
        with unfinished.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unfinished.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


def _last_use(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
