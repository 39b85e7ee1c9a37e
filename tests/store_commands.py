"""Verbs that act on a store, as processes of their own; the test's traps and servers reach them by the environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import Version
from tests.latent_stores import latent_store


class StoreCommand:
    """`python -m encode_pipeline WORDS --json`."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "encode_pipeline", *words, "--json"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._said: tuple[str, str] | None = None

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

    def _wait(self) -> tuple[str, str]:
        if self._said is None:
            self._said = self._process.communicate(timeout=240)
        return self._said


def versions_of(address: str | Path, spec: LatentSpec, scratch: Path, count: int) -> list[Version]:
    """Small sealed versions of one store."""
    specs = [spec.model_copy(update={"seed": seed}) for seed in range(count)]
    return [latent_store(address, scratch / f"made-{spec.seed}", spec, [2]) for spec in specs]
