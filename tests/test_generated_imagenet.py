"""A generated data set from end to end, with the tiny pipeline: what is in it, and that nothing else decides it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from encode_pipeline.config import EncodeConfig, PreviewRequest, ReplayRequest
from encode_pipeline.latents.command import RequestError, build, main
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.failpoints import ENVIRONMENT
from encode_pipeline.latents.lease import leases
from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.spec import LatentSpec, convert_scale
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.latents.verify import verify
from encode_pipeline.preview.run import preview
from encode_pipeline.randomness import posterior_noise, seed_of
from encode_pipeline.replay import replay
from encode_pipeline.vae import load_vae
from eval.__main__ import VERBS
from eval.denoise import Level, denoise, guided
from eval.generated_imagenet import GenerateConfig, generate_imagenet
from eval.generator import build_tiny_pipeline, load_generator
from eval.zero_shot import ZeroShotConfig, zero_shot
from tests.clips import latent_clip
from tests.conftest import SIDE, encode_and_seal, payload_hashes
from tests.latent_stores import latent_store
from tests.picture_sets import picture, write

ROOT = Path(__file__).parent.parent
Generate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def data(world: Path, small_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """The held-out pictures of the small world as labelled latents: 48 of them in three shards."""
    store = tmp_path_factory.mktemp("labelled") / "store"
    source = (str(world / "test"),)
    config = EncodeConfig(vae=str(small_vae), source=source, store=str(store), image_size=SIDE, views=1, threads=2)
    return encode_and_seal(config)


@pytest.fixture
def generate(data: Version, tiny_pipeline: Path, tmp_path: Path) -> Generate:
    """Generates from the held-out latents, with what a test wants otherwise."""

    def run(**changes: Any) -> dict[str, Any]:
        values = {"data": address(data), "generator": str(tiny_pipeline), "out": str(tmp_path / "out")}
        return generate_imagenet(build(GenerateConfig, {**values, "cache": tmp_path / "cache", **changes}))

    return run


def address(version: Version) -> str:
    return version.storage.url().rpartition("/")[0]


def version_of(result: dict[str, Any]) -> Version:
    return Store(result["store"]).version(result["fingerprint"])


def samples_of(version: Version) -> dict[str, tuple[np.ndarray, str, dict[str, Any]]]:
    """Latent, caption and record of every sample, by key."""
    found = {}
    for row in version.manifest().to_pylist():
        with LatentShard(Path(version.storage.url(row["path"])), version.spec) as shard:
            for index, key in enumerate(shard.keys):
                found[key] = shard.latent(index).copy(), shard.caption(index), shard.metadata(index)
    return found


@pytest.mark.parametrize("noise", ["workflow", "literal"])
def test_every_item_is_what_its_record_says(generate: Generate, data: Version, tiny_pipeline: Path, noise: str) -> None:
    """Items made again here, one by one, from their originals and from what is recorded of them."""
    result = generate(noise=noise, seed=3)
    assert result["ok"] and result["items"] == 48 and result["sealed"]
    version, generator = version_of(result), load_generator(str(tiny_pipeline))
    assert verify(version, deep=True).to_dict()["ok"]
    assert version.spec.vae == data.spec.vae and version.spec.scale == "raw"
    originals, made = samples_of(data), samples_of(version)
    assert made.keys() == originals.keys()
    facts = version.spec.recipe["generated"]
    assert facts["noise"] == noise and facts["weights_sha256"] == generator.weights_sha256
    levels = [Level(**level) for level in facts["levels"]]
    for key in list(made)[::16]:
        latent, caption, record = made[key]
        about, original = record["metadata"], originals[key][2]["metadata"]
        assert about["class_name"] == original["class_name"] and about["class_name"] in about["prompt"] == caption
        assert (about["t"], about["sigma"]) == (levels[0].t, levels[0].sigma) and about["original"]["key"] == key
        shard, spec = about["original"]["shard"], version.spec
        noises = [
            torch.from_numpy(posterior_noise(seed_of(3, shard, key, 0, f"noise {number}"), spec.shape))[None]
            for number in range(len(levels))
        ]
        z = torch.from_numpy(originals[key][0].astype(np.float32))[None]
        prompts, negative = (generator.embed_prompts([text]) for text in (caption, "text, watermark"))

        def predict(x_bchw: torch.Tensor, level: Level) -> torch.Tensor:
            seen = generator.eps(x_bchw, level.t, prompts)  # noqa: B023
            return seen if noise == "literal" else guided(seen, generator.eps(x_bchw, level.t, negative), 1.1)  # noqa: B023

        with torch.no_grad():
            x = convert_scale(z, spec.vae, "raw", "model") + levels[0].sigma * noises[0]
            again = convert_scale(denoise(x, levels, predict, noises[1:]), spec.vae, "model", "raw")
        assert np.allclose(latent, again[0].numpy(), rtol=2e-3, atol=2e-2)
        assert not np.allclose(latent, originals[key][0], atol=1.0)


def test_labels_and_templates(generate: Generate) -> None:
    samples = samples_of(version_of(generate(noise="literal"))).values()
    about = [record["metadata"] for _, _, record in samples]
    names = sorted({item["class_name"] for item in about})
    assert all(names[item["label"]] == item["class_name"] for item in about)
    assert len({item["template"] for item in about}) == 7  # of OpenCLIP's seven, over 48 items


def test_batches_and_threads_change_no_byte(generate: Generate, tmp_path: Path) -> None:
    one = version_of(generate(batch_size=1))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 2)
        four = version_of(generate(batch_size=4, out=str(tmp_path / "four")))
    finally:
        torch.set_num_threads(threads)
    assert payload_hashes(one) == payload_hashes(four)


def test_another_place_of_the_data_changes_no_latent(generate: Generate, data: Version, tmp_path: Path) -> None:
    shutil.copytree(address(data), tmp_path / "moved")
    here = generate(noise="literal")
    there = generate(noise="literal", data=str(tmp_path / "moved"), out=str(tmp_path / "there"))
    assert here["fingerprint"] == there["fingerprint"]
    one, other = (samples_of(version_of(result)) for result in (here, there))
    assert all(np.array_equal(one[key][0], other[key][0]) for key in one)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"steps": 3}, {"guidance": 2.0}, {"negative": "blue"}, {"noise": "literal"}]
)
def test_every_parameter_makes_another_version(generate: Generate, change: dict[str, Any]) -> None:
    assert generate(limit=1)["fingerprint"] != generate(limit=1, **change)["fingerprint"]


def test_killed_and_run_again(generate: Generate, data: Version, tiny_pipeline: Path, tmp_path: Path) -> None:
    """Killed outright when the latents of a shard are published, and their commit is not."""
    rows = data.manifest().to_pylist()
    victim = SourceShard(data.storage.url(rows[1]["path"]), rows[1]["size"]).name
    out = tmp_path / "disturbed"
    words = [f"data={address(data)}", f"out={out}", f"generator={tiny_pipeline}", f"cache={tmp_path / 'cache'}"]
    trap = {"at": "before-commit", "do": "kill", "shard": victim, "marks": str(tmp_path)}
    environment = {**os.environ, ENVIRONMENT: json.dumps([trap])}
    command = [sys.executable, "-m", "eval", "generate-imagenet", *words]
    killed = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (lease,) = leases(Store(address(data)).storage)
    assert lease.version == data.fingerprint and lease.content["of"] == str(out)
    left = Store(out).version()
    done = left.done()
    assert victim not in done and not left.sealed and left.storage.files(f"data/{victim}")
    result = generate(out=str(out))
    assert result["ok"] and result["already_done"] == len(done) and result["shards"]["done"] == 3 - len(done)
    assert leases(Store(address(data)).storage) == []
    calm = generate(out=str(tmp_path / "calm"))
    assert payload_hashes(version_of(result)) == payload_hashes(version_of(calm))
    again = generate(out=str(out))
    assert again["ok"] and again["already_done"] == 3 and again["items"] == 48


def test_ray_commits_what_local_commits(generate: Generate, tmp_path: Path) -> None:
    local = version_of(generate())
    on_ray = version_of(generate(out=str(tmp_path / "ray"), engine="ray", actors=1, gpus_per_actor=0))
    assert payload_hashes(local) == payload_hashes(on_ray)


def test_from_pictures(generate: Generate, world: Path) -> None:
    """Labelled tars, encoded on the way by the VAE of the generator; the second reading finds them encoded."""
    found = [generate(data=str(world / "test"), image_size=SIDE, noise=noise) for noise in ("workflow", "literal")]
    templates = (world / "test" / "zeroshot_classification_templates.txt").read_text().split("\n")
    for result in found:
        assert result["ok"] and result["items"] == 48
        for _, _, record in samples_of(version_of(result)).values():
            about = record["metadata"]
            assert templates[about["template"]].format(c=about["class_name"]) == about["prompt"]
    assert len({version_of(result).spec.recipe["generated"]["from"] for result in found}) == 1


def test_pictures_that_had_no_latent_are_told_of_by_every_evaluation(generate: Generate, tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {f"cat/{number}.png": picture(number) for number in range(2)})
    write(folder, {"bird/0.png": picture(2), "bird/1.png": picture(3)[:300]})
    result = generate(data=str(folder), image_size=SIDE, noise="literal")
    assert (result["ok"], result["sealed"], result["items"], len(result["not_in_data"])) == (False, True, 3, 1)
    model = latent_clip(tmp_path / "clip.pt", version_of(result).spec)
    found = zero_shot(ZeroShotConfig(checkpoint=model, data=result["store"], cache=tmp_path / "cache"))
    assert found["n"] == 3 and found["not_comparable"][-1].startswith("1 pictures are not among the generated ones")


def test_a_vae_in_the_same_latent_space_is_named(
    generate: Generate, small_vae: Path, data: Version, tmp_path: Path
) -> None:
    """As the paper has it: latents of one VAE, and a generator that came with another."""
    build_tiny_pipeline(tmp_path / "other", seed=7)
    with pytest.raises(RequestError, match=r"latents of the VAE .*, not of .*/other; .* name it with vae="):
        generate(generator=str(tmp_path / "other"))
    result = generate(generator=str(tmp_path / "other"), vae=str(small_vae), limit=1)
    assert result["ok"] and version_of(result).spec.vae == data.spec.vae


def test_what_is_not_finite_is_listed_and_counted(
    generate: Generate, data: Version, tiny_pipeline: Path, tmp_path: Path
) -> None:
    """A bias on the noise moves all latents by as much: to where float16 ends for some of them."""
    found = samples_of(version_of(generate(noise="literal")))
    lowest = sorted(float(latent.min()) for latent, _, _ in found.values())
    folder = tmp_path / "biased"
    shutil.copytree(tiny_pipeline, folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    level, factor = (
        generate(noise="literal")["levels"][0]["sigma"],
        load_vae(str(tiny_pipeline)).identity.scaling_factor,
    )
    weights["conv_out.bias"] += (65520 + (lowest[11] + lowest[12]) / 2) * factor / level
    save_file(weights, path)
    result = generate(noise="literal", generator=str(folder), out=str(tmp_path / "biased-out"))
    assert not result["ok"] and len(result["rejected_items"]) == 12 and result["items"] == 36
    assert all(" non_finite_latent of the prompt" in item for item in result["rejected_items"])
    words = [f"data={address(data)}", f"generator={folder}", f"out={tmp_path / 'biased-out'}", "noise=literal"]
    assert main("eval", VERBS, ["generate-imagenet", *words, f"cache={tmp_path}"]) == 1
    assert verify(version_of(result), deep=True).to_dict()["ok"]


def test_the_verbs_of_a_store_understand_it(generate: Generate, tmp_path: Path) -> None:
    version = version_of(generate(noise="literal"))
    shown = preview(PreviewRequest(store=address(version), n=4, out=tmp_path / "preview"))
    assert len(shown["samples"]) == 4 and "generated from the latents of another store" in shown["notes"][0]
    with pytest.raises(RequestError, match="generated from other latents; replay makes views of pictures"):
        replay(ReplayRequest(store=address(version), key=shown["samples"][0]["key"], out=tmp_path / "replay"))


def without_labels(tmp_path: Path, small_vae: Path, spec: LatentSpec) -> dict[str, Any]:
    of_the_vae = spec.model_copy(update={"vae": load_vae(str(small_vae)).identity})
    latent_store(tmp_path / "unlabelled", tmp_path / "scratch", of_the_vae, [2])
    return {"data": str(tmp_path / "unlabelled")}


def of_three_channels(tmp_path: Path, small_vae: Path, spec: LatentSpec) -> dict[str, Any]:
    return {"vae": "pixels"}


def no_pipeline(tmp_path: Path, small_vae: Path, spec: LatentSpec) -> dict[str, Any]:
    return {"generator": str(small_vae)}


def no_data(tmp_path: Path, small_vae: Path, spec: LatentSpec) -> dict[str, Any]:
    (tmp_path / "empty").mkdir()
    return {"data": str(tmp_path / "empty")}


def classes_that_lack_one(tmp_path: Path, small_vae: Path, spec: LatentSpec) -> dict[str, Any]:
    (tmp_path / "classnames.txt").write_text("red circle\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    return {"classes": tmp_path}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_labels, "view0.tar: 000000000: no class_name in its metadata, so there is no prompt for it"),
        (of_three_channels, "vae: pixels: latents of 3 channels; the generator makes 4"),
        (no_pipeline, r"no diffusers pipeline here \(no model_index.json\)"),
        (no_data, "looked for .*, or a latent store"),
        (classes_that_lack_one, "is not in .*classnames.txt"),
        ({"noise": "two thirds"}, "noise='two thirds': Input should be 'workflow' or 'literal'"),
        ({"negative": "text", "guidance": 1.0}, "nothing is led away from it with guidance=1"),
        ({"view": 1}, "view=1: .* has 1 views, from 0"),
        ({"version": "ffff"}, "no one version ffff"),
    ],
)
def test_wrong_requests_are_one_line(
    generate: Generate, tmp_path: Path, small_vae: Path, spec: LatentSpec, change: Any, says: str
) -> None:
    changes = change(tmp_path, small_vae, spec) if callable(change) else change
    with pytest.raises(RequestError, match=says) as refusal:
        generate(**changes)
    assert "\n" not in str(refusal.value) and not (tmp_path / "out").exists()


def test_a_generator_that_became_another_is_refused(
    generate: Generate, tiny_pipeline: Path, tmp_path: Path, data: Version
) -> None:
    """As on a machine of a cluster whose folder holds other weights."""
    folder = tmp_path / "changing"
    shutil.copytree(tiny_pipeline, folder)
    result = generate(generator=str(folder), limit=1)
    shutil.rmtree(folder)
    build_tiny_pipeline(folder, seed=5)
    config = GenerateConfig(data=address(data), out=result["store"], generator=str(folder))
    with pytest.raises(RequestError, match=r"is not the one of version .*: another weights_sha256"):
        config.open_work(result["fingerprint"])
