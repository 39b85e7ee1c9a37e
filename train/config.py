"""What a training run is told. A model's recipe fills in whatever the user does not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from encode_pipeline.latents.command import RequestError, Settings, build, read_yaml

RECIPES = Path(__file__).parent / "recipes"
PositiveInt = Annotated[int, Field(gt=0)]
PIECE_ROWS = 512
"""Of a batch, through the towers at once."""


class Architecture(Settings):
    """An OpenCLIP model by its config, without what the latents decide: channels and grid."""

    embed_dim: PositiveInt
    vision_cfg: dict[str, Any]
    text_cfg: dict[str, Any]
    quick_gelu: bool = False
    custom_text: bool = False
    init_logit_scale: float | None = None
    init_logit_bias: float | None = None
    nonscalar_logit_scale: bool = False

    @field_validator("text_cfg")
    @classmethod
    def _room_for_words(cls, value: dict[str, Any]) -> dict[str, Any]:
        length = value.get("context_length", 77)
        if not isinstance(length, int) or length < 3:
            raise ValueError(f"context_length: {length}: has to be 3 at least, for a word, its begin and its end")
        return value

    @field_validator("vision_cfg")
    @classmethod
    def _channels_from_latents(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "in_chans" in value:
            raise ValueError("in_chans: comes from the latents, not from here")
        return value

    def untrained(self) -> Architecture:
        """The same without weights from elsewhere, for a model that gets its own, or none."""
        vision = {key: value for key, value in self.vision_cfg.items() if key != "timm_model_pretrained"}
        text = {**self.text_cfg, **({"hf_model_pretrained": False} if "hf_model_name" in self.text_cfg else {})}
        return self.model_copy(update={"vision_cfg": vision, "text_cfg": text})


class ModelChoice(Settings):
    """Which model, and the shape of the latents it reads."""

    model: str = Field(description="a recipe's name, a YAML file with an `architecture`, or an OpenCLIP JSON config")
    channels: PositiveInt = Field(4, description="latent channels")
    grid: PositiveInt = Field(64, description="side of the latent")
    loss: Literal["clip", "siglip"] = "clip"


class ExportConfig(Settings):
    """A trained model as a folder for others."""

    checkpoint: Path = Field(description="a checkpoint, or a training run's folder")
    out: Path = Field(description="the folder to make")
    form: Literal["open-clip", "native"] = Field(
        "open-clip", description="`open-clip`: loads with open_clip alone; `native`: a checkpoint of this project"
    )


class ImportConfig(Settings):
    """A checkpoint of the Latent-CLIP authors, or of OpenCLIP, as one of this project."""

    checkpoint: Path = Field(description="their file: epoch_34.pt, or .safetensors")
    model: str = Field(description="the model that its weights are of: a recipe's name, a YAML or a JSON file")
    data: str = Field(description="which latents it reads: a latent store, or a spec.json")
    out: Path = Field(description="the folder to make")
    version: str | None = Field(None, description="beginning of a fingerprint; by default the promoted or only version")


class CurvesConfig(Settings):
    """Which runs to draw, and where."""

    runs: str | list[str] = Field(description="the folder of a training run, or of several")
    out: Path = Field(Path("curves.png"), description="the picture, a PNG")


class Optimisation(Settings):
    """How weights are moved: what a run from scratch and a fine-tuning have in common."""

    lr: float = Field(gt=0, description="peak learning rate")
    warmup: int = Field(0, ge=0, description="steps of linear warm-up, before the cosine to zero")
    weight_decay: float = Field(0.2, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1)
    eps: float = Field(1e-6, gt=0)
    clip_grad: float | None = Field(1.0, gt=0, description="largest gradient norm; null for none")
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    seed: int = Field(0, ge=0, lt=1 << 63)
    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt = Field(100, description="steps between checkpoints")
    keep_checkpoints: PositiveInt = 2


class TrainConfig(Optimisation):
    """A training run."""

    model: str = Field(description="a recipe's name, a YAML file with an `architecture`, or an OpenCLIP JSON config")
    data: str | list[str] | dict[str, float] = Field(
        description="a latent store with a sealed version, or several, or a mapping of stores to weights"
    )
    out: Path = Field(description="folder for checkpoints and metrics; for all machines the same one")
    version: str | None = Field(None, description="beginning of a fingerprint; by default the promoted or only version")
    steps: PositiveInt | None = Field(None, description="optimiser steps; or say samples")
    samples: PositiveInt | None = Field(None, description="samples to see; or say steps")
    batch_size: PositiveInt = Field(description="samples a step, of all GPUs together")
    accum: PositiveInt | None = Field(
        None, description=f"pieces that a GPU's share goes in, exactly; by default of {PIECE_ROWS} samples at most"
    )
    loss: Literal["clip", "siglip"] = "clip"
    repeated_captions: Literal["hard", "soft"] = Field(
        "hard", description="`soft` counts every picture of an equal caption in the batch as right"
    )
    text_tower: str | None = Field(
        None, description="where the text tower starts: OpenCLIP's MODEL/TAG or MODEL/FILE; by default at random"
    )
    grad_checkpointing: bool = Field(False, description="forget activations and compute them again: less memory")
    compile: bool = Field(False, description="torch.compile the towers")
    views: Literal["rotate", "mixed"] = Field(
        "rotate", description="epoch e reads view e mod N; `mixed`: an epoch reads all views of all samples"
    )
    mix: PositiveInt = Field(
        64, description="shards whose samples are mixed; of a remote store the cache holds twice as many"
    )
    damaged: Literal["stop", "skip"] = Field("stop", description="what to do about a damaged shard; skips are counted")
    workers: int = Field(2, ge=0, description="processes that fetch, check and tokenise shards ahead; 0: in this one")
    cache: Path | None = Field(None, description="folder for copies of remote shards, and tokens; by default in `out`")
    cache_gb: float = Field(
        100, gt=0, allow_inf_nan=False, description="the most that the cache may hold, shared by the GPUs of a machine"
    )
    zero_shot: str | None = Field(None, description="a labelled latent store to classify now and then")
    classes: Path | None = Field(None, description="folder with class names and templates, as for `eval zero-shot`")
    zero_shot_every: PositiveInt = Field(1000, description="steps between classifications")
    tensorboard: bool = Field(False, description="also write TensorBoard's files, in `out`")
    wandb: str | None = Field(None, description="also log to this project of Weights & Biases")
    peak_tflops: float | None = Field(None, gt=0, description="what one GPU can do; by default known from its name")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_recipe(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "model" not in values:
            return values
        recipe = dict(_section(str(values["model"]), "settings"))
        if values.get("steps") is not None or values.get("samples") is not None:
            recipe.pop("steps", None), recipe.pop("samples", None)
        return {**recipe, **values}

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.samples is None):
            raise ValueError("say steps or samples, one of them")
        if self.classes is not None and self.zero_shot is None:
            raise ValueError("classes: of which pictures? say zero_shot=STORE too")
        return self

    def pieces(self, processes: int) -> int:
        """In how many pieces each process computes its share of a batch."""
        share, rest = divmod(self.batch_size, processes)
        if rest:
            raise RequestError(f"batch_size={self.batch_size}: not a multiple of {processes} GPUs")
        if self.accum is None:
            count = next(count for count in range(-(-share // PIECE_ROWS), share + 1) if share % count == 0)
            if count > 1 and share // count < PIECE_ROWS // 8:
                raise RequestError(f"batch_size={self.batch_size}: {share} samples a GPU divide badly; say accum=")
            return count
        if share % self.accum:
            raise RequestError(f"accum={self.accum}: does not divide the {share} samples of each GPU")
        return self.accum

    @property
    def total_steps(self) -> int:
        return self.steps if self.steps is not None else -(-(self.samples or 0) // self.batch_size)


class PickScoreConfig(Optimisation):
    """A fine-tuning on preference pairs. The defaults are PickScore's."""

    checkpoint: Path = Field(description="the Latent-CLIP to begin with: a checkpoint, or a training run's folder")
    data: str = Field(description="a latent store of preference pairs to learn from")
    validation: str = Field(description="one of held-out pairs, for the accuracy on the way and the best step")
    test: str | None = Field(None, description="one of further pairs, looked at once, at the end, at the best step")
    out: Path = Field(description="folder for checkpoints and metrics")
    steps: PositiveInt = Field(4000, description="optimiser steps")
    batch_size: PositiveInt = Field(128, description="pairs a step")
    lr: float = Field(3e-6, gt=0, description="peak learning rate")
    warmup: int = Field(500, ge=0, description="steps of linear warm-up, before the straight line to zero")
    weight_decay: float = Field(0.3, ge=0)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    checkpoint_every: PositiveInt = Field(
        100, description="steps between checkpoints, each with a look at `validation`"
    )


