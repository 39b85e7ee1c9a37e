"""The report's page: pictures from the data, nothing but text in names, and a browser that has nothing to say."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("jinja2")

from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.store import Version
from eval.__main__ import VERBS, main
from eval.report.arrange import tables
from eval.report.collect import read_runs
from eval.report.markdown import to_markdown
from eval.report.page import to_html
from tests.conftest import Configure, encode_and_seal
from tests.evaluations import (
    B32,
    LATENT,
    PICTURES,
    TINY,
    Picture,
    imagenet_evaluations,
    pictures_of,
    write_evaluation,
)
from tests.test_demo_report import console_lines


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return imagenet_evaluations(tmp_path_factory.mktemp("imagenet"))


def held_out(version: Version, scratch: Path) -> list[Picture]:
    cache = ShardCache(version, scratch)
    pictures: list[Picture] = []
    for row in version.manifest().to_pylist():
        if row["view"] == 0:
            with cache.open(row) as shard:
                names = [shard.metadata(index)["metadata"]["class_name"] for index in range(len(shard))]
                pictures += [(row["shard"], key, name) for key, name in zip(shard.keys, names, strict=True)]
    return pictures


def test_classes_are_shown_with_what_their_latents_decode_to(configure: Configure, world: Path, tmp_path: Path) -> None:
    version = encode_and_seal(configure(source=str(world / "test"), views=1))
    pictures = held_out(version, tmp_path / "cache")
    names = sorted({label for _, _, label in pictures})
    store = tmp_path / "store"
    changes = {"dataset": str(store), "data": {"fingerprint": version.fingerprint}, "not_comparable": TINY}
    folder = write_evaluation(tmp_path / "run", names, pictures, **changes)
    runs = read_runs([folder])
    page = to_html(tables(runs), runs)
    assert page.count("data:image/jpeg") == page.count("data:image/png") == 10  # five worst and five best
    assert "what the latent decodes to" in page and "confusion of 48 classes" in page
    assert console_lines(_written(page, tmp_path), tmp_path / "profile") == []
    shutil.rmtree(store)
    page = to_html(tables(runs), runs)
    assert "data:image/jpeg" not in page and "No pictures are shown, because the data cannot be read now" in page


def test_classes_are_shown_with_pictures_of_a_folder(tmp_path: Path) -> None:
    from eval.pictures import open_pictures

    for number, name in enumerate(("ring", "star")):
        for count in range(3):
            path = tmp_path / "pictures" / name / f"{count}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((300, 400, 3), 60 + 90 * number + count, np.uint8)).save(path)
    found = open_pictures(str(tmp_path / "pictures"))
    pictures = [
        (part.name, item.key, found.names[item.label or 0]) for part in found.parts for item in found.read(part)
    ]
    changes: dict[str, Any] = {"dataset": found.address, "way": "pixels", **B32}
    folder = write_evaluation(tmp_path / "run", found.names, pictures, data=PICTURES, accuracy=0.5, **changes)
    runs = read_runs([folder])
    assert to_html(tables(runs), runs).count("data:image/jpeg") == 2


def test_the_page_of_imagenet_is_light_and_speaks_to_no_console(imagenet: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main("eval", VERBS, ["report", *map(str, imagenet), f"out={out}"]) == 0
    page = (out / "report.html").read_text()
    assert len(page) < 3_000_000 and {file.name for file in out.iterdir()} == {
        f"report.{kind}" for kind in ("html", "md", "csv", "tex")
    }
    assert "1,000 classes with 50 pictures each" in page and "Most confused" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert console_lines(out / "report.html", tmp_path / "profile") == []


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", 'x" onload="y', "plain", "ring"]
    changes: dict[str, Any] = {"model": "<b>|bold_model|</b>", "dataset": "<i>data</i>", "provenance": LATENT}
    runs = read_runs([write_evaluation(tmp_path / "run", names, pictures_of(names, 3), accuracy=0.4, **changes)])
    found = tables(runs)
    page = to_html(found, runs)
    assert parts_of(page) & {"script", "onload", "i"} == set() and "&lt;b&gt;|bold_model|" in page
    assert r"\<b\>\|bold\_model\|\</b\>" in to_markdown(found, runs)
    assert console_lines(_written(page, tmp_path), tmp_path / "profile") == []


def parts_of(page: str) -> set[str]:
    """The names of all elements and attributes of a page."""
    found: set[str] = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.update((tag, *(name for name, _ in attrs)))

    Reader().feed(page)
    return found


def _written(page: str, folder: Path) -> Path:
    path = folder / "page.html"
    path.write_text(page)
    return path
