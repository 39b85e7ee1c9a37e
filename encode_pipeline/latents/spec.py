"""What the bytes of a latent store mean."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Literal, TypeVar

from pydantic import ValidationError, computed_field

from encode_pipeline.latents.command import RequestError, Settings

FORMATS = {"float16": 1, "int8": 2}
"""By what a store's numbers are: readers that know less refuse it in words."""
FORMAT_VERSION = max(FORMATS.values())
FINGERPRINT_LENGTH = 16

Scale = Literal["raw", "model"]
Dtype = Literal["float16", "int8"]


class SpecError(RequestError):
    """The bytes are not of the kind that was asked for; the message is a sentence that says why."""


class VaeIdentity(Settings):
    """Which VAE made the latents, by content: two names for the same weights are the same VAE."""

    name: str
    weights_sha256: str
    config: dict[str, Any]
    scaling_factor: float
    shift_factor: float = 0.0


class LatentSpec(Settings):
    """Everything that changes the meaning of a stored latent, and nothing that does not."""

    vae: VaeIdentity
    scale: Scale = "raw"
    """`raw`: as the encoder gives them. `model`: shifted and scaled as the diffusion model wants them."""
    posterior: Literal["sample", "mean"] = "sample"
    compute_dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    dtype: Dtype = "float16"
    """Of the numbers in the store. Readers hand out float16; `int8` is what `quantised.py` makes of it."""
    shape: tuple[int, int, int]
    """Channels, height, width."""
    image_size: int
    views: int
    recipe: dict[str, Any]
    seed: int
    caption_field: str | None = None
    """The field of a sample's record that its caption is from; None for its `.txt`, else `caption`."""

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated property
    @property
    def format_version(self) -> int:
        return FORMATS[self.dtype]

    @property
    def fingerprint(self) -> str:
        """The name of the version: equal exactly when the bytes mean the same."""
        meaning = self.model_dump(mode="json")
        del meaning["vae"]["name"]
        return digest(meaning)[:FINGERPRINT_LENGTH]

    @property
    def is_generated(self) -> bool:
        """Whether a generator made the latents, and not the VAE's encoder: the recipe says how."""
        return "generated" in self.recipe

    @property
    def bytes_per_latent(self) -> int:
        return bytes_of(self.shape, self.dtype)

    def to_json(self) -> bytes:
        return canonical_json({"fingerprint": self.fingerprint, **self.model_dump(mode="json")}, indent=2)

    @classmethod
    def from_json(cls, data: bytes, where: str) -> LatentSpec:
        """The spec in a `spec.json`; a newer or altered one is refused with a sentence."""
        try:
            values = json.loads(data)
        except ValueError:
            raise SpecError(f"{where}: not a latent spec (no JSON)") from None
        return cls.from_dict(values, where)

    @classmethod
    def from_dict(cls, values: Any, where: str) -> LatentSpec:
        """The spec that a store or a checkpoint carries, checked against its own fingerprint."""
        if not isinstance(values, dict) or "format_version" not in values:
            raise SpecError(f"{where}: not a latent spec (no format_version)")
        version = values["format_version"]
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise SpecError(f"{where}: written in format {version}, this reader knows up to {FORMAT_VERSION}; update")
        values = {name: value for name, value in values.items() if name != "format_version"}
        claimed = values.pop("fingerprint", None)
        try:
            spec = cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise SpecError(f"{where}: not a latent spec ({key}: {first['msg']})") from None
        if version != spec.format_version:
            raise SpecError(f"{where}: not a latent spec (format {version}, and {spec.dtype} is {spec.format_version})")
        if claimed is not None and claimed != spec.fingerprint:
            raise SpecError(f"{where}: says fingerprint {claimed}, its content gives {spec.fingerprint}: it was edited")
        return spec

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint embeds; `from_dict` takes it back."""
        return {"fingerprint": self.fingerprint, **self.model_dump(mode="json")}

    def difference(self, other: LatentSpec) -> str:
        """The first thing in which two specs differ in meaning, as `key: this against that`."""
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        if mine["vae"]["weights_sha256"] != theirs["vae"]["weights_sha256"]:
            ours, foreign = (f"{vae.name} (weights {vae.weights_sha256[:12]})" for vae in (self.vae, other.vae))
            return f"vae: {ours} against {foreign}"
        mine["vae"].pop("name"), theirs["vae"].pop("name")
        return _difference(mine, theirs) or "nothing"


def bytes_of(shape: tuple[int, int, int], dtype: Dtype) -> int:
    """What a latent takes in a store, without its headers."""
    numbers = math.prod(shape)
    return 2 * numbers if dtype == "float16" else numbers + 2 * 4 * shape[0]  # zero and step, in float32


Array = TypeVar("Array")


def convert_scale(latents: Array, vae: VaeIdentity, stored: Scale, wanted: Scale) -> Array:
    """Latents in the wanted scale; the one place where scaling and shift factors are applied."""
    if stored == wanted:
        return latents
    values: Any = latents
    converted: Array
    if wanted == "model":
        converted = (values - vae.shift_factor) * vae.scaling_factor
    else:
        converted = values / vae.scaling_factor + vae.shift_factor
    return converted


def _difference(mine: dict[str, Any], theirs: dict[str, Any], within: str = "") -> str | None:
    for key in [*mine, *sorted(theirs.keys() - mine.keys())]:
        one, other = mine.get(key), theirs.get(key)
        if one != other:
            if isinstance(one, dict) and isinstance(other, dict):
                return _difference(one, other, f"{within}{key}.")
            return f"{within}{key}: {one} against {other}"
    return None


def canonical_json(value: Any, indent: int | None = None) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces unless indented, UTF-8."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=separators, indent=indent, allow_nan=False)
    return text.encode("utf-8", "surrogatepass") if indent is None else text.encode() + b"\n"


def digest(value: Any) -> str:
    """The sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
