"""One try at a shard, its errors sorted by what they are to be blamed on."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable

from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.spec import SpecError
from encode_pipeline.read import TarError
from encode_pipeline.records import Blame, CalledBack, FailedAttempt, ShardReport, describe_error
from encode_pipeline.sources import SourceChanged
from encode_pipeline.work import RunEnded, ShardWork


def attempt_shard(
    source: SourceShard, work: ShardWork, tell: Callable[[int], None] = lambda latents: None
) -> ShardReport | FailedAttempt:
    """A shard's report, or what went wrong. Only what is wrong with the whole run raises."""
    try:
        if work.version.is_done(source.name):  # by another driver, or by a try whose answer was lost
            return ShardReport(work.version.commit(source.name), won=False)
        return work.do(source, tell)
    except (SpecError, RunEnded):
        raise
    except Exception as error:  # whatever it was, it was this shard's: the others go on
        blame = blame_for(error)
        if blame is Blame.CHANCE and not isinstance(error, (OSError, CheckFailed)):
            traceback.print_exc()  # perhaps a fault of ours rather than of the world: keep the trace in the log
        return FailedAttempt(describe_error(error), blame)


def blame_for(error: Exception) -> Blame:
    if isinstance(error, CalledBack):
        return Blame.CALLED_BACK
    if isinstance(error, (TarError, SourceChanged)):
        return Blame.TAR
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return Blame.NO_ROOM
    return Blame.CHANCE
