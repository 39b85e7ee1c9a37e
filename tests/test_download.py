"""`make download`: the real img2dataset against a server as the web is, encoded to the last sample."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.store import Store
from encode_pipeline.records import Reason, Sample
from encode_pipeline.run import run
from tests.conftest import Configure, samples_in

ROOT = Path(__file__).parent.parent
PER_TAR = 10
NOT_DOWNLOADED = "not downloaded"
ENCODED = "encoded"


def picture(form: str, size: tuple[int, int] = (400, 300), mode: str = "RGB", **options: Any) -> bytes:
    """Soft colours, so that no two pictures are the same and every format has something to compress."""
    rng = np.random.default_rng(sum(form.encode()) + size[0])
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    return picture("JPEG", (640, 480), exif=exif.tobytes())


def of_sixteen_bits() -> bytes:
    buffer = io.BytesIO()
    ramp = np.linspace(0, 65535, 200 * 200).astype(np.uint16).reshape(200, 200)
    Image.fromarray(ramp).save(buffer, "PNG")
    return buffer.getvalue()


def of_too_many_pixels() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (11_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Answer:
    """What the server says to one address, and what is to become of it."""

    outcome: str
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    silent_for: float = 0.0
    keeps_back: int = 0
    """Bytes that are promised and never sent."""


JPEG = picture("JPEG")
ANSWERS: dict[str, Answer] = {
    "/plain.jpg": Answer(ENCODED, JPEG),
    "/large.jpg": Answer(ENCODED, picture("JPEG", (1500, 1000))),
    "/rotated.jpg": Answer(ENCODED, rotated()),
    "/grey.jpg": Answer(ENCODED, picture("JPEG", mode="L")),
    "/cmyk.jpg": Answer(ENCODED, picture("JPEG", mode="CMYK")),
    "/alpha.png": Answer(ENCODED, picture("PNG", mode="RGBA")),
    "/palette.png": Answer(ENCODED, picture("PNG", mode="P")),
    "/sixteen.png": Answer(ENCODED, of_sixteen_bits()),
    "/modern.webp": Answer(ENCODED, picture("WEBP")),
    "/really-a.jpg": Answer(ENCODED, picture("PNG", (410, 300))),
    "/moved.jpg": Answer(ENCODED, status=302, headers={"Location": "/plain.jpg"}),
    "/moved-for-good.jpg": Answer(ENCODED, status=301, headers={"Location": "/modern.webp"}),
    "/page.jpg": Answer(Reason.UNDECODABLE_IMAGE, b"<!doctype html><title>Buy this domain</title>"),
    "/nothing.jpg": Answer(Reason.UNDECODABLE_IMAGE),
    "/half-a-file.jpg": Answer(Reason.UNDECODABLE_IMAGE, JPEG[: len(JPEG) // 2]),
    "/dot.png": Answer(Reason.TOO_SMALL, picture("PNG", (16, 16))),
    "/poster.png": Answer(Reason.TOO_LARGE, of_too_many_pixels()),
    "/cut-off.jpg": Answer(NOT_DOWNLOADED, JPEG, keeps_back=1000),
    "/gone.jpg": Answer(NOT_DOWNLOADED, status=404),
    "/private.jpg": Answer(NOT_DOWNLOADED, status=403),
    "/broken.jpg": Answer(NOT_DOWNLOADED, status=500),
    "/circle.jpg": Answer(NOT_DOWNLOADED, status=302, headers={"Location": "/circle.jpg"}),
    "/slow.jpg": Answer(NOT_DOWNLOADED, JPEG, silent_for=4),
    "/not-for-training.jpg": Answer(NOT_DOWNLOADED, JPEG, headers={"X-Robots-Tag": "noai"}),
}
UNCAPTIONED = "/modern.webp?without"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        answer = ANSWERS[self.path.partition("?")[0]]
        time.sleep(answer.silent_for)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body[: len(answer.body) - answer.keeps_back])

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    asked: list[str]

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up on a slow answer are part of the world."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as found:
        found.asked = []
        Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


@dataclass(frozen=True)
class Row:
    url: str
    caption: str | None
    outcome: str


@pytest.fixture(scope="module")
def rows(server: Server) -> list[Row]:
    site = f"http://127.0.0.1:{server.server_address[1]}"
    found = [Row(f"{site}{path}", f"a picture at {path}", answer.outcome) for path, answer in ANSWERS.items()]
    found += [Row(f"{site}/plain.jpg?{number}", f"“{number}” — naïve, 図", ENCODED) for number in range(6)]
    found.append(Row(f"{site}{UNCAPTIONED}", None, Reason.MISSING_CAPTION))
    found.append(Row("http://127.0.0.1:9/nobody-listens.jpg", "a closed port", NOT_DOWNLOADED))
    found.append(Row("not a URL", "nonsense", NOT_DOWNLOADED))
    return found


@pytest.fixture(scope="module")
def parquet(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the columns of LAION-2B-en."""
    path = tmp_path_factory.mktemp("urls") / "part-00000.parquet"
    count = len(rows)
    columns = {
        "SAMPLE_ID": pa.array(range(count), pa.int64()),
        "URL": [row.url for row in rows],
        "TEXT": [row.caption for row in rows],
        "HEIGHT": pa.array([300] * count, pa.int32()),
        "WIDTH": pa.array([400] * count, pa.int32()),
        "LICENSE": ["?"] * count,
        "NSFW": ["UNLIKELY"] * count,
        "similarity": pa.array([0.3 + number / 1000 for number in range(count)], pa.float64()),
    }
    pq.write_table(pa.table(columns), path)
    return path


