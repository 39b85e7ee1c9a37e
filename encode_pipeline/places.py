"""Where tars lie: a local disk, an object store, a web server; each asked in the way that is cheap there."""

from __future__ import annotations

import glob
import os
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from encode_pipeline.latents.command import REMOTE_LIBRARIES, RequestError
from encode_pipeline.latents.filesystems import open_filesystem, protocol_of
from encode_pipeline.tar import Readable

WORTH_A_LISTING = 100
"""Names in one folder from which on the folder is listed, instead of asking for each of them."""
THREADS = 32
BLOCK_BYTES = 16 << 20
"""Of an object, asked for at once."""
HTTP_PAUSES = (0.2, 1.0)
"""Seconds before a web server that failed is asked again."""


class Entry(NamedTuple):
    """What a place says of an address."""

    size: int | None
    etag: str
    is_folder: bool


class Place(Protocol):
    """A kind of storage. All addresses are full ones, as `full` makes them."""

    protocol: str
    wildcards: str

    def full(self, address: str) -> str: ...

    def look_up(self, addresses: Sequence[str]) -> list[Entry | None]:
        """What stands at each address; None where nothing does."""

    def tars_in(self, folder: str) -> list[tuple[str, Entry]]:
        """The tars directly in a folder, in order of name."""

    def matching(self, pattern: str) -> list[tuple[str, Entry]]:
        """The files that a glob matches, in order of name."""

    def open(self, address: str) -> AbstractContextManager[Readable]: ...

    def told_plainly(self, address: str) -> AbstractContextManager[None]:
        """Turns what this place's library raises into OSErrors that name the address and the cause."""


class LocalDisk:
    """Files on this machine. A folder of 250,000 tars takes a second, where fsspec takes many."""

    protocol, wildcards = "file", "*?["

    def full(self, address: str) -> str:
        path = address.partition("://")[2] if "://" in address else address
        return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111  # pathlib leaves .. in

    def look_up(self, addresses: Sequence[str]) -> list[Entry | None]:
        found: dict[str, Entry] = {}
        for folder, wanted in _by_folder(addresses).items():
            if len(wanted) < WORTH_A_LISTING:
                found |= {path: entry for path in wanted if (entry := _file_or_folder(path, Path(path).stat))}
            else:
                found.update(self._listed(folder, wanted.__contains__))
        return [found.get(address) for address in addresses]

    def tars_in(self, folder: str) -> list[tuple[str, Entry]]:
        return sorted(item for item in self._listed(folder, _is_tar) if not item[1].is_folder)

    def matching(self, pattern: str) -> list[tuple[str, Entry]]:
        paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  # 250,000 Paths are slow and large
        entries = zip(paths, self.look_up(paths), strict=True)
        return [(path, entry) for path, entry in entries if entry is not None and not entry.is_folder]

    @contextmanager
    def open(self, address: str) -> Iterator[Readable]:
        with Path(address).open("rb", buffering=0) as file:
            yield file

    @contextmanager
    def told_plainly(self, address: str) -> Iterator[None]:
        yield

    def _listed(self, folder: str, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, Entry]]:
        try:
            listing = os.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        with listing:
            for item in listing:
                if is_wanted(item.path) and (entry := _file_or_folder(item.path, item.stat)):
                    yield item.path, entry


