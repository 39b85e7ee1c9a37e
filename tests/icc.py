"""Colour profiles, made by the ICC's rules: no file of a vendor's is needed to test with."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

WHITE_D50 = (0.9642, 1.0, 0.8249)
ADOBE_RGB = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
"""Where red, green and blue lie in XYZ, as seen in D50 light."""


def rgb_profile(primaries: Sequence[tuple[float, float, float]], gamma: float | None) -> bytes:
    """A monitor's profile; without a gamma it has sRGB's curve."""
    curve = _srgb_curve() if gamma is None else _gamma(gamma)
    tags = {b"wtpt": _xyz(WHITE_D50)}
    for name, primary in zip(b"rgb", primaries, strict=True):
        tags[bytes([name]) + b"XYZ"] = _xyz(primary)
        tags[bytes([name]) + b"TRC"] = curve
    return _profile(b"RGB ", b"mntr", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", b"mntr", b"XYZ ", {b"wtpt": _xyz(WHITE_D50), b"kTRC": _gamma(gamma)})


def cmyk_profile(inks: Sequence[tuple[int, int, int]]) -> bytes:
    """A press whose cyan, magenta, yellow and black, alone and at full, print as these (L, a, b) in 8-bit code.

    Inks over each other darken: their lightnesses multiply and their tints add.
    """
    table = b""
    for node in range(16):
        lightness, tint = 255.0, np.zeros(2)
        for place, ink in enumerate(inks):
            if node >> (3 - place) & 1:
                lightness *= ink[0] / 255
                tint += np.array(ink[1:]) - 128
        table += bytes([round(lightness), *np.clip(np.round(tint + 128), 0, 255).astype(int).tolist()])
    line = bytes(range(256))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + line * 4 + table + line * 3
    return _profile(b"CMYK", b"prtr", b"Lab ", {b"wtpt": _xyz(WHITE_D50), b"A2B0": lut})


def _profile(space: bytes, kind: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"desc": _description(), b"cprt": b"text" + bytes(4) + b"none\0", **tags}
    place = 128 + 4 + 12 * len(tags)
    directory, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        directory += name + struct.pack(">II", place + len(body), len(content))
        body += content
    size = place + len(body)
    head = struct.pack(">I", size) + bytes(4) + b"\x02\x40\0\0" + kind + space + connection
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">3i", *_fixed(WHITE_D50))
    return head + bytes(128 - len(head)) + directory + body


def _description() -> bytes:
    return b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)


def _fixed(values: Sequence[float]) -> list[int]:
    return [round(value * 65536) for value in values]


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *_fixed(values))


def _gamma(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def _srgb_curve() -> bytes:
    level = np.linspace(0, 1, 1024)
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    return b"curv" + bytes(4) + struct.pack(">I", 1024) + np.round(linear * 65535).astype(">u2").tobytes()