def make_download(*words: str, seconds: float = 240) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "download", f"PYTHON={sys.executable}", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


QUICK = (f"PER_TAR={PER_TAR}", "TIMEOUT=1", "RETRIES=1", "PROCESSES=2", "THREADS=8")


@pytest.fixture(scope="module")
def downloaded(parquet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("download") / "tars"
    done = make_download(f"URLS={parquet}", f"OUT={out}", *QUICK)
    assert done.returncode == 0, done.stderr
    return out


def statistics(out: Path) -> Counter[str]:
    """img2dataset's own counts, over all tars."""
    total: Counter[str] = Counter()
    for path in out.glob("*_stats.json"):
        content = json.loads(path.read_text())
        total.update({name: content[name] for name in ("count", "successes", "failed_to_download", "failed_to_resize")})
    return total


def test_every_url_is_accounted_for(downloaded: Path, rows: list[Row]) -> None:
    missed = sum(row.outcome == NOT_DOWNLOADED for row in rows)
    assert statistics(downloaded) == {
        "count": len(rows),
        "successes": len(rows) - missed,
        "failed_to_download": missed,
        "failed_to_resize": 0,
    }


def test_what_was_downloaded_is_encoded_or_refused_for_its_reason(
    downloaded: Path, rows: list[Row], configure: Configure
) -> None:
    result = run(configure(source=str(downloaded), views=2))
    assert result["ok"], result
    expected = Counter(str(row.outcome) for row in rows)
    assert result["samples"]["read"] == statistics(downloaded)["successes"]
    assert result["samples"]["encoded"] == expected[ENCODED]
    refused = {reason: count for reason, count in expected.items() if reason not in (ENCODED, NOT_DOWNLOADED)}
    assert result["rejected"] == refused
    assert result["samples"]["read"] == result["samples"]["encoded"] + sum(refused.values())


def test_captions_urls_and_scores_reach_the_latents(downloaded: Path, rows: list[Row], configure: Configure) -> None:
    version = Store(run(configure(source=str(downloaded), views=2))["store"]).version()
    by_url = {row.url: row for row in rows}
    position = {row.url: number for number, row in enumerate(rows)}
    for view in range(2):
        seen = {}
        for payload in (payload for commit in version.commits() for payload in commit.views if payload.view == view):
            local = version.storage.local_path(payload.path)
            assert local is not None
            with LatentShard(local, version.spec) as shard:
                for index, key in enumerate(shard.keys):
                    record = shard.metadata(index)
                    about = record["metadata"]
                    url = about["url"]
                    assert shard.caption(index) == by_url[url].caption and about["key"] == key
                    assert about["similarity"] == pytest.approx(0.3 + position[url] / 1000)
                    assert (about["NSFW"], about["LICENSE"], about["SAMPLE_ID"]) == ("UNLIKELY", "?", position[url])
                    seen[url] = record["original_size"]
        assert seen.keys() == {row.url for row in rows if row.outcome == ENCODED}
        (upright,) = [size for url, size in seen.items() if url.endswith("/rotated.jpg")]
        assert tuple(upright) == (480, 640)


def test_pictures_are_kept_byte_for_byte(downloaded: Path) -> None:
    images = pictures_by_path(downloaded)
    assert len(images) > 10
    for path, image in images.items():
        answer = ANSWERS[path]
        assert image == ANSWERS[answer.headers.get("Location", path)].body


def pictures_by_path(out: Path) -> dict[str, bytes]:
    """The pictures in the tars by the path they were asked for under; those asked for under variants left out."""
    found = {}
    for tar in sorted(out.glob("*.tar")):
        for sample in samples_in(tar):
            if isinstance(sample, Sample) and "?" not in sample.metadata["url"]:
                found["/" + sample.metadata["url"].rpartition("/")[2]] = sample.image
    return found


def test_the_same_command_again_downloads_only_what_is_missing(downloaded: Path, parquet: Path, server: Server) -> None:
    words = (f"URLS={parquet}", f"OUT={downloaded}", *QUICK)
    asked = len(server.asked)
    first = {path.name: path.stat().st_mtime_ns for path in downloaded.glob("*.tar")}
    assert len(first) == 4 and make_download(*words).returncode == 0
    assert len(server.asked) == asked
    (downloaded / "00001_stats.json").unlink()  # as a kill within that tar would leave it
    (downloaded / "00001.tar").write_bytes(b"half")
    done = make_download(*words)
    assert done.returncode == 0, done.stderr
    second = {path.name: path.stat().st_mtime_ns for path in downloaded.glob("*.tar")}
    assert {name for name in first if first[name] != second[name]} == {"00001.tar"}
    assert (
        len(samples_in(downloaded / "00001.tar"))
        == json.loads((downloaded / "00001_stats.json").read_text())["successes"]
    )


def test_other_settings_do_not_mix_with_what_is_there(downloaded: Path, parquet: Path) -> None:
    done = make_download(f"URLS={parquet}", f"OUT={downloaded}", "PER_TAR=5")
    assert done.returncode == 2 and "was begun with per_tar=10" in done.stderr


def test_large_pictures_can_be_shrunk_to_save_space(parquet: Path, tmp_path: Path) -> None:
    done = make_download(f"URLS={parquet}", f"OUT={tmp_path / 'tars'}", "SHORT_SIDE=512", *QUICK)
    assert done.returncode == 0, done.stderr
    total = statistics(tmp_path / "tars")
    assert total["failed_to_resize"] == 5  # page, nothing, half a file, dot, poster
    images = pictures_by_path(tmp_path / "tars")
    assert images["/plain.jpg"] == JPEG
    assert Image.open(io.BytesIO(images["/large.jpg"])).size == (768, 512)
    assert Image.open(io.BytesIO(images["/alpha.png"])).format == "JPEG"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "error: say make download URLS="),
        (("URLS=x.parquet",), "error: say make download URLS="),
        (("OUT=x",), "error: say make download URLS="),
        (("URLS=/nowhere/x.parquet", "OUT=x"), "error: /nowhere/x.parquet: no such file or folder"),
        (("URLS=README.md", "OUT=x"), "error: README.md: none of parquet, csv"),
        (("URLS={parquet}", "OUT=x", "URL_COL=url"), "no column 'url'; it has SAMPLE_ID, URL, TEXT"),
        (("URLS={parquet}", "OUT=tests"), "error: tests: holds files of something else"),
        (("URLS={parquet}", "OUT=x", "THREADS=none-at-all"), "error: threads='none-at-all'"),
    ],
)
def test_what_is_wrong_is_one_line(words: tuple[str, ...], says: str, parquet: Path) -> None:
    done = make_download(*(word.format(parquet=parquet) for word in words))
    told = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode == 2 and len(told) == 1 and says in told[0]
    assert not (ROOT / "x").exists()
