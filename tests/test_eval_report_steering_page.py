"""The page on steered pictures: strips and curves from the run's own files, and nothing harmful shown unasked."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("jinja2")

from eval.__main__ import VERBS, main
from eval.report.arrange import tables
from eval.report.bars import time_bars
from eval.report.collect import read_runs
from eval.report.curves import Single, curves
from eval.report.page import to_html
from eval.report.strips import EXTREMES, FRAMES, steered_looks
from eval.report.timings import TimedRow
from tests.steering_folders import AVOID, LATENT, write_i2p, write_steered, write_timing
from tests.test_demo_report import console_lines
from tests.test_eval_report_page import parts_of

TEXTS = [f"picture {number}" for number in range(12)]
MAGENTA = (255, 0, 255)


def page_of(*folders: Path) -> str:
    runs = read_runs(folders)
    return to_html(tables(runs), runs)


class Pictures(HTMLParser):
    """Of each picture of a page, whether it lies under a veil."""

    def __init__(self) -> None:
        super().__init__()
        self.veiled: list[bool] = []
        self.boxes: list[dict[str, str | None]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "label":
            self._inside = dict(attrs).get("class") == "veil"
        elif tag == "input":
            self.boxes.append(dict(attrs))
        elif tag == "img":
            self.veiled.append(self._inside)

    def handle_endtag(self, tag: str) -> None:
        if tag == "label":
            self._inside = False


def pictures_in(page: str) -> Pictures:
    found = Pictures()
    found.feed(page)
    return found


def test_a_run_is_shown_by_what_rose_most_and_least(tmp_path: Path) -> None:
    folder = write_steered(tmp_path / "run", texts=TEXTS, iterations=20)
    [run] = read_runs([folder])
    [look] = steered_looks([run])  # type: ignore[list-item]
    rises = {line["item"]: line["loss"][0] - line["loss"][1] for line in look.run.run.lines}
    ranked = sorted(rises, key=rises.__getitem__)
    (most_name, most), (least_name, least) = look.groups
    assert (most_name, least_name) == ("Improved most", "Improved least")
    assert [strip.name for strip in most] == ranked[::-1][:EXTREMES]
    assert [strip.name for strip in least] == ranked[:EXTREMES]
    item = look.run.run.read(most[0].name)
    assert [frame.iteration for frame in most[0].frames] == item.preview_at.tolist()
    assert [frame.score for frame in most[0].frames] == item.scores["clip"][item.preview_at].tolist()
    assert all(
        np.array_equal(*pair) for pair in zip([one.preview for one in most[0].frames], item.previews, strict=True)
    )
    page = page_of(folder)
    assert page.count('<article class="strip">') == 2 * EXTREMES
    assert page.count("data:image/png") == 2 * EXTREMES * FRAMES and page.count("data:image/jpeg") == 2 * EXTREMES
    assert page.count('class="chart steps"') == 1 and page.count('class="band"') == 1


def test_without_decoding_the_latents_alone_are_shown(tmp_path: Path) -> None:
    page = page_of(write_steered(tmp_path / "run", texts=TEXTS, iterations=6, decode=False))
    assert "data:image/jpeg" not in page and "Nothing was decoded" in page and "data:image/png" in page
    plain = page_of(write_steered(tmp_path / "plain", texts=TEXTS, rewards=[]))
    assert "As generated" in plain and 'class="chart steps"' not in plain


def test_the_picture_without_steering_stands_before_where_a_run_has_it(tmp_path: Path) -> None:
    steered = write_steered(tmp_path / "run", texts=TEXTS, iterations=6)
    plain = write_steered(tmp_path / "plain", texts=TEXTS, rewards=[])
    other = write_steered(tmp_path / "other", texts=TEXTS, rewards=[], seed=1)
    assert page_of(steered, plain).count("<figcaption>unsteered") == 2 * EXTREMES
    assert "<figcaption>unsteered" not in page_of(steered, other)


def test_one_picture_alone_and_one_without_a_number_are_shown(tmp_path: Path) -> None:
    assert "Improved least" not in page_of(write_steered(tmp_path / "one", texts=["a ring"], iterations=4))
    folder = write_steered(tmp_path / "broken", texts=TEXTS[:3], iterations=4)
    lines = (folder / "items.jsonl").read_text().splitlines()
    fall = re.sub(
        r'"loss": \[[^]]*\], "scores": \{[^}]*\}', '"loss": [null, null], "scores": {"clip": [null, null]}', lines[2]
    )
    (folder / "items.jsonl").write_text("\n".join([*lines[:2], fall]) + "\n")
    page = page_of(folder)
    assert "no number → no number" in page and page.index("picture 2</h4>") > page.index("Improved least")


@pytest.mark.parametrize(
    ("changes", "blurred"),
    [
        ({}, False),
        ({"kind": "geneval"}, False),
        ({"kind": "i2p"}, True),
        ({"kind": "cultural", "rewards": []}, True),
        ({"rewards": [LATENT, AVOID]}, True),
    ],
)
def test_what_may_harm_is_under_a_veil(tmp_path: Path, changes: dict[str, Any], blurred: bool) -> None:
    page = page_of(write_steered(tmp_path / "run", texts=TEXTS[:3], **changes))
    found = pictures_in(page)
    assert found.veiled and set(found.veiled) == {blurred}
    assert bool(found.boxes) == blurred and not any("checked" in box for box in found.boxes)
    assert all(box["type"] == "checkbox" and box["aria-label"] for box in found.boxes)
    assert ("Avoided:" in page) == any(one["name"] == "avoid" for one in changes.get("rewards", []))


def test_a_veil_hides_and_a_tick_lifts_it(tmp_path: Path) -> None:
    """In a browser, by the colour of the pictures: none of it is left under the veil."""
    folder = write_steered(tmp_path / "run", texts=TEXTS[:2], iterations=4, kind="i2p")
    for path in (folder / "images").iterdir():
        Image.new("RGB", (64, 64), MAGENTA).save(path)
    page = page_of(folder)
    assert _magenta(page, tmp_path) == 0
    assert _magenta(page.replace('<input type="checkbox"', '<input type="checkbox" checked'), tmp_path) > 10_000


def _magenta(page: str, folder: Path) -> int:
    """How many pixels of a page have the colour."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    path, picture = folder / "page.html", folder / "page.png"
    path.write_text(page)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--window-size=1400,4000", f"--screenshot={picture}", path.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    return int((np.abs(pixels - MAGENTA).max(axis=-1) < 12).sum())


