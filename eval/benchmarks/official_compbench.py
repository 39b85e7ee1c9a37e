"""What T2I-CompBench's own scorers have said about the pictures of an export."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from encode_pipeline.latents.command import CheckFailed, RequestError

BLIP, UNIDET = "annotation_blip", "labels/annotation_obj_detection_2d"
CLIP, THREE = "annotation_clip", "annotation_3_in_1"
FOLDERS = {"color": BLIP, "shape": BLIP, "texture": BLIP, "spatial": UNIDET, "non_spatial": CLIP, "complex": THREE}
"""Where the scorer of a category leaves its answers, beside the pictures."""
FILE = "vqa_result.json"


@dataclass(frozen=True)
class OfficialScores:
    """A category's scores, by the number at the end of each picture's name."""

    scores: list[float]
    sha256: str


def official_scores(folder: Path) -> dict[str, OfficialScores]:
    """All that is there of DIR/CATEGORY/…/vqa_result.json, by category."""
    files = {category: folder / category / place / FILE for category, place in FOLDERS.items()}
    found = {category: _read(file) for category, file in files.items() if file.is_file()}
    if not found:
        wanted = ", ".join(f"{category}/{place}/{FILE}" for category, place in FOLDERS.items())
        raise RequestError(f"official={folder}: none of {wanted}")
    return found


def _read(file: Path) -> OfficialScores:
    content = file.read_bytes()
    try:
        scores = {int(answer["question_id"]): float(answer["answer"]) for answer in json.loads(content)}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckFailed(f"{file}: not the answers of T2I-CompBench's scorers: {error!r}") from None
    if sorted(scores) != list(range(len(scores))):
        raise CheckFailed(f"{file}: its {len(scores)} answers are not numbered through from 0")
    if strange := next((score for score in scores.values() if not -1 <= score <= 1), None):
        raise CheckFailed(f"{file}: {strange} is no score")
    return OfficialScores([scores[number] for number in range(len(scores))], hashlib.sha256(content).hexdigest())
