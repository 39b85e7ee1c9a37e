"""Re-encoding when the VAE has changed: notice, encode, seal, verify, compare, and only then promote.

Every step can be killed, and the same command goes on: shards by their commits, and what was verified or compared by
the store's audit trail, for a sealed version never changes. Two of these commands at once waste work and do no harm:
they make one version, and one of them promotes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import Field

from encode_pipeline.comparison.checks import CHECKS, Checks, Contest
from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.command import CheckFailed, RequestError, build
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.failpoints import failpoint
from encode_pipeline.latents.lease import leased
from encode_pipeline.latents.promotion import Promotions
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.run import do_shards, spec_by_child
from encode_pipeline.sources import find_sources
from encode_pipeline.swap_trail import SwapTrail
from encode_pipeline.verification import verified

Outcome = Literal["changed", "unchanged", "held-back", "refused", "given-up", "promoted"]
NAMED = 3
"""Of things that are counted, so many are named."""


class ReencodeConfig(EncodeConfig, Checks):
    """A run of the encoder into a version that is promoted if it is good enough."""

    if_changed: bool = Field(
        False,
        description="for schedules: do nothing if the promoted version is of this VAE and these settings; nor if the "
        "version that they make was promoted before, and another one since, or was refused by the same checks",
    )
    dry_run: bool = Field(False, description="only say whether there is anything to do; nothing is written")
    accept_failed: bool = Field(False, description="leave out the tars that are given up on")

    @property
    def checks(self) -> Checks:
        return build(Checks, {key: getattr(self, key) for key in CHECKS})


@dataclass(frozen=True)
class Verdict:
    """What is to be done, or has been, and why."""

    outcome: Outcome
    why: str
    ok: bool = True
    steps: Mapping[str, Any] = field(default_factory=dict)
    """What encoding, verifying and comparing found."""


def reencode(config: ReencodeConfig) -> dict[str, Any]:
    """Sees to it that the promoted version is the one that this configuration makes, if that is good enough."""
    swap = Swap(config, Store(config.store), spec_by_child(config))
    verdict = swap.look()
    changed = verdict.outcome == "changed"
    if not config.dry_run:
        if changed or not config.if_changed:
            verdict = swap.make(verdict.why)
        elif verdict.ok:  # a refusal is in the trail already
            swap.trail.note("held-back" if verdict.outcome == "held-back" else "reencode-unchanged", verdict.why)
    return {
        "ok": verdict.ok,
        "changed": changed,
        "outcome": verdict.outcome,
        "why": verdict.why,
        "fingerprint": swap.fingerprint,
        "promoted": swap.store.current(),
        "before": swap.before,
        **verdict.steps,
    }


class Swap:
    """One version on its way to take the place of another."""

    def __init__(self, config: ReencodeConfig, store: Store, spec: LatentSpec) -> None:
        self.config, self.store, self.spec = config, store, spec
        self.fingerprint = spec.fingerprint
        self.trail = SwapTrail(store.storage, spec.fingerprint, config.if_changed)
        self.before = store.current()
        self.against = None if self.before == self.fingerprint else self.before
        """What it is compared with. The promoted version, looked at again, only has to keep the limits."""
        self.asked = {"against": self.against, "checks": config.checks.model_dump(mode="json")}

    def look(self) -> Verdict:
        """Whether there is anything to do."""
        if self.before is None:
            why = "nothing is promoted yet"
        else:
            promoted = self.store.version(self.before).spec
            if self.before == self.fingerprint:
                return Verdict("unchanged", _same(self.spec, promoted))
            why = promoted.difference(self.spec)
        if self.config.if_changed and self.fingerprint in Promotions(self.store.storage).history():
            return Verdict(
                "held-back",
                f"{why}; but it was promoted before, and {self.before} after it, which stays: somebody rolled back, or "
                "two schedules disagree; without --if-changed it is checked and promoted again",
            )
        if self.config.if_changed and (refusal := self.trail.refusal(self.asked)):
            return Verdict(
                "refused",
                f"{refusal.why} (on {refusal.at[:10]}, audit entry {refusal.number}); "
                "with other limits, or without --if-changed, it is checked again",
                ok=False,
            )
        return Verdict("changed", why)

    def make(self, why: str) -> Verdict:
        """Encodes, seals, verifies, compares and promotes, as far as that is still to be done and goes well."""
        if find_spec("jinja2") is None:  # what the comparison's page needs: not to be found out after the encoding
            raise RequestError("reencode: No module named 'jinja2'; install latent-clip-pipeline[encode,report]")
        sources = self._sources()
        version = self.store.create(self.spec)
        steps: dict[str, Any] = {}
        with leased(version, "reencode", self.config.store):
            self.trail.record("reencode-began", why, against=self.before)
            if sources:
                steps["encoded"] = encoded = do_shards(sources, version, self.config)
                if not (encoded["ok"] or self.config.accept_failed):
                    failed = [failure["source"] for failure in encoded["failures"]]
                    why = f"not sealed: {len(failed)} of {len(sources)} tars were given up on: {_some(failed)}"
                    self.trail.note("held-back", why)
                    return Verdict("given-up", why, ok=False, steps=steps)
            try:
                tars = version.seal(self.config.accept_failed)
            except CheckFailed as error:
                self.trail.note("held-back", str(error))
                raise
            self.trail.record("sealed", f"{tars} tars", tars=tars)
            failpoint("after-seal", self.fingerprint)
            steps["verified"] = self._verified(version)
            if problems := steps["verified"]["problems"]:
                return self._refused(f"verify found {len(problems)} problem(s): {_some(problems)}", steps)
            failpoint("after-verify", self.fingerprint)
            if meanwhile := self._promoted_meanwhile():
                return Verdict("promoted", meanwhile, steps=steps)
            steps["compared"] = self._compared()
            if steps["compared"]["failures"]:
                return self._refused("; ".join(steps["compared"]["failures"]), steps)
            failpoint("after-compare", self.fingerprint)
            if meanwhile := self._promoted_meanwhile():
                return Verdict("promoted", meanwhile, steps=steps)
            self.store.promote(version, f"reencode: {why}", instead_of=self.before)  # what it was compared with
        return Verdict("promoted", why, steps=steps)

    def _sources(self) -> list[SourceShard]:
        """The tars to encode; none if the version is sealed with them. Tars that came since are not for it."""
        config = self.config
        version = self.store.version(self.fingerprint) if self.fingerprint in self.store.versions() else None
        sealed = version is not None and version.sealed
        if sealed and config.if_changed:  # a schedule ends what it began, whatever was added meanwhile
            return []
        sources = find_sources(config.source, config.limit)
        if version is None or not sealed:
            return sources
        left_out = version.left_out()
        if new := [source.uri for source in version.missing(sources) if source.name not in left_out]:
            raise RequestError(
                f"{version.storage.url()}: sealed, with this VAE and these settings, and {len(new)} of {len(sources)} "
                f"tars are not in it ({_some(new)}); encode those into a store of their own, and train on both"
            )
        return []

    def _verified(self, version: Version) -> dict[str, Any]:
        """What verifying found, now or before this run, by whoever took this step."""
        config = self.config
        asked = {"sample": config.verify_sample, "deep": config.verify_deep}
        if known := self.trail.known("verified", asked):
            return {**known.details, "problems": [], "entry": known.number}
        found = verified(version, config.verify_deep, config.verify_sample, config.seed, config.engine)
        numbers = {**asked, "files": found.checked, "bytes": found.bytes, "read": found.read, "shards": found.shards}
        problems = [f"{problem.path}: {problem.problem}" for problem in found.problems]
        if not problems:
            self.trail.record("verified", f"{found.read} of {found.shards} shards read, as committed", **numbers)
        return {**numbers, "problems": problems}

    def _compared(self) -> dict[str, Any]:
        """What the comparison found, now or before this run, by whoever took this step."""
        if known := self.trail.known("compared", self.asked):
            return {**known.details, "entry": known.number}
        config = self.config
        contest = Contest(config.store, self.fingerprint, self.against, config.vae, config.scratch)
        found = _compare(contest, config)
        numbers = {**self.asked, **{key: found[key] for key in ("failures", "notes", "psnr", "counts", "report")}}
        if not found["failures"]:
            self.trail.record("compared", _reconstruction(found["psnr"]), **numbers)
        return numbers

    def _refused(self, why: str, steps: dict[str, Any]) -> Verdict:
        self.trail.record("refused", why, **steps.get("compared", self.asked))
        return Verdict("refused", why, ok=False, steps=steps)

    def _promoted_meanwhile(self) -> str | None:
        """That another process has promoted this version since; if it was another version, what to do."""
        current = self.store.current()
        if current == self.before:
            return None
        if current == self.fingerprint:
            return "promoted by another process meanwhile"
        raise CheckFailed(
            f"{self.store.storage.url()}: {current} was promoted meanwhile, and {self.fingerprint} was not compared "
            "with it; run the same command again"
        )


def show_reencode(result: Mapping[str, Any]) -> str:
    """What a person reads, and a schedule's log keeps."""
    lines = [f"{result['outcome']}: version {result['fingerprint']}: {result['why']}"]
    if encoded := result.get("encoded"):
        shards = encoded["shards"]
        done = f"{shards['done']} shards now, {encoded['already_done']} before"
        lines.append(f"encoded   {done}, {shards['failed']} given up on")
        lines += [f"given up: {failure['source']}: {failure['error']}" for failure in encoded["failures"]]
    if found := result.get("verified"):
        lines.append(f"verified  {found['files']} files, {found['bytes']} bytes read{_entry(found)}")
    if found := result.get("compared"):
        lines.append(f"compared  {_reconstruction(found['psnr'])}{_entry(found)}")
        lines += [f"          {note}" for note in found["notes"]]
        lines.append(f"page      {found['report']}")
    lines.append(f"readers   use {result['promoted'] or 'nothing'}")
    return "\n".join(lines)


