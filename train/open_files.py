"""Room for many memory maps: some systems let a process have 1024 files open unless it asks."""

from __future__ import annotations

import resource

from encode_pipeline.latents.command import RequestError

OTHERS = 256
"""Files that a process may want to open beside the shards."""


def allow_open_files(shards: int, hint: str) -> None:
    """Asks for so many; where the system has a lower limit of its own, says what to do about it."""
    wanted = shards + OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise RequestError(f"{hint}: needs {wanted} open files, and this machine allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
