"""Pictures as strangers send them, made byte by byte where no encoder makes them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from encode_pipeline.records import Pixels

Colour = tuple[int, int, int]
RED, GREEN, BLUE, SAND = (200, 40, 40), (40, 180, 60), (40, 60, 200), (220, 200, 80)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
SIZE = (96, 64)
"""Width and height; each quarter has a colour of its own."""
COLOURS = (RED, GREEN, BLUE, SAND)
"""Top left, top right, bottom left, bottom right."""


def pixels(colours: Sequence[Colour] = COLOURS, size: tuple[int, int] = SIZE) -> Pixels:
    width, height = size
    field = np.empty((height, width, 3), np.uint8)
    field[: height // 2, : width // 2], field[: height // 2, width // 2 :] = colours[0], colours[1]
    field[height // 2 :, : width // 2], field[height // 2 :, width // 2 :] = colours[2], colours[3]
    return field


def quarters(colours: Sequence[Colour] = COLOURS, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(pixels(colours, size))


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(colour: Colour) -> Colour:
    """What is left of a colour without its hue."""
    level = round(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])
    return level, level, level


def turned_jpeg(orientation: int) -> bytes:
    """A JPEG whose EXIF note says how it is stored; upright, it shows the quarters."""
    upright = quarters()
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = upright.transpose(stored[orientation]) if orientation in stored else upright
    return file(image, "JPEG", quality=95, exif=exif)


def ycck_jpeg() -> bytes:
    """Adobe's other way with four inks: as luminance and colour differences of the inks, and a black plate."""
    inks = ImageChops.invert(quarters())
    planes = [plane.point(lambda level: 255 - level) for plane in inks.convert("YCbCr").split()]  # Pillow inverts back
    data = file(Image.merge("CMYK", [*planes, Image.new("L", SIZE, 0)]), "JPEG", quality=98, subsampling=0)
    mark = data.index(b"Adobe")
    return data[: mark + 11] + b"\x02" + data[mark + 12 :]


def many_scans(count: int) -> bytes:
    """A progressive JPEG that repeats its last scan: little to send, much to decode."""
    data = file(quarters(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(header: bytes, rows: bytes, *extra: bytes) -> bytes:
    """A PNG from its header's content and its filtered rows."""
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_header(width: int, height: int, bits: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    return struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)


def png_16(channels: int, *extra: bytes, alpha: int | None = None) -> bytes:
    """A PNG of 16 bits a channel: 1 grey, 3 RGB, 4 RGBA."""
    values = pixels().astype(np.uint16) * 257
    if channels == 1:
        values = values[:, :, :1]
    if alpha is not None:
        values = np.concatenate([values, np.full((*values.shape[:2], 1), alpha, np.uint16)], axis=2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    return png(png_header(*SIZE, bits=16, colour=kind), rows, *extra)


def interlaced_png() -> bytes:
    field = pixels()
    rows = b""
    for top, left, down, right in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in field[top::down, left::right])
    return png(png_header(*SIZE, interlace=1), rows)


def bomb_png(width: int, height: int) -> bytes:
    """A PNG that says it is large; what it has to show for it is a few bytes."""
    return png(png_header(width, height), b"\0" * 100)


def png_with(kind: bytes, size: int) -> bytes:
    """A PNG with a compressed text or profile that unpacks to so many bytes."""
    head = b"name\0\0"
    extra = chunk(kind, head + zlib.compress(b"x" * size))
    rows = b"".join(b"\0" + row.tobytes() for row in pixels())
    return png(png_header(*SIZE), rows, extra)


def bomb_gif(width: int, height: int) -> bytes:
    """A GIF whose screen and first frame are large, and which asks for the frame to be cleared away."""
    control = b"!\xf9\x04\x08\0\0\0\0"
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + control + frame + b";"


def many_frames_gif(count: int) -> bytes:
    first = file(quarters(), "GIF")
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x4c\x01\0"
    return first[:-1] + frame * count + b";"


def bomb_webp(width: int, height: int) -> bytes:
    """A lossless WEBP of one colour, for which no pixel costs a bit, with another size written into its header."""
    data = bytearray(file(Image.new("RGB", (64, 64), RED), "WEBP", lossless=True))
    place = data.index(b"VP8L") + 9
    bits = int.from_bytes(data[place : place + 4], "little") >> 28 << 28
    data[place : place + 4] = (bits | (height - 1) << 14 | (width - 1)).to_bytes(4, "little")
    return bytes(data)


def bomb_bmp(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def tiff(entries: dict[int, tuple[int, int, int]], data: bytes = b"") -> bytes:
    """A TIFF from its tags, each (type, count, value); the pixels begin at byte 8."""
    directory = struct.pack("<H", len(entries))
    for tag in sorted(entries):
        kind, count, value = entries[tag]
        directory += struct.pack("<HHI", tag, kind, count) + (
            struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value)
        )
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4)


def grey_tiff(bits: int, values: np.ndarray[Any, Any], photometric: int = 1, **more: tuple[int, int, int]) -> bytes:
    height, width = values.shape
    data = values.tobytes()
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, bits), 259: (3, 1, 1), 262: (3, 1, photometric)}
    tags |= {273: (4, 1, 8), 277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, len(data))}
    return tiff({**tags, **{int(tag[1:]): entry for tag, entry in more.items()}}, data)


def bomb_tiff(width: int, height: int, tile: int = 0) -> bytes:
    """A TIFF that says it is large, or that its tiles are."""
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 5), 262: (3, 1, 1), 277: (3, 1, 1)}
    if tile:
        tags |= {322: (4, 1, tile), 323: (4, 1, tile), 324: (4, 1, 8), 325: (4, 1, 8)}
    else:
        tags |= {273: (4, 1, 8), 278: (4, 1, height), 279: (4, 1, 8)}
    return tiff(tags, b"x" * 8)
