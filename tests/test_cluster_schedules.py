"""Cron strings and systemd's times, as those who run them would take them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from cluster.check.schedules import calendar_fault, cron_fault


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("17 3 * * *", None),
        ("*/15 0-6,22-23 1 JAN,jul mon-fri", None),
        ("@hourly", None),
        ("@every 1h30m", None),
        ("0 3 ? * 1", None),
        ("0 0 29 2 *", None),
        ("0 3 * * 7", "7 is no day of the week: 0 to 6"),
        ("0 0 31 2,4 *", "'0 0 31 2,4 *' never comes: there is no such day in such a month"),
        ("60 * * * *", "60 is no minute: 0 to 59"),
        ("0 5-3 * * *", "'5-3' ends before it begins"),
        ("*/0 * * * *", "'*/0' is no step of the minute"),
        ("*/90 * * * *", "'*/90': a step of 90 is longer than the minute's 0 to 59"),
        ("0 0 * * mn", "'mn' is no day of the week; did you mean 'mon'?"),
        ("0 0 12 * * ?", "'0 0 12 * * ?' has 6 fields; cron takes five: minute hour day month weekday"),
        ("@dayly", "no such schedule: '@dayly'; did you mean '@daily'?"),
        ("TZ=UTC 0 3 * * *", "Kubernetes refuses a time zone here; say it in timeZone"),
        ("", "'' has 0 fields; cron takes five: minute hour day month weekday"),
    ],
)
def test_cron_as_kubernetes_reads_it(text: str, reason: str | None) -> None:
    assert cron_fault(text, kubernetes=True) == reason


def test_cron_of_a_machine_differs() -> None:
    assert cron_fault("0 3 * * 7", kubernetes=False) is None
    assert cron_fault("@reboot", kubernetes=False) is None
    assert cron_fault("@reboot", kubernetes=True)
    assert cron_fault("0 3 ? * *", kubernetes=False) == "'?' is no day of the month"


CALENDARS = [
    *("*-*-* 03:17:00 UTC", "daily", "weekly UTC", "Mon..Fri 10:00", "Mon,Wed *-*-1..7 04:30:15", "*:0/15", "Sat"),
    *("03:17", "*-*-01,15 02:00", "*-*~1 01:00", "Mon 2026-*-* 00:00:00 Europe/Berlin"),
    *("*-*-* 25:00", "2026-13-01", "*-*-32", "every day", "00:00:60", "Foo 12:00", "10", ""),
]


def test_timers_as_systemd_reads_them() -> None:
    refused = {text for text in CALENDARS if calendar_fault(text)}
    assert refused == set(CALENDARS[11:])
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd here to compare with")
    for text in CALENDARS:
        status = subprocess.run(["systemd-analyze", "calendar", text], capture_output=True).returncode
        assert (status != 0) == (text in refused), text
