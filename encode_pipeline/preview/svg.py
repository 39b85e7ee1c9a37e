"""What charts are drawn with. Colours come from the page's style sheet by class, so that they follow its theme."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

from markupsafe import Markup

Shape = str | float


def nice_ticks(highest: float) -> list[float]:
    """Round numbers from zero to at least the highest value, four to six of them."""
    if highest <= 0:
        highest = 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    step = next(power * part for part in (0.1, 0.2, 0.25, 0.5, 1, 2, 2.5) if highest / (power * part) <= 5)
    count = math.ceil(round(highest / step, 9))
    return [round(step * number, 12) for number in range(count + 1)]


def frame(width: float, height: float, kind: str, description: str) -> ET.Element:
    """An empty drawing, with what it shows in words."""
    box = f"0 0 {width:g} {height:g}"
    return ET.Element("svg", {"viewBox": box, "class": kind, "role": "img", "aria-label": description})


def add(parent: ET.Element, name: str, kind: str, **attributes: Shape) -> ET.Element:
    texts = {key: value if isinstance(value, str) else f"{value:.2f}" for key, value in attributes.items()}
    return ET.SubElement(parent, name, {**({"class": kind} if kind else {}), **texts})


def text(parent: ET.Element, x: float, y: float, words: str, kind: str) -> None:
    add(parent, "text", kind, x=x, y=y).text = words


def title(parent: ET.Element, words: str) -> None:
    """What a pointer over the element shows."""
    ET.SubElement(parent, "title").text = words


def markup(drawing: ET.Element) -> Markup:
    return Markup(ET.tostring(drawing, encoding="unicode"))