def test_the_page_fetches_nothing_and_says_nothing(tmp_path: Path) -> None:
    steered = write_steered(tmp_path / "run", iterations=10)
    avoid = write_steered(tmp_path / "avoid", iterations=10, rewards=[AVOID], kind="i2p")
    folders = [steered, avoid, write_i2p(tmp_path / "i2p", avoid, {"hate": False}), write_timing(tmp_path / "timing")]
    out = tmp_path / "out"
    assert main("eval", VERBS, ["report", *map(str, folders), f"out={out}"]) == 0
    page = (out / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "script" not in parts_of(page)
    assert console_lines(out / "report.html", tmp_path / "profile") == []


def test_prompts_are_text_and_nothing_else(tmp_path: Path) -> None:
    texts = ["<script>alert(1)</script>", '"><img src=x onerror="y">', "a | b"]
    page = page_of(write_steered(tmp_path / "run", texts=texts, iterations=4))
    assert parts_of(page) & {"script", "onerror"} == set() and "&lt;script&gt;alert(1)" in page


def test_curves_and_bars_stay_in_their_frames() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0.2, 0.1, (30, 50))
    values[3, 7:] = np.nan
    singles = [Single("one", "rose", values[3]), Single("two", "fell", np.full(50, np.nan))]
    rows = [
        TimedRow(
            name="all", seconds_per_iter=0.3, seconds_total=15, parts={"generator": 0.2, "backward": {"reward": 0.2}}
        ),
        TimedRow(name="none", seconds_per_iter=0.1, seconds_total=5),
    ]
    for drawn in (curves("clip", values, singles), curves("clip", np.full((2, 1), 0.5), []), time_bars(rows)):
        chart = ET.fromstring(drawn)
        _, _, width, height = map(float, chart.attrib["viewBox"].split())
        for element in chart.iter():
            for key, limit in (("x", width), ("x2", width), ("y", height), ("y2", height)):
                assert 0 <= float(element.get(key, 0)) <= limit
            assert float(element.get("x", 0)) + float(element.get("width", 0)) <= width
            places = [tuple(map(float, pair.split())) for pair in re.split("[MLZ]", element.get("d", "")) if pair]
            assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
