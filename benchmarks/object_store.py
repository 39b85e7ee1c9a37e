"""An S3 server on loopback that counts what it is asked. `python -m benchmarks.object_store` is that server.

It is moto's, in Python: its speed is not an object store's, but what a program asks of it is the same.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import parse_qs

import fsspec

from demo.report_machine import ROOT

ASKED = "/what-was-asked"
"""Where the server answers with its counts; no bucket can have that name with no object in it."""
ACCESS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
UPLOADS = (("partNumber", "of a part"), ("uploads", "to begin an upload"), ("uploadId", "to end an upload"))
"""What the steps of an upload in parts are known by."""
PATIENCE = 10.0
"""Seconds that the server is given to end."""
_numbers = count()


@dataclass(frozen=True)
class ObjectStore:
    """A server that is running. `s3://` addresses of this process lead to it."""

    endpoint: str

    def bucket(self) -> str:
        """The address of a new bucket."""
        name = f"bucket-{next(_numbers)}"
        fsspec.filesystem("s3", use_listings_cache=False).mkdir(name)
        return f"s3://{name}"

    def asked(self) -> Counter[str]:
        """Requests since the server began, by kind."""
        with urllib.request.urlopen(f"{self.endpoint}{ASKED}") as answer:
            return Counter(json.load(answer))

    def asked_by(self, work: Callable[[], object]) -> Counter[str]:
        """The requests that some work makes, as the server counts them."""
        before = self.asked()
        work()
        return self.asked() - before


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server of its own process for the time of the block."""
    command = [sys.executable, "-m", "benchmarks.object_store"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        try:
            endpoint = server.stdout.readline().strip()
            if not endpoint:
                raise SystemExit("error: the S3 server did not start; see above")
            with _environment({**ACCESS, "AWS_ENDPOINT_URL": endpoint}):
                yield ObjectStore(endpoint)
        finally:
            server.stdin.close()  # which the server takes for its end; so it does when this process is killed
            try:
                server.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                server.kill()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables, and no filesystem that was made under others."""
    filesystem = fsspec.get_filesystem_class("s3")
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    filesystem.clear_instance_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        filesystem.clear_instance_cache()


def kind_of(environ: Mapping[str, Any]) -> str:
    """What a request asks for, in the words of S3's price list and a little more exactly."""
    method, query = environ["REQUEST_METHOD"], parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
    if method == "GET" and "/" not in environ["PATH_INFO"].strip("/") and "location" not in query:
        return "LIST"
    if method == "PUT" and "HTTP_IF_NONE_MATCH" in environ:
        return "PUT if none is there"
    for word, what in UPLOADS:
        if word in query:
            return f"{method} {what}"
    return f"{method} to delete" if method == "POST" and "delete" in query else str(method)


def serve() -> None:
    """Serves until its input ends."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line a request
    application: Any = DomainDispatcherApplication(create_backend_app)
    asked: Counter[str] = Counter()
    lock = threading.Lock()

    def counting(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == ASKED:
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(asked).encode()]
        with lock:
            asked[kind_of(environ)] += 1
        answer: Iterable[bytes] = application(environ, start_response)
        return answer

    server = make_server("127.0.0.1", 0, counting, threaded=True, request_handler=MotoRequestHandler)
    host, port = server.server_address[:2]
    print(f"http://{host!s}:{port}", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
    server.shutdown()


if __name__ == "__main__":
    serve()
