"""Names of container images."""

from __future__ import annotations


def tag_fault(image: str) -> str | None:
    """Why nobody could say later what ran under this name; None where one could."""
    name, _, digest = image.partition("@")
    if digest:
        return None
    tag = name.rpartition("/")[2].partition(":")[2]
    if not tag:
        return f"{image!r} has no tag, which means latest: another image every week"
    return f"{image!r}: another image every week; name a version" if tag == "latest" else None
