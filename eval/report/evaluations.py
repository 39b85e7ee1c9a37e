"""Finished zero-shot classifications and retrievals, read back: what each found, and said about every picture."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.spec import canonical_json
from eval.report.runs import PREDICTIONS, RESULT, Read, Run, damaged, read_config, read_lines, read_result, told_apart

CLASSIFICATION, RETRIEVAL = "zeroshot_classification", "zeroshot_retrieval"
VERBS = {CLASSIFICATION: "zero-shot", RETRIEVAL: "retrieval"}
"""The verb of each task."""
RECALLS = tuple(f"{what}_retrieval_recall@{rank}" for what in ("image", "text") for rank in (1, 5, 10))
ROUNDING = 1e-6


class DataFacts(Read):
    """Which pictures a model was asked about."""

    kind: Literal["pictures", "store"]
    layout: str | None = None
    identity: str | None = None
    fingerprint: str | None = None
    view: int = 0
    vae: dict[str, Any] | None = None
    generated: dict[str, Any] | None = None


class Result(Read):
    """A result.json."""

    dataset: str
    model: str
    pretrained: str | None = None
    task: Literal["zeroshot_classification", "zeroshot_retrieval"]
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    n: int = Field(gt=0)
    classes: int | None = None
    captions: int = 0
    templates: int | None = None
    damaged: int = 0
    way: Literal["pixels", "encoded", "direct", "decoded"]
    data: DataFacts
    provenance: dict[str, Any]
    not_comparable: list[str]
    seed: int | None = None
    names_sha256: str | None = None
    templates_sha256: str | None = None
    versions: dict[str, Any] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True)
class Answers:
    """What a model said about each picture, picture by picture."""

    places: list[tuple[str, str]]
    """Shard and key."""
    labels: list[str]
    said: list[str | None]
    """The first guess; None for a picture that could not be read, which counts as wrong."""
    first: npt.NDArray[np.bool_]
    """Whether the first guess is right."""
    five: npt.NDArray[np.bool_]
    """Whether one of the first five is."""
    order: npt.NDArray[np.int64]
    """The places of the pictures sorted by key, so that answers of two models can be laid side by side."""
    pictures_sha256: str
    """Of all keys and labels: equal for two runs on pictures of the same names."""
    shards_sha256: str


@dataclass(frozen=True, kw_only=True)
class Evaluation(Run):
    """A finished evaluation of a model on pictures."""

    result: Result
    answers: Answers | None
    """None for retrieval."""
    captions_sha256: str | None = None
    """Of all keys and captions, for retrieval alone: equal for two runs on the same pictures and captions."""

    @property
    def verb(self) -> str:
        return VERBS[self.result.task]

    @property
    def way(self) -> str:
        return self.result.way

    @property
    def subject(self) -> str:
        data = self.result.data
        named = data.fingerprint or (data.identity or "")[:12]
        return f"{self.result.dataset} ({named})" if named else self.result.dataset

    @property
    def model(self) -> str:
        """Its name, as one asks for it: a recipe, or OpenCLIP's MODEL/TAG."""
        model, pretrained = self.result.model, self.result.pretrained
        is_address = pretrained in (None, self.result.provenance.get("address"))
        return model if is_address else f"{model}/{pretrained}"

    @property
    def reasons(self) -> list[str]:
        """Why its numbers cannot stand beside the paper's: what is said of the model, the data and their generator."""
        made = self.result.data.generated or {}
        return list(dict.fromkeys([*self.result.not_comparable, *made.get("not_comparable", [])]))

    @property
    def weights(self) -> str:
        return str(self.result.provenance["weights_sha256"])

    @property
    def identity(self) -> tuple[str, str]:
        """Weights, and the model that they are in: the same ones may be read as ViT-B-32 or as ViT-B-32-quickgelu."""
        return self.weights, self.model

    @property
    def reads_latents(self) -> bool:
        """Whether the model is one of latents; one of pixels in the format of latents is not."""
        return isinstance(self.result.provenance.get("latents"), dict) and not self.reads_pixels_as_latents

    @property
    def reads_pixels_as_latents(self) -> bool:
        latents = self.result.provenance.get("latents")
        return isinstance(latents, dict) and latents.get("vae", {}).get("name") == "pixels"


