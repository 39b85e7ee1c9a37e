"""A cloud's metadata server on loopback, AWS's or Google's, with notices and troubles at a test's word."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, urlsplit

Trouble = Literal["500", "page", "garbage", "hang", "hang up"]
TROUBLES: list[Trouble] = ["500", "page", "garbage", "hang", "hang up"]
TOKEN, TOKEN_TTL = "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"
AWS, GOOGLE = "/latest/meta-data/", "/computeMetadata/v1/instance/"


@dataclass
class MetadataServer:
    """What the server says. Both clouds' answers follow their documentation; a test changes what is to be said."""

    kind: Literal["aws", "gcp", "neither"]
    said: dict[str, str] = field(default_factory=dict)
    """By key, as below `/latest/meta-data/` or `/computeMetadata/v1/instance/`."""
    trouble: Trouble | None = None
    clock: float = 0.0
    """Seconds by which its clock, and the times that it names, are ahead of this machine's."""
    dated: bool = True
    token_seconds: int = 21600
    asked: Counter[str] = field(default_factory=Counter)
    url: str = ""
    tokens: list[str] = field(default_factory=list)
    """Those that were given out; the last one is accepted."""
    changed: threading.Condition = field(default_factory=threading.Condition)
    _version: int = 1
    _over: threading.Event = field(default_factory=threading.Event)

    def say(self, key: str, value: str) -> None:
        """From now on it says this; who waits for a change is told."""
        with self.changed:
            self.said[key] = value
            self._version += 1
            self.changed.notify_all()

    def interrupt(self, seconds: float, action: str = "terminate") -> None:
        """AWS's notice."""
        ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self.clock + seconds))
        self.say("spot/instance-action", json.dumps({"action": action, "time": ends}))

    def forget_tokens(self) -> None:
        """As after a restart of the service."""
        self.tokens.append("nobody's")

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        address = urlsplit(request.path)
        self.asked[f"{request.command} {address.path}"] += 1
        if self.trouble == "hang":
            self._over.wait()
        if self.trouble in ("hang", "hang up"):
            request.close_connection = True
        elif self.trouble == "garbage":
            request.wfile.write(b"\x00\xff this is no HTTP\r\n\r\n")
            request.close_connection = True
        elif self.trouble == "500":
            self._reply(request, 500, "")
        elif self.trouble == "page":  # of a proxy that wants a login: with status 200
            self._reply(request, 200, "<html><body>terminate, TRUE: please log in</body></html>")
        elif self.kind == "aws":
            self._as_aws(request, address.path)
        elif self.kind == "gcp":
            self._as_google(request, address.path, parse_qs(address.query))
        else:
            self._reply(request, 404, "")

    def _as_aws(self, request: BaseHTTPRequestHandler, path: str) -> None:
        if path == "/latest/api/token":
            if request.command != "PUT" or not request.headers[TOKEN_TTL]:
                self._reply(request, 405, "")
                return
            self.tokens.append(f"token-{len(self.tokens)}")
            self._reply(request, 200, self.tokens[-1], **{TOKEN_TTL: str(self.token_seconds)})
        elif not self.tokens or request.headers[TOKEN] != self.tokens[-1]:
            self._reply(request, 401, "")
        elif path.startswith(AWS) and path.removeprefix(AWS) in self.said:
            self._reply(request, 200, self.said[path.removeprefix(AWS)])
        else:
            self._reply(request, 404, "")

    def _as_google(self, request: BaseHTTPRequestHandler, path: str, keys: dict[str, list[str]]) -> None:
        if request.headers["Metadata-Flavor"] != "Google":
            self._reply(request, 403, "")
            return
        with self.changed:
            if keys.get("wait_for_change") == ["true"] and keys.get("last_etag") == [str(self._version)]:
                self.changed.wait(float(keys["timeout_sec"][0]))
            value, version = self.said.get(path.removeprefix(GOOGLE)), self._version
        status = 404 if value is None else 200
        self._reply(request, status, value or "", ETag=str(version), **{"Metadata-Flavor": "Google"})

    def _reply(self, request: BaseHTTPRequestHandler, status: int, text: str, **headers: str) -> None:
        body = text.encode()
        request.send_response_only(status)
        if self.dated:
            request.send_header("Date", formatdate(time.time() + self.clock, usegmt=True))
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)


@contextmanager
def metadata_server(kind: Literal["aws", "gcp", "neither"]) -> Iterator[MetadataServer]:
    """A server that is up for as long as it is needed, and has nothing to tell as yet."""
    quiet = {"preempted": "FALSE", "maintenance-event": "NONE"} if kind == "gcp" else {}
    metadata = MetadataServer(kind, quiet)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(ConnectionError):  # who asked has not waited, or was stopped
                metadata.answer(self)

        do_PUT = do_GET

        def log_message(self, format: str, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    metadata.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield metadata
    finally:
        metadata._over.set()
        server.shutdown()
        thread.join()
        server.server_close()
