"""A new version beside the promoted one: what is counted, measured and refused, and what the page shows of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jinja2")

from encode_pipeline.comparison.checks import Checks, Contest, Errors, Numbers, failures, remarks
from encode_pipeline.comparison.counts import Counts, count
from encode_pipeline.comparison.run import compare
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.commit import ShardBuild, SourceShard
from encode_pipeline.latents.spec import LatentSpec, SpecError
from encode_pipeline.latents.store import Failure, Store, Version
from encode_pipeline.run import run
from tests.changed_vaes import DEMO_VAE, rescaled, untrained
from tests.conftest import Configure, encode_and_seal
from tests.test_demo_report import console_lines

# --- counts -------------------------------------------------------------------------------------------


def store_of_tars(
    folder: Path, spec: LatentSpec, tars: Mapping[str, tuple[str, int, int]], given_up: tuple[str, ...] = ()
) -> Version:
    """A sealed version of tars by address: the mark of its content, samples encoded, samples that were not finite."""
    version = Store(folder / "store").create(spec)
    sources = {address: SourceShard(address, 1) for address in (*tars, *given_up)}
    version.record_plan(sources.values())
    for address, (mark, encoded, broken) in tars.items():
        with ShardBuild(folder / "scratch" / sources[address].name, spec, sources[address]) as build:
            for number in range(encoded):
                latents = [np.full(spec.shape, number + 1, np.float16)] * spec.views
                build.add(f"{number:03d}", latents, "c", [{"view": view} for view in range(spec.views)])
            for number in range(broken):
                build.reject(f"b{number:03d}", "non_finite_latent", "view 0")
            version.publish(*build.finish(mark * 64, {}))
    for address in given_up:
        version.record_failure(Failure(sources[address].name, address, "cut short", 3))
    version.seal(accept_failed=True)
    return version


@pytest.fixture
def old(tmp_path: Path, spec: LatentSpec) -> Version:
    return store_of_tars(tmp_path / "old", spec, {"/a/0.tar": ("0", 5, 0), "/a/1.tar": ("1", 4, 1)})


def after(tmp_path: Path, spec: LatentSpec, old: Version, *given_up: str, **tars: tuple[str, int, int]) -> Counts:
    """The counts of a new version, with tars by their addresses without slashes."""
    named = {f"/{name.replace('_', '/')}.tar": facts for name, facts in tars.items()}
    new = store_of_tars(tmp_path / "new", spec.model_copy(update={"seed": 1}), named, given_up)
    return count(new, old)[0]


def test_a_tar_is_known_by_its_content_wherever_it_lies(tmp_path: Path, spec: LatentSpec, old: Version) -> None:
    found = after(tmp_path, spec, old, moved_0=("0", 5, 0), moved_1=("1", 4, 1), moved_2=("2", 7, 0))
    assert found == Counts(new=16, old=9)


def test_what_the_new_vae_cannot_encode_is_told_by_its_reason(tmp_path: Path, spec: LatentSpec, old: Version) -> None:
    found = after(tmp_path, spec, old, a_0=("0", 3, 2), a_1=("1", 5, 0))
    assert (found.lost, found.rejected, found.gone) == (2, {"non_finite_latent": 1}, ())
    assert found.why_lost() == " (+1 non_finite_latent)"


def test_a_tar_that_is_gone_takes_its_samples_with_it(tmp_path: Path, spec: LatentSpec, old: Version) -> None:
    found = after(tmp_path, spec, old, a_0=("0", 5, 0), a_1=("f", 4, 1))  # of the same name, and another content
    assert (found.new, found.lost, found.gone) == (9, 4, ("/a/1.tar",))
    assert found.why_lost() == " (1 tars are not in it: /a/1.tar)"


def test_a_tar_that_was_given_up_on_with_consent_is_excused(tmp_path: Path, spec: LatentSpec, old: Version) -> None:
    found = after(tmp_path, spec, old, "/a/1.tar", a_0=("0", 5, 0))
    assert (found.lost, found.excused, found.gone) == (0, 4, ())


def test_with_nothing_before_it_there_is_nothing_to_lose(old: Version) -> None:
    assert count(old, None) == (Counts(new=9, broken=1), {})


# --- limits -------------------------------------------------------------------------------------------

SOUND: dict[str, Any] = {
    "new": Errors(mean=25, worst=16, samples=32),
    "old": Errors(mean=25.5, worst=17, samples=32),
    "loss": 0.5,
    "stds": [4, 5, 4, 5],
    "drift": (),
    "old_drift": (),
    "counts": Counts(new=1000, old=1000),
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"new": None, "old": None, "loss": None}, None),  # averaged pixels
        ({"old": None, "loss": None}, None),  # a first version
        ({"new": Errors(17.9, 16, 32)}, "17.9 dB on average, and min_psnr is 18"),
        ({"new": Errors(25, 9.9, 32)}, "the worst sample has 9.9 dB, and min_worst_psnr is 10"),
        ({"loss": 1.01}, "1.01 dB worse than the promoted version, and max_psnr_loss is 1"),
        ({"loss": -5.0}, None),
        ({"stds": [4, 0.04, 4, 5]}, "channel 1 carries nothing"),
        ({"stds": [0.0, 0.0, 0.0, 0.0]}, "channel 0, 1, 2, 3 carries nothing"),
        ({"drift": ("channel 2: too wide",)}, "channel 2: too wide"),
        ({"drift": ("channel 2: too wide",), "old_drift": ("channel 0: too wide",)}, None),
        ({"counts": Counts(new=999, old=1000, lost=1)}, None),
        ({"counts": Counts(new=998, old=1000, lost=2)}, "2 of the promoted version's 1000 samples are missing"),
        ({"counts": Counts(new=9, old=1000, excused=991)}, None),
        ({"counts": Counts(new=999, broken=1)}, None),
        ({"counts": Counts(new=998, broken=2)}, "2 of 1000 samples have no finite latents, and max_lost is 0.001"),
    ],
)
def test_each_limit_is_one_sentence(changes: dict[str, Any], says: str | None) -> None:
    found = failures(Numbers(**{**SOUND, **changes}), Checks())
    assert len(found) == (says is not None)
    assert says is None or says in found[0]


def test_what_is_accepted_is_remarked_on() -> None:
    drifted = Numbers(**{**SOUND, "drift": ("channel 2: too wide",)})
    assert failures(drifted, Checks(accept_drift=True)) == []
    assert remarks(drifted, Checks(accept_drift=True)) == ["channel 2: too wide; accepted"]
    few = Numbers(**{**SOUND, "counts": Counts(new=999, old=1000, lost=1, excused=3)})
    assert remarks(few, Checks()) == [
        "1 of the promoted version's samples are missing",
        "3 more were in tars that were given up on",
    ]


# --- pictures -----------------------------------------------------------------------------------------


@pytest.fixture
def promoted(configure: Configure) -> Version:
    """The small world by the demo's VAE, at the size at which it still sees something."""
    return encode_and_seal(configure(vae=str(DEMO_VAE), views=1, image_size=128))


