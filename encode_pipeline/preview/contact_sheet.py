"""The contact sheet as one picture, to be sent to somebody or laid beside another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from encode_pipeline.preview.channels import Channel
from encode_pipeline.preview.histogram import densities, expected_density, spread_text, top_density
from encode_pipeline.preview.page import Preview
from encode_pipeline.preview.show import ShownSample, ShownView
from encode_pipeline.records import Pixels

CELL, GAP, PAD, LEFT, LABELS, LINE, SMALL_LINE = 120, 6, 24, 190, 56, 17, 13
WIDTH = 1600
"""Cards stand side by side as long as they fit into this; one that is wider stands alone."""
CHART_WIDTH, CHART_HEIGHT = 340, 130
PAPER, INK, SOFT, EMPTY, ACCENT, WARM = "#ffffff", "#1a1e23", "#5b646e", "#eef0f2", "#8bb3b7", "#b04a1c"
OUTLINES = ("#17676f", "#d9962a", "#8559a5", "#c2544a", "#55883a", "#4874b4", "#858b93", "#2f3a45")
"""A colour for each view: its name is underlined with it, and its piece of the source outlined."""
ROWS = (("view", "picture"), ("latent", "latent"), ("decoded", "decoded"))

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class ContactSheet:
    """A picture that grows downwards by rows of cards."""

    def __init__(self, found: Preview) -> None:
        self.samples, self.channels = found.samples, found.channels
        samples, channels = found.samples, found.channels
        version = found.version
        self.head = [
            f"{len(samples)} sample{'s' * (len(samples) > 1)} of version {version.fingerprint} ({found.state})",
            f"{version.storage.url()} · VAE {version.spec.vae.name}",
            *(f"warning: {warning}" for warning in found.warnings),
            *found.notes,
        ]
        self.rows = [row for row in ROWS if any(getattr(view, row[1]) is not None for s in samples for view in s.views)]
        self.card_width = LEFT + LABELS + len(samples[0].views) * (CELL + GAP)
        printed = max(len(_print_of(view)) for sample in samples for view in sample.views)
        self.card_height = max(LINE + len(self.rows) * (CELL + GAP) + printed * SMALL_LINE, 210 + 6 * LINE)
        self.columns = max(1, min(len(samples), (WIDTH - PAD) // (self.card_width + PAD)))
        self.chart_columns = 4
        self.width = PAD + max(self.columns * (self.card_width + PAD), self.chart_columns * (CHART_WIDTH + PAD))
        self.cards_top = 2 * PAD + (len(self.head) + 1) * LINE
        self.charts_top = self.cards_top + -(-len(samples) // self.columns) * (self.card_height + PAD)
        height = self.charts_top + -(-len(channels) // self.chart_columns) * (CHART_HEIGHT + PAD)
        self.image = Image.new("RGB", (self.width, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.large, self.font, self.small, self.tiny = (_font(size) for size in (20, 13, 11, 10))

    def paint(self) -> Image.Image:
        self._text(PAD, PAD - 4, self.head[0], self.large)
        for number, line in enumerate(self.head[1:]):
            warm = line.startswith("warning")
            self._text(
                PAD,
                PAD + 28 + number * LINE,
                _fit(line, self.font, self.width - 2 * PAD),
                self.font,
                WARM if warm else SOFT,
            )
        for number, sample in enumerate(self.samples):
            row, column = divmod(number, self.columns)
            self._card(PAD + column * (self.card_width + PAD), self.cards_top + row * (self.card_height + PAD), sample)
        top = top_density(self.channels)
        for number, channel in enumerate(self.channels):
            row, column = divmod(number, self.chart_columns)
            x, y = PAD + column * (CHART_WIDTH + PAD), self.charts_top + row * (CHART_HEIGHT + PAD)
            self._histogram(x, y, number, channel, top)
        return self.image

    def _card(self, x: int, y: int, sample: ShownSample) -> None:
        width, below = LEFT - 14, y + LINE
        if sample.source is None:
            self.draw.rectangle((x, below, x + width, below + 60), EMPTY)
            self._lines(x + 6, below + 4, sample.missing or "", width - 12, 3, self.small, SOFT)
            below += 60
        else:
            height = self._picture(x, below, sample.source, width, 190, Image.Resampling.LANCZOS)
            for view in sample.views:
                left, top, wide, high = (edge * height / sample.size[1] for edge in view.box)
                corners = (x + left, below + top, x + left + wide - 1, below + top + high - 1)
                self.draw.rectangle(corners, outline=OUTLINES[view.number % len(OUTLINES)])
            below += height
        below = self._lines(x, below + 5, f"“{sample.caption}”", width, 4, self.font, INK)
        self._lines(x, below + 3, f"{sample.tar} · {sample.key}", width, 2, self.small, SOFT)
        for place, view in enumerate(sample.views):
            left = x + LEFT + LABELS + place * (CELL + GAP)
            self._text(left, y - 3, f"view {view.number}", self.small, SOFT)
            self.draw.rectangle((left, y + 12, left + CELL - 1, y + 13), OUTLINES[view.number % len(OUTLINES)])
            for number, (label, kind) in enumerate(self.rows):
                top = y + LINE + number * (CELL + GAP)
                if place == 0:
                    self._text(x + LEFT, top + CELL // 2 - 7, label, self.small, SOFT)
                pixels: Pixels | None = getattr(view, kind)
                if pixels is None:
                    self.draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), EMPTY)
                else:
                    how = Image.Resampling.NEAREST if kind == "latent" else Image.Resampling.LANCZOS
                    self._picture(left, top, pixels, CELL, CELL, how)

            top = y + LINE + len(self.rows) * (CELL + GAP)
            for number, line in enumerate(_print_of(view)):
                self._text(left, top + number * SMALL_LINE, _fit(line, self.tiny, CELL), self.tiny, SOFT)

    def _picture(self, x: int, y: int, pixels: Pixels, width: int, height: int, how: Image.Resampling) -> int:
        """Lays a picture into a box, as large as it fits; returns how high it is there."""
        image = Image.fromarray(pixels)
        factor = min(width / image.width, height / image.height)
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        self.image.paste(image.resize(size, how), (x, y))
        return size[1]

    def _histogram(self, x: int, y: int, number: int, channel: Channel, highest: float) -> None:
        colour = WARM if channel.drift else SOFT
        self._text(x, y, f"channel {number}", self.font)
        self._text(x, y + LINE, _fit(spread_text(channel), self.small, CHART_WIDTH), self.small, colour)
        base, room = y + CHART_HEIGHT, CHART_HEIGHT - 2 * LINE - 8
        bar = CHART_WIDTH / len(channel.counts)
        for place, density in enumerate(densities(channel).tolist()):
            top = base - room * min(density / highest, 1)
            self.draw.rectangle((x + place * bar, top, x + (place + 1) * bar, base), ACCENT)
        if channel.expected_std is not None:
            values = np.linspace(channel.edges[0], channel.edges[-1], CHART_WIDTH)
            heights = expected_density(channel, values) / highest
            points = [(x + place, base - room * min(share, 1)) for place, share in enumerate(heights.tolist())]
            self.draw.line(points, WARM, 2)

    def _lines(self, x: int, y: int, text: str, width: int, count: int, font: Font, colour: str) -> int:
        """Text in at most so many lines; returns where it ends."""
        words, lines = " ".join(text.split()), list[str]()
        while words and len(lines) < count:
            line = _fit(words, font, width, mark="")
            if len(line) < len(words):
                line = line.rsplit(" ", 1)[0] if " " in line else line
            lines.append(line)
            words = words[len(line) :].lstrip()
        if words:
            lines[-1] = _fit(f"{lines[-1]} {words}", font, width)
        for number, line in enumerate(lines):
            self._text(x, y + number * LINE, line, font, colour)
        return y + len(lines) * LINE

    def _text(self, x: float, y: float, text: str, font: Font, colour: str = INK) -> None:
        self.draw.text((x, y), text, colour, font)


def write_contact_sheet(path: Path, found: Preview) -> None:
    ContactSheet(found).paint().save(path)


def _print_of(view: ShownView) -> list[str]:
    """What stands below a view."""
    return [*view.parameters, *([] if view.psnr is None else [f"PSNR {view.psnr:.1f} dB"])]


def _fit(text: str, font: Font, width: float, mark: str = "…") -> str:
    """As much of the text as fits, with a mark where it was cut."""
    text = text[:400]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + mark) > width:
        text = text[:-1]
    return text.rstrip() + mark


def _font(size: int) -> Font:
    """A font that knows most alphabets if the machine has it, else the one that Pillow brings, which knows ASCII."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)
