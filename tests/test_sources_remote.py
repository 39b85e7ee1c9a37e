"""Tars on a web server and in a bucket: what each can answer, and which answers are worth another try."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.places import WORTH_A_LISTING
from encode_pipeline.read import TarError
from encode_pipeline.sources import SourceChanged, SourceUnreadable, find_sources
from tests.conftest import Bucket
from tests.tars import END, good
from tests.test_sources import TAR, names, read_through
from tests.web import Web, serving

# --- over http ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Web]:
    with serving(TAR) as web:
        yield web


@pytest.fixture
def web(server: Web) -> Web:
    server.tar, server.etag = TAR, '"one"'
    server.asked.clear()
    return server


def test_tars_from_a_web_server(web: Web, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text(f"{web.url}/tars/7.tar?key=a=b\n{web.url}/moved/8.tar\n")
    sources = find_sources([f"coyo={web.url}/tars/{{00..03}}.tar", str(tmp_path / "l.txt")])
    assert [source.uri.removeprefix(web.url) for source in sources[3:]] == [
        "/tars/03.tar", "/tars/7.tar?key=a=b", "/moved/8.tar",
    ]  # fmt: skip
    assert {(source.size, source.etag) for source in sources} == {(len(TAR), "one")}
    web.asked.clear()
    for source in sources:
        assert read_through(source) == (9, hashlib.sha256(TAR).hexdigest())
    assert web.asked["GET"] == len(sources) + 1  # one for each tar, however it is cut, and one that was redirected
    assert read_through(SourceShard(f"{web.url}/slow/0.tar", len(TAR), "one"))[0] == 9


def test_what_a_web_server_can_answer_when_tars_are_looked_for(web: Web) -> None:
    with pytest.raises(RequestError, match=r"/404/0.tar: no such tar or folder"):
        find_sources([f"{web.url}/404/0.tar"])
    with pytest.raises(RequestError, match=r"3 of 3 tars are not there: "):
        find_sources([f"{web.url}/404/{{0..2}}.tar"])
    for status in ("401", "403"):
        with pytest.raises(PermissionError, match=rf"/{status}/0.tar: the server answers {status}: not allowed"):
            find_sources([f"{web.url}/{status}/0.tar"])
    with pytest.raises(OSError, match=r"/500/0.tar: the server answers 500") as error:
        find_sources([f"{web.url}/500/0.tar"])
    assert not isinstance(error.value, (FileNotFoundError, PermissionError))
    with pytest.raises(RequestError, match="the server does not say how large it is"):
        find_sources([f"{web.url}/endless/0.tar"])
    with pytest.raises(RequestError, match="a web server lists nothing"):
        find_sources([f"{web.url}/tars/*.tar"])
    assert names(f"{web.url}/busy/0.tar") == ["0"]


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("404", SourceUnreadable, "0.tar: no such tar"),
        ("403", SourceUnreadable, "0.tar: may not be read: the server answers 403: not allowed"),
        ("500", OSError, "0.tar: the server answers 500"),
        ("short", OSError, "0.tar: "),
    ],
)
def test_what_a_web_server_can_answer_when_a_tar_is_read(
    web: Web, kind: str, error: type[Exception], says: str
) -> None:
    source = SourceShard(f"{web.url}/{kind}/0.tar", len(TAR))
    with pytest.raises(error, match=says) as raised:
        read_through(source)
    assert isinstance(raised.value, SourceUnreadable) == (kind in ("404", "403"))
    assert not isinstance(raised.value, TarError)


def test_no_server_at_all_is_worth_another_try(web: Web) -> None:
    port = int(web.url.rpartition(":")[2])
    with serving(TAR) as other:
        gone = other.url
    assert not gone.endswith(str(port))
    with pytest.raises(OSError, match=r"/0.tar: ") as raised:
        read_through(SourceShard(f"{gone}/0.tar", 5))
    assert not isinstance(raised.value, (SourceUnreadable, SourceChanged, TarError))


def test_another_tar_at_the_same_address(web: Web) -> None:
    (source,) = find_sources([f"{web.url}/tars/0.tar"])
    web.etag = '"two"'
    with pytest.raises(SourceChanged, match=r"0.tar: etag two now, one when the run was planned"):
        read_through(source)
    web.tar = TAR + bytes(512)
    with pytest.raises(SourceChanged, match=rf"{len(TAR) + 512} bytes now, {len(TAR)} when the run was planned"):
        read_through(source)


def test_a_web_page_in_place_of_a_tar(web: Web) -> None:
    web.tar = b"<html>Please log in</html>"
    (source,) = find_sources([f"{web.url}/tars/0.tar"])
    with pytest.raises(TarError, match=r"/tars/0.tar: not a tar: looks like HTML"):
        read_through(source)


# --- over the S3 protocol -------------------------------------------------------------------------------


def put(bucket: Bucket, key: str, data: bytes) -> None:
    bucket.client.put_object(Bucket=bucket.name, Key=key, Body=data)


def test_tars_in_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    count = WORTH_A_LISTING + 3
    for number in range(count):
        put(bucket, f"d/{number:03d}.tar", TAR if number == 7 else END)
    put(bucket, "d/000.parquet", b"x")
    put(bucket, "d/deeper/0.tar", END)
    put(bucket, "lists/d.txt", b"../d/001.tar\n/nowhere\n")
    every = [f"{number:03d}" for number in range(count)]
    folder = f"{bucket.url}/d"
    assert (
        names(folder) == names(f"{folder}/") == names(f"{folder}/*.tar") == names(f"{folder}/{{000..102}}.tar") == every
    )
    assert names(f"{folder}/{{005..007}}.tar", folder, limit=5) == ["005", "006", "007", "000", "001"]
    listed = [source for source in find_sources([folder]) if source.uri.endswith("007.tar")]
    assert listed == find_sources([f"{folder}/007.tar"])  # asked for alone or with its folder: the same shard
    assert listed[0].etag and read_through(listed[0]) == (9, hashlib.sha256(TAR).hexdigest())
    for pattern in (f"{folder}/{{101..104}}.tar", f"{folder}/{{000..104}}.tar"):
        with pytest.raises(RequestError, match=rf"2 of \d+ tars are not there: {folder}/103.tar, {folder}/104.tar$"):
            find_sources([pattern])
    with pytest.raises(RequestError, match="no such tar or folder"):
        find_sources([f"{bucket.url}-not/0.tar"])


def test_a_list_in_a_bucket_names_what_lies_beside_it(bucket: Bucket) -> None:
    put(bucket, "d/0.tar", END)
    put(bucket, "d/all.txt", f"0.tar\n{bucket.url}/d/1.tar\n".encode())
    put(bucket, "d/1.tar", END)
    assert names(f"{bucket.url}/d/all.txt") == ["0", "1"]


def test_an_object_that_is_replaced(bucket: Bucket) -> None:
    put(bucket, "0.tar", TAR)
    (source,) = find_sources([f"{bucket.url}/0.tar"])
    put(bucket, "0.tar", TAR.replace(b"x", b"y"))
    with pytest.raises(SourceChanged, match=rf"{bucket.url}/0.tar: etag \w+ now, {source.etag} when"):
        read_through(source)
    bucket.client.delete_object(Bucket=bucket.name, Key="0.tar")
    with pytest.raises(SourceUnreadable, match=f"{bucket.url}/0.tar: no such tar"):
        read_through(source)
    put(bucket, "0.tar", good())
    (source,) = find_sources([f"{bucket.url}/0.tar"])
    with pytest.raises(TarError, match=f"{bucket.url}/0.tar: cut short"):
        read_through(source)
