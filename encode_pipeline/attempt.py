"""One try at a shard, its errors sorted: what another try may mend, what it cannot, and what ends the run."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from encode_pipeline.config import EncodeConfig
from encode_pipeline.encode_shard import encode_shard
from encode_pipeline.encoder import EncoderClosed, LatentEncoder
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.spec import SpecError
from encode_pipeline.latents.store import Version
from encode_pipeline.read import TarError
from encode_pipeline.records import ShardReport
from encode_pipeline.sources import SourceChanged

HOPELESS = (TarError, SourceChanged, FileNotFoundError, PermissionError)


@dataclass(frozen=True)
class FailedAttempt:
    """A try that ended without a commit."""

    error: str
    hopeless: bool
    """Another try would only repeat it."""
    no_room: bool = False
    """Nothing can be written here any more: no fault of the shard's."""


def attempt_shard(
    source: SourceShard,
    version: Version,
    encoder: LatentEncoder,
    config: EncodeConfig,
    tell: Callable[[int], None] = lambda views: None,
) -> ShardReport | FailedAttempt:
    """A shard's report, or what went wrong. Only what is wrong with the whole run raises."""
    try:
        return encode_shard(source, version, encoder, config, tell)
    except (SpecError, EncoderClosed):
        raise
    except Exception as error:  # whatever it was, it was this shard's: the others go on
        if not isinstance(error, (*HOPELESS, OSError)):
            traceback.print_exc()  # a fault of ours rather than of the input: keep the trace in the log
        no_room = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        return FailedAttempt(describe_error(error), isinstance(error, HOPELESS), no_room)


def describe_error(error: BaseException) -> str:
    """An error as the one line that reports keep."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
