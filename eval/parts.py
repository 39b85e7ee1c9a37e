"""An evaluation in parts, each done once: the same command again goes on after a kill at any moment.

OUT/request.json    what was asked, down to the weights' hash; another request in the same folder is refused
OUT/parts/          what each part came to, a file each, written whole; gone once there is a result
OUT/result.json     written last: whoever finds it has nothing left to do
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.disk import create, names_in, replace
from encode_pipeline.latents.failpoints import failpoint
from encode_pipeline.latents.spec import canonical_json
from train.distributed import Ranks

REQUEST, RESULT, PARTS = "request.json", "result.json", "parts"


@dataclass(frozen=True)
class WorkFolder:
    """The folder of one evaluation, that any number of processes may share."""

    path: Path

    def claim(self, request: Mapping[str, Any]) -> None:
        """Says what is asked of this folder; refuses if it was asked something else before."""
        place = self.path / REQUEST
        if not place.exists() and (self.path / RESULT).exists():
            raise RequestError(f"{self.path}: holds the {RESULT} of something else; choose another out=")
        wanted = canonical_json(request, indent=1)
        if create(place, wanted) or place.read_bytes() == wanted:
            return
        try:
            before, now = json.loads(place.read_bytes()), json.loads(wanted)
            key = next(key for key in {**request, **before} if before.get(key) != now.get(key))
        except (ValueError, TypeError, AttributeError, StopIteration):
            raise RequestError(f"{place}: damaged: not what was asked of this folder; choose another out=") from None
        there, here = _short(before.get(key)), _short(now.get(key))
        raise RequestError(
            f"{self.path}: holds another evaluation: {key} is {there} there and {here} here; choose another out="
        )

    def result(self) -> dict[str, Any] | None:
        """What the evaluation came to, if it is finished."""
        try:
            found: dict[str, Any] = json.loads((self.path / RESULT).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            raise RequestError(f"{self.path / RESULT}: damaged: not JSON; delete it to have it made again") from None
        return found

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes the result, after which the parts are of no use."""
        replace(self.path / RESULT, (json.dumps(result, indent=1) + "\n").encode())
        shutil.rmtree(self.path / PARTS, ignore_errors=True)

    def do_parts(self, names: Sequence[str], ranks: Ranks, work: Callable[[int], bytes]) -> list[Path]:
        """The files of all parts, in order; those not there yet are made, each by one of the processes."""
        folder = self.path / PARTS
        files = [folder / f"{number:06d}" for number in range(len(names))]
        done = set(names_in(folder))
        missing = [number for number, file in enumerate(files) if file.name not in done]
        missing = ranks.collect(missing)[0]  # by the first one's look: others may look when some are done
        for number in missing[ranks.rank :: ranks.world]:
            content = work(number)
            failpoint("before-commit", names[number])
            replace(files[number], content)
            failpoint("after-commit", names[number])
        ranks.wait()
        return files


def _short(value: Any) -> str:
    """A value as it fits into a line: of a hash its beginning."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
