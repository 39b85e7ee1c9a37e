"""An S3 server on loopback that fails by rule: a proxy before moto, which keeps what was really stored.

with FaultyS3() as s3:                          # processes reach it by AWS_ENDPOINT_URL=s3.url
    rule = s3.add("503", method="PUT", key="*/commits/*", times=2)
    …
    assert rule.met == 2
"""

from __future__ import annotations

import http.client
import logging
import random
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.conftest import Bucket
from tests.faults import ERRORS, Answer, Do, Fault, Request, error_answer, flipped, is_checksum, request_of, spoilt

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "date", "server"}
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


class FaultyS3:
    """The server and its rules, which may be changed at any time, from any thread."""

    def __init__(self, seed: int = 0) -> None:
        self.asked: dict[str, int] = {}
        """Requests so far, by method."""
        self._faults: list[Fault] = []
        self._chance = random.Random(seed)
        self._lock, self._one_writer = threading.Lock(), threading.Lock()
        self._stopping = threading.Event()
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._proxy = _Proxy(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.url = f"http://127.0.0.1:{self._proxy.server_port}"

    def __enter__(self) -> FaultyS3:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # or it writes a line for every request
        self._moto.start()
        self._thread.start()
        host, port = self._moto.get_host_and_port()
        self.direct_url = f"http://{host}:{port}"
        """The server behind the faults, for a test to look at what is really there."""
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._proxy.shutdown()
        self._thread.join()
        self._proxy.server_close()
        self._moto.stop()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to know to reach it."""
        return {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.url}

    def make_bucket(self) -> Bucket:
        """An empty bucket, with a client that no fault reaches."""
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=self.direct_url, **keys)
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        client.create_bucket(Bucket=name)
        return Bucket(f"s3://{name}", client, name)

    def add(self, do: Do, **rule: Any) -> Fault:
        """A new rule, behind those there are. Of those that fit a request, the first that is no delay is applied."""
        fault = Fault(do, **rule)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """No more faults from now on."""
        with self._lock:
            self._faults.clear()

    def answer(self, request: Request, path: str, method: str, body: bytes) -> Answer | None:
        """What to send back; None is to close the connection."""
        fault = self._met_by(request)
        do = fault.do if fault else None
        if do == "reset":
            return None
        if do in ERRORS:
            return error_answer(do, request)
        headers = dict(request.headers)
        if fault and do == "flip-up":
            body = flipped(body, int(fault.where * len(body)))
            headers = {name: value for name, value in headers.items() if not is_checksum(name)}
        if do == "overwrite":
            headers = {name: value for name, value in headers.items() if name != "if-none-match"}
        answer = self._forward(method, path, headers, body, request.is_conditional)
        if do == "lose-reply":
            return None
        return spoilt(answer, fault, request) if fault and answer.status < 300 and answer.body else answer

    def _met_by(self, request: Request) -> Fault | None:
        delay, met = 0.0, None
        with self._lock:
            self.asked[request.method] = self.asked.get(request.method, 0) + 1
            for fault in self._faults:
                if (fault.times is not None and fault.met >= fault.times) or not request.may_meet(fault):
                    continue
                if fault.chance < 1 and self._chance.random() >= fault.chance:
                    continue
                fault.met += 1
                if fault.do == "delay":
                    delay += fault.seconds
                    continue
                met = replace(fault, where=self._chance.random())
                break
        if delay:
            self._stopping.wait(delay)
        return met

    def _forward(self, method: str, path: str, headers: Mapping[str, str], body: bytes, conditional: bool) -> Answer:
        upstream = http.client.HTTPConnection(self.direct_url.removeprefix("http://"))
        # moto looks whether an object is there and then writes it: two steps that only here become one.
        with self._one_writer if conditional else nullcontext():
            upstream.request(method, path, body, {**headers, "Content-Length": str(len(body))})
            response = upstream.getresponse()
            content = response.read()
        upstream.close()
        length = int(response.headers.get("Content-Length") or 0) if method == "HEAD" else len(content)
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP]
        return Answer(response.status, kept, content, length)


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def _handler(server: FaultyS3) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def handle_expect_100(self) -> bool:
            super().handle_expect_100()
            self.wfile.flush()
            return True

        def pass_on(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            assert "transfer-encoding" not in headers, "no S3 client sends a body without its length"
            body = self.rfile.read(int(headers.get("content-length", 0)))
            headers = {name: value for name, value in headers.items() if name not in HOP_BY_HOP}
            try:
                answer = server.answer(request_of(self.command, self.path, headers), self.path, self.command, body)
            except ConnectionError:  # the server behind has been stopped
                answer = None
            if answer is None:
                self.close_connection = True
                return
            self.send_response_only(answer.status)
            for name, value in [*answer.headers, ("Content-Length", str(answer.length))]:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)
                self.close_connection |= len(answer.body) < answer.length
            self.wfile.flush()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on

        def handle(self) -> None:
            with suppress(ConnectionError, socket.timeout):  # a client that was killed
                super().handle()

        def log_message(self, format: str, *words: object) -> None:
            pass

    return Handler


@dataclass(frozen=True)
class FaultyBucket(Bucket):
    """An empty bucket behind the faults. Its client goes round them, to look at what is really there."""

    s3: FaultyS3


@pytest.fixture(scope="session")
def faulty_server() -> Iterator[FaultyS3]:
    with FaultyS3() as s3:
        yield s3


@pytest.fixture
def faulty(faulty_server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyBucket]:
    """A bucket on a server without faults as yet; `s3://` addresses reach it through the environment."""
    import s3fs

    for name, value in faulty_server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = faulty_server.make_bucket()
    yield FaultyBucket(bucket.url, bucket.client, bucket.name, faulty_server)
    faulty_server.clear()
    s3fs.S3FileSystem.clear_instance_cache()
