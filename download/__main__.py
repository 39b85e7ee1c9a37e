"""`python -m download run`: pictures behind a list of URLs into tars that the encoder reads."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from download.run import DownloadConfig, run
from encode_pipeline.latents.command import Verb, main


def show(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['tars']} tars in {result['out']}: {result['urls']} URLs, {result['successes']} pictures, "
        f"{result['failed_to_download']} not to be had, {result['failed_to_resize']} refused"
    ]
    lines += [f"  {count:>9}  {reason}" for reason, count in result["reasons"].items()]
    if result["unfinished"]:
        lines.append(f"unfinished, run the same command again: {', '.join(result['unfinished'])}")
    return "\n".join(lines)


VERBS = {"run": Verb(DownloadConfig, run, "download; again: only the tars that are missing", "urls", show)}

if __name__ == "__main__":
    sys.exit(main("download", VERBS, sys.argv[1:], default="run"))
