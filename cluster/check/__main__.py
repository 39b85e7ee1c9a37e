"""`python -m cluster.check [FILE ...]`: whether clusters and schedules would be taken as their files mean them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from cluster.check.files import check_files, files_under, shipped
from encode_pipeline.latents.command import RequestError, Settings, Verb, main


class CheckRequest(Settings):
    files: list[Path] = Field(default_factory=list, description="files or folders; all of cluster/ when none is named")
    filled: bool = Field(False, description="report each value that is still to be filled in, too")


def run(request: CheckRequest) -> Mapping[str, Any]:
    paths = [] if request.files else shipped()
    for path in request.files:
        if not path.exists():
            raise RequestError(f"{path}: no such file")
        paths += files_under(path) if path.is_dir() else [path]
    try:
        findings = check_files(paths, request.filled)
    except ModuleNotFoundError as error:
        raise RequestError(f"{error.name} is not installed; it comes with latent-clip-pipeline[dev]") from None
    listed = [{"file": f.path, "line": f.line, "key": f.where, "reason": f.reason, "text": str(f)} for f in findings]
    return {"ok": not findings, "checked": len(paths), "findings": listed}


def show(result: Mapping[str, Any]) -> str:
    lines = [finding["text"] for finding in result["findings"]]
    return "\n".join(lines) or f"{result['checked']} files checked, nothing found"


VERB = "files"
VERBS = {
    VERB: Verb(CheckRequest, run, "what is wrong with cluster files, one FILE:LINE: KEY: REASON each", VERB, show),
}


def command(argv: Sequence[str]) -> int:
    """Exit status: 0 nothing found, 1 findings, 2 a wrong request."""
    words = list(argv)
    return main("cluster.check", VERBS, words if words[:1] == [VERB] else [VERB, *words])


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
