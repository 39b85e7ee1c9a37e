"""Files on a local disk: they appear whole, or only if none is there, and outlive a power cut once they are there."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

_UNFINISHED = ".publishing-"


def create(target: Path, data: bytes) -> bool:
    """Makes a file if none is there. False, and nothing changed, if one is."""
    if target.exists():
        return False
    temporary = _written_beside(target, lambda path: path.write_bytes(data))
    try:
        os.link(temporary, target)  # atomic, and fails if the name is taken: rename would overwrite
    except FileExistsError:
        return False
    except FileNotFoundError:  # beside a target that is there, `gc` frees what was to become it
        if not target.exists():
            raise
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync(target.parent)
    return True


def replace(target: Path, data: bytes) -> None:
    """Swaps a file for another in one step."""
    _written_beside(target, lambda path: path.write_bytes(data)).replace(target)
    sync(target.parent)


def publish(local: Path, target: Path) -> None:
    """Copies a finished file to its place."""
    _written_beside(target, lambda path: shutil.copyfile(local, path)).replace(target)
    sync(target.parent)


def files_under(folder: Path) -> Iterator[tuple[str, int]]:
    """The path of every file in a folder and below, with its size; of what others remove meanwhile, nothing."""
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as listing:
                for entry in listing:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif (size := _size(entry)) is not None:
                        yield entry.path, size
        except (FileNotFoundError, NotADirectoryError):
            continue


def names_in(folder: Path) -> Iterator[str]:
    """The names of the files directly in a folder: 250,000 in half a second, for nothing is asked of each."""
    try:
        with os.scandir(folder) as listing:
            yield from (entry.name for entry in listing if entry.is_file() and not is_unfinished(entry.name))
    except FileNotFoundError:
        return


def is_unfinished(path: str) -> bool:
    """Whether a file has not taken its place yet, or was left behind by a writer that was killed."""
    return path.rpartition("/")[2].startswith(_UNFINISHED)


def place_of(unfinished: str) -> str:
    """The path that an unfinished file was written for."""
    folder, slash, name = unfinished.rpartition("/")
    return folder + slash + name.removeprefix(_UNFINISHED).rpartition("-")[0]


def sync(path: Path) -> None:
    """Has the disk hold a file's bytes, or a folder's names, before anything is built on them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _written_beside(target: Path, write: Callable[[Path], object]) -> Path:
    """The finished file under another name; it says whose it is, for `gc` to know when nobody waits for it."""
    _make_folder(target.parent)
    temporary = target.with_name(f"{_UNFINISHED}{target.name}-{uuid.uuid4().hex}")
    try:
        write(temporary)
        sync(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def _size(entry: os.DirEntry[str]) -> int | None:
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return None
