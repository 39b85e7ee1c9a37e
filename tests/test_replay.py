"""One sample again from what the store says of it: the same pixels, the same latents, or a sentence why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo.warts import WartPlan
from encode_pipeline.__main__ import VERBS
from encode_pipeline.config import ReplayRequest
from encode_pipeline.encoder import LatentEncoder
from encode_pipeline.latents.command import CheckFailed, RequestError, main
from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.store import Version
from encode_pipeline.records import Pixels
from encode_pipeline.replay import float16_steps, replay
from encode_pipeline.run import run
from tests.conftest import Configure, build_vae, encode_and_seal


def ask(version: Version, out: Path, key: str = "000010003", **more: Any) -> dict[str, Any]:
    store = str(Path(version.storage.root).parent)
    return replay(ReplayRequest(store=store, key=key, out=out, **more))


def test_a_sample_comes_out_again_to_the_bit(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[bytes] = set()
    start = LatentEncoder.start

    def watched(self: LatentEncoder, pictures: Sequence[Pixels], *rest: Any) -> Any:
        seen.update(picture.tobytes() for picture in pictures)
        return start(self, pictures, *rest)

    monkeypatch.setattr(LatentEncoder, "start", watched)
    version = encode_and_seal(configure(recipe="paper"))
    monkeypatch.undo()
    told = ask(version, tmp_path / "out")
    assert told["latents"] == "identical" and told["key"] == "000010003" and told["caption"]
    assert [view["view"] for view in told["views"]] == [0, 1, 2, 3]
    for view in told["views"]:
        assert view["float16_steps"] == 0
        pixels = np.asarray(Image.open(view["picture"]))
        assert pixels.shape == (64, 64, 3) and pixels.tobytes() in seen
    assert told["views"][0]["recipe"] == "plain" and 0.8 <= told["views"][1]["brightness"] <= 1.2


def test_one_view_of_one_shard(sealed: Version, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(Path(sealed.storage.root).parent)
    (shard,) = [commit.shard for commit in sealed.commits() if "00001" in commit.shard.split("-")[0]]
    words = ["replay", store, "key=000010003", f"shard={shard}", "view=2", f"out={tmp_path / 'o'}"]
    capsys.readouterr()
    assert main("encode_pipeline", VERBS, [*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [view["view"] for view in told["views"]] == [2] and told["shard"] == shard
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["view2.png"]
    assert main("encode_pipeline", VERBS, words) == 0
    assert "parameters as recorded; latents identical" in capsys.readouterr().out


def test_a_vae_that_is_gone_leaves_the_views(configure: Configure, tmp_path: Path) -> None:
    vae = build_vae(tmp_path / "vae", seed=3)
    version = encode_and_seal(configure(views=1, vae=str(vae), limit=2))
    moved = vae.rename(tmp_path / "moved")
    told = ask(version, tmp_path / "out")
    assert told["latents"].startswith("not compared: vae: ") and told["views"][0]["float16_steps"] is None
    assert Path(told["views"][0]["picture"]).is_file()
    assert ask(version, tmp_path / "out", vae=str(moved))["latents"] == "identical"
    with pytest.raises(RequestError, match="no such directory"):
        ask(version, tmp_path / "out", vae=str(tmp_path / "nowhere"))


def test_what_cannot_be_replayed_is_one_line(
    configure: Configure, warty_tar: tuple[Path, WartPlan], tmp_path: Path
) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    tar = Path(shutil.copy(warty_tar[0], tars / "00000.tar"))
    result = run(configure(source=str(tars), views=2))
    store, plan = result["store"], warty_tar[1]
    good = plan.expected_accepted[0]

    def refusal(kind: type[Exception], **asked: Any) -> str:
        with pytest.raises(kind) as caught:
            replay(ReplayRequest(**{"store": store, "key": good, "out": tmp_path / "out", **asked}))
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
        return str(caught.value)

    assert "no sample nobody" in refusal(RequestError, key="nobody")
    assert "it was rejected: undecodable_image (" in refusal(RequestError, key=plan.planted["truncated_jpeg"])
    assert "no shard 7 is committed" in refusal(RequestError, shard="7")
    assert "view=5: version" in refusal(RequestError, view=5)
    sound = tar.read_bytes()
    changed = bytearray(sound)
    changed[1500] ^= 1
    tar.write_bytes(changed)
    assert f"{tar}: changed since it was encoded" in refusal(CheckFailed)
    tar.write_bytes(sound + b"\0" * 512)
    assert "when the run was planned" in refusal(CheckFailed)
    tar.unlink()
    assert f"{tar}: no such tar, and {good} came from it" in refusal(RequestError)


def test_other_parameters_are_a_failed_check(sealed: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a change in how views are made, or on a machine that makes them otherwise."""
    record = LatentShard.metadata

    def another(self: LatentShard, index: int) -> dict[str, Any]:
        said = record(self, index)
        if said["view"] == 1:
            said["augmentation"]["brightness"] += 0.01
        return said

    monkeypatch.setattr(LatentShard, "metadata", another)
    with pytest.raises(
        CheckFailed, match=r"000010003: view 1 comes out otherwise: brightness [\d.]+ now, [\d.]+ recorded"
    ):
        ask(sealed, tmp_path / "out")


def test_steps_count_neighbouring_numbers() -> None:
    one = np.array([1.0, -1.0, 0.0], np.float16)
    up = np.nextafter(one, np.float16(np.inf), dtype=np.float16)
    assert float16_steps(one, one) == 0 and float16_steps(one, up) == 1
    assert float16_steps(np.array([0.0], np.float16), np.array([-0.0], np.float16)) == 0
    assert float16_steps(np.array([2.0], np.float16), np.array([1.0], np.float16)) == 1024
