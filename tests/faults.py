"""What can go wrong with a request to an S3 server, and how it then looks to the client."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

Do = Literal["503", "403", "412", "409", "reset", "delay", "cut", "short", "flip", "flip-up", "overwrite", "lose-reply"]
ERRORS = {
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "403": (403, "AccessDenied", "Access Denied"),
    "412": (412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold"),
    "409": (409, "ConditionalRequestConflict", "A conflicting conditional operation is in progress"),
}


@dataclass
class Fault:
    """What goes wrong with which requests.

    503                    SlowDown, and nothing is done
    403                    AccessDenied, and nothing is done
    412 409                these answers to a conditional write, and nothing is done, whatever is there
    reset                  the connection is closed, and nothing is done
    delay                  `seconds` pass first; other rules may then apply too
    cut                    half the body arrives, and Content-Length says more
    short                  half the body arrives, as a 206 that is right in itself
    flip                   one bit of the body arrives wrong, in byte `at` of the object or else anywhere
    flip-up                one bit of what is written is stored wrong, anywhere
                           (bodies of listings are spared unless the rule says LIST)
    overwrite              a conditional write is done as if it had no condition
    lose-reply             all is done, and the connection closed instead of an answer
    """

    do: Do
    method: str = "*"
    """GET, HEAD, PUT, POST, DELETE, or LIST for a listing, which is no GET here."""
    key: str = "*"
    """A pattern for the object's key, without the bucket; for that of LIST, the prefix; POST adds `?` and the query."""
    times: int | None = 1
    """How often at most; None is for ever."""
    chance: float = 1.0
    at: int | None = None
    seconds: float = 0.0
    met: int = 0
    """How often it has come to pass."""
    where: float = 0.5
    """As a part of the whole, the place of a flipped bit, drawn anew each time."""


@dataclass(frozen=True)
class Request:
    method: str
    key: str
    headers: Mapping[str, str]

    @property
    def is_conditional(self) -> bool:
        return "if-none-match" in self.headers or "if-match" in self.headers

    def may_meet(self, fault: Fault) -> bool:
        if not fnmatchcase(self.method, fault.method) or not fnmatchcase(self.key, fault.key):
            return False
        if fault.do in ("412", "409", "overwrite"):
            return self.is_conditional and self.method in ("PUT", "POST")
        if fault.do in ("cut", "short", "flip"):
            return self.method in ("GET", fault.method) and (fault.at is None or fault.at in self.asked())
        return fault.do != "flip-up" or self.method == "PUT"

    def asked(self) -> range:
        """The bytes of the object that are asked for."""
        match = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("range", "bytes=0-"))
        assert match, self.headers["range"]
        return range(int(match[1]), int(match[2]) + 1 if match[2] else 1 << 62)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    length: int
    """What Content-Length says."""


def request_of(method: str, path: str, headers: Mapping[str, str]) -> Request:
    parts = urlsplit(path)
    _bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    if method == "GET" and not key:
        return Request("LIST", parse_qs(parts.query).get("prefix", [""])[0], headers)
    return Request(method, f"{key}?{parts.query}" if method == "POST" else key, headers)


def error_answer(do: str, request: Request) -> Answer:
    status, code, message = ERRORS[do]
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
    return Answer(status, [("Content-Type", "application/xml")], text, 0 if request.method == "HEAD" else len(text))


def spoilt(answer: Answer, fault: Fault, request: Request) -> Answer:
    """An answer with a fault in its body, and without a checksum that would tell."""
    body, half = answer.body, answer.body[: len(answer.body) // 2]
    headers = [(name, value) for name, value in answer.headers if not is_checksum(name)]
    if fault.do == "cut":
        return Answer(answer.status, headers, half, len(body))
    if fault.do == "flip":
        at = int(fault.where * len(body)) if fault.at is None else fault.at - request.asked().start
        return Answer(answer.status, headers, flipped(body, at), len(body))
    if fault.do != "short":
        return answer
    start = request.asked().start
    said = next((value for name, value in headers if name.lower() == "content-range"), f"/{len(body)}")
    total = said.rpartition("/")[2]
    headers = [(name, value) for name, value in headers if name.lower() != "content-range"]
    headers.append(("Content-Range", f"bytes {start}-{start + len(half) - 1}/{total}"))
    return Answer(206, headers, half, len(half))


def flipped(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :] if at < len(body) else body


def is_checksum(name: str) -> bool:
    return name.lower().startswith(("x-amz-checksum", "x-amz-sdk-checksum", "content-md5"))
