"""How views are made: which pictures are taken, and the steps that the augmented ones go through."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, JsonValue, field_validator

from encode_pipeline.latents.command import RequestError, Settings, build, nearest, read_yaml
from encode_pipeline.latents.spec import canonical_json

PAPER = "paper"
MOST_PIXELS = 1 << 28
"""No recipe takes pictures beyond this: it bounds what a hostile header can ask for before a recipe is looked at."""


def _with_arguments(step: Any) -> Any:
    """A step as `{name: {arguments}}`, for a step without arguments may also be just its name."""
    if isinstance(step, str):
        return {step: {}}
    if isinstance(step, dict) and len(step) == 1:
        return {name: {} if arguments is None else arguments for name, arguments in step.items()}
    raise ValueError("a step is one name with its arguments, as in `- RandomResizedCrop: {scale: [0.66, 1.0]}`")


def _steps_of_paper() -> Any:
    return packaged(PAPER)["steps"]


Step = Annotated[dict[str, dict[str, JsonValue]], BeforeValidator(_with_arguments)]


class ViewRecipe(Settings):
    """How views differ. View 0 is always plain; the rest go through the steps, each with chances of its own."""

    min_side: int = Field(32, gt=0, description="pictures with a shorter side are rejected")
    max_pixels: int = Field(
        64_000_000, gt=0, le=MOST_PIXELS, description="larger pictures are rejected before they are decoded"
    )
    max_aspect: float = Field(
        10.0, ge=1, description="pictures longer than so many times their short side are rejected"
    )
    steps: tuple[Step, ...] = Field(
        default_factory=_steps_of_paper,
        validate_default=True,
        min_length=1,
        description="albumentations transforms by name",
    )

    @field_validator("steps")
    @classmethod
    def _has_one_text(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        canonical_json(steps)  # it is part of a version's name: no NaN, no infinity
        return steps


def read_recipe(name: str) -> ViewRecipe:
    """A recipe by the name of a packaged one, or from a YAML file."""
    if name in recipe_names():
        return build(ViewRecipe, packaged(name))
    if not Path(name).suffix and not Path(name).exists():
        raise RequestError(f"no such recipe{nearest(name, recipe_names())}; or give a YAML file")
    return build(ViewRecipe, read_yaml(Path(name)))


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


@cache
def packaged(name: str) -> dict[str, Any]:
    """The content of a packaged recipe."""
    with resources.as_file(_folder() / f"{name}.yaml") as path:
        return read_yaml(path)


def _folder() -> Any:
    return resources.files("encode_pipeline") / "recipes"
