"""Encodes on this machine's Ray cluster what a config says, then seals: the one file that `ray submit` uploads.

    ray submit cluster/encode.yaml cluster/encode.py -- CONFIG

CONFIG is a path on the cluster's head: absolute, or as seen from the home folder or the project's. Relative paths in
it count from the folder that it lies in. The engine is `ray`, whatever the config says, on the cluster at RAY_ADDRESS
or on the one that runs here. Exit status as of `python -m encode_pipeline run`; the same again does what is missing.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Nothing of the project on this level: it may have to be found first, by another Python.
if TYPE_CHECKING:
    from encode_pipeline.config import EncodeConfig

PROJECT = "latent-clip-pipeline"


def main(words: list[str]) -> int:
    """Exit status: 0 encoded and sealed, 1 done with failures, 2 a wrong request, 130 or 143 interrupted."""
    if len(words) != 1 or words[0].startswith("-"):
        return _refuse(f"takes the path of a config and nothing else, not {shlex.join(words) or 'nothing'}")
    config = find_config(words[0])
    if config is None:
        places = ", ".join(map(str, _folders()))
        return _refuse(f"{words[0]}: no such file on {os.uname().nodename}, in {places}")
    if not (find_spec("encode_pipeline") and find_spec("ray")):
        return _hand_over(config)

    from encode_pipeline.__main__ import VERBS
    from encode_pipeline.config import EncodeConfig
    from encode_pipeline.latents import command

    os.environ.setdefault("RAY_ADDRESS", "auto")
    os.chdir(config.parent)
    print(f"config {config}", flush=True)
    verbs = {**VERBS, "encode": command.Verb(EncodeConfig, encode, "run and seal", None, show)}
    return command.main("encode_pipeline", verbs, ["encode", "--config", str(config), "engine=ray"])


def find_config(text: str) -> Path | None:
    """The file that is meant."""
    paths = (folder / Path(text).expanduser() for folder in _folders())
    return next((path for path in paths if path.is_file()), None)


def encode(config: EncodeConfig) -> Mapping[str, Any]:
    """Does what is missing, and closes the version if nothing is any more."""
    from encode_pipeline.__main__ import run_encode, show_run
    from encode_pipeline.config import SealRequest
    from encode_pipeline.store_verbs import run_seal

    result = run_encode(config)
    print(show_run(result), flush=True)
    if not result["ok"]:
        return result
    return {**result, **run_seal(SealRequest(store=result["store"], version=result["fingerprint"]))}


def show(result: Mapping[str, Any]) -> str:
    """What is left for a person to do."""
    version = f"{shlex.quote(result['store'])} version={result['fingerprint']}"
    if not result["ok"]:
        return f"not sealed; without what was given up on: python -m encode_pipeline seal {version} accept_failed=true"
    return (
        f"sealed: {result['tars']} tars in {result['manifest']}\n"
        f"next:   RAY_ADDRESS=auto python -m encode_pipeline verify {version} engine=ray\n"
        f"then:   python -m encode_pipeline promote {version}"
    )


def _folders() -> list[Path]:
    return [Path.home(), *_homes()]


def _homes() -> list[Path]:
    """Where launched machines and the container image have the project."""
    return [folder for folder in (Path.home() / PROJECT, Path("/opt") / PROJECT) if folder.is_dir()]


def _hand_over(config: Path) -> int:
    """Starts again with the project's own Python, if there is one and this is not it."""
    own = next((home / ".venv" for home in _homes() if (home / ".venv/bin/python").exists()), None)
    if own is None:
        return _refuse(f"no {PROJECT} with a .venv in {Path.home()} or /opt; `make setup` makes one")
    if own.resolve() != Path(sys.prefix).resolve():
        python = own / "bin/python"
        os.execv(python, [str(python), __file__, str(config)])
    return _refuse(f"{own}: holds no encode_pipeline with Ray; `make setup` in {own.parent} installs it")


def _refuse(why: str) -> int:
    print(f"error: encode.py: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
