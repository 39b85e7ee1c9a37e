"""Where the time of an iteration goes, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from encode_pipeline.preview import svg
from eval.report.timings import PARTS, TimedRow

WIDTH, LEFT, RIGHT, ROW, BAR = 760, 4, 74, 46, 17


def time_bars(rows: Sequence[TimedRow]) -> Markup:
    """A bar for each way to steer, in the parts that were measured; what they leave over is plain."""
    longest = svg.nice_ticks(max(row.seconds_per_iter for row in rows))
    height = ROW * len(rows) + 22

    def across(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / longest[-1]

    chart = svg.frame(WIDTH, height, "chart times", "seconds of an iteration, part by part")
    for tick in longest:
        svg.add(chart, "line", "grid", x1=across(tick), x2=across(tick), y1=0, y2=height - 20)
        svg.text(chart, across(tick), height - 5, f"{tick:.6g} s", "tick" if tick == 0 else "tick middle")
    for number, row in enumerate(rows):
        top = ROW * number
        svg.text(chart, LEFT, top + 14, row.name, "name")
        whole = svg.add(
            chart, "rect", "empty", x=LEFT, y=top + 20, width=across(row.seconds_per_iter) - LEFT, height=BAR
        )
        svg.title(whole, f"{row.name}: {row.seconds_per_iter:.4g} s an iteration")
        start = 0.0
        for place, (part, (group, name)) in enumerate(PARTS.items()):
            seconds = row.seconds_of(part) or 0.0
            if seconds <= 0:
                continue
            begin, end = across(start), across(min(start + seconds, longest[-1]))
            bar = svg.add(chart, "rect", f"part-{place} flat", x=begin, y=top + 20, width=end - begin, height=BAR)
            share = seconds / row.seconds_per_iter
            svg.title(bar, f"{row.name}, {group.lower()} {name}: {seconds:.4g} s, {share:.0%}")
            start += seconds
        svg.text(chart, across(row.seconds_per_iter) + 6, top + 20 + 13, f"{row.seconds_per_iter:.3g} s", "count")
    return svg.markup(chart)
