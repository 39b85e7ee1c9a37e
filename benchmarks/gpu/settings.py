"""What the GPU benchmark is told. The defaults are the sizes of the paper; tests take tiny ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from encode_pipeline.config import PositiveInt
from encode_pipeline.latents.command import Settings

Dtype = Literal["float16", "bfloat16", "float32"]
SDXL_VAE = (128, 256, 512, 512)


class GpuConfig(Settings):
    """The GPU benchmark."""

    rounds: PositiveInt = Field(3, description="rounds, in each of which every way has its turn")
    out: Path = Field(Path("runs/bench/gpu.json"), description="the record; its table and picture go beside it")
    minutes: float = Field(
        7.5, ge=0, description="for all that is measured, compiling included; libraries take half a minute more"
    )
    device: Literal["cuda", "cpu"] = Field("cuda", description="`cpu` tries the code, and its numbers mean nothing")
    compile: bool = Field(True, description="also the ways that torch compiles, most of a minute for each")

    dtypes: Annotated[tuple[Dtype, ...], Field(min_length=1)] = Field(
        ("float16", "bfloat16"), description="what the VAE computes in; the pipeline takes the first"
    )
    vae: tuple[PositiveInt, ...] = Field(SDXL_VAE, description="channels of the VAE's blocks")
    vae_layers: PositiveInt = Field(2, description="residual blocks at each resolution of the VAE")
    image_size: PositiveInt = Field(512, description="side of a view")
    batch_size: PositiveInt = Field(16, description="views encoded at once")
    other_batch_sizes: tuple[PositiveInt, ...] = Field((4, 8, 32), description="the rest of the sweep")
    views_a_turn: PositiveInt = Field(128, description="views that the encoder alone gets in a turn")
    matmul: PositiveInt = Field(8192, description="side of the matrices that the ceiling is measured with")

    tars: PositiveInt = Field(16, description="tars that the pipelines encode; a DataLoader wants one a worker")
    pictures: PositiveInt = Field(24, description="pictures a tar")
    side: PositiveInt = Field(768, description="side of those pictures, JPEGs")
    views: PositiveInt = Field(4, description="views a picture")

    models: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("latent-vit-b-8", "latent-vit-b-4-plus"), description="recipes to train"
    )
    train_batch: PositiveInt = Field(1024, description="samples in a step; halved until a step fits into memory")
    train_steps: PositiveInt = Field(2, description="steps in a turn")
    peak_tflops: float | None = Field(None, gt=0, description="what the GPU can do; by default known from its name")
    pairs: tuple[PositiveInt, ...] = Field((16_384, 32_768, 81_920), description="batches for the loss alone")
    embedding: PositiveInt = Field(512, description="width of what the loss compares")

    unet: Literal["sdxl", "tiny"] = Field("sdxl", description="size of the generator that is steered")
    latent_reward: str = Field("latent-vit-b-8", description="recipe of the reward that reads latents")
    pixel_reward: str = Field("ViT-B-32", description="OpenCLIP's model that reads decoded pixels")
    steered: tuple[PositiveInt, ...] = Field((1, 4), description="pictures that are steered side by side")
    iterations: PositiveInt = Field(6, description="of a picture in a turn; the paper's are 50")
