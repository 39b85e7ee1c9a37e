"""What every evaluation of a model on a data set has in common: what it is told, and how it comes to a result."""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BeforeValidator, Field

from encode_pipeline.latents.command import CheckFailed, RequestError, Settings, to_yaml
from encode_pipeline.latents.disk import replace
from eval.parts import WorkFolder
from eval.picture_set import Part
from train.distributed import Ranks

PREDICTIONS, DAMAGED = "predictions.jsonl", "damaged.jsonl"
Address = Annotated[str, BeforeValidator(str)]


class EvaluationConfig(Settings):
    """A model, and the data that it is judged on."""

    checkpoint: Address = Field(
        description="a checkpoint, a training run's or an exported folder, MODEL/TAG or hf-hub:NAME of OpenCLIP"
    )
    data: Address = Field(description="a sealed latent store, or pictures: class folders, or tars")
    out: Path | None = Field(None, description=f"folder for result.json and {PREDICTIONS}; the same command goes on")
    version: str | None = Field(None, description="beginning of a fingerprint; by default the promoted or only version")
    view: int = Field(0, ge=0, description="which view of a store's pictures to look at")
    way: Literal["direct", "decoded"] | None = Field(
        None,
        description="generated latents as they are, or decoded to pictures (and encoded again); by default as they "
        "are for models of latents",
    )
    vae: str | None = Field(
        None, description="where the VAE of the latents is, if not under the name that they give it"
    )
    cache: Path = Field(Path("runs/cache"), description="folder for pictures encoded on the way, and remote shards")
    damaged: Literal["stop", "wrong"] = Field(
        "stop", description="pictures that cannot be read end the evaluation, or count as wrong answers"
    )
    batch_size: int = Field(64, gt=0)
    seed: int = Field(0, ge=0, description="of the bootstrap behind the intervals")


@dataclass(frozen=True)
class DonePart:
    """What an evaluation has found out about a part of the pictures."""

    lines: list[dict[str, Any]]
    """One for each picture; `damaged` in it says why the model has not seen it."""
    arrays: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    seconds: float = 0.0

    def to_bytes(self) -> bytes:
        about = json.dumps({"lines": self.lines, "seconds": self.seconds}).encode()
        file = io.BytesIO()
        np.savez(file, about=np.frombuffer(about, np.uint8), **self.arrays)  # type: ignore[arg-type]
        return file.getvalue()

    @classmethod
    def from_file(cls, path: Path) -> DonePart:
        with np.load(path) as file:
            about = json.loads(file["about"].tobytes())
            arrays = {name: file[name] for name in file.files if name != "about"}
        return cls(about["lines"], arrays, about["seconds"])


@dataclass(frozen=True)
class Evaluation:
    """One question to one model, and how it is answered from the answers to its parts."""

    config: EvaluationConfig
    request: Mapping[str, Any]
    """All that the answer depends on; the same folder answers no other."""
    parts: Sequence[Part]
    work: Callable[[Part], DonePart]
    conclude: Callable[[list[DonePart]], tuple[dict[str, Any], list[dict[str, Any]]]]
    """The result, but for what all evaluations say, and what is told of each picture."""

    def run(self, ranks: Ranks) -> dict[str, Any]:
        """The result: from the folder if it is finished, else by all processes together."""
        config = self.config
        with folder_to_work_in(config.out, ranks) as path:
            folder = WorkFolder(path)
            folder.claim(self.request)
            result = folder.result()
            if result is None:
                files = folder.do_parts([part.name for part in self.parts], ranks, self._timed)
                error = None
                if ranks.is_first:
                    replace(path / "config.yaml", to_yaml(config).encode())
                    error = self._finish(folder, [DonePart.from_file(file) for file in files])
                if error := ranks.collect(error)[0]:
                    raise CheckFailed(error)
                result = folder.result()
                ranks.wait()  # a folder that is not to stay goes with the first
            assert result is not None
            if result["damaged"] and config.damaged == "stop":
                lines = (path / DAMAGED).read_text(encoding="utf-8").splitlines()
                raise CheckFailed(self._complaint([json.loads(line) for line in lines], result["n"]))
        return result

    def _timed(self, number: int) -> bytes:
        began = time.monotonic()
        # Whole float32 on GPUs too, and the same bits every time.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            done = self.work(self.parts[number])
        if len(done.lines) != self.parts[number].size:
            part = self.parts[number]
            raise CheckFailed(f"{self.config.data}: {part.name}: {len(done.lines)} pictures, {part.size} were expected")
        seconds = time.monotonic() - began
        print(f"{self.parts[number].name}: {len(done.lines)} pictures in {seconds:.1f} s", file=sys.stderr, flush=True)
        return DonePart(done.lines, done.arrays, seconds).to_bytes()

    def _finish(self, folder: WorkFolder, done: list[DonePart]) -> str | None:
        """Writes what the parts come to, or says why there is no result."""
        lines = [line for part in done for line in part.lines]
        damaged = [line for line in lines if "damaged" in line]
        if damaged:
            shown = [{key: line[key] for key in ("shard", "key", "damaged")} for line in damaged]
            replace(folder.path / DAMAGED, as_lines(shown))
            if self.config.damaged == "stop" or len(damaged) == len(lines):
                return self._complaint(damaged, len(lines))
        result, told = self.conclude(done)
        if damaged:
            said = f"{len(damaged)} of {len(lines)} pictures could not be read and count as wrong answers"
            result = {**result, "not_comparable": [*result["not_comparable"], said]}
        replace(folder.path / PREDICTIONS, as_lines({k: v for k, v in line.items() if k != "damaged"} for line in told))
        folder.finish(
            {
                "ok": True,
                "dataset": self.config.data,
                "checkpoint": self.config.checkpoint,
                "language": "en",
                **result,
                "n": len(lines),
                "damaged": len(damaged),
                "seed": self.config.seed,
                "seconds": round(sum(part.seconds for part in done), 1),
            }
        )
        return None

    def _complaint(self, damaged: Sequence[Mapping[str, Any]], pictures: int) -> str:
        first = damaged[0]
        listed = f", all listed in {self.config.out / DAMAGED}" if self.config.out else ""
        return (
            f"{self.config.data}: {first['shard']}: {first['key']}: {first['damaged']}; {len(damaged)} of {pictures} "
            f"pictures are damaged{listed}; damaged=wrong counts them as wrong answers"
        )


@contextmanager
def folder_to_work_in(out: Path | None, ranks: Ranks) -> Iterator[Path]:
    """The folder to work in: a passing one where none is asked for."""
    if out is not None:
        yield out
    elif ranks.world > 1:
        raise RequestError("out=: several processes need a folder that they share")
    else:
        with tempfile.TemporaryDirectory() as passing:
            yield Path(passing)


def as_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Records as JSON, one a line."""
    return "".join(json.dumps(record) + "\n" for record in records).encode()
