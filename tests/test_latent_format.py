"""The shard format: reproducible, plain webdataset, strict in what it reads."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from hypothesis import example, given
from hypothesis import strategies as st

from encode_pipeline.latents.reader import LatentShard, ShardError
from encode_pipeline.latents.spec import FORMAT_VERSION, LatentSpec, SpecError, canonical_json, convert_scale
from encode_pipeline.latents.writer import (
    BLOCK,
    END_OF_TAR,
    ShardWriter,
    TarSummary,
    is_finite,
    key_problem,
    member_header,
    npy_header,
)


def write(path: Path, spec: LatentSpec, count: int = 5, seed: int = 0) -> TarSummary:
    rng = np.random.default_rng(seed)
    with ShardWriter(path, spec) as writer:
        for number in range(count):
            latent = rng.standard_normal(spec.shape).astype(np.float16)
            writer.add(f"{number:09d}", latent, f"caption {number} – ünïcode", {"number": number})
    assert writer.summary is not None
    return writer.summary


def test_same_samples_same_bytes(tmp_path: Path, spec: LatentSpec) -> None:
    first, second = write(tmp_path / "a.tar", spec), write(tmp_path / "b.tar", spec)
    assert first.sha256 == second.sha256
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def by_tarfile(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 0, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=25), st.integers(0, 8**11 - 1))
@example("x" * 100, 8**11 - 1)
@example("", 0)
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    assert member_header(name, size) == by_tarfile(name, size)


@pytest.mark.parametrize(("name", "size"), [("folder/" + "x" * 94, 1), ("a.npy", 8**11), ("\ud800", 1)])
def test_headers_say_no_more_than_a_reader_reads(name: str, size: int) -> None:
    with pytest.raises(ValueError):
        member_header(name, size)


def test_a_shard_is_the_tar_that_its_members_make(tmp_path: Path, spec: LatentSpec) -> None:
    """Whichever way the writer puts them together, and however a latent lies in memory."""
    rng = np.random.default_rng(1)
    latents = [rng.standard_normal(spec.shape).astype(np.float16) for _ in range(3)]
    latents.append(np.asfortranarray(latents[0])[:, ::-1])
    captions = ["", "x" * BLOCK, "ünïcode", "a caption"]
    wanted = b""
    with ShardWriter(tmp_path / "a.tar", spec) as writer:
        for number, (latent, caption) in enumerate(zip(latents, captions, strict=True)):
            writer.add(f"k{number}", latent, caption, {"view": 0})
            record = canonical_json({"view": 0, "spec": spec.fingerprint})
            content = {"npy": npy_header(spec) + latent.tobytes(), "txt": caption.encode(), "json": record}
            for part, data in content.items():
                wanted += by_tarfile(f"k{number}.{part}", len(data)) + data + bytes(-len(data) % BLOCK)
    wanted += END_OF_TAR
    assert (tmp_path / "a.tar").read_bytes() == wanted
    assert writer.summary == TarSummary(tmp_path / "a.tar", len(wanted), hashlib.sha256(wanted).hexdigest(), 4)


def test_every_number_that_is_not_finite_is_seen() -> None:
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert [is_finite(numbers[at : at + 1]) for at in range(len(numbers))] == np.isfinite(numbers).tolist()


def test_reader_gives_back_any_sample_in_any_order(tmp_path: Path, spec: LatentSpec) -> None:
    write(tmp_path / "a.tar", spec)
    rng = np.random.default_rng(0)
    expected = [rng.standard_normal(spec.shape).astype(np.float16) for _ in range(5)]
    with LatentShard(tmp_path / "a.tar", spec) as shard:
        assert len(shard) == 5 and shard.keys[3] == "000000003"
        for index in (4, 0, 2):
            assert np.array_equal(shard.latent(index), expected[index])
            assert shard.caption(index) == f"caption {index} – ünïcode"
            assert shard.metadata(index) == {"number": index, "spec": spec.fingerprint}
            assert not shard.latent(index).flags.owndata  # a view of the file, not a copy


def test_plain_webdataset_reads_it(tmp_path: Path, spec: LatentSpec) -> None:
    write(tmp_path / "a.tar", spec)
    samples = list(wds.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode().to_tuple("npy", "txt", "json"))
    assert len(samples) == 5
    latent, caption, record = samples[1]
    assert latent.dtype == np.float16 and latent.shape == spec.shape
    assert caption == "caption 1 – ünïcode" and record["number"] == 1


def test_every_cut_is_noticed(tmp_path: Path, spec: LatentSpec) -> None:
    whole = tmp_path / "a.tar"
    write(whole, spec, count=2)
    data = whole.read_bytes()
    cut = tmp_path / "cut.tar"
    for length in [*range(0, len(data), 256), len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises((ShardError, SpecError)):
            LatentShard(cut, spec)
    cut.write_bytes(data + b"\0")
    with pytest.raises(ShardError, match="no end of tar"):
        LatentShard(cut, spec)


def test_every_flipped_header_byte_is_noticed(tmp_path: Path, spec: LatentSpec) -> None:
    whole = tmp_path / "a.tar"
    write(whole, spec, count=1)
    data = bytearray(whole.read_bytes())
    broken = tmp_path / "broken.tar"
    for position in range(0, 500, 7):  # the ustar header's used part
        data[position] ^= 0x10
        broken.write_bytes(data)
        with pytest.raises((ShardError, SpecError)):
            LatentShard(broken, spec)
        data[position] ^= 0x10


def test_every_flipped_byte_is_named_or_gives_other_content(tmp_path: Path, spec: LatentSpec) -> None:
    """Whatever a disk does to a shard, its reader says so in its own words or hands out other bytes: never a crash."""
    whole = tmp_path / "a.tar"
    write(whole, spec, count=2)
    data = bytearray(whole.read_bytes())
    broken = tmp_path / "broken.tar"
    refused = 0
    for position in range(0, len(data), 5):
        data[position] ^= 0x80
        broken.write_bytes(data)
        try:
            with LatentShard(broken, spec) as shard:
                for index in range(len(shard)):
                    shard.latent(index), shard.caption(index), shard.metadata(index)
        except (ShardError, SpecError) as error:
            refused += 1
            assert "broken.tar" in str(error)
        data[position] ^= 0x80
    assert refused > 100


def test_writer_refuses_what_readers_would(tmp_path: Path, spec: LatentSpec) -> None:
    with ShardWriter(tmp_path / "a.tar", spec) as writer:
        with pytest.raises(SpecError, match="shape"):
            writer.add("a", np.zeros((4, 8, 9), np.float16), "", {})
        with pytest.raises(SpecError, match="float32"):
            writer.add("a", np.zeros(spec.shape, np.float32), "", {})
        with pytest.raises(SpecError, match="finite"):
            writer.add("a", np.full(spec.shape, np.inf, np.float16), "", {})


def test_an_exception_leaves_no_readable_shard(tmp_path: Path, spec: LatentSpec) -> None:
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "a.tar", spec) as writer:
        writer.add("a", np.zeros(spec.shape, np.float16), "", {})
        raise RuntimeError
    with pytest.raises(ShardError):
        LatentShard(tmp_path / "a.tar", spec)


def test_a_foreign_shard_is_refused_with_a_sentence(tmp_path: Path, spec: LatentSpec) -> None:
    write(tmp_path / "a.tar", spec)
    other = spec.model_copy(update={"seed": 1})
    with pytest.raises(SpecError, match=f"holds latents of version {spec.fingerprint}, not of {other.fingerprint}"):
        LatentShard(tmp_path / "a.tar", other)
    with pytest.raises(SpecError, match="not a float16 latent of shape"):
        LatentShard(tmp_path / "a.tar", spec.model_copy(update={"shape": (16, 8, 8)}))


@pytest.mark.parametrize("key", ["../x", "/etc/x", "a//b", "", "a.b", "k" * 96, "a/./b", "bell\a"])
def test_unusable_keys(key: str) -> None:
    assert key_problem(key) is not None


@pytest.mark.parametrize("key", ["000000001", "part/000", "ключ", "k" * 95])
def test_usable_keys(key: str, tmp_path: Path, spec: LatentSpec) -> None:
    assert key_problem(key) is None
    with ShardWriter(tmp_path / "a.tar", spec) as writer:
        writer.add(key, np.zeros(spec.shape, np.float16), "", {})
    with LatentShard(tmp_path / "a.tar", spec) as shard:
        assert shard.keys == [key]


# --- the spec ------------------------------------------------------------------------------------


def test_fingerprint_is_of_the_meaning(spec: LatentSpec) -> None:
    renamed = spec.model_copy(update={"vae": spec.vae.model_copy(update={"name": "another name"})})
    assert renamed.fingerprint == spec.fingerprint
    changes: list[dict[str, Any]] = [
        {"seed": 1},
        {"views": 3},
        {"scale": "model"},
        {"posterior": "mean"},
        {"image_size": 128},
        {"recipe": {"hue": 0.1}},
        {"compute_dtype": "bfloat16"},
        {"vae": spec.vae.model_copy(update={"weights_sha256": "1" * 64})},
    ]
    prints = {spec.model_copy(update=change).fingerprint for change in changes}
    assert len(prints) == len(changes) and spec.fingerprint not in prints


def test_a_difference_is_named_where_it_lies(spec: LatentSpec) -> None:
    spec = spec.model_copy(update={"recipe": {"steps": [{"Blur": {}}], "min_side": 32}})
    vae = spec.vae.model_copy(update={"config": {"class": "AutoencoderKL", "norm": 4}})
    assert spec.difference(spec) == "nothing"
    assert spec.difference(spec.model_copy(update={"vae": vae})) == "vae.config.class: None against AutoencoderKL"
    other = spec.model_copy(update={"recipe": {**spec.recipe, "min_side": 64}, "seed": 1})
    assert spec.difference(other) == "recipe.min_side: 32 against 64"


def test_spec_survives_its_json_and_notices_edits(spec: LatentSpec) -> None:
    assert LatentSpec.from_json(spec.to_json(), "here") == spec
    edited = json.loads(spec.to_json())
    edited["seed"] = 9
    with pytest.raises(SpecError, match=r"here: says fingerprint .* it was edited"):
        LatentSpec.from_json(json.dumps(edited).encode(), "here")


def test_a_newer_format_is_refused_with_a_sentence(spec: LatentSpec) -> None:
    newer = json.loads(spec.to_json())
    newer["format_version"] = FORMAT_VERSION + 1
    newer["something_new"] = 1
    with pytest.raises(SpecError, match=f"written in format {FORMAT_VERSION + 1}, this reader knows up to"):
        LatentSpec.from_json(json.dumps(newer).encode(), "here")


def test_scale_conversion_is_its_own_inverse(spec: LatentSpec) -> None:
    raw = np.array([0.25, 2.25])
    model = convert_scale(raw, spec.vae, "raw", "model")
    assert np.allclose(model, [0.0, 1.0])
    assert np.allclose(convert_scale(model, spec.vae, "model", "raw"), raw)
    assert convert_scale(raw, spec.vae, "raw", "raw") is raw