def names_of(runs: Sequence[Evaluation]) -> dict[tuple[str, str], str]:
    """A name for each model, unlike that of any other."""
    names = {run.identity: run.model + (" on pixels" if run.reads_pixels_as_latents else "") for run in runs}
    steps = {run.identity: run.result.provenance.get("step") for run in runs}
    return told_apart(names, steps, {identity: identity[0] for identity in names})


def read(folder: Path, written: dict[str, Any]) -> Evaluation:
    """The evaluation in a folder; one that is damaged is refused."""
    result = read_result(folder, Result, written)
    if not isinstance(result.provenance.get("weights_sha256"), str):
        raise damaged(folder, "provenance does not say weights_sha256")
    is_retrieval = result.task == RETRIEVAL
    wanted = RECALLS if is_retrieval else ("acc1", "acc5")
    if missing := [name for name in wanted if name not in result.metrics]:
        raise damaged(folder, f"no {missing[0]} in its metrics")
    fields = {"captions": list} if is_retrieval else {"label": str, "top5": list}
    lines = _predictions(folder / PREDICTIONS, result, {"shard": str, "key": str, **fields})
    about: dict[str, Any] = {"folder": folder, "written": written, "config": read_config(folder), "result": result}
    if is_retrieval:
        told = sorted(canonical_json([line["key"], line["captions"]]).decode() for line in lines)
        return Evaluation(**about, answers=None, captions_sha256=_sha256(iter(told)))
    return Evaluation(**about, answers=read_answers(folder / PREDICTIONS, lines, result))


def read_answers(path: Path, lines: Sequence[Mapping[str, Any]], result: Result) -> Answers:
    """What the lines of a predictions.jsonl say; they must come to the accuracy in its result."""
    places = [(intern(line["shard"]), line["key"]) for line in lines]
    labels = [intern(line["label"]) for line in lines]
    said = [intern(line["top5"][0]) if line["top5"] else None for line in lines]
    five = [line["label"] in line["top5"] for line in lines]
    first = np.array([label == guess for label, guess in zip(labels, said, strict=True)])
    for metric, hits in (("acc1", first), ("acc5", np.array(five))):
        if abs(hits.mean() - result.metrics[metric]) > ROUNDING:
            found, told = f"{hits.mean():.4f}", f"{result.metrics[metric]:.4f}"
            raise CheckFailed(f"{path}: its lines give {metric} {found}, but {RESULT} says {told}")
    return Answers(places, labels, said, first, np.array(five), *_named(places, labels))


def _predictions(path: Path, result: Result, fields: dict[str, type]) -> list[dict[str, Any]]:
    """The lines of a predictions.jsonl: one for each picture of the result."""
    lines = read_lines(path, fields, result.n)
    [((shard, key), count)] = Counter((line["shard"], line["key"]) for line in lines).most_common(1)
    if count > 1:
        raise CheckFailed(f"{path}: sample {key} of shard {shard} stands there {count} times")
    return lines


def _named(places: Sequence[tuple[str, str]], labels: Sequence[str]) -> tuple[npt.NDArray[np.int64], str, str]:
    """An order of the pictures by name, and what they are called, without and with their shards.

    Where keys alone do not tell pictures apart, shards belong to the name.
    """
    keys = [key for _, key in places]
    names: Sequence[tuple[str, ...]] = [(key,) for key in keys] if len(set(keys)) == len(keys) else places
    order = np.array(sorted(range(len(places)), key=names.__getitem__), np.int64)
    by_key = _sha256("\0".join((*names[at], labels[at])) for at in order)
    return order, by_key, _sha256("\0".join((*places[at], labels[at])) for at in order)


def _sha256(lines: Iterator[str]) -> str:
    found = hashlib.sha256()
    for line in lines:
        found.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return found.hexdigest()
