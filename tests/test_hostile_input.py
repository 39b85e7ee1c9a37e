"""What would take a whole tar, a whole run or all memory with it, through the whole pipeline."""

from __future__ import annotations

import errno
import io
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.store import Store
from encode_pipeline.read import MAX_DEPTH
from encode_pipeline.records import Reason
from encode_pipeline.run import run
from tests.conftest import SIDE, Configure, samples_in
from tests.tars import END, member, outcomes
from tests.test_killed import hear_interrupts
from tests.web import serving


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_deep_metadata_costs_its_own_sample_only(configure: Configure, tmp_path: Path) -> None:
    """What the parser's limit lets in must come out of the writer again, on whatever stack."""
    content = b""
    depths = [1, MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1, 500, *range(900, 1000, 9)]
    for number, depth in enumerate(depths):
        key, nested = f"{number:03d}", b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)
        content += member(f"{key}.jpg", jpeg()) + member(f"{key}.txt", b"t") + member(f"{key}.json", nested)
    (tmp_path / "deep.tar").write_bytes(content + END)
    result = run(configure(source=str(tmp_path / "deep.tar"), vae="pixels", views=1))
    assert result["ok"] and result["samples"]["encoded"] == 3
    assert result["rejected"] == {Reason.BAD_METADATA: len(depths) - 3}


def test_a_tar_of_endless_refusals_is_a_bad_tar(monkeypatch: pytest.MonkeyPatch) -> None:
    from encode_pipeline import read as module

    monkeypatch.setattr(module, "MAX_SAMPLES", 10)
    with pytest.raises(module.TarError, match="more than 10 samples"):
        outcomes(b"".join(member(f"{number}.txt", b"") for number in range(11)) + END)
    assert len(outcomes(b"".join(member(f"{number}.txt", b"") for number in range(10)) + END)) == 10


def test_compressed_pictures_are_let_go_once_decoded(configure: Configure, tmp_path: Path) -> None:
    """Pictures with megabytes behind their end: room is for so many bytes at once, not for a whole tar's."""
    padded = jpeg() + bytes(24 << 20)
    with (tmp_path / "fat.tar").open("wb") as file:
        for number in range(40):
            file.write(member(f"{number:03d}.jpg", padded) + member(f"{number:03d}.txt", b"t"))
        file.write(END)
    code = (
        "import resource, sys; from encode_pipeline.config import EncodeConfig; from encode_pipeline.run import run\n"
        "import encode_pipeline.vae, encode_pipeline.augment\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "config = EncodeConfig(vae='pixels', source=sys.argv[1], store=sys.argv[2], image_size=64, threads=2)\n"
        "result = run(config)\n"
        "assert result['samples']['encoded'] == 40\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "fat.tar"), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 600 << 20  # of 960 MB in the tar


@pytest.fixture
def good(world: Path, tmp_path: Path) -> list[str]:
    folder = tmp_path / "good"
    folder.mkdir()
    for number in range(5):
        shutil.copy(world / "train" / "00000.tar", folder / f"{number}.tar")
    return sorted(str(path) for path in folder.glob("*.tar"))


def test_a_server_that_drips_holds_nobody_up_and_an_interrupt_ends_it(
    good: list[str], world: Path, small_vae: Path, tmp_path: Path
) -> None:
    with serving((world / "train" / "00001.tar").read_bytes()) as web:
        sources = "[" + ", ".join([f"'{web.url}/drips/0.tar'", *good]) + "]"
        words = [f"source={sources}", f"store={tmp_path / 'store'}", f"vae={small_vae}", f"image_size={SIDE}"]
        command = [sys.executable, "-m", "encode_pipeline", "run", *words, "threads=1", "batch_size=8"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=hear_interrupts)
        try:
            until = time.monotonic() + 150
            while len(list((tmp_path / "store").glob("*/commits/*.json"))) < 5:
                assert process.poll() is None and time.monotonic() < until, "the good tars were held up"
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 130 and said.decode().splitlines()[-1].startswith("interrupted; ")


def test_a_full_disk_ends_the_run_and_blames_no_tar(
    configure: Configure, good: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from encode_pipeline.latents.writer import ShardWriter

    def full(self: ShardWriter, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardWriter, "_write", full)
    config = configure(source=good, views=1)
    with pytest.raises(CheckFailed, match="No space left on device; make room, and run the same command again"):
        run(config)
    version = Store(config.store).version()
    assert version.failures() == [] and version.done() == set()


def test_a_tar_stays_in_its_collection(configure: Configure, good: list[str]) -> None:
    run(configure(source=[f"laion={good[0]}"], views=1))
    with pytest.raises(RequestError, match="in collection coyo now, in laion when it was first planned"):
        run(configure(source=[f"coyo={good[0]}"], views=1))
    again = run(configure(source=[f"laion={good[0]}", f"coyo={good[1]}"], views=1))
    assert (again["already_done"], again["shards"]["done"]) == (1, 1)


def test_equal_keys_of_several_tars_are_told_apart_by_replay(
    configure: Configure, good: list[str], tmp_path: Path
) -> None:
    from encode_pipeline.config import ReplayRequest
    from encode_pipeline.replay import replay

    config = configure(source=good[:2], views=1)
    run(config)
    key = samples_in(Path(good[0]))[0].key
    with pytest.raises(RequestError, match="2 samples .*; say shard=, one of 0-"):
        replay(ReplayRequest(store=config.store, key=key, out=tmp_path / "out"))
    shard = sorted(Store(config.store).version().done())[1]
    assert replay(ReplayRequest(store=config.store, key=key, shard=shard, out=tmp_path / "out"))["shard"] == shard
