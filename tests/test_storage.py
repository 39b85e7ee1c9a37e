"""The same promises on a disk, in memory and over the S3 protocol."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.storage import Storage
from tests.conftest import Bucket

Make = Callable[[], Storage]


@pytest.fixture(params=["file", "memory", "s3"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Opens the same empty folder again and again, as separate machines would."""
    if request.param == "file":
        return lambda: Storage(tmp_path / "folder")
    if request.param == "memory":
        url = f"memory://{uuid.uuid4().hex}"
        return lambda: Storage(url)
    bucket: Bucket = request.getfixturevalue("bucket")
    return lambda: Storage(f"{bucket.url}/folder")


def test_of_many_creators_one_wins(make: Make) -> None:
    def create(number: int) -> tuple[bool, bytes]:
        text = f"writer {number}".encode()
        return make().create("commits/x.json", text), text

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(create, range(8)))
    winners = [text for won, text in outcomes if won]
    assert len(winners) == 1
    assert make().read("commits/x.json") == winners[0]


def test_files_folders_sizes_and_deletion(make: Make, tmp_path: Path) -> None:
    storage = make()
    assert storage.files("data") == {} and storage.folders() == []
    local = tmp_path / "payload"
    local.write_bytes(b"12345")
    storage.publish(local, "data/s/a/view0.tar", hashlib.sha256(b"12345").hexdigest())
    storage.create("top.json", b"{}")
    assert storage.files() == {"data/s/a/view0.tar": 5, "top.json": 2}
    assert make().files("data") == {"data/s/a/view0.tar": 5}
    assert storage.folders() == ["data"]
    assert storage.exists("top.json") and not storage.exists("other.json")
    storage.delete("data/s/a")
    storage.delete("data/s/a")
    assert make().files() == {"top.json": 2}


def test_replace_and_fetch(make: Make, tmp_path: Path) -> None:
    storage = make()
    storage.replace("current.json", b"one")
    storage.replace("current.json", b"two")
    assert make().read("current.json") == b"two"
    sha256 = storage.fetch("current.json", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"two" and sha256 == storage.sha256("current.json")


def test_a_failed_publish_leaves_nothing(make: Make, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        make().publish(tmp_path / "nothing", "data/x.tar", "")
    assert make().files() == {}


def test_addresses(tmp_path: Path, bucket: Bucket) -> None:
    assert Storage(tmp_path).url("a/b") == f"{tmp_path}/a/b"
    assert Storage(f"{bucket.url}/store").url("a/b") == f"{bucket.url}/store/a/b"
    for url in ("pipe:cat x", "simplecache::s3://x/y", "nonsense://x"):
        with pytest.raises(RequestError):
            Storage(url)
