"""The filesystem behind an address, by fsspec."""

from __future__ import annotations

from typing import Any

import fsspec

from encode_pipeline.latents.command import RequestError


def open_filesystem(url: str) -> tuple[Any, str]:
    """The filesystem behind a URL, and the path within it. Never one that would run a command."""
    protocol = url.split("://", 1)[0] if "://" in url else "file"
    if url.startswith("pipe:") or "::" in url:
        raise RequestError(f"{url}: not a kind of address that is read here")
    # A listing cache would hide what other writers have just created.
    options = {"use_listings_cache": False} if protocol in ("s3", "s3a", "gs", "gcs") else {}
    try:
        fs, root = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        extra = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}.get(protocol)
        hint = f"; install latent-clip-pipeline[{extra}]" if extra and isinstance(error, ImportError) else ""
        raise RequestError(f"{url}: {' '.join(str(error).split())}{hint}") from None
    return fs, str(root).rstrip("/") or "/"


def protocol_of(fs: Any) -> str:
    """The name that URLs of a filesystem begin with: file, s3, gs, memory, http."""
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return {"local": "file", "s3a": "s3", "gcs": "gs"}.get(protocol, protocol)