def seal(configure: Configure, **changes: Any) -> Version:
    """Another version of the same store, not promoted."""
    config = configure(**{"vae": str(DEMO_VAE), "views": 1, "image_size": 128, **changes})
    version = Store(config.store).version(run(config)["fingerprint"])
    version.seal()
    return version


def against(old: Version | None, new: Version, vae: str = str(DEMO_VAE), **checks: Any) -> dict[str, Any]:
    store = str(Path(new.storage.root).parent)
    contest = Contest(store, new.fingerprint, old.fingerprint if old else None, vae)
    return compare(contest, Checks(**{"compare_samples": 6, **checks}))


def test_another_draw_of_the_same_posterior_is_as_good(promoted: Version, configure: Configure, tmp_path: Path) -> None:
    found = against(promoted, seal(configure, seed=5))
    assert found["ok"] and found["against"] == promoted.fingerprint and found["difference"] == "seed: 0 against 5"
    assert found["psnr"]["new"]["samples"] == found["psnr"]["old"]["samples"] == 6
    assert found["psnr"]["new"]["mean"] > 25 and abs(found["psnr"]["loss"]) < 0.2
    assert found["counts"] == Counts(new=48, old=48).to_dict()
    page = Path(found["report"])
    html = page.read_text()
    assert html.count("<img ") == 3 * 6 and "It may be promoted" in html and "://" not in html
    assert console_lines(page, tmp_path / "profile") == []
    kept = json.loads(page.with_suffix(".json").read_text())
    assert kept == {key: value for key, value in found.items() if key != "report"}
    means = [sample["new"] for sample in found["samples"]]
    assert sum(means) / 6 == pytest.approx(found["psnr"]["new"]["mean"])
    gains = [sample["new"] - sample["old"] for sample in found["samples"]]
    assert gains == sorted(gains)


