"""`python -m encode_pipeline VERB`: encode, look after the store, and see where it stands."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from encode_pipeline.config import (
    EncodeConfig,
    GcRequest,
    PreviewRequest,
    ReplayRequest,
    SealRequest,
    StatusRequest,
    StoreRequest,
    VerifyRequest,
)
from encode_pipeline.latents.command import CheckFailed, RequestError, Verb, main
from encode_pipeline.latents.spec import SpecError
from encode_pipeline.latents.status import StatusReader
from encode_pipeline.latents.store import Store
from encode_pipeline.preference_tars import PairsRequest, write_pairs
from encode_pipeline.progress import clock_text, cost_text
from encode_pipeline.reencode import ReencodeConfig, reencode, show_reencode
from encode_pipeline.store_verbs import run_gc, run_history, run_promote, run_seal, show_gc, show_history
from encode_pipeline.verification import verified


def run_plan(config: EncodeConfig) -> Mapping[str, Any]:
    from encode_pipeline.run import plan

    return plan(config)


def run_encode(config: EncodeConfig) -> Mapping[str, Any]:
    from encode_pipeline.run import run

    return run(config)


QUIET = 60.0
"""Seconds without a change after which shards that were given up on are taken to stay so."""


def run_status(request: StatusRequest) -> Mapping[str, Any]:
    return _status_of(request).look().to_dict()


def watch_status(request: StatusRequest) -> Iterator[Mapping[str, Any]]:
    """The status again and again, until nothing is left to do."""
    reader = _status_of(request)
    before, quiet = None, 0.0
    while True:
        status = reader.look().to_dict()
        yield status
        shards = status["shards"]
        if status["sealed"] or 0 < shards["total"] == shards["done"]:
            return
        given_up = shards["total"] == shards["done"] + shards["failed"] > 0  # unless another run tries those again
        quiet = quiet + request.every if given_up and shards == before else 0.0
        if quiet >= QUIET:
            return
        before = shards
        time.sleep(request.every)


def _status_of(request: StatusRequest) -> StatusReader:
    store = Store(request.store)
    return StatusReader(store, store.version(request.version))


def run_verify(request: VerifyRequest) -> Mapping[str, Any]:
    try:
        version = Store(request.store).version(request.version)
    except SpecError as error:
        raise CheckFailed(str(error)) from None
    return verified(version, request.deep, request.sample, request.seed, request.engine).to_dict()


def run_preview(request: PreviewRequest) -> Mapping[str, Any]:
    try:
        from encode_pipeline.preview.run import preview
    except ImportError as error:
        raise RequestError(f"preview: {error}; install latent-clip-pipeline[encode,report]") from None
    return preview(request)


def run_replay(request: ReplayRequest) -> Mapping[str, Any]:
    from encode_pipeline.replay import replay

    return replay(request)


def show_status(status: Mapping[str, Any]) -> str:
    shards, samples = status["shards"], status["samples"]
    state = "promoted" if status["promoted"] else "sealed" if status["sealed"] else "open"
    lines = [
        f"version {status['fingerprint']} ({state})",
        f"shards   {shards['done']} done of {shards['total']}, {shards['failed']} given up on",
        f"samples  {samples['read']} read = {samples['encoded']} encoded + {samples['rejected']} rejected",
    ]
    lines += [f"           {count:>8} {reason}" for reason, count in status["rejected"].items()]
    if status["rescued_latents"]:
        lines.append(f"rescued  {status['rescued_latents']} latents in a wider dtype")
    if status["latents_per_second"] is not None:
        left = status["seconds_left"]
        rate = f"rate     {status['latents_per_second']} latents/s in the last minutes"
        lines.append(rate + (f", {clock_text(left)} left" if left else ""))
    if status["time_share"]:
        lines.append("time     " + ", ".join(f"{stage} {share:.0%}" for stage, share in status["time_share"].items()))
    lines += [f"given up: {failure['uri']}: {failure['error']}" for failure in status["failures"]]
    return "\n".join(lines)


def show_verdict(verdict: Mapping[str, Any]) -> str:
    lines = [f"{problem['path']}: {problem['problem']}" for problem in verdict["problems"]]
    files = f"{verdict['checked']} files of version {verdict['fingerprint']} checked"
    depth = ", sample by sample" if verdict["deep"] else ""
    summary = f"{files}, {verdict['bytes']} bytes in {verdict['read']} of {verdict['shards']} shards read{depth}"
    lines.append(f"{summary}: {len(lines)} problem(s)" if lines else f"{summary}: all as committed")
    return "\n".join(lines)


def show_replay(result: Mapping[str, Any]) -> str:
    width, height = result["original_size"]
    lines = [f"{result['key']} of {result['source']}, {width}x{height}: {result['caption']}"]
    for view in result["views"]:
        drawn = ", ".join(f"{k} {v}" for k, v in view.items() if k not in ("view", "picture", "float16_steps"))
        lines.append(f"{view['picture']}: {drawn}")
    lines.append(f"parameters as recorded; latents {result['latents']}")
    return "\n".join(lines)


def show_run(result: Mapping[str, Any]) -> str:
    shards, samples = result["shards"], result["samples"]
    lines = [
        f"version {result['fingerprint']} in {result['store']}",
        f"{shards['done']} shards encoded now, {result['already_done']} before, {shards['failed']} given up on",
        f"{samples['read']} samples read = {samples['encoded']} encoded + {samples['rejected']} rejected"
        + "".join(f"; {count} {reason}" for reason, count in result["rejected"].items()),
        f"{result['latents_per_second']} latents/s over {result['seconds']} s",
    ]
    if "cost" in result:
        lines.append(cost_text(result["cost"]))
    elif "gpu_hours" in result:
        lines.append(f"{result['gpu_hours']:.2f} GPU-hours")
    lines += [f"given up: {failure['source']}: {failure['error']}" for failure in result["failures"]]
    return "\n".join(lines)


def show_preview(result: Mapping[str, Any]) -> str:
    lines = [
        f"page   {result['html']}",
        f"sheet  {result['png']}",
        f"shown  {', '.join(sample['key'] for sample in result['samples'])}",
    ]
    lines += [f"channel      mean       std    expected   over {result['latents']} raw latents"]
    for number, channel in enumerate(result["channels"]):
        line = f"{number:>7}  {channel['mean']:>+8.3f}  {channel['std']:>8.3f}"
        if channel["expected_std"] is not None:
            line += f"    {channel['expected_mean']:+.3f} ± {channel['expected_std']:.3f}"
        line += "  drifted" if channel["drift"] else ""
        lines.append(line)
    lines += [] if result["expected"] is None else [result["expected"]]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in result["warnings"]), *result["notes"]])


VERBS = {
    "plan": Verb(EncodeConfig, run_plan, "what a run would do; nothing is written", "source"),
    "run": Verb(EncodeConfig, run_encode, "encode every tar that is not done yet", "source", show_run),
    "status": Verb(StatusRequest, run_status, "where a store stands", "store", show_status, watch_status),
    "verify": Verb(VerifyRequest, run_verify, "check every byte against its commit", "store", show_verdict),
    "preview": Verb(
        PreviewRequest,
        run_preview,
        "a contact sheet of some samples, and how latents are spread",
        "store",
        show_preview,
    ),
    "seal": Verb(SealRequest, run_seal, "close a finished version and write its manifest", "store"),
    "promote": Verb(StoreRequest, run_promote, "make a sealed version the one that readers use", "store"),
    "reencode": Verb(
        ReencodeConfig,
        reencode,
        "encode anew if the VAE has changed; promote what passes the checks",
        "source",
        show_reencode,
    ),
    "replay": Verb(ReplayRequest, run_replay, "make the views of one sample again and compare", "store", show_replay),
    "gc": Verb(GcRequest, run_gc, "free what no commit refers to, and versions nobody needs", "store", show_gc),
    "history": Verb(StoreRequest, run_history, "what was decided about a store, by whom", "store", show_history),
    "pairs": Verb(PairsRequest, write_pairs, "preference pairs from parquet like Pick-a-Pic's to tars", "parquet"),
}

if __name__ == "__main__":
    sys.exit(main("encode_pipeline", VERBS, sys.argv[1:]))
