"""What a run is told: sources, store, VAE, views, and how fast to go."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from encode_pipeline.latents.command import RequestError, Settings
from encode_pipeline.latents.spec import Dtype, LatentSpec, Scale, VaeIdentity
from encode_pipeline.recipe import ViewRecipe, read_recipe
from encode_pipeline.sources import split_name

if TYPE_CHECKING:
    from encode_pipeline.work import ShardWork

PositiveInt = Annotated[int, Field(gt=0)]


class EngineSettings(Settings):
    """How an engine gets a run's work done. Subclasses say what is done with a shard."""

    actor_name: ClassVar[str] = "vae"
    """What actors are called in Ray's dashboard, with a version and a number."""

    engine: Literal["local", "ray"] = Field("local", description="this process, or actors on a Ray cluster")
    actors: PositiveInt | None = Field(
        None,
        description="Ray actors; by default as many as the cluster has GPUs for, now and later. "
        "On a cluster that grows when asked, say how many",
    )
    gpus_per_actor: float = Field(1.0, ge=0, description="share of a GPU that an actor holds; 0 runs on CPUs")
    gpu_hour_price: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="dollars for an hour of one GPU; a run then says what latents cost"
    )
    max_attempts: PositiveInt = Field(3, description="tries at a tar before it is given up on and reported")
    scratch: Path | None = Field(None, description="local folder for shards in the making; the system's by default")

    @field_validator("gpus_per_actor")
    @classmethod
    def _a_share_or_whole(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("must be a share of one GPU, or a whole number of them")
        return value

    @field_validator("scratch")
    @classmethod
    def _writable_scratch(cls, value: Path | None) -> Path | None:
        if value is not None and not (value.is_dir() and os.access(value, os.W_OK)):
            raise ValueError("no folder that can be written to")
        return None if value is None else value.absolute()

    @abstractmethod
    def open_work(self, fingerprint: str, cores: int | None = None) -> ShardWork:
        """Loads what the shards of a version are made with, in a process of so many cores. Actors call it."""


class EncodeConfig(EngineSettings):
    """A run of the encoder. The first block decides what the bytes mean; the rest only how they are made."""

    vae: str = Field(
        description="hub id or directory of a diffusers VAE, or of a pipeline that holds one in vae/; "
        "`pixels` for none: views averaged to the latent grid"
    )
    views: PositiveInt = Field(4, description="views a picture; view 0 is plain, the rest follow the recipe")
    recipe: ViewRecipe = Field(
        default_factory=ViewRecipe, description="`paper`, `open-clip`, a YAML file, or its keys in place"
    )
    image_size: PositiveInt = Field(512, description="side of the square picture that is encoded")
    scale: Scale = Field("raw", description="`raw` as the encoder gives it, `model` shifted and scaled")
    posterior: Literal["sample", "mean"] | None = Field(
        None, description="draw from the posterior, or take its mean; by default draw where the VAE has a spread"
    )
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        "auto", description="what the VAE computes in; auto is float16 on a GPU and float32 on a CPU"
    )
    latent_dtype: Dtype = Field("float16", description="of stored latents; int8 is half the bytes, and read as float16")
    seed: int = Field(0, description="of augmentation and posterior noise")

    source: tuple[str, ...] = Field(
        description="tars to encode: paths, folders, globs, {000..123} ranges, .txt or .list files with an address a "
        "line, .sha256 files as sha256sum writes them, URLs; one or a list, each as NAME=ADDRESS if its samples are to "
        "keep the name of their collection"
    )
    caption_field: str | None = Field(
        None,
        min_length=1,
        description="take captions from this field of the .json alone; by default the .txt, "
        "and where there is none, `caption` in the .json",
    )
    store: str = Field(description="folder of the latent store: a path, s3://…, gs://…")
    limit: PositiveInt | None = Field(None, description="encode only the first so many tars")

    batch_size: PositiveInt = Field(16, description="views encoded at once")
    kernels: Literal["auto", "fused", "compiled", "plain"] = Field(
        "auto",
        description="on a GPU: `fused` by this project, for any AutoencoderKL; `compiled` by torch; `plain` as "
        "diffusers does; auto is fused where it can be",
    )
    threads: PositiveInt | None = Field(
        None, description="threads that decode and augment, in each process; by default one a core, 8 at most"
    )

    @field_validator("source", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return tuple(_source_entries(value))

    @field_validator("source")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("names nothing to encode")
        return value

    @field_validator("recipe", mode="before")
    @classmethod
    def _recipe_by_name(cls, value: Any) -> Any:
        try:
            return read_recipe(value) if isinstance(value, str) else value
        except RequestError as error:
            raise ValueError(str(error)) from None

    @field_validator("store")
    @classmethod
    def _absolute_store(cls, value: str) -> str:
        return value if "://" in value else str(Path(value).expanduser().absolute())  # actors live in other folders

    @field_validator("vae")
    @classmethod
    def _absolute_vae(cls, value: str) -> str:
        path = Path(value).expanduser()
        return str(path.absolute()) if path.is_dir() else value  # else it is a hub id, or refused when it is loaded

    @field_validator("image_size")
    @classmethod
    def _eighths(cls, value: int) -> int:
        if value % 8:
            raise ValueError("must be a multiple of 8")
        return value

    def open_work(self, fingerprint: str, cores: int | None = None) -> ShardWork:
        # Seconds of imports, and more than a driver of weeks should hold.
        from encode_pipeline.encode_shard import ShardEncoder
        from encode_pipeline.latents.store import Store
        from encode_pipeline.vae import load_vae

        version = Store(self.store).version(fingerprint)
        return ShardEncoder(load_vae(self.vae), version, self.model_copy(update={"threads": self.threads or cores}))

    @property
    def decode_threads(self) -> int:
        # Beyond eight they wait for each other's Python: on 16 cores 730 views a second with 8 threads, 636 with 16.
        return self.threads or min(8, usable_cores())

    def spec(
        self, vae: VaeIdentity, latent_shape: tuple[int, int, int], posterior: Literal["sample", "mean"]
    ) -> LatentSpec:
        """What the latents of this run mean; its fingerprint names the version they go to."""
        return LatentSpec(
            vae=vae,
            scale=self.scale,
            posterior=posterior,
            compute_dtype=self.dtype,
            dtype=self.latent_dtype,
            shape=latent_shape,
            image_size=self.image_size,
            views=self.views,
            recipe=self.recipe.model_dump(mode="json"),
            seed=self.seed,
            caption_field=self.caption_field,
        )


def usable_cores() -> int:
    """The processor cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _source_entries(value: Any) -> Iterator[Any]:
    """The sources of a run, each as one address or NAME=ADDRESS, whichever way they were written down."""
    if isinstance(value, Mapping):
        for name, addresses in value.items():
            for address in addresses if isinstance(addresses, (list, tuple)) else [addresses]:
                yield _named_source(str(name), address)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _source_entries(item)
    elif isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        raise ValueError("not a YAML list; put each address in it that holds braces into quotes")
    else:
        yield value


def _named_source(name: str, address: Any) -> str:
    if not isinstance(address, str) or not address:
        raise ValueError(f"{name}: names no address")
    entry = f"{name}={address}"
    if split_name(entry) != (name, address):
        raise ValueError(f"{name}: the name of a collection is made of letters, digits, - and _")
    return entry


class StoreRequest(Settings):
    """A verb that acts on a store."""

    store: str = Field(description="folder of the latent store: a path, s3://…, gs://…")
    version: str | None = Field(None, description="beginning of a fingerprint; by default the promoted or only version")


class VerifyRequest(StoreRequest):
    deep: bool = Field(False, description="also look into every sample that is read: keys, latents, captions, records")
    sample: PositiveInt | None = Field(
        None, description="read so many shards only, drawn at random; of the others, commits and sizes of files"
    )
    seed: int = Field(0, description="of the random draw")
    engine: Literal["local", "ray"] = Field("local", description="this process, or tasks on a Ray cluster")


class PreviewRequest(StoreRequest):
    n: int = Field(16, ge=1, le=100, description="samples, drawn at random")
    keys: str | None = Field(None, description="show these samples instead; commas between their keys")
    view: int | None = Field(None, ge=0, description="show this view only; by default all")
    seed: int = Field(0, description="of the random draw")
    vae: str | None = Field(None, description="where the VAE is now; by default where it was when it encoded")
    out: Path = Field(Path("preview"), description="folder for index.html and contact-sheet.png")

    @field_validator("keys")
    @classmethod
    def _at_least_one(cls, value: str | None) -> str | None:
        if value is not None and not all(key.strip() for key in value.split(",")):
            raise ValueError("names no sample")
        return value

    @property
    def named(self) -> list[str]:
        """The keys asked for, each once."""
        return list(dict.fromkeys(key.strip() for key in (self.keys or "").split(",")))


class StatusRequest(StoreRequest):
    watch: bool = Field(False, description="look again and again, until nothing is left to do")
    every: float = Field(5.0, gt=0, description="seconds between two looks")


class SealRequest(StoreRequest):
    accept_failed: bool = Field(False, description="leave out the shards that were given up on")
    accept_missing: bool = Field(False, description="leave out every planned shard without a commit")


class GcRequest(Settings):
    store: str = Field(description="folder of the latent store: a path, s3://…, gs://…")
    keep: int | None = Field(None, ge=0, description="also free versions once promoted, but for the last so many")
    refused: bool = Field(False, description="also free versions that failed a check and were not promoted since")
    release: str | None = Field(None, min_length=1, description="take away the lease of this holder, who is gone")
    dry_run: bool = Field(False, description="only say what would be freed")


class ReplayRequest(StoreRequest):
    key: str = Field(description="key of the sample")
    shard: str | None = Field(None, description="name of its shard; by default all are looked through")
    view: int | None = Field(None, ge=0, description="only this view; by default all")
    out: Path = Field(Path("replay"), description="folder for the views, as viewN.png")
    vae: str | None = Field(None, description="where the VAE is now; by default where the store has it from")
