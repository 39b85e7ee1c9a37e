"""T2I-CompBench's attribute binding: the questions that a prompt becomes, and what their answers come to."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

from encode_pipeline.latents.command import RequestError

PHRASES_BY = "en_core_web_sm 3.6.0 (spaCy 3.6.1)"
"""What took the prompts apart. The official scorer pins en_core_web_sm 3.5.0; 3.8.0 does 52 of the 900 otherwise."""
QUESTIONS = 8
"""Of a prompt, at most."""
LONGEST = 50
"""Words of a question."""
LEFT_OUT = re.compile(r'[.!"()*#:;~]')
DECIMALS = 4
"""Of every probability and every product: the official scorer writes them down in between."""


def questions(prompt: str) -> list[str]:
    """Each noun phrase of a prompt with a question mark, as BLIP is asked: `a green bench?`, `a blue bowl?`."""
    phrases = _phrases().get(prompt)
    if phrases is None:
        raise RequestError(
            f"{prompt!r}: none of T2I-CompBench's prompts of color, shape or texture: no noun phrases known"
        )
    return [asked(phrase) for phrase in phrases[:QUESTIONS]]


def asked(phrase: str) -> str:
    """A noun phrase as a question in BLIP's spelling."""
    return " ".join(LEFT_OUT.sub("", f"{phrase}?".lower()).rstrip(" ").split(" ")[:LONGEST])


def product(chances: Sequence[float]) -> float:
    """What a picture gets for the chances of "yes" to all of its questions."""
    return round(math.prod(round(chance, DECIMALS) for chance in chances), DECIMALS)


@cache
def _phrases() -> dict[str, list[str]]:
    text = (resources.files("eval") / "benchmarks" / "compbench_phrases.json").read_text(encoding="utf-8")
    return dict(json.loads(text))
