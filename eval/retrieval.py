"""Retrieval: the picture of a caption among all pictures, and a caption of a picture among all captions.

Counted as CLIP_benchmark counts: a picture's own captions are right and no others, be they the same words.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from encode_pipeline.latents.command import CheckFailed
from eval import intervals
from eval.clip import Clip
from eval.evaluation import DonePart, Evaluation, EvaluationConfig
from eval.feed import Feed
from eval.models import open_model
from eval.picture_set import Part
from eval.ranking import NEVER, Found, search
from eval.result import asked, described, surroundings
from eval.ways import open_subject
from train.distributed import ranks_of_torchrun

DEPTHS = (1, 5, 10)
TEXTS_AT_ONCE = 256


class RetrievalConfig(EvaluationConfig):
    """A retrieval evaluation on pictures with captions, or on a latent store."""


def retrieval(config: RetrievalConfig) -> dict[str, Any]:
    """How often a caption finds its picture, and a picture one of its captions, among the first 1, 5 and 10."""
    with ranks_of_torchrun() as ranks, ExitStack() as stack:
        model = open_model(config.checkpoint)
        subject = stack.enter_context(open_subject(config, model, ranks, None))

        def conclude(done: list[DonePart]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
            lines = [line for part in done for line in part.lines]
            if mute := next((line for line in lines if not any(line["captions"])), None):
                raise CheckFailed(
                    f"{config.data}: {mute['shard']}: {mute['key']}: no caption (a store keeps none of a refused "
                    "picture), so that recall would be of too few; evaluate the pictures themselves"
                )
            captions, repeated = repetitions(lines)
            found = found_in(done, lines, model.device)
            result = {
                **described(model, subject),
                "task": "zeroshot_retrieval",
                **scores(found, lines, config.seed),
                "captions": captions,
                "repeated_captions": repeated,
                **surroundings(model.device),
            }
            return result, with_ranks(lines, found)

        evaluation = Evaluation(
            config=config,
            request={
                "task": "zeroshot_retrieval",
                **asked(config, model, subject),
            },
            parts=subject.parts,
            work=lambda part: embed(subject.feed, model, part),
            conclude=conclude,
        )
        return evaluation.run(ranks)


def embed(feed: Feed, model: Clip, part: Part) -> DonePart:
    """The features of a part's pictures and captions, and whose they are."""
    lines: list[dict[str, Any]] = []
    pictures = [torch.empty(0)]
    for batch in feed.batches(part):
        for item, damage in batch.items:
            line = {"shard": part.name, "key": item.key, "captions": list(item.captions)}
            lines.append(line if damage is None else {**line, "damaged": damage.reason})
        pictures.append(batch.features.cpu())
    texts = [caption for line in lines for caption in line["captions"]]
    captions = [torch.empty(0)]
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        captions.append(model.embed_texts(texts[start : start + TEXTS_AT_ONCE]).cpu())
    arrays = {"pictures": torch.cat(pictures).numpy(), "captions": torch.cat(captions).numpy()}
    return DonePart(lines, arrays)


def found_in(done: list[DonePart], lines: list[dict[str, Any]], device: torch.device) -> Found:
    """Both searches over all parts together."""
    pictures, captions = (
        torch.from_numpy(np.concatenate([part.arrays[name] for part in done if part.arrays[name].size])).to(device)
        for name in ("pictures", "captions")
    )
    is_there = np.array(["damaged" not in line for line in lines])
    rows = np.where(is_there, np.cumsum(is_there) - 1, -1)
    owners = np.repeat(np.arange(len(lines)), [len(line["captions"]) for line in lines])
    return search(pictures, captions, rows, owners)


def scores(found: Found, lines: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Recall both ways, with intervals by drawing pictures anew, each with its captions."""
    counts = [len(line["captions"]) for line in lines]
    owners = np.repeat(np.arange(len(lines)), counts)
    metrics: dict[str, float] = {}
    bounds: dict[str, intervals.Interval] = {}
    for depth in DEPTHS:
        name = f"image_retrieval_recall@{depth}"
        right = np.bincount(owners[found.pictures < depth], minlength=len(lines))
        metrics[name] = float(right.sum() / len(owners))
        bounds[name] = intervals.share_of_parts(right.tolist(), counts, seed)
        name = f"text_retrieval_recall@{depth}"
        hits = int((found.captions < depth).sum())
        metrics[name], bounds[name] = hits / len(lines), intervals.share(hits, len(lines), seed)
    return {"metrics": metrics, "intervals": bounds}


def repetitions(lines: list[dict[str, Any]]) -> tuple[int, int]:
    """How many captions there are, and how many of them another picture has word by word."""
    owners = defaultdict(set)
    for number, line in enumerate(lines):
        for caption in line["captions"]:
            owners[caption].add(number)
    captions = [caption for line in lines for caption in line["captions"]]
    return len(captions), sum(len(owners[caption]) > 1 for caption in captions)


def with_ranks(lines: list[dict[str, Any]], found: Found) -> list[dict[str, Any]]:
    """For each picture, at which place its first caption was found, and at which it was by each caption; from 1.

    None is for what was not to be found, since the picture is damaged.
    """
    of_captions, of_pictures = (
        [None if place == NEVER else place + 1 for place in places.tolist()]
        for places in (found.captions, found.pictures)
    )
    told, start = [], 0
    for line, rank in zip(lines, of_captions, strict=True):
        end = start + len(line["captions"])
        told.append({**line, "text_rank": rank, "image_ranks": of_pictures[start:end]})
        start = end
    return told