class ObjectStore:
    """Objects under `s3://`, `gs://` or whatever else fsspec knows."""

    wildcards = "*?["

    def __init__(self, fs: Any) -> None:
        self.fs, self.protocol = fs, protocol_of(fs)

    def full(self, address: str) -> str:
        return f"{self.protocol}://{str(self.fs._strip_protocol(address)).strip('/')}"

    def look_up(self, addresses: Sequence[str]) -> list[Entry | None]:
        found: dict[str, Entry] = {}
        for folder, wanted in _by_folder(addresses).items():
            if len(wanted) < WORTH_A_LISTING:
                found.update(self._ask_each(wanted))
            else:
                found.update((name, entry) for name, entry in self._listed(folder) if name in wanted)
        return [found.get(address) for address in addresses]

    def tars_in(self, folder: str) -> list[tuple[str, Entry]]:
        return sorted((name, entry) for name, entry in self._listed(folder) if _is_tar(name) and not entry.is_folder)

    def matching(self, pattern: str) -> list[tuple[str, Entry]]:
        with self.told_plainly(pattern):
            found = self.fs.glob(pattern, detail=True)
        entries = ((self.full(name), _entry_of(found[name])) for name in sorted(found))
        return [(name, entry) for name, entry in entries if not entry.is_folder]

    @contextmanager
    def open(self, address: str) -> Iterator[Readable]:
        with self.told_plainly(address):
            stream = self.fs.open(address, "rb", block_size=BLOCK_BYTES, cache_type="readahead")
        with stream:
            yield stream

    @contextmanager
    def told_plainly(self, address: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in REMOTE_LIBRARIES:
                raise
            raise self.fault(error, address) from error

    def fault(self, error: Exception, address: str) -> OSError:
        if isinstance(error, FileNotFoundError):
            return FileNotFoundError(f"{address}: no such tar")
        kind = PermissionError if isinstance(error, PermissionError) else OSError
        return kind(f"{address}: {' '.join(str(error).split()) or type(error).__name__}")

    def ask(self, address: str) -> Entry | None:
        """What stands at an address, by a question of its own."""
        try:
            with self.told_plainly(address):
                return _entry_of(self.fs.info(address))
        except FileNotFoundError:
            return None

    def _ask_each(self, addresses: Iterable[str]) -> Iterator[tuple[str, Entry]]:
        names = list(addresses)
        with ThreadPoolExecutor(THREADS) as pool:
            for name, entry in zip(names, pool.map(self.ask, names), strict=True):
                if entry is not None:
                    yield name, entry

    def _listed(self, folder: str) -> Iterator[tuple[str, Entry]]:
        try:
            with self.told_plainly(folder):
                listing = self.fs.ls(folder, detail=True)
        except FileNotFoundError:
            return
        for info in listing:
            yield self.full(info["name"]), _entry_of(info)


class WebServer(ObjectStore):
    """Files under `http(s)://`, where nothing can be listed and a question mark is part of an address."""

    wildcards = "*"

    def full(self, address: str) -> str:
        return address

    def look_up(self, addresses: Sequence[str]) -> list[Entry | None]:
        found = dict(self._ask_each(dict.fromkeys(addresses)))
        return [found.get(address) for address in addresses]

    def matching(self, pattern: str) -> list[tuple[str, Entry]]:
        raise RequestError(f"{pattern}: a web server lists nothing; name tars by a {{000..123}} range or a list file")

    def ask(self, address: str) -> Entry | None:
        for pause in HTTP_PAUSES:
            try:
                return super().ask(address)
            except PermissionError:
                raise
            except OSError:
                time.sleep(pause)
        return super().ask(address)

    @contextmanager
    def open(self, address: str) -> Iterator[Readable]:
        import aiohttp

        # One request for the whole tar, however long it takes, for not every server answers to ranges; but
        # no more than a minute without a byte.
        patience = aiohttp.ClientTimeout(total=None, sock_connect=60, sock_read=60)
        with self.told_plainly(address):
            stream = self.fs.open(address, "rb", block_size=0, size=1, timeout=patience)
        with stream:
            yield stream

    def fault(self, error: Exception, address: str) -> OSError:
        """By the server's answer: fsspec says of whatever went wrong that nothing was found."""
        cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        status = getattr(cause, "status", None)
        if status in (404, 410) or (cause is error and isinstance(error, FileNotFoundError)):
            return FileNotFoundError(f"{address}: no such tar")
        if status in (401, 403):
            return PermissionError(f"{address}: the server answers {status}: not allowed")
        text = f"the server answers {status}" if status else " ".join(str(cause).split()) or type(cause).__name__
        return OSError(f"{address}: {text}")


class Places:
    """The place that an address lies in; each is set up once."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}

    def of(self, address: str) -> Place:
        kind = address.partition("://")[0] if "://" in address else "file"
        if kind not in self._places or "::" in address or address.startswith("pipe:"):
            fs, _ = open_filesystem(address)  # refuses what would run a command
            protocol = protocol_of(fs)
            web = protocol in ("http", "https")
            self._places[kind] = LocalDisk() if protocol == "file" else WebServer(fs) if web else ObjectStore(fs)
        return self._places[kind]


def _file_or_folder(path: str, look: Callable[[], os.stat_result]) -> Entry | None:
    try:
        found = look()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise RequestError(f"{path}: neither a file nor a folder")  # to open a pipe would be to wait for ever
    return Entry(found.st_size, "", stat.S_ISDIR(found.st_mode))


def _by_folder(addresses: Iterable[str]) -> dict[str, set[str]]:
    folders: defaultdict[str, set[str]] = defaultdict(set)
    for address in addresses:
        folders[address.rpartition("/")[0] or "/"].add(address)
    return folders


def _is_tar(address: str) -> bool:
    return address.endswith(".tar") and not address.rpartition("/")[2].startswith(".")


def _entry_of(info: dict[str, Any]) -> Entry:
    etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    size = info.get("size")
    return Entry(None if size is None else int(size), etag, info["type"] == "directory")
