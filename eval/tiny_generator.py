"""The parts of a tiny SDXL pipeline: the right shape everywhere, random weights, and nothing from the network."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from encode_pipeline.latents.command import Settings

WIDTH = 32
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "projection_dim": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "vocab_size": 49408,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
UNET: dict[str, Any] = {
    "sample_size": 64,
    # Four levels, so that a few steps on two cores are enough to learn a small world; attention only where it is cheap.
    "block_out_channels": (24, 48, 96, 96),
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 4,
    "use_linear_projection": True,
    "cross_attention_dim": 2 * WIDTH,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}
"""SDXL-Turbo's."""
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "latent_channels": 4,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
    "scaling_factor": 0.13025,
}


class TinyGeneratorConfig(Settings):
    """A tiny SDXL pipeline to try commands with."""

    out: Path = Field(description="folder for the pipeline, which must not be there yet")
    vae: Path | None = Field(None, description="directory of a diffusers VAE that is copied into it; by default random")
    seed: int = Field(0, description="of its random weights")


def tiny_generator(config: TinyGeneratorConfig) -> Mapping[str, Any]:
    """Builds the pipeline and loads it again."""
    from eval.generator import build_tiny_pipeline, load_generator

    build_tiny_pipeline(config.out, config.seed, config.vae)
    return {"out": str(config.out.absolute()), **load_generator(str(config.out.absolute())).identity()}


def clip_tokenizer(pad: str) -> Any:
    """CLIP's tokenizer as transformers has it, from the file that OpenCLIP ships. SDXL pads its second with `!`."""
    import open_clip
    from transformers import CLIPTokenizer

    packed = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(packed.read_bytes()).decode().split("\n")
    merges: Any = [tuple(line.split()) for line in lines[1:48895]]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, pad_token=pad)
