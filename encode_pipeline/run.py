"""A run from start to end: find the tars, know the VAE, do what is missing, say what happened."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from encode_pipeline.config import EncodeConfig, EngineSettings
from encode_pipeline.latents.command import RequestError, to_yaml
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import Failure, Store, Version
from encode_pipeline.progress import Progress, RunLog
from encode_pipeline.records import ShardFailure, ShardReport
from encode_pipeline.sources import find_sources

if TYPE_CHECKING:
    from encode_pipeline.vae import LoadedVae
    from encode_pipeline.work import ShardWork


@dataclass(frozen=True)
class Prepared:
    """What a run will do, known before a byte is written."""

    sources: list[SourceShard]
    vae: LoadedVae
    spec: LatentSpec


def prepare(config: EncodeConfig) -> Prepared:
    """Checks the whole request: tars, VAE and how they fit."""
    sources = find_sources(config.source, config.limit)
    vae, spec = load(config)
    return Prepared(sources, vae, spec)


def load(config: EncodeConfig) -> tuple[LoadedVae, LatentSpec]:
    """The VAE, and what its latents mean under this configuration."""
    # Seconds of imports: not before the cheap questions are answered.
    from encode_pipeline.transforms import check_recipe
    from encode_pipeline.vae import load_vae

    check_recipe(config.recipe, config.image_size)
    vae = load_vae(config.vae)
    return vae, spec_of(config, vae)


def spec_by_child(config: EncodeConfig) -> LatentSpec:
    """What the latents will mean, found out by another process: a driver of weeks need not hold torch and a VAE."""
    if "torch" in sys.modules:  # nothing to be saved any more
        return _load_spec(config)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        return child.submit(_load_spec, config).result()


def _load_spec(config: EncodeConfig) -> LatentSpec:
    return load(config)[1]


def spec_of(config: EncodeConfig, vae: LoadedVae) -> LatentSpec:
    """What the latents of this VAE mean under this configuration."""
    if config.posterior == "sample" and not vae.has_spread:
        raise RequestError(f"vae: {config.vae}: gives one latent and no distribution; set posterior=mean")
    posterior = config.posterior or ("sample" if vae.has_spread else "mean")
    return config.spec(vae.identity, vae.latent_shape(config.image_size), posterior)


def plan(config: EncodeConfig) -> dict[str, Any]:
    """What `run` would do; nothing is written."""
    prepared = prepare(config)
    store = Store(config.store)
    fingerprint = prepared.spec.fingerprint
    missing = prepared.sources
    if fingerprint in store.versions():
        missing = store.version(fingerprint).missing(prepared.sources)
    return {
        "store": store.storage.url(),
        "fingerprint": fingerprint,
        "promoted": store.current(),
        "vae": prepared.vae.identity.name,
        "latent_shape": list(prepared.spec.shape),
        "shards": {
            "total": len(prepared.sources),
            "done": len(prepared.sources) - len(missing),
            "missing": len(missing),
        },
        "source_bytes": sum(source.size for source in prepared.sources),
        "missing_bytes": sum(source.size for source in missing),
    }


def run(config: EncodeConfig) -> dict[str, Any]:
    """Encodes every source shard that has no commit yet. Running it again goes on where it stopped."""
    sources = find_sources(config.source, config.limit)
    if config.engine == "ray":
        return do_shards(sources, Store(config.store).create(spec_by_child(config)), config)
    from encode_pipeline.encode_shard import ShardEncoder

    vae, spec = load(config)
    version = Store(config.store).create(spec)
    return do_shards(sources, version, config, lambda: ShardEncoder(vae, version, config))


def do_shards(
    sources: list[SourceShard],
    version: Version,
    config: EngineSettings,
    open_work: Callable[[], ShardWork] | None = None,
) -> dict[str, Any]:
    """Commits every source shard that has no commit yet, with the engine that was asked for.

    `open_work` makes ready what is done in this process, with models that are loaded already; actors load their own.
    """
    missing = version.missing(sources)
    if missing and version.sealed:
        raise RequestError(
            f"{version.storage.url()}: sealed, and {len(missing)} of these shards are not in it; "
            "take another store for them"
        )
    _check_collections(sources, version)
    progress = Progress(len(missing), version.spec.views)
    if missing:
        folder = f"runs/{uuid.uuid4().hex}"
        version.record_plan(sources)
        version.storage.create(f"{folder}/settings.yaml", to_yaml(config).encode())
        log = RunLog(version.storage, folder)
        gpus, price = _gpus_of_an_encoder(config), config.gpu_hour_price
        with Progress(len(missing), version.spec.views, log, gpus=gpus, gpu_hour_price=price) as progress:
            _do(missing, version, config, open_work, progress)
    return {
        "ok": not progress.failures,
        "store": version.storage.url().removesuffix(f"/{version.fingerprint}"),
        "fingerprint": version.fingerprint,
        "already_done": len(sources) - len(missing),
        **progress.summary(),
    }


def _gpus_of_an_encoder(config: EngineSettings) -> float:
    if config.engine == "ray":
        return config.gpus_per_actor
    import torch

    return float(torch.cuda.is_available())


def _check_collections(sources: list[SourceShard], version: Version) -> None:
    """A tar keeps the collection that it was first planned in: its name is in every sample."""
    plans = (version.plan(path) for path in sorted(version.plans()))
    planned = {_identity(source): source.collection for plan in plans for source in plan}
    for source in sources:
        known = planned.get(_identity(source), source.collection)
        if known != source.collection:
            before, now = (name or "none" for name in (known, source.collection))
            raise RequestError(f"{source.uri}: in collection {now} now, in {before} when it was first planned")


def _identity(source: SourceShard) -> tuple[str, int, str]:
    """What a shard's name is made from, and without the making of it as good to find a shard by."""
    return source.uri, source.size, source.etag


def _do(
    missing: list[SourceShard],
    version: Version,
    config: EngineSettings,
    open_work: Callable[[], ShardWork] | None,
    progress: Progress,
) -> None:
    if config.engine == "ray":
        try:
            from encode_pipeline.on_ray.driver import run_on_ray
        except ImportError as error:
            raise RequestError(f"engine=ray: {error}; install latent-clip-pipeline[ray], or use engine=local") from None
        outcomes = run_on_ray(missing, version, config, progress)
    else:
        from encode_pipeline.run_local import run_local

        work = open_work() if open_work else config.open_work(version.fingerprint)
        outcomes = run_local(missing, work, config, progress)
    # Beside the engine: a store that is slow to take it must not keep anybody from work.
    with ThreadPoolExecutor(1, thread_name_prefix="record") as records, closing(outcomes):
        for outcome in outcomes:
            if isinstance(outcome, ShardFailure):
                records.submit(_record, outcome, version, progress)
            else:
                progress.add(outcome)


def _record(failure: ShardFailure, version: Version, progress: Progress) -> None:
    """Keeps in the store that a shard was given up on; unless somebody else has done it meanwhile."""
    source = failure.source
    try:
        if version.is_done(source.name):
            progress.add(ShardReport(version.commit(source.name), won=False))
            return
        version.record_failure(Failure(source.name, source.uri, failure.error, failure.attempts))
    except Exception as error:  # the run goes on, and ends with this shard on its list
        progress.event("unrecorded", f"{source.uri}: that it was given up on is not in the store: {error}")
    progress.add(failure)
