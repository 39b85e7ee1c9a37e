"""A web's worth of dirt in one run: every sample of thousands encoded in every view, or refused for its reason."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encode_pipeline.latents.store import Store
from encode_pipeline.latents.verify import verify
from encode_pipeline.records import Reason
from encode_pipeline.run import run
from tests.conftest import Configure, samples_in
from tests.tars import END, member
from tests.test_decode import RIGHT, WRONG

TARS, SAMPLES_PER_TAR = 12, 450
Outcome = Reason | None
"""None for a sample that must come out in every view."""


def sample(kind: str, key: str, plain: bytes) -> tuple[bytes, Outcome]:
    """The members of a sample of some kind, and what must become of it."""
    if kind in RIGHT:
        return member(f"{key}.jpg", RIGHT[kind][0]) + member(f"{key}.txt", b"as strangers send it"), None
    if kind in WRONG:
        data, reason = WRONG[kind]
        return member(f"{key}.jpg", data) + member(f"{key}.txt", b"as strangers send it"), reason
    image, text = member(f"{key}.jpg", plain), member(f"{key}.txt", b"t")
    parts: dict[str, tuple[bytes, Outcome]] = {
        "plain": (image + text, None),
        "caption in json": (image + member(f"{key}.json", b'{"caption": "c"}'), None),
        "strange parts": (member(f"{key}.npy", b"?" * 2000) + image + text + member(f"{key}.cls", b"3"), None),
        "no image": (text, Reason.MISSING_IMAGE),
        "no caption": (image, Reason.MISSING_CAPTION),
        "blank caption": (image + member(f"{key}.txt", b" \n"), Reason.MISSING_CAPTION),
        "latin caption": (image + member(f"{key}.txt", b"caf\xe9"), Reason.CAPTION_NOT_UTF8),
        "broken json": (image + text + member(f"{key}.json", b"{"), Reason.BAD_METADATA),
        "pickle": (image + text + member(f"{key}.pkl", b"\x80\x04."), Reason.UNSAFE_MEMBER),
        "link": (image + text + member(f"{key}.png", b"", b"2"), Reason.UNSAFE_MEMBER),
        "climbing": (member(f"../{key}.jpg", plain) + member(f"../{key}.txt", b"t"), Reason.UNSAFE_KEY),
    }
    return parts[kind]


PARTS = ("no image", "no caption", "blank caption", "latin caption", "broken json", "pickle", "link", "climbing")
SOUND = ("plain", "caption in json", "strange parts")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Outcome]]]:
    """Tars, and for each of them what must become of every key; duplicates are counted apart."""
    folder = tmp_path_factory.mktemp("web")
    rng = np.random.default_rng(0)
    plain = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)).save(plain, "JPEG")
    kinds = [*SOUND * 12, *PARTS, *RIGHT, *WRONG]
    outcomes: dict[str, dict[str, Outcome]] = {}
    for tar in range(TARS):
        expected: dict[str, Outcome] = {}
        content = b""
        for number in range(SAMPLES_PER_TAR):
            kind, key = kinds[rng.integers(len(kinds))] if number else "plain", f"{tar:05d}{number:04d}"
            members, outcome = sample(kind, key, plain.getvalue())
            content += members
            expected[f"../{key}" if kind == "climbing" else key] = outcome
        content += member(f"{tar:05d}0000.jpg", plain.getvalue()) + member(
            f"{tar:05d}0000.txt", b"again"
        )  # far duplicate
        name = f"{tar:05d}"
        (folder / f"{name}.tar").write_bytes(content + END)
        outcomes[name] = expected
    return folder, outcomes


def test_every_sample_of_thousands_is_accounted_for(
    configure: Configure, planted: tuple[Path, dict[str, dict[str, Outcome]]]
) -> None:
    folder, outcomes = planted
    result = run(configure(source=str(folder), vae="pixels", views=2, batch_size=16))
    total = TARS * (SAMPLES_PER_TAR + 1)
    assert total >= 5000 and result["ok"] and result["samples"]["read"] == total
    expected = Counter(str(reason) for of_tar in outcomes.values() for reason in of_tar.values() if reason)
    expected[Reason.DUPLICATE_KEY] += TARS
    assert result["rejected"] == dict(expected)
    assert result["samples"]["encoded"] + sum(expected.values()) == total
    version = Store(result["store"]).version()
    for commit in version.commits():
        of_tar = outcomes[commit.shard.partition("-")[0]]
        assert commit.problem() is None and commit.read == SAMPLES_PER_TAR + 1
        refused: Counter[tuple[str, str]] = Counter()
        for payload in commit.payloads:
            if payload.view is None:
                lines = version.storage.read(payload.path).splitlines()
                refused.update((line["key"], line["reason"]) for line in map(json.loads, lines))
        wanted = Counter((key, str(reason)) for key, reason in of_tar.items() if reason)
        wanted[next(iter(of_tar)), str(Reason.DUPLICATE_KEY)] += 1
        assert refused == wanted
        for payload in commit.views:
            local = version.storage.local_path(payload.path)
            assert local is not None
            with tarfile.open(local) as file:  # Python's own reader, not ours
                stored = [name.removesuffix(".npy") for name in file.getnames() if name.endswith(".npy")]
            assert stored == [key for key, reason in of_tar.items() if reason is None]
    version.seal()
    assert verify(version).to_dict()["ok"]


def test_the_plan_is_what_a_reader_finds(planted: tuple[Path, dict[str, dict[str, Outcome]]]) -> None:
    folder, outcomes = planted
    assert sum(len(samples_in(tar)) for tar in folder.glob("*.tar")) == TARS * (SAMPLES_PER_TAR + 1)
    assert len({reason for of_tar in outcomes.values() for reason in of_tar.values()}) >= 10