def read_recipe(model: str) -> dict[str, Any]:
    """The `architecture` and `settings` of a named recipe or of a user's file."""
    if model.endswith(".json"):
        return {"architecture": _read_open_clip_json(Path(model))}
    path = Path(model) if model.endswith((".yaml", ".yml")) else RECIPES / f"{model}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise RequestError(f"model={model}: no such recipe; there are {known}, or give a YAML or OpenCLIP JSON file")
    recipe = read_yaml(path)
    if unknown := set(recipe) - {"architecture", "settings"}:
        raise RequestError(f"{path}: unknown key {sorted(unknown)[0]!r}; valid: architecture, settings")
    return recipe


def architecture_of(model: str) -> Architecture:
    """The architecture that a recipe describes."""
    try:
        return build(Architecture, _section(model, "architecture"))
    except RequestError as error:
        raise RequestError(str(error) if str(error).startswith("model=") else f"model={model}: {error}") from None


def _read_open_clip_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{path}: no such model config") from None
    except ValueError as error:
        raise RequestError(f"{path}: not JSON: {error}") from None
    if isinstance(config, dict):
        config = config.get("model_cfg", config)  # as in an open_clip_config.json
    if not isinstance(config, dict):
        raise RequestError(f"{path}: not an OpenCLIP config: expected keys and values")
    if "multimodal_cfg" in config:
        raise RequestError(f"{path}: multimodal_cfg: a CoCa, which writes captions; this trainer has none")
    return config


def _section(model: str, name: str) -> dict[str, Any]:
    section = read_recipe(model).get(name, {})
    if not isinstance(section, dict):
        raise RequestError(f"model={model}: `{name}` holds no keys and values")
    return section
