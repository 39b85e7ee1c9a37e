"""GenEval: are the objects of a prompt in its picture, as many, as coloured and as placed as it says?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field

from encode_pipeline.latents.command import CheckFailed
from eval import intervals
from eval.benchmarks.clip_score import open_pixel_clip
from eval.benchmarks.colours import ColourSense
from eval.benchmarks.detection import NAMES, Detector, open_detector
from eval.benchmarks.geneval_rules import COLOURS, faults, objects_that_count
from eval.benchmarks.official_geneval import official_verdicts
from eval.benchmarks.pictures import PromptPicture, prompt_pictures
from eval.benchmarks.scoring import Line, Scoring, ScoringConfig, by_prompt, require_kind, rounded, score
from eval.evaluation import Address
from eval.steering.prompt_sets import TAGS
from train.distributed import ranks_of_torchrun

CLIP = "ViT-L-14/openai"
METRICS = dict(zip(TAGS, ("single", "two", "counting", "colors", "position", "color_attr"), strict=True))
"""What each task is called in a result; `mean` is the mean of all six."""
POSITIONS = ("left of", "right of", "above", "below")


class GenevalConfig(ScoringConfig):
    """Pictures of GenEval's prompts, and the models that judge them."""

    detector: Address = Field(
        "facebook/mask2former-swin-small-coco-instance",
        description="a Mask2Former of transformers for COCO's classes, a folder or a name on the hub",
    )
    clip: Address = Field(CLIP, description="the CLIP of pixels that tells colours")
    official: Path | None = Field(
        None,
        description="what GenEval's own evaluate_images.py wrote of an export of this run, its results.jsonl: the "
        "verdicts are taken from there, and neither detector nor CLIP is asked",
    )


def geneval(config: GenevalConfig) -> dict[str, Any]:
    """The share of right pictures, by task and over the six."""
    with ranks_of_torchrun() as ranks:
        pictures = prompt_pictures(config.run)
        require_kind(pictures, "geneval")
        for picture in pictures.pictures:
            _check_record(picture)

        def conclude(lines: list[Line]) -> dict[str, Any]:
            return summary(lines, config.seed)

        if config.official is not None:
            verdicts = official_verdicts(config.official, pictures.pictures)
            judges: dict[str, Any] = {"official": verdicts.sha256}
            return score(Scoring(config, "geneval", pictures, judges, verdicts.look, conclude), ranks)
        detector, clip = open_detector(config.detector), open_pixel_clip(config.clip)
        reasons = [*detector.judge.not_comparable, *(f"colours: {reason}" for reason in clip.not_comparable)]
        if clip.address != CLIP:
            reasons.append(f"colours told by {clip.name}, not by {CLIP}")
        judges = {"detector": detector.judge.provenance, "colours": clip.provenance}
        look = Seeing(detector, ColourSense(clip)).look
        return score(Scoring(config, "geneval", pictures, judges, look, conclude, reasons), ranks)


@dataclass(frozen=True)
class Seeing:
    """A detector and a sense of colour, by GenEval's rules."""

    detector: Detector
    colours: ColourSense

    def look(self, batch: Sequence[PromptPicture], images: Sequence[Image.Image]) -> list[Line]:
        """Whether each picture is right, and what was seen in it."""
        return [self._judged(picture.prompt.about, image) for picture, image in zip(batch, images, strict=True)]

    def _judged(self, record: Mapping[str, Any], image: Image.Image) -> Line:
        objects = objects_that_count(self.detector.objects(image), record["tag"])
        wrong = faults(record, objects, lambda name, found: self.colours(image, name, found))
        seen = {name: [[rounded(one.score), *one.box] for one in found] for name, found in objects.items()}
        return {"tag": record["tag"], "correct": not wrong, "faults": wrong, "objects": seen}


def summary(lines: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """The share of right pictures of each task that has any, and the mean over tasks, with intervals."""
    by_task = {
        METRICS[tag]: by_prompt([line for line in lines if line["tag"] == tag], "correct")
        for tag in TAGS
        if any(line["tag"] == tag for line in lines)
    }
    shares = {name: sum(each) / len(each) for name, each in by_task.items()}
    return {
        "metrics": {**shares, "mean": sum(shares.values()) / len(shares)},
        "intervals": {
            **{name: intervals.mean_of_shares(each, seed) for name, each in by_task.items()},
            "mean": intervals.mean_of_means(list(by_task.values()), seed),
        },
    }


def _check_record(picture: PromptPicture) -> None:
    """Refuses what is none of GenEval's records: a class that no detector knows would be wrong without a word."""
    record = picture.prompt.about
    try:
        wanted = [*record["include"], *record.get("exclude", [])]
        places = [(number, *one["position"]) for number, one in enumerate(record["include"]) if "position" in one]
        is_known = (
            record["tag"] in METRICS
            and all(one["class"] in NAMES and one["count"] > 0 for one in wanted)
            and all(one.get("color", "red") in COLOURS for one in wanted)
            and all(where in POSITIONS and 0 <= target < number for number, where, target in places)
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        is_known = False
    if not is_known:
        raise CheckFailed(f"{picture.path}: {picture.prompt.text!r} comes with none of GenEval's records")
