"""The colour of an object, as GenEval asks a CLIP for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from PIL import Image
from torch import Tensor

from eval.benchmarks.clip_score import features
from eval.benchmarks.geneval_rules import COLOURS, Found
from eval.clip import PixelClip

TEMPLATES = ("a photo of a {{c}} {name}", "a photo of a {{c}}-colored {name}", "a photo of a {{c}} object")
AROUND = "#999"
"""What an object is laid on, cut out along its mask."""


class ColourSense:
    """Tells which of ten colours an object has, by the texts that fit it best."""

    def __init__(self, model: PixelClip) -> None:
        self.model = model
        self._rows = cache(self._embed)

    def __call__(self, picture: Image.Image, name: str, objects: Sequence[Found]) -> list[str]:
        """The colour of each object of a class."""
        best = features(self.model, [cut_out(picture, one) for one in objects]) @ self._rows(name).T
        return [COLOURS[number] for number in best.argmax(dim=1).tolist()]

    def _embed(self, name: str) -> Tensor:
        return self.model.embed_classes(COLOURS, [template.format(name=name) for template in TEMPLATES])


def cut_out(picture: Image.Image, found: Found) -> Image.Image:
    """An object alone on grey, in its box."""
    alone = picture
    if found.mask is not None:
        alone = Image.composite(picture, Image.new("RGB", picture.size, AROUND), Image.fromarray(found.mask))
    left, top, right, bottom = (round(edge) for edge in found.box)
    return alone.crop((left, top, right, bottom))
