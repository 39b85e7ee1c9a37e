"""Work for a fleet, and those who see to it: runs in this process, and commands of their own."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.command import to_yaml
from encode_pipeline.latents.store import Store
from encode_pipeline.run import run
from tests.conftest import SIDE
from tests.tars import END, member
from tests.traps import wait_for

ROOT = Path(__file__).parent.parent


def write_tars(folder: Path, tars: int = 6, good: int = 10) -> Path:
    """Small tars: in each a few pictures, one that is broken, and one without a caption."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for tar in range(tars):
        content = b""
        for number in range(good):
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (72, 96, 3), dtype=np.uint8)).save(picture, "JPEG")
            key = f"{tar:02d}-{number:03d}"
            content += member(f"{key}.jpg", picture.getvalue()) + member(f"{key}.txt", b"noise")
        content += member(f"{tar:02d}-broken.jpg", b"\xff\xd8 no picture") + member(f"{tar:02d}-broken.txt", b"t")
        content += member(f"{tar:02d}-mute.jpg", picture.getvalue())
        (folder / f"{tar:02d}.tar").write_bytes(content + END)
    return folder


def settings(folder: Path, **changes: Any) -> EncodeConfig:
    """A run on Ray over small tars in `folder`, by averaged pixels: encoders come up in half the time of a VAE's."""
    values = {"source": str(folder / "tars"), "store": str(folder / "store"), "vae": "pixels", "engine": "ray"}
    return EncodeConfig(**{**values, "image_size": SIDE, "views": 2, "batch_size": 4, "threads": 1, **changes})


class Run:
    """A run in a thread of this process, so that a test can do things to it meanwhile, and need not wait forever."""

    def __init__(self, config: EncodeConfig, how: Callable[[EncodeConfig], Any] = run) -> None:
        self._future: Future[Any] = Future()
        threading.Thread(target=self._run, args=(config, how), daemon=True).start()

    @property
    def over(self) -> bool:
        return self._future.done()

    @property
    def end(self) -> object:
        """How it ended."""
        return self._future.exception(0) or self._future.result(0)

    def result(self) -> Any:
        """What it returns; what it raises is raised."""
        wait_for("the end of the run", lambda: self.over)
        return self._future.result()

    def _run(self, config: EncodeConfig, how: Callable[[EncodeConfig], Any]) -> None:
        try:
            self._future.set_result(how(config))
        except BaseException as error:
            self._future.set_exception(error)


class Command:
    """A run as a person starts it: a process of its own, on the cluster at an address or, without one, on its own."""

    def __init__(self, config: EncodeConfig, address: str, folder: Path) -> None:
        folder.mkdir()
        (folder / "run.yaml").write_text(to_yaml(config))
        self._out, self._err = folder / "out", folder / "err"
        words = [sys.executable, "-m", "encode_pipeline", "run", "--config", str(folder / "run.yaml"), "--json"]
        environment = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                words,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
                preexec_fn=_hear_interrupts,
            )

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    @property
    def end(self) -> object:
        return f"exit {self.process.returncode}\n{self.said}"

    @property
    def said(self) -> str:
        """What it has told a person so far."""
        return self._err.read_text()

    def status(self) -> int:
        """Its exit status."""
        wait_for("the end of the command", lambda: self.over)
        return self.process.wait()

    def result(self) -> dict[str, Any]:
        """The JSON that it printed."""
        self.status()
        answer: dict[str, Any] = json.loads(self._out.read_text())
        return answer

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def _hear_interrupts() -> None:
    """What a shell starts in the background is deaf to them, and so are its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def done(config: EncodeConfig) -> set[str]:
    """The shards that have a commit now."""
    store = Store(config.store)
    return store.version().done() if store.versions() else set()


def events(config: EncodeConfig, name: str) -> list[dict[str, Any]]:
    """What the logs of all runs on a store hold of one kind of event."""
    storage = Store(config.store).version().storage
    lines = [
        json.loads(line)
        for path in storage.files("runs")
        if path.endswith(".jsonl")
        for line in storage.read(path).splitlines()
    ]
    return [line for line in sorted(lines, key=lambda line: line["at"]) if line["event"] == name]
