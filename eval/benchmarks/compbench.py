"""T2I-CompBench: attributes by BLIP's answers, relations that are not in space by CLIP, the rest by its own scorers.

The spatial relations need UniDet and with them the complex prompts; what the official scorers have said of an export's
pictures is read with `official=DIR`. A category that nobody has judged is not in the metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field

from encode_pipeline.latents.command import CheckFailed, RequestError
from eval import intervals
from eval.benchmarks.clip_score import clip_scores, features, open_pixel_clip
from eval.benchmarks.compbench_rules import PHRASES_BY, product, questions
from eval.benchmarks.official_compbench import official_scores
from eval.benchmarks.pictures import PromptPicture, prompt_pictures
from eval.benchmarks.scoring import Line, Scoring, ScoringConfig, by_prompt, require_kind, rounded, score
from eval.benchmarks.vqa import Blip, open_blip
from eval.clip import PixelClip
from eval.evaluation import Address
from eval.steering.prompt_sets import CATEGORIES
from train.distributed import ranks_of_torchrun

CLIP = "ViT-B-32/openai"
BLIP = "Salesforce/blip-vqa-capfilt-large"
"""On the hub, what the official scorer has: model_base_vqa_capfilt_large."""
BINDING, NON_SPATIAL = ("color", "shape", "texture"), "non_spatial"


class CompbenchConfig(ScoringConfig):
    """Pictures of T2I-CompBench's prompts, and the models that judge them."""

    vqa: Address | None = Field(
        None,
        description="a BLIP of transformers that answers questions, officially Salesforce/blip-vqa-capfilt-large: "
        "judges color, shape and texture",
    )
    clip: Address = Field(CLIP, description="the CLIP of pixels that judges non_spatial")
    official: Path | None = Field(
        None,
        description="an export of this run in which the official scorers have been: DIR/CATEGORY/annotation_blip/… and "
        "so on; what is there is taken, and only the rest is measured",
    )


@dataclass(frozen=True)
class Panel:
    """Who judges which category: `vqa`, `clip`, or `official`, whose scores are there already."""

    by: Mapping[str, str]
    blip: Blip | None
    clip: PixelClip | None
    given: Mapping[tuple[int, int], float]
    """By prompt and sample."""

    def look(self, batch: Sequence[PromptPicture], images: Sequence[Image.Image]) -> list[Line]:
        """What each picture's judge says of it; the score is None where there is no judge."""
        categories = [category_of(picture) for picture in batch]
        said: list[Line] = [{"score": self.given.get((picture.prompt.number, picture.sample))} for picture in batch]
        mine = [at for at, category in enumerate(categories) if self.by.get(category) == "vqa"]
        if self.blip is not None and mine:
            asked = [questions(batch[at].prompt.text) for at in mine]
            for at, chances in zip(mine, self.blip.chances([images[at] for at in mine], asked), strict=True):
                said[at] = {"score": product(chances), "answers": [rounded(chance) for chance in chances]}
        mine = [at for at, category in enumerate(categories) if self.by.get(category) == "clip"]
        if self.clip is not None and mine:
            rows = features(self.clip, [images[at] for at in mine])
            prompts = [batch[at].prompt.text for at in mine]
            for at, value in zip(mine, clip_scores(self.clip, rows, prompts), strict=True):
                said[at] = {"score": rounded(value)}
        return [{"category": category, **line} for category, line in zip(categories, said, strict=True)]


def compbench(config: CompbenchConfig) -> dict[str, Any]:
    """The mean score of each category that something here can judge."""
    with ranks_of_torchrun() as ranks:
        pictures = prompt_pictures(config.run)
        require_kind(pictures, "compbench")
        there = Counter(category_of(picture) for picture in pictures.pictures)
        official = official_scores(config.official) if config.official else {}
        for category in official.keys() & there.keys():
            if len(official[category].scores) != there[category]:
                counts = f"{len(official[category].scores)} scores of {category}, and {there[category]} pictures"
                raise CheckFailed(f"official={config.official}: {counts}")
        given = {
            (picture.prompt.number, picture.sample): official[category].scores[at]
            for category in official
            for at, picture in enumerate(one for one in pictures.pictures if category_of(one) == category)
        }
        by = {
            category: "official" if category in official else "clip" if category == NON_SPATIAL else "vqa"
            for category in CATEGORIES
            if category in official or category == NON_SPATIAL or (config.vqa and category in BINDING)
            if category in there
        }
        if not by:
            raise RequestError(f"{config.run}: nothing judges {', '.join(there)}: say vqa= or official=")
        for picture in pictures.pictures:
            if by.get(category_of(picture)) == "vqa":
                questions(picture.prompt.text)  # refuses at once what could not be asked
        blip = open_blip(config.vqa) if config.vqa and "vqa" in by.values() else None
        clip = open_pixel_clip(config.clip) if "clip" in by.values() else None

        def conclude(lines: list[Line]) -> dict[str, Any]:
            return {
                **summary(lines, by, config.seed),
                "judged_by": by,
                "not_measured": [category for category in CATEGORIES if category in there.keys() - by.keys()],
            }

        judges: dict[str, Any] = {
            "official": {category: official[category].sha256 for category in by if by[category] == "official"}
        }
        reasons = []
        if blip is not None:
            judges |= {"vqa": blip.judge.provenance, "noun_phrases": PHRASES_BY}
            reasons += blip.judge.not_comparable
            reasons += [f"attributes by {config.vqa}, not by {BLIP}"] if config.vqa != BLIP else []
        if clip is not None:
            judges["clip"] = clip.provenance
            reasons += [f"{NON_SPATIAL}: {reason}" for reason in clip.not_comparable]
            reasons += [f"{NON_SPATIAL} by {clip.name}, not by {CLIP}"] if clip.address != CLIP else []
        look = Panel(by, blip, clip, given).look
        return score(Scoring(config, "compbench", pictures, judges, look, conclude, reasons), ranks)


def category_of(picture: PromptPicture) -> str:
    """Which of the six a picture's prompt is in."""
    return str(picture.prompt.about["category"])


def summary(lines: Sequence[Mapping[str, Any]], categories: Mapping[str, str], seed: int) -> dict[str, Any]:
    """The mean score of each judged category, with its interval."""
    means = {name: by_prompt([line for line in lines if line["category"] == name], "score") for name in categories}
    return {
        "metrics": {name: sum(each) / len(each) for name, each in means.items()},
        "intervals": {name: intervals.mean(each, seed) for name, each in means.items()},
    }
