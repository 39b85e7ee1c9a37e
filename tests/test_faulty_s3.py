"""The faults that other tests rely on do happen, and a server without them is an ordinary one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ResponseStreamingError

from tests.faulty_s3 import FaultyBucket, faulty, faulty_server

__all__ = ["faulty", "faulty_server"]
DATA = bytes(range(256)) * 64


@pytest.fixture
def client(faulty: FaultyBucket) -> Iterator[Any]:
    """Goes through the faults, and tries nothing twice."""
    client = boto3.client("s3", endpoint_url=faulty.s3.url, config=Config(retries={"total_max_attempts": 1}))
    yield client
    client.close()


def there(bucket: FaultyBucket, key: str) -> bytes | None:
    try:
        return bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read()
    except ClientError:
        return None


def test_without_faults(faulty: FaultyBucket, client: Any) -> None:
    where = {"Bucket": faulty.name, "Key": "a/b c+d.tar"}
    etag = client.put_object(**where, Body=DATA)["ETag"]
    assert client.get_object(**where)["Body"].read() == DATA == there(faulty, "a/b c+d.tar")
    part = client.get_object(**where, Range="bytes=10-19")
    assert (part["Body"].read(), part["ContentRange"]) == (DATA[10:20], f"bytes 10-19/{len(DATA)}")
    head = client.head_object(**where)
    assert (head["ContentLength"], head["ETag"]) == (len(DATA), etag)
    assert [item["Key"] for item in client.list_objects_v2(Bucket=faulty.name)["Contents"]] == ["a/b c+d.tar"]
    client.delete_object(**where)
    assert there(faulty, "a/b c+d.tar") is None


def test_answers_instead_of_deeds(faulty: FaultyBucket, client: Any) -> None:
    for do, code in (("503", "SlowDown"), ("412", "PreconditionFailed"), ("409", "ConditionalRequestConflict")):
        for existing in (False, True):
            rule = faulty.s3.add(do, method="PUT", key="commits/*")
            with pytest.raises(ClientError, match=code):
                client.put_object(Bucket=faulty.name, Key=f"commits/{do}", Body=b"new", IfNoneMatch="*")
            assert rule.met == 1 and there(faulty, f"commits/{do}") == (b"old" if existing else None)
            client.put_object(Bucket=faulty.name, Key=f"commits/{do}", Body=b"old")
    faulty.s3.add("overwrite")
    client.put_object(Bucket=faulty.name, Key="commits/412", Body=b"new", IfNoneMatch="*")
    assert there(faulty, "commits/412") == b"new"
    rule = faulty.s3.add("412", times=None)
    client.put_object(Bucket=faulty.name, Key="plain", Body=b"x")
    assert rule.met == 0  # for conditional writes alone


def test_connections_that_end_early(faulty: FaultyBucket, client: Any) -> None:
    for do, left in (("reset", None), ("lose-reply", DATA)):
        faulty.s3.add(do, method="PUT")
        with pytest.raises(ConnectionClosedError):
            client.put_object(Bucket=faulty.name, Key="x", Body=DATA)
        assert there(faulty, "x") == left
    faulty.s3.add("cut", method="GET", key="x")
    with pytest.raises(ResponseStreamingError):
        client.get_object(Bucket=faulty.name, Key="x")["Body"].read()


def test_bodies_that_lie(faulty: FaultyBucket, client: Any) -> None:
    where = {"Bucket": faulty.name, "Key": "x"}
    faulty.s3.add("flip-up", method="PUT")
    client.put_object(**where, Body=DATA)
    stored = there(faulty, "x")
    assert stored and sum(one != other for one, other in zip(stored, DATA, strict=True)) == 1
    client.put_object(**where, Body=DATA)

    faulty.s3.add("short", method="GET")
    answer = client.get_object(**where, Range="bytes=100-299")
    assert answer["ContentRange"] == f"bytes 100-199/{len(DATA)}" and answer["ContentLength"] == 100
    assert answer["Body"].read() == DATA[100:200]

    rule = faulty.s3.add("flip", method="GET", at=1003)
    assert client.get_object(**where, Range="bytes=0-999")["Body"].read() == DATA[:1000] and rule.met == 0
    part = client.get_object(**where, Range="bytes=1000-1009")["Body"].read()
    assert part == DATA[1000:1003] + bytes([DATA[1003] ^ 1]) + DATA[1004:1010] and rule.met == 1
    assert client.get_object(**where)["Body"].read() == DATA


def test_delay_chance_and_order(faulty: FaultyBucket, client: Any) -> None:
    slow = faulty.s3.add("delay", method="LIST", seconds=0.2)
    refused = faulty.s3.add("503", method="LIST")
    began = time.monotonic()
    with pytest.raises(ClientError, match="SlowDown"):
        client.list_objects_v2(Bucket=faulty.name)
    assert time.monotonic() - began >= 0.2 and slow.met == refused.met == 1
    rule = faulty.s3.add("503", method="HEAD", times=None, chance=0.5)

    def ask(_: int) -> bool:
        try:
            client.head_bucket(Bucket=faulty.name)
        except ClientError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        answered = list(pool.map(ask, range(100)))
    assert answered.count(False) == rule.met and 20 < rule.met < 80
    faulty.s3.clear()
    assert all(map(ask, range(10)))


def test_of_many_writers_one_wins(faulty: FaultyBucket, client: Any) -> None:
    def write(number: int) -> bool:
        try:
            client.put_object(Bucket=faulty.name, Key="x", Body=str(number).encode(), IfNoneMatch="*")
        except ClientError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(32)))
    assert won.count(True) == 1 and there(faulty, "x") == str(won.index(True)).encode()