def _compare(contest: Contest, config: ReencodeConfig) -> dict[str, Any]:
    """Where the GPUs are."""
    if config.engine == "ray":
        from encode_pipeline.on_ray.compare import compare_on_ray

        return compare_on_ray(contest, config.checks, config.gpus_per_actor)
    from encode_pipeline.comparison.run import compare

    return compare(contest, config.checks)


def _same(spec: LatentSpec, promoted: LatentSpec) -> str:
    text = f"the promoted version is of this VAE ({spec.vae.weights_sha256[:12]}) and these settings"
    if spec.vae.name != promoted.vae.name:
        text += f"; only the VAE's name has changed, from {promoted.vae.name} to {spec.vae.name}"
    return text


def _reconstruction(psnr: Mapping[str, Any]) -> str:
    new, old = psnr["new"], psnr["old"]
    if new is None:
        return "channels and counts; nothing was decoded"
    text = f"{new['samples']} samples have {new['mean']:.1f} dB on average and {new['worst']:.1f} at worst"
    return text + (f", and had {old['mean']:.1f} and {old['worst']:.1f}" if old else "")


def _entry(found: Mapping[str, Any]) -> str:
    return f" (audit entry {found['entry']})" if "entry" in found else ""


def _some(items: list[str]) -> str:
    return ", ".join(items[:NAMED]) + (f" and {len(items) - NAMED} more" if len(items) > NAMED else "")
