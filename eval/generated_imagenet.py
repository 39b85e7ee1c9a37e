"""A data set that a generator has been over: latents noised, and denoised under their class's prompt. Never decoded.

labelled latents ─▶ noise to a level ─▶ denoise ─▶ latents of the same key, with all that was done to each
a store, or pictures encoded on the way             a latent store, committed shard by shard as the encoder's are
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from encode_pipeline.config import EngineSettings, PositiveInt
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.lease import leased
from encode_pipeline.latents.spec import LatentSpec, Scale, canonical_json, digest
from encode_pipeline.latents.store import Store, Version

if TYPE_CHECKING:
    from encode_pipeline.work import ShardWork
    from eval.generator import Generator
    from eval.labelled_latents import Labels

USUAL = {"workflow": (2, 1.1, "text, watermark"), "literal": (1, 0.0, "")}
"""Steps, guidance and negative prompt of each reading: the authors' workflow, and SDXL-Turbo's own way."""


class GenerateConfig(EngineSettings):
    """A generated data set. The first block decides what the latents mean; the rest only how they are made."""

    actor_name: ClassVar[str] = "generator"

    data: str = Field(
        description="what to start from: a sealed latent store with class_name in its metadata, or pictures, which "
        "are encoded first: class folders, a data set of CLIP_benchmark, labelled tars"
    )
    out: str = Field(description="folder of the store to be made: a path, s3://…, gs://…")
    generator: str = Field(description="hub id or directory of an SDXL-family diffusers pipeline")
    noise: Literal["workflow", "literal"] = Field(
        "workflow",
        description="how the paper's noise level of 66% is read: `workflow` as the authors' ComfyUI workflow has it "
        "(from t=499.5), `literal` as 66% of the schedule (from t=659)",
    )
    steps: PositiveInt | None = Field(None, description="denoising steps; by default 2 for workflow, 1 for literal")
    guidance: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="by default 1.1 for workflow, 0 for literal; 1 and less is none",
    )
    negative: str | None = Field(
        None, description="the prompt to be led away from; by default `text, watermark` for workflow; needs guidance"
    )
    classes: Path | None = Field(
        None,
        description="folder with classnames.txt and zeroshot_classification_templates.txt; by default the pictures' "
        "own, or OpenCLIP's seven short templates. Chance says which template an item gets",
    )
    seed: int = Field(0, description="of the noise and the choice of templates")
    vae: str | None = Field(
        None, description="the VAE of the latents where that is not the generator's own, but has the same latent space"
    )
    scale: Scale = Field("raw", description="`raw` as the VAE's encoder gives it, `model` as the generator does")
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        "auto", description="what the generator computes in; auto is float16 on a GPU and float32 on a CPU"
    )
    version: str | None = Field(None, description="beginning of the fingerprint in `data`; by default the promoted one")
    view: int = Field(0, ge=0, description="which view of the samples in `data` to start from")
    image_size: PositiveInt = Field(512, description="side that pictures are encoded at")

    limit: PositiveInt | None = Field(None, description="only the first so many tars of `data`")
    batch_size: PositiveInt = Field(8, description="latents denoised at once on a GPU")
    cache: Path = Field(Path("runs/cache"), description="folder for pictures that are encoded on the way")

    @field_validator("data", "out")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return value if "://" in value else str(Path(value).expanduser().absolute())  # actors live in other folders

    @field_validator("generator", "vae")
    @classmethod
    def _absolute_folder(cls, value: str | None) -> str | None:
        path = Path(value or "").expanduser()
        return str(path.absolute()) if value and path.is_dir() else value  # else it is a hub id

    def open_work(self, fingerprint: str, cores: int | None = None) -> ShardWork:
        from eval.generate_shard import ShardGenerator, loaded

        return ShardGenerator(loaded(self), Store(self.out).version(fingerprint), self)


def generate_imagenet(config: GenerateConfig) -> dict[str, Any]:
    """Generates what is still missing. Running it again goes on where it stopped."""
    from encode_pipeline.run import do_shards
    from eval.generate_shard import ShardGenerator, loaded
    from eval.generator import load_generator
    from eval.labelled_latents import CLASSES, labelled_latents, rows_of
    from eval.stored import LACKING

    is_local = config.engine == "local"
    generator = loaded(config) if is_local else load_generator(config.generator)  # on Ray, GPUs are the actors'
    data, labels = labelled_latents(config, generator)
    rows = rows_of(data, config.view)[: config.limit]
    sources = [SourceShard(data.storage.url(row["path"]), row["size"], sha256=row["sha256"]) for row in rows]
    spec = spec_of(config, data, generator, labels)
    config = config.model_copy(update={"data": data.storage.url().removesuffix(f"/{data.fingerprint}")})
    version = Store(config.out).create(spec)
    version.storage.create(CLASSES, canonical_json(labels.to_dict(), indent=1))
    open_work = partial(ShardGenerator, generator, version, config) if is_local else None
    del generator
    with leased(data, "generate-imagenet", config.out):
        result = do_shards(sources, version, config, open_work)
        lacking = refusals(data, data.sealed_shards() if config.limit is None else map(shard_of, sources))
    done = version.done()
    made = [source.name for source in sources if source.name in done]
    items = sum(commit.encoded for commit in version.commits(made))
    rejected = refusals(version, made)
    if result["ok"] and config.limit is None and items:
        version.storage.create(LACKING, canonical_json(lacking, indent=1))  # before anyone can evaluate it
        version.seal()
    return {
        **result,
        "ok": result["ok"] and not rejected and not lacking,
        "items": items,
        "rejected_items": rejected,
        "not_in_data": lacking,
        "sealed": version.sealed,
        "levels": spec.recipe["generated"]["levels"],
        "not_comparable": spec.recipe["generated"]["not_comparable"],
    }


def spec_of(config: GenerateConfig, data: Version, generator: Generator, labels: Labels) -> LatentSpec:
    """What the generated latents mean: all that decides their bytes."""
    steps, guidance, negative = USUAL[config.noise]
    steps = config.steps or steps
    guidance = guidance if config.guidance is None else config.guidance
    negative = negative if config.negative is None else config.negative
    if negative and guidance <= 1:
        if config.negative:
            raise RequestError(f"negative={negative!r}: nothing is led away from it with guidance={guidance:g}")
        negative = ""
    made = {
        **generator.identity(),
        "noise": config.noise,
        "levels": [{"t": level.t, "sigma": level.sigma} for level in generator.schedule.levels(config.noise, steps)],
        "guidance": guidance,
        "negative": negative,
        "seed": config.seed,
        "from": data.fingerprint,
        "view": config.view,
        "names_sha256": digest(labels.names),
        "templates_sha256": digest(labels.templates),
    }
    if data.spec.dtype != "float16":
        made["from_dtype"] = data.spec.dtype
    return data.spec.model_copy(
        update={
            "scale": config.scale,
            "compute_dtype": config.dtype,
            "dtype": "float16",  # whatever the data is stored as: a benchmark is made once, and is small
            "views": 1,
            "recipe": {"generated": made},
            "seed": config.seed,
            "caption_field": None,
        }
    )


def shard_of(source: SourceShard) -> str:
    """The shard in `data` that a tar of it belongs to, wherever that store lies."""
    return source.uri.split("/")[-3]


def refusals(version: Version, shards: Iterable[str]) -> list[str]:
    """The samples of some shards that have no latent, and why."""
    return [
        f"{refused['key']}: {refused['reason']} {refused['detail']}".strip()
        for commit in version.commits(shards)
        for refused in version.rejected(commit)
    ]
