"""What GenEval's own scorer has said about the pictures of an export: the results.jsonl of its evaluate_images.py."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import Image

from encode_pipeline.latents.command import CheckFailed, RequestError
from eval.benchmarks.pictures import PromptPicture
from eval.benchmarks.scoring import Line


@dataclass(frozen=True)
class OfficialVerdicts:
    """A verdict for each picture, by the numbers of its prompt and its sample."""

    lines: Mapping[tuple[int, int], Line]
    sha256: str

    def look(self, batch: Sequence[PromptPicture], images: Sequence[Image.Image]) -> list[Line]:
        """What was said of some pictures."""
        return [dict(self.lines[picture.prompt.number, picture.sample]) for picture in batch]


def official_verdicts(file: Path, pictures: Sequence[PromptPicture]) -> OfficialVerdicts:
    """The verdicts on just these pictures, told apart by `00000/samples/00000.png`, whatever folder that was in."""
    if not file.is_file():
        raise RequestError(f"official={file}: no such file")
    content = file.read_bytes()
    said: dict[int, dict[int, Line]] = {}
    for number, text in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        try:
            verdict = json.loads(text)
            folder, _, name = PurePath(verdict["filename"]).parts[-3:]
            line = {"tag": verdict["tag"], "correct": verdict["correct"], "faults": verdict["reason"].splitlines()}
            samples = said.setdefault(int(folder), {})
            sample = int(PurePath(name).stem)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckFailed(f"{file}: line {number}: not what GenEval's scorer writes: {error!r}") from None
        if sample in samples or not isinstance(line["correct"], bool):
            raise CheckFailed(f"{file}: line {number}: {folder}/{name}: two verdicts, or none")
        samples[sample] = {**line, "prompt": verdict.get("prompt")}
    lines: dict[tuple[int, int], Line] = {}
    for prompt, samples in said.items():
        for sample, at in enumerate(sorted(samples)):  # as the pictures are counted
            lines[prompt, sample] = samples[at]
    wanted = {(picture.prompt.number, picture.sample) for picture in pictures}
    if wanted != lines.keys():
        raise CheckFailed(
            f"{file}: {len(lines)} verdicts, {len(wanted & lines.keys())} of them on the {len(wanted)} pictures"
        )
    for picture in pictures:
        line = lines[picture.prompt.number, picture.sample]
        if (line.pop("prompt"), line["tag"]) != (picture.prompt.text, picture.prompt.about["tag"]):
            raise CheckFailed(
                f"{file}: its verdict on {picture.path.name} of {picture.prompt.text!r} is on another prompt"
            )
    return OfficialVerdicts(lines, hashlib.sha256(content).hexdigest())
