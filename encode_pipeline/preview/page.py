"""The HTML page: one file that fetches nothing."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from encode_pipeline.latents.store import Version
from encode_pipeline.preview.channels import MEAN_SHIFT, STD_FACTOR, Channel, Expectation
from encode_pipeline.preview.histogram import histogram, top_density
from encode_pipeline.preview.show import ShownSample
from encode_pipeline.records import Pixels

TEMPLATE = "preview.html.j2"
JPEG_QUALITY = 84
CAPTION_LENGTH = 600


@dataclass(frozen=True)
class Preview:
    """All that page and sheet show."""

    version: Version
    state: str
    samples: list[ShownSample]
    shards: list[str]
    """Those that the samples and the further latents were taken from."""
    map_how: str
    """What the colours of the latents are, in a sentence."""
    latents: int
    """How many were measured."""
    channels: list[Channel]
    expected: Expectation | str
    warnings: list[str]
    notes: list[str]
    """What is missing, and why."""

    def to_dict(self) -> dict[str, Any]:
        """What scripts see."""
        return {
            "fingerprint": self.version.fingerprint,
            "state": self.state,
            "samples": [
                {"shard": sample.shard, "key": sample.key, "psnr": [view.psnr for view in sample.views]}
                for sample in self.samples
            ],
            "latents": self.latents,
            "channels": [channel.to_dict() for channel in self.channels],
            "expected": self.expected if isinstance(self.expected, str) else None,
            "warnings": self.warnings,
            "notes": self.notes,
        }


def page_environment(*folders: Path) -> Environment:
    """Templates from these folders and from this one, with everything that strangers wrote escaped."""
    environment = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({"count": "{:,}".format, "jpeg": jpeg, "png": png, "clip": clip})
    return environment


def write_page(path: Path, found: Preview) -> None:
    top = top_density(found.channels)
    html = (
        page_environment()
        .get_template(TEMPLATE)
        .render(
            found=found,
            facts=_facts(found),
            charts=[histogram(number, channel, top) for number, channel in enumerate(found.channels)],
            std_factor=STD_FACTOR,
            mean_shift=MEAN_SHIFT,
        )
    )
    path.write_text(html, encoding="utf-8", errors="replace")  # a path on disk need not be text


def _facts(found: Preview) -> dict[str, str]:
    """What the spec says, in the order in which one asks."""
    spec = found.version.spec
    return {
        "VAE": spec.vae.name,
        "VAE sha256, over its tensors": spec.vae.weights_sha256,
        "scaling and shift factor": f"{spec.vae.scaling_factor:g}, {spec.vae.shift_factor:g}",
        "stored": f"{spec.scale} latents of {'×'.join(map(str, spec.shape))} {spec.dtype}, posterior {spec.posterior}",
        "pictures": f"{spec.views} views of {spec.image_size}×{spec.image_size}, seed {spec.seed}",
        "shards": ", ".join(found.shards),
    }


def jpeg(pixels: Pixels) -> str:
    """A picture as a data URI."""
    return _uri(pixels, "JPEG", quality=JPEG_QUALITY)


def png(pixels: Pixels) -> str:
    """A small picture as a data URI, every pixel kept."""
    return _uri(pixels, "PNG", optimize=True)


def clip(text: str, length: int = CAPTION_LENGTH) -> str:
    """Text on one line, cut where it is too long to be shown."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def _uri(pixels: Pixels, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