def test_another_size_is_held_to_its_own_picture(promoted: Version, configure: Configure) -> None:
    found = against(promoted, seal(configure, image_size=64))
    assert found["psnr"]["old"]["mean"] > found["psnr"]["new"]["mean"] > 18  # a small picture is harder
    assert found["psnr"]["old"]["mean"] > 25
    assert found["ok"] and found["psnr"]["loss"] is None and "another size" in found["notes"][0]


def test_latents_of_an_odd_width_are_excused_by_no_others(configure: Configure, tmp_path: Path) -> None:
    """What it decodes to is as good, and the promoted version is off as well, by less."""
    place = tmp_path / "off"
    shutil.copytree(DEMO_VAE, place)
    promises = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(promises | {"scaling_factor": 3 * promises["scaling_factor"]}))
    wide, wider = (rescaled(tmp_path / f"{factor}", factor) for factor in (3.0, 60.0))
    old = encode_and_seal(configure(vae=str(place), views=1, image_size=128))
    found = against(old, seal(configure, vae=str(wide)), str(wide))
    assert found["ok"] and "so are channels of the promoted version" in found["notes"][0]
    found = against(old, seal(configure, vae=str(wider)), str(wider))
    assert abs(found["psnr"]["loss"]) < 0.2 and not found["ok"]
    assert "standard deviations" in found["failures"][0] and "scaling factor" in found["failures"][0]


def test_a_vae_that_was_overwritten_leaves_the_limits_alone(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "vae"
    shutil.copytree(DEMO_VAE, place)
    old = encode_and_seal(configure(vae=str(place), views=1, image_size=128))
    untrained(place, seed=1)
    new = seal(configure, seed=5)
    found = against(old, new)
    assert found["ok"] and found["psnr"]["old"] is found["psnr"]["loss"] is None
    assert f"the VAE in {place} is not the one of version" in found["notes"][0] and "limits only" in found["notes"][0]
    found = against(old, new, old_vae=str(DEMO_VAE))
    assert found["psnr"]["old"]["samples"] == 6 and found["notes"] == []
    with pytest.raises(SpecError, match="is not the one of version"):
        against(old, new, old_vae=str(place))


def test_averaged_pixels_have_channels_and_counts_alone(promoted: Version, configure: Configure) -> None:
    found = against(promoted, seal(configure, vae="pixels"), vae="pixels")
    assert found["ok"] and found["psnr"] == {"new": None, "old": None, "loss": None}
    assert len(found["channels"]) == 3 and len(found["old_channels"]) == 4
    back = against(Store(configure().store).version(found["fingerprint"]), promoted)
    assert back["ok"] and back["psnr"]["new"]["mean"] > 25 and back["psnr"]["old"] is None


def test_without_sources_there_is_no_verdict(configure: Configure, world: Path, tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    shutil.copytree(world / "train", tars)
    version = encode_and_seal(configure(vae=str(DEMO_VAE), views=1, image_size=128, source=str(tars)))
    shutil.rmtree(tars)
    with pytest.raises(CheckFailed, match="nothing to compare decoded latents with: source not readable: "):
        against(None, version)
    tars.mkdir()
    shutil.copy(world / "train" / "00000.tar", tars)
    (note,) = against(None, version, compare_samples=40)["notes"]
    assert " of 40 samples have no picture to be compared with: source not readable: " in note
