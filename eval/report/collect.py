"""Finished evaluations, read back: what each found, and what it said about every picture."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from sys import intern
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from encode_pipeline.latents.command import CheckFailed, RequestError, Settings, build, read_yaml
from encode_pipeline.latents.spec import canonical_json

CLASSIFICATION, RETRIEVAL = "zeroshot_classification", "zeroshot_retrieval"
RESULT, PREDICTIONS, CONFIG, REQUEST = "result.json", "predictions.jsonl", "config.yaml", "request.json"
RECALLS = tuple(f"{what}_retrieval_recall@{rank}" for what in ("image", "text") for rank in (1, 5, 10))
ROUNDING = 1e-6


class Read(Settings):
    """What is read back may hold more than the report needs."""

    model_config = ConfigDict(extra="ignore")


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


@dataclass(frozen=True)
class Run:
    """A finished evaluation."""

    folder: Path
    result: Result
    written: dict[str, Any]
    """result.json as it stands."""
    config: dict[str, Any]
    """What the run was told; empty if it left no config.yaml."""
    answers: Answers | None
    """None for retrieval."""
    captions_sha256: str | None = None
    """Of all keys and captions, for retrieval alone: equal for two runs on the same pictures and captions."""
    name: str = ""
    """The model's, unlike that of any other model in the report."""

    @property
    def verb(self) -> str:
        return "zero-shot" if self.result.task == CLASSIFICATION else "retrieval"

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


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The evaluations in these folders, each of them once."""
    runs = [read_run(folder) for folder in {folder.resolve(): folder for folder in folders}.values()]
    names = {run.identity: run.model + (" on pixels" if run.reads_pixels_as_latents else "") for run in runs}
    steps = {run.identity: run.result.provenance.get("step") for run in runs}
    for name in [name for name, count in Counter(names.values()).items() if count > 1]:
        twins = [twin for twin in names if names[twin] == name]
        told_by_step = len({steps[twin] for twin in twins} - {None}) == len(twins)
        names |= {twin: f"{name}, {f'step {steps[twin]}' if told_by_step else twin[0][:8]}" for twin in twins}
    return [replace(run, name=names[run.identity]) for run in runs]


def read_run(folder: Path) -> Run:
    """The evaluation in a folder; one that is unfinished or damaged is refused."""
    written = _result(folder)
    try:
        result = build(Result, written)
    except RequestError as error:
        raise CheckFailed(f"{folder / RESULT}: damaged: {error}") from None
    if not isinstance(result.provenance.get("weights_sha256"), str):
        raise CheckFailed(f"{folder / RESULT}: damaged: provenance does not say weights_sha256")
    is_retrieval = result.task == RETRIEVAL
    wanted = RECALLS if is_retrieval else ("acc1", "acc5")
    if missing := [name for name in wanted if name not in result.metrics]:
        raise CheckFailed(f"{folder / RESULT}: damaged: no {missing[0]} in its metrics")
    fields = {"captions": list} if is_retrieval else {"label": str, "top5": list}
    lines = _predictions(folder / PREDICTIONS, result, {"shard": str, "key": str, **fields})
    config = read_yaml(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if is_retrieval:
        told = sorted(canonical_json([line["key"], line["captions"]]).decode() for line in lines)
        return Run(folder, result, written, config, None, _sha256(iter(told)))
    return Run(folder, result, written, config, read_answers(folder / PREDICTIONS, lines, result))


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


def _predictions(path: Path, result: Result, fields: Mapping[str, type]) -> list[dict[str, Any]]:
    """The lines of a predictions.jsonl: one for each picture of the result."""
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(_lines(path), 1):
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict) or not all(isinstance(values.get(key), fields[key]) for key in fields):
            raise CheckFailed(f"{path}: line {number}: not a prediction")
        lines.append(values)
    if len(lines) != result.n:
        raise CheckFailed(f"{path}: {len(lines)} lines, but {RESULT} says n={result.n}")
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


def _result(folder: Path) -> dict[str, Any]:
    path = folder / RESULT
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such folder")
    if not path.is_file():
        if not (folder / REQUEST).is_file():
            raise RequestError(f"{folder}: no {RESULT} and no {REQUEST}: not the folder of an evaluation")
        verb = "retrieval" if RETRIEVAL in (folder / REQUEST).read_text(errors="replace") else "zero-shot"
        again = f"go on with `python -m eval {verb} checkpoint=… data=… out={folder}`, as it was begun"
        raise CheckFailed(f"{folder}: not finished: no {RESULT}; {again}")
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        written = None
    if not isinstance(written, dict):
        raise CheckFailed(f"{path}: damaged: not a JSON object")
    return written


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise CheckFailed(f"{path}: no such file")
    with path.open(encoding="utf-8") as file:
        try:
            yield from file
        except UnicodeDecodeError:
            raise CheckFailed(f"{path}: damaged: not UTF-8") from None
