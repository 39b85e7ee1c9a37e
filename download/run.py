"""img2dataset, told what suits the encoder, and a straight answer about what it did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from download.url_list import TAKEN, UrlList, read_url_list
from encode_pipeline.config import PositiveInt
from encode_pipeline.latents.command import CheckFailed, RequestError, Settings, build, read_yaml, to_yaml
from encode_pipeline.recipe import ViewRecipe

SAVED_CONFIG = "download.yaml"  # no .json: img2dataset takes every .json in its folder for a finished tar
QUIET = {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled", "WANDB_ERROR_REPORTING": "false"}
"""Libraries of img2dataset's that would call home as soon as they are imported."""
PASSING = {"processes", "threads", "timeout", "retries"}
"""What may differ when a download goes on: none of it decides which sample is in which tar."""


class DownloadConfig(Settings):
    """A download. Running it again goes on with the tars that are missing."""

    urls: Path = Field(description="parquet, csv, tsv or txt (tab-separated) of URLs and captions, or a folder of them")
    out: Path = Field(description="folder for the tars")
    url_col: str = Field("URL", description="column of URLs; `url` in COYO")
    caption_col: str = Field("TEXT", description="column of captions; `text` in COYO")
    short_side: PositiveInt | None = Field(
        None,
        description="to save space, shrink pictures whose short side is longer than this; views of 512 need 728; "
        "by default pictures are kept byte for byte",
    )
    per_tar: PositiveInt = Field(10_000, description="URLs a tar")
    processes: PositiveInt = Field(os.cpu_count() or 1, description="processes, each at one tar")
    threads: PositiveInt = Field(64, description="downloads at once in each process")
    timeout: PositiveInt = Field(10, description="seconds that a server may be silent")
    retries: int = Field(1, ge=0, description="further tries for a URL")


def run(config: DownloadConfig) -> dict[str, Any]:
    """Downloads what is missing; counts what there is."""
    urls = read_url_list(config.urls)
    command = img2dataset_command(config, urls)
    _claim(config)
    print(" ".join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, env={**os.environ, **QUIET, **_decoder_limit()}, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise CheckFailed(f"img2dataset ended with exit status {done.returncode}; the same command again goes on")
    return summary(config.out)


def img2dataset_command(config: DownloadConfig, urls: UrlList) -> list[str]:
    """The command line that a person could type."""
    for name in (config.url_col, config.caption_col):
        if name not in urls.columns:
            raise RequestError(f"{urls.path}: no column {name!r}; it has {', '.join(urls.columns)}")
    own = {*TAKEN, config.url_col, config.caption_col}
    options: dict[str, Any] = {
        "url_list": str(urls.path),
        "input_format": urls.format,
        "url_col": config.url_col,
        "caption_col": config.caption_col,
        # similarity, safety scores, licence: whatever the list knows about a picture travels with its latents
        "save_additional_columns": [name for name in urls.plain_columns if name not in own],
        "output_folder": str(config.out.absolute()),
        "output_format": "webdataset",
        "number_sample_per_shard": config.per_tar,
        "processes_count": config.processes,
        "thread_count": config.threads,
        "timeout": config.timeout,  # a dead host holds one of the threads for this long, each time
        "retries": config.retries,  # servers stumble; but most of what fails is gone for good, so not many
        "compute_hash": "sha256",  # of the bytes as they came: finds duplicates, and pictures that changed since
        "extract_exif": False,  # rotation stays in the file; the rest is camera settings and people's whereabouts
        "incremental_mode": "incremental",  # a tar with its statistics is done, any other is made again from its start
        "max_shard_retry": 2,
        **_pixels(config.short_side),
    }
    tool = Path(sys.executable).parent / "img2dataset"
    return [str(tool), *(f"--{name}={value!r}" for name, value in options.items())]


def _pixels(short_side: int | None) -> dict[str, Any]:
    """What is done to pictures: nothing, unless they are to be smaller.

    As soon as img2dataset decodes, rotation in EXIF and colour profiles are lost and 16-bit pictures turn white. The
    encoder decodes strictly, whatever the bytes are, and counts what it refuses.
    """
    if short_side is None:
        return {"disable_all_reencoding": True}
    recipe = ViewRecipe()
    return {
        "resize_mode": "keep_ratio",  # the whole picture: views crop where they like
        "image_size": short_side,
        "resize_only_if_bigger": True,  # enlarging is the encoder's business, and costs no space there
        "skip_reencode": True,  # a JPEG that is small enough stays as it came
        "downscale_interpolation": "area",
        "encode_format": "jpg",
        "encode_quality": 95,  # a second compression that a VAE does not notice, at half the space of 100
        "min_image_size": recipe.min_side,  # what the encoder would refuse
        "max_image_area": recipe.max_pixels,
    }


def _decoder_limit() -> dict[str, str]:
    return {"OPENCV_IO_MAX_IMAGE_PIXELS": str(ViewRecipe().max_pixels)}  # or a bomb is unpacked before it is measured


def _claim(config: DownloadConfig) -> None:
    """Makes the folder this download's own: other URLs or other counts a tar would mix under the same names."""
    saved = config.out / SAVED_CONFIG
    if saved.exists():
        before = build(DownloadConfig, read_yaml(saved))
        old, new = (settings.model_dump(mode="json", exclude=PASSING) for settings in (before, config))
        if changed := [f"{key}={old[key]}" for key in new if key not in ("urls", "out") and old[key] != new[key]]:
            raise RequestError(
                f"{config.out}: was begun with {', '.join(changed)}; go on with that, or name another out"
            )
        if before.urls.absolute() != config.urls.absolute():
            raise RequestError(f"{config.out}: holds pictures of {before.urls}; name another out")
        return
    if config.out.is_dir() and any(config.out.iterdir()):
        raise RequestError(f"{config.out}: holds files of something else; name an empty or new folder")
    config.out.mkdir(parents=True, exist_ok=True)
    absolute = config.model_copy(update={"urls": config.urls.absolute(), "out": config.out.absolute()})
    saved.write_text(to_yaml(absolute), encoding="utf-8")


def summary(out: Path) -> dict[str, Any]:
    """What the finished tars say of themselves, and which are not finished."""
    statistics = {path.name.removesuffix("_stats.json"): path for path in sorted(out.glob("*_stats.json"))}
    unfinished = [path.name for path in sorted(out.glob("*.tar")) if path.stem not in statistics]
    contents = [json.loads(path.read_bytes()) for path in statistics.values()]
    reasons: Counter[str] = Counter()
    for content in contents:
        reasons.update({_one_line(reason): count for reason, count in content["status_dict"].items()})
    reasons.pop("success", None)
    return {
        "ok": not unfinished and bool(contents),
        "out": str(out),
        "tars": len(statistics),
        "urls": _total(contents, "count"),
        "successes": _total(contents, "successes"),
        "failed_to_download": _total(contents, "failed_to_download"),
        "failed_to_resize": _total(contents, "failed_to_resize"),
        "reasons": dict(reasons.most_common(20)),
        "unfinished": unfinished,
    }


def _total(contents: Sequence[dict[str, Any]], name: str) -> int:
    return sum(int(content[name]) for content in contents)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
