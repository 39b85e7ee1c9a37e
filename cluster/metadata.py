"""What the metadata servers of AWS and Google say about the end of this machine. The standard library is enough."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException
from typing import Protocol
from urllib.parse import urlsplit

EVERYWHERE = "http://169.254.169.254"
"""Both clouds' server. Google's has a name, too, but that would have to be looked up."""
TIMEOUT = 2.0
"""Seconds that a metadata server gets for an answer; a healthy one takes a few milliseconds."""
LARGEST = 64 * 1024
"""Bytes that are read of an answer; what a metadata server has to say here takes a hundred."""
TWO_MINUTES = 120.0
"""What AWS promises between a notice and the end."""
THIRTY_SECONDS = 30.0
"""What Google promises between `preempted` and the end."""
ONE_MINUTE = 60.0
"""What Google promises before maintenance. Machines with GPUs usually get an hour, but nothing says when that began."""
BELIEVABLE = 600.0
"""Seconds; a time further away from the server's own clock is a mistake."""
TOKEN_SECONDS = 21600
TOKEN, TOKEN_TTL = "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"
FLAVOR = ("Metadata-Flavor", "Google")


class Unclear(Exception):
    """No answer, or none that a metadata server gives. Nothing follows from it."""


@dataclass(frozen=True)
class Notice:
    """That this machine will be taken away."""

    what: str
    ends: float
    """When, by `time.monotonic()`."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    text: str


class Cloud(Protocol):
    name: str

    def look(self) -> Notice | None:
        """The notice, if there is one."""
        ...

    def is_here(self) -> bool:
        """Whether this machine is one of this cloud's."""
        ...


class Aws:
    """Asks by IMDSv2: with a token, which is renewed when its time is nearly over or it is no longer accepted."""

    name = "AWS"

    def __init__(self, url: str | None, say: Callable[[str], None]) -> None:
        self._url, self._say = url or EVERYWHERE, say
        self._token, self._token_ends = "", 0.0
        self._recommended = ""

    def look(self) -> Notice | None:
        answer = self._get("/latest/meta-data/spot/instance-action")
        if answer.status == 404:
            self._hear_recommendation()
            return None
        try:
            facts = json.loads(answer.text) if answer.status == 200 else None
        except ValueError:
            facts = None
        # A page that some proxy puts in between, or an action that does not end the machine, must not drain it.
        if not isinstance(facts, dict) or facts.get("action") not in ("terminate", "stop", "hibernate"):
            raise Unclear(f"instance-action: {answer.status} {_start(answer.text)}")
        seconds = seconds_left(facts.get("time"), answer.headers["Date"])
        return Notice(f"AWS: {facts['action']} at {facts.get('time')}", time.monotonic() + seconds)

    def is_here(self) -> bool:
        with suppress(Unclear):
            return bool(self._fresh_token())
        return False

    def _hear_recommendation(self) -> None:
        """Tells of a rebalance recommendation, and leaves it at that.

        It comes minutes or hours before a notice, and often none follows. Draining would leave a GPU idle that is paid
        for; waiting for the notice costs nothing, as two minutes are enough to hand everything back. What an
        autoscaling group decides (`autoscaling/target-lifecycle-state`) is not asked for: neither Ray's launcher nor
        ours makes one, and where Kubernetes does, its preStop hook is called.
        """
        answer = self._get("/latest/meta-data/events/recommendations/rebalance")
        if answer.status == 200 and "noticeTime" in answer.text and answer.text != self._recommended:
            self._recommended = answer.text
            self._say(f"AWS: rebalance recommendation {_start(answer.text)}; goes on until there is a notice")

    def _get(self, path: str) -> Answer:
        for _ in range(2):
            answer = ask(self._url, "GET", path, {TOKEN: self._fresh_token()})
            if answer.status != 401:
                return answer
            self._token_ends = 0.0
        raise Unclear(f"{path}: 401 with a new token, too")

    def _fresh_token(self) -> str:
        now = time.monotonic()
        if now >= self._token_ends:
            answer = ask(self._url, "PUT", "/latest/api/token", {TOKEN_TTL: str(TOKEN_SECONDS)})
            seconds = answer.headers[TOKEN_TTL] or ""
            if answer.status != 200 or not seconds.isdecimal() or not answer.text.strip().isascii():
                raise Unclear(f"no token: {answer.status}")  # and not its text, which may be one
            self._token, self._token_ends = answer.text.strip(), now + 0.9 * int(seconds)
        return self._token


class Google:
    """Waits at the server for `preempted` to change, which leaves most of the thirty seconds."""

    name = "Google Cloud"

    def __init__(self, url: str | None, every: float) -> None:
        self._url, self._wait = url or EVERYWHERE, max(1, round(every))
        self._etag = "0"  # no value's: the first question is answered at once

    def look(self) -> Notice | None:
        wait = f"?wait_for_change=true&timeout_sec={self._wait}&last_etag={self._etag}"
        answer = self._get("preempted", wait, self._wait)
        if answer.text.strip() not in ("TRUE", "FALSE"):
            raise Unclear(f"preempted: {answer.status} {_start(answer.text)}")
        self._etag = answer.headers["ETag"] or "0"
        if answer.text.strip() == "TRUE":
            return Notice("Google Cloud: preempted", time.monotonic() + THIRTY_SECONDS)
        # What migrates goes on; NONE is the rule. Asking also is what makes the server give notice at all.
        if self._get("maintenance-event").text.strip() == "TERMINATE_ON_HOST_MAINTENANCE":
            return Notice("Google Cloud: host maintenance ends this machine", time.monotonic() + ONE_MINUTE)
        return None

    def is_here(self) -> bool:
        with suppress(Unclear):
            return bool(self._get("preempted"))
        return False

    def _get(self, key: str, query: str = "", wait: float = 0.0) -> Answer:
        path = f"/computeMetadata/v1/instance/{key}{query}"
        answer = ask(self._url, "GET", path, dict([FLAVOR]), wait)
        # The server puts its name on what it says, so that nobody else is taken for it.
        if answer.status != 200 or answer.headers[FLAVOR[0]] != FLAVOR[1]:
            raise Unclear(f"{key}: {answer.status} {_start(answer.text)}")
        return answer


def ask(url: str, method: str, path: str, headers: dict[str, str], wait: float = 0.0) -> Answer:
    """One request, to be answered in `wait` seconds and a bit. No proxy is asked: it would ask its own machine's."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT + wait)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read(LARGEST).decode("utf-8", "replace"))
    except (OSError, HTTPException, ValueError) as error:
        raise Unclear(f"{method} {path.partition('?')[0]}: {error or type(error).__name__}") from None
    finally:
        connection.close()


def seconds_left(ends: object, date: str | None) -> float:
    """From the server's time to that of the end, so that a wrong clock on this machine does no harm."""
    try:
        seconds = (datetime.fromisoformat(str(ends)) - parsedate_to_datetime(str(date))).total_seconds()
    except (TypeError, ValueError):
        return TWO_MINUTES
    return max(0.0, seconds) if abs(seconds) <= BELIEVABLE else TWO_MINUTES


def _start(text: str) -> str:
    """The beginning of an answer, on one line."""
    return " ".join(text.split())[:80] or "(nothing)"
