"""A web server on loopback that answers as servers of the real web do."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Web:
    """What the server gives: a tar under most addresses, and trouble under some.

    /404/… /403/… /401/… /500/…   that status          /busy/…     503 to the first two requests, then the tar
    /moved/…  a redirect to /tars/ /short/…  half of it  /endless/…  does not say how long it is
    /slow/…   a little at a time           /drips/…    half of it, and then a byte now and then
    """

    tar: bytes
    etag: str = '"one"'
    asked: Counter[str] = field(default_factory=Counter)
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        kind = request.path.split("/")[1]
        self.asked[request.command] += 1
        self.asked[kind] += 1
        if kind.isdigit() or (kind == "busy" and self.asked[kind] <= 2):
            request.send_error(int(kind) if kind.isdigit() else 503)
            return
        if kind == "moved":
            request.send_response(302)
            request.send_header("Location", request.path.replace("moved", "tars"))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(200)
        request.send_header("ETag", self.etag)
        if kind != "endless":
            request.send_header("Content-Length", str(len(self.tar)))
        request.end_headers()
        if request.command == "HEAD":
            return
        body = self.tar[: len(self.tar) // 2] if kind in ("short", "drips") else self.tar
        step = 700 if kind == "slow" else len(body)
        for start in range(0, len(body), step):
            request.wfile.write(body[start : start + step])
            request.wfile.flush()
            if kind == "slow":
                time.sleep(0.01)
        for byte in self.tar[len(body) :] if kind == "drips" else b"":
            time.sleep(0.5)
            request.wfile.write(bytes([byte]))
            request.wfile.flush()


@contextmanager
def serving(tar: bytes) -> Iterator[Web]:
    """A server that is up for as long as it is needed."""
    web = Web(tar)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.answer(self)

        def do_HEAD(self) -> None:
            web.answer(self)

        def log_message(self, format: str, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    web.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
