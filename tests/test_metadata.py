"""What is a notice and what is not, by the words of both clouds' metadata servers and of what may stand in between."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.metadata import Aws, Google, Notice, Unclear, seconds_left
from tests.fleet import Run, settings
from tests.metadata_server import TROUBLES, MetadataServer, Trouble, metadata_server
from tests.traps import wait_for


@pytest.fixture
def aws() -> Iterator[MetadataServer]:
    with metadata_server("aws") as server:
        yield server


@pytest.fixture
def gcp() -> Iterator[MetadataServer]:
    with metadata_server("gcp") as server:
        yield server


def silent(text: str) -> None:
    pass


def check_ends(notice: Notice | None, asked: float, seconds: float, slack: float = 1.0) -> None:
    """That a notice ends so long after it was asked for; a time as text has no parts of a second."""
    assert notice is not None
    assert asked + seconds - slack <= notice.ends <= time.monotonic() + seconds


def test_aws_gives_a_token_once_and_again_when_its_time_is_over_or_it_is_not_accepted(aws: MetadataServer) -> None:
    cloud = Aws(aws.url, silent)
    assert [cloud.look() for _ in range(3)] == [None, None, None]
    assert len(aws.tokens) == 1 and aws.asked["GET /latest/meta-data/spot/instance-action"] == 3
    aws.forget_tokens()
    assert cloud.look() is None
    assert aws.tokens[1:] == ["nobody's", "token-2"]
    short = Aws(aws.url, silent)
    aws.token_seconds = 0
    aws.interrupt(100)
    assert short.look() and short.look()
    assert aws.tokens[3:] == ["token-3", "token-4"]


@pytest.mark.parametrize("ahead", [0.0, 86400.0, -5000.0])
def test_aws_tells_the_time_that_is_left_by_its_own_clock(aws: MetadataServer, ahead: float) -> None:
    aws.clock = ahead
    aws.interrupt(100)
    asked = time.monotonic()
    notice = Aws(aws.url, silent).look()
    check_ends(notice, asked, 100, slack=3.0)
    assert notice and notice.what.startswith("AWS: terminate at 2")


def test_without_a_time_that_can_be_believed_there_are_two_minutes() -> None:
    noon = "Tue, 03 Mar 2026 12:00:00 GMT"
    assert seconds_left("2026-03-03T12:01:30Z", noon) == 90
    assert seconds_left("2026-03-03T11:59:58Z", noon) == 0
    for ends, date in (
        ("2026-03-03T12:01:30Z", None),
        ("2026-03-03T12:01:30Z", "yesterday"),
        ("2026-03-03T12:01:30", noon),
        ("soon", noon),
        (None, noon),
        ("2026-03-04T12:01:30Z", noon),
        ("1970-01-01T00:00:00Z", noon),
    ):
        assert seconds_left(ends, date) == 120


def test_aws_without_a_date_and_with_what_does_not_end_the_machine(aws: MetadataServer) -> None:
    cloud = Aws(aws.url, silent)
    aws.dated = False
    aws.interrupt(10, "stop")
    asked = time.monotonic()
    check_ends(cloud.look(), asked, 120)
    for text in ('{"action": "dance", "time": "2026-03-03T12:01:30Z"}', '"terminate"', "[]", "", "terminate"):
        aws.say("spot/instance-action", text)
        with pytest.raises(Unclear, match="instance-action: 200"):
            cloud.look()


def test_a_rebalance_recommendation_is_told_of_and_drains_nothing(aws: MetadataServer) -> None:
    said: list[str] = []
    cloud = Aws(aws.url, said.append)
    aws.say("events/recommendations/rebalance", '{"noticeTime": "2026-03-03T12:00:00Z"}')
    assert [cloud.look() for _ in range(3)] == [None, None, None]
    assert len(said) == 1 and "2026-03-03T12:00:00Z" in said[0]


def test_google_says_so_while_it_is_waited_for(gcp: MetadataServer) -> None:
    cloud = Google(gcp.url, every=100.0)
    assert cloud.look() is None
    waiting = Run(settings(Path()), lambda _: cloud.look())
    wait_for("the question", lambda: gcp.asked["GET /computeMetadata/v1/instance/preempted"] == 2, waiting)
    gcp.say("preempted", "TRUE")
    notice = waiting.result()
    assert notice.what == "Google Cloud: preempted"
    check_ends(notice, time.monotonic() - 30, 30, slack=0.0)
    assert 0 < notice.ends - time.monotonic() <= 30


def test_google_maintenance_counts_where_it_ends_the_machine(gcp: MetadataServer) -> None:
    cloud = Google(gcp.url, every=1.0)
    gcp.say("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")
    assert cloud.look() is None
    gcp.say("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
    asked = time.monotonic()
    check_ends(cloud.look(), asked, 60)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_no_metadata_server_says_is_no_notice(
    aws: MetadataServer, gcp: MetadataServer, trouble: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    amazon, google = Aws(aws.url, silent), Google(gcp.url, every=1.0)
    strangers = Aws(aws.url, silent), Google(gcp.url, every=1.0)
    assert amazon.look() is None and google.look() is None
    aws.trouble = gcp.trouble = trouble
    monkeypatch.setattr("cluster.metadata.TIMEOUT", 0.2)
    for cloud in (amazon, google, *strangers):
        with pytest.raises(Unclear):
            cloud.look()
    aws.trouble = gcp.trouble = None
    monkeypatch.undo()
    assert amazon.look() is None and google.look() is None


def test_nobody_at_all_is_no_notice() -> None:
    with pytest.raises(Unclear, match="refused"):
        Aws("http://127.0.0.1:9", silent).look()
