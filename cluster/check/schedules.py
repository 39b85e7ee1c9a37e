"""When things run: cron strings as Kubernetes and as a machine's cron read them, and systemd's timers."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterator

from cluster.check.commands import LAUNCHED_HOME, Project, command_faults
from cluster.check.documents import Finding, filled_in, nearest

MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(MONTHS, 1)}),
    ("day of the week", 0, 6, {name: number for number, name in enumerate(DAYS)}),
)
LAUNCHED = Project((LAUNCHED_HOME,))
NICKNAMES = {"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"}
LONGEST = dict(enumerate((31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31), 1))


def cron_fault(text: str, kubernetes: bool) -> str | None:
    """Why a cron string would be refused, or never come true; None where it is fine."""
    if kubernetes and re.match(r"(CRON_)?TZ=", text):
        return "Kubernetes refuses a time zone here; say it in timeZone"
    if text.startswith("@"):
        if kubernetes and re.fullmatch(r"@every (\d+(\.\d+)?(ns|us|ms|s|m|h))+", text):
            return None
        known = NICKNAMES if kubernetes else NICKNAMES | {"@reboot"}
        return None if text in known else f"no such schedule: {text!r}{nearest(text, known)}"
    words = text.split()
    if len(words) != 5:
        return f"{text!r} has {len(words)} fields; cron takes five: minute hour day month weekday"
    found: list[set[int]] = []
    for word, (name, low, high, names) in zip(words, FIELDS, strict=True):
        top = 7 if name == "day of the week" and not kubernetes else high
        numbers: set[int] = set()
        for part in word.split(","):
            answer = _numbers(part, name, low, top, names, kubernetes)
            if isinstance(answer, str):
                return answer
            numbers |= answer
        found.append(numbers)
    days, months, weekdays = found[2], found[3], words[4]
    if weekdays in ("*", "?") and min(days) > max(LONGEST[month] for month in months):
        return f"{text!r} never comes: there is no such day in such a month"
    return None


def _numbers(part: str, name: str, low: int, high: int, names: dict[str, int], kubernetes: bool) -> set[int] | str:
    """The numbers that one part of a field stands for, or what is wrong with it."""
    span, slash, step_text = part.partition("/")
    if slash and not re.fullmatch(r"[1-9]\d*", step_text):
        return f"{part!r} is no step of the {name}"
    step = int(step_text) if slash else 1
    if step > high - low + 1:
        return f"{part!r}: a step of {step} is longer than the {name}'s {low} to {high}"
    if span == "*" or (span == "?" and kubernetes):
        return set(range(low, high + 1, step))
    first, dash, last = span.partition("-")
    ends = []
    for text in (first, last) if dash else (first,):
        number = names.get(text.lower(), int(text) if re.fullmatch(r"\d+", text) else None)
        if number is None:
            return f"{text!r} is no {name}" + (nearest(text.lower(), names) if text.isalpha() else "")
        if not low <= number <= high:
            return f"{number} is no {name}: {low} to {high}"
        ends.append(number)
    start, end = ends[0], ends[-1] if dash else (high if slash else ends[0])
    return f"{part!r} ends before it begins" if end < start else set(range(start, end + 1, step))


def zone_fault(name: str) -> str | None:
    """Why a time zone is none."""
    known = zoneinfo.available_timezones()
    return None if not known or name in known else f"no such time zone: {name!r}{nearest(name, known)}"


def crontab_findings(path: str, text: str) -> Iterator[Finding]:
    """What is wrong with the lines of a crontab."""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#") or re.match(r"\w+\s*=", line) or not filled_in(line.split()[0]):
            continue
        count = 1 if line.startswith("@") else 5
        words = line.split(None, count)
        if len(words) <= count:
            yield Finding(path, number, "", f"{count} words and then a command are wanted, found {line!r}")
        elif fault := cron_fault(" ".join(words[:count]), kubernetes=False):
            yield Finding(path, number, "", fault)
        else:
            yield from (Finding(path, number, "", fault) for fault in command_faults(words[count], LAUNCHED))


def service_findings(path: str, text: str) -> Iterator[Finding]:
    """What is wrong with what a systemd unit starts."""
    for number, line in enumerate(text.splitlines(), 1):
        key, equals, command = line.strip().partition("=")
        if equals and key.startswith("Exec"):
            for fault in command_faults(command.lstrip("@-:+!"), LAUNCHED):
                yield Finding(path, number, f"Service.{key}", fault)


# fmt: off
TIMER_KEYS = (
    "OnActiveSec", "OnBootSec", "OnStartupSec", "OnUnitActiveSec", "OnUnitInactiveSec", "OnCalendar", "AccuracySec",
    "RandomizedDelaySec", "FixedRandomDelay", "RandomizedOffsetSec", "DeferReactivation", "OnClockChange",
    "OnTimezoneChange", "Unit", "Persistent", "WakeSystem", "RemainAfterElapse",
)
# fmt: on
WORDS = {"minutely", "hourly", "daily", "weekly", "monthly", "yearly", "annually", "quarterly", "semiannually"}
_NUMBERS = r"(\*|\d+(\.\.\d+)?)(/\d+)?(,(\*|\d+(\.\.\d+)?)(/\d+)?)*"
_DAY = rf"({'|'.join(DAYS)}|sunday|monday|tuesday|wednesday|thursday|friday|saturday)"
CALENDAR = re.compile(
    rf"(?P<days>{_DAY}((\.\.|-|,){_DAY})*,?\s*)?"
    rf"(?P<date>({_NUMBERS}-)?{_NUMBERS}[-~]{_NUMBERS}\s*)?"
    rf"(?P<time>{_NUMBERS}:{_NUMBERS}(:{_NUMBERS})?)?",
    re.IGNORECASE,
)
TOPS = {
    "date": (r"[-~]", {"day": 31, "month": 12}),
    "time": (":", {"hour": 23, "minute": 59, "second": 59}),
}


def calendar_fault(text: str) -> str | None:
    """Why systemd would not take an OnCalendar; None where it would."""
    words = text.split()
    if len(words) > 1 and words[-1].lower() not in DAYS and re.fullmatch(r"[A-Z][\w+-]+(/[\w+-]+)*", words[-1]):
        if fault := zone_fault(words[-1]):
            return fault
        text = text[: -len(words[-1])].strip()
    if text.lower() in WORDS:
        return None
    match = CALENDAR.fullmatch(text)
    if not text or match is None or not any(match.group(name) for name in ("days", "date", "time")):
        return f"{text!r} is not `WEEKDAY YEAR-MONTH-DAY HOUR:MINUTE:SECOND` nor one of {', '.join(sorted(WORDS))}"
    for group, (separator, tops) in TOPS.items():
        parts = re.split(separator, (match.group(group) or "").strip())
        for (unit, top), part in zip(tops.items(), parts if group == "time" else reversed(parts), strict=False):
            over = [number for number in re.findall(r"(?<![/\d])\d+", part) if int(number) > top]
            if over:
                return f"{over[0]} is no {unit}; the last is {top}"
    return None


def timer_findings(path: str, text: str) -> Iterator[Finding]:
    """What is wrong with the [Timer] of a systemd unit."""
    section, seen = "", set()
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif section == "Timer" and "=" in line and line[0] not in "#;":
            key, _, value = (part.strip() for part in line.partition("="))
            seen.add(key)
            if key not in TIMER_KEYS:
                yield Finding(path, number, f"Timer.{key}", f"unknown key{nearest(key, TIMER_KEYS)}")
            elif key == "OnCalendar" and filled_in(value) and (fault := calendar_fault(value)):
                yield Finding(path, number, "Timer.OnCalendar", fault)
    if not {key for key in seen if key.startswith("On")}:
        yield Finding(path, 1, "Timer", "says no time: OnCalendar is missing")
