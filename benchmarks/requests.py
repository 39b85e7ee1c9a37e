"""What one source tar's way to its commit asks of an object store. Counted, not thought up: a test asks a server."""

from __future__ import annotations

from collections import Counter

from encode_pipeline.latents.storage import BLOCK_BYTES, CHUNK

PART = 50 << 20
"""Bytes of an upload that go as one part: s3fs's default."""
IN_ONE = 2 * PART
"""Files smaller than this go up whole."""
ASKED = BLOCK_BYTES + CHUNK
"""Bytes that one GET brings: what is wanted now, and a block that will be."""


def requests_of_a_shard(source_bytes: float, tar_bytes: float, views: int) -> Counter[str]:
    """Requests by kind, of a shard without a fault: looked for, read, published, read back, committed."""
    return sum((uploaded(tar_bytes) for _ in range(views)), read(source_bytes) + AROUND)


def uploaded(size: float) -> Counter[str]:
    """A tar on its way there, and its bytes read back."""
    parts = (
        1 if size < IN_ONE else _pieces(size, PART) + 2
    )  # with the request that begins an upload and that which ends it
    return Counter(PUT=parts) + read(size)


def read(size: float) -> Counter[str]:
    return Counter(HEAD=1, GET=_pieces(size, ASKED))


AROUND = Counter(HEAD=1, LIST=1) + Counter(HEAD=1) + Counter(PUT=1, HEAD=1, GET=1)
"""A look for a commit, which is not there; one at the source while it is open; the commit, written and read back."""


def _pieces(size: float, piece: int) -> int:
    return max(1, -int(-size // piece))
