"""Verbs that act on a store, as processes of their own; the test's traps and servers reach them by the environment."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import Version
from tests.latent_stores import latent_store

READER = """
import sys
from encode_pipeline.latents.command import Settings, Verb, main
from encode_pipeline.latents.failpoints import failpoint
from encode_pipeline.latents.lease import leased
from encode_pipeline.latents.store import Store

class Request(Settings):
    store: str
    version: str
    out: str

def read(request):
    version = Store(request.store).version(request.version)
    failpoint("before-read", "opened")
    with leased(version, "train", request.out):
        failpoint("before-read", "reading")
    return {"ok": True}

sys.exit(main("reader", {"read": Verb(Request, read, "")}, ["read", *sys.argv[1:]]))
"""


class StoreCommand:
    """`python -m encode_pipeline WORDS --json`."""

    def __init__(self, *words: str, program: tuple[str, ...] = ("-m", "encode_pipeline")) -> None:
        command = [sys.executable, *program, *words, "--json"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_hear_interrupts
        )
        self._said: tuple[str, str] | None = None

    @classmethod
    def reader(cls, version: Version, out: str | Path) -> StoreCommand:
        """Somebody who holds a version with a lease, and passes `before-read` twice: `opened`, then `reading`."""
        url = version.storage.url()
        words = f"store={url.rpartition('/')[0]}", f"version={version.fingerprint}", f"out={out}"
        return cls(*words, program=("-c", READER))

    @property
    def over(self) -> bool:
        return self._process.poll() is not None

    @property
    def end(self) -> object:
        return self.status, self.said, self.complaints

    @property
    def status(self) -> int:
        self._wait()
        return self._process.returncode

    @property
    def said(self) -> str:
        return self._wait()[0]

    @property
    def complaints(self) -> str:
        """What it wrote to standard error."""
        return self._wait()[1]

    @property
    def result(self) -> dict[str, Any]:
        assert self.status == 0, self.end
        found: dict[str, Any] = json.loads(self.said)
        return found

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def _wait(self) -> tuple[str, str]:
        if self._said is None:
            self._said = self._process.communicate(timeout=240)
        return self._said


def _hear_interrupts() -> None:
    """What a shell starts in the background is deaf to them, and so are its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def versions_of(address: str | Path, spec: LatentSpec, scratch: Path, count: int) -> list[Version]:
    """Small sealed versions of one store."""
    specs = [spec.model_copy(update={"seed": seed}) for seed in range(count)]
    return [latent_store(address, scratch / f"made-{spec.seed}", spec, [2]) for spec in specs]
