"""The preview: which samples it takes, what it says of them, and what it says when something is not to be had."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("jinja2")

from demo.image_tar import jpeg_bytes, write_tar
from encode_pipeline.__main__ import VERBS
from encode_pipeline.config import PreviewRequest
from encode_pipeline.latents.command import main
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import Store
from encode_pipeline.preview import stored
from encode_pipeline.preview.run import preview
from encode_pipeline.run import run
from tests.conftest import Bucket, Configure, build_vae
from tests.test_boundaries import run_without
from tests.test_demo_report import console_lines

DEMO_VAE = Path(__file__).parent.parent / "demo" / "vae"

Result = dict[str, Any]


def look(store: str, out: Path, **changes: Any) -> tuple[Result, str]:
    """What a preview returns, and its page."""
    result = preview(PreviewRequest(**{"store": store, "out": out, "n": 4, **changes}))
    return result, (out / "index.html").read_text()


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main("encode_pipeline", VERBS, ["preview", *words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def keys_of(result: Result) -> list[str]:
    return [sample["key"] for sample in result["samples"]]


# --- page and sheet -----------------------------------------------------------------------------------


def test_a_store_that_is_not_sealed_is_shown_whole(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure()
    run(config)
    capsys.readouterr()
    status, out, err = call(capsys, config.store, "n=6", f"out={tmp_path / 'out'}", "--json")
    result = json.loads(out)
    assert status == 0 and "decoded 6/6 samples" in err
    assert (len(result["samples"]), result["state"], result["notes"]) == (6, "not sealed", [])
    assert len({sample["shard"] for sample in result["samples"]}) == 3
    assert all(len(sample["psnr"]) == 4 and None not in sample["psnr"] for sample in result["samples"])
    assert [set(channel) for channel in result["channels"]] == [
        {"mean", "std", "expected_mean", "expected_std", "drift"}
    ] * 4
    assert result["latents"] == 48 * 4  # a small store is measured whole

    page = Path(result["html"])
    html = page.read_text()
    assert html.count('<article class="sample">') == 6 and html.count("<img ") == 6 * (1 + 3 * 4)
    assert html.count("<figure>") == 4
    assert "://" not in html  # one file: nothing is fetched
    assert all(f"· {key}</small>" in html for key in keys_of(result))
    assert "crop " in html and "hue +0.0" in html
    assert console_lines(page, tmp_path / "profile") == []
    with Image.open(result["png"]) as sheet:
        sheet.load()
        assert sheet.width > 1000 and sheet.height > 1000

    status, out, _ = call(capsys, config.store, "n=1", f"out={tmp_path / 'out'}")
    assert status == 0 and f"page   {page}" in out and "shown  " in out


def test_measured_channels_are_those_of_the_store(configure: Configure, tmp_path: Path) -> None:
    config = configure(views=2)
    version = Store(config.store).version(run(config)["fingerprint"])
    result, _ = look(config.store, tmp_path / "out")
    latents = []
    for commit in version.commits():
        for payload in commit.views:
            with stored.ShardCache(version, tmp_path).open(payload.model_dump()) as shard:
                latents += [shard.latent(index).astype(np.float64) for index in range(len(shard))]
    everything = np.stack(latents)
    assert [channel["mean"] for channel in result["channels"]] == pytest.approx(everything.mean(axis=(0, 2, 3)))
    assert [channel["std"] for channel in result["channels"]] == pytest.approx(everything.std(axis=(0, 2, 3)), rel=1e-4)


def test_the_draw_hangs_on_the_seed_alone(configure: Configure, tmp_path: Path) -> None:
    config = configure(views=1)
    run(config)
    first, html = look(config.store, tmp_path / "a")
    again, same_html = look(config.store, tmp_path / "b")
    other, _ = look(config.store, tmp_path / "c", seed=1)
    assert keys_of(first) == keys_of(again) != keys_of(other) and html == same_html
    assert Path(first["png"]).read_bytes() == Path(again["png"]).read_bytes()


def test_named_samples_come_in_the_order_asked_for(configure: Configure, tmp_path: Path) -> None:
    config = configure(views=2)
    run(config)
    result, html = look(config.store, tmp_path / "out", keys="000020003,000000001, 000010002,000020003", view=1)
    assert keys_of(result) == ["000020003", "000000001", "000010002"]
    assert "view 1" in html and "view 0" not in html


def test_more_samples_than_there_are(configure: Configure, tmp_path: Path) -> None:
    config = configure(views=1, limit=1)
    run(config)
    result, _ = look(config.store, tmp_path / "out", n=20)
    assert len(result["samples"]) == 16 and result["notes"] == ["There are only 16 samples to show."]


def test_what_strangers_wrote_does_nothing(configure: Configure, tmp_path: Path) -> None:
    attack = "<script>undefined.x</script><img src=x onerror=undefined.x>\" onmouseover='x' {{ 7*7 }} "
    picture = jpeg_bytes(np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8))
    caption = attack + "word " * 2000 + "the end"
    samples = [
        ("0001", {"jpg": picture, "txt": caption.encode()}),
        ("0002", {"jpg": picture, "txt": "犬 🐕 שלום".encode()}),
    ]
    write_tar(tmp_path / "00000.tar", samples)
    config = configure(source=str(tmp_path / "00000.tar"), views=1)
    run(config)
    result, html = look(config.store, tmp_path / "out")
    assert len(result["samples"]) == 2
    assert "<script" not in html and "<img src=x" not in html and '" onmouseover' not in html
    assert "&lt;script&gt;" in html and "{{ 7*7 }}" in html and "犬 🐕 שלום" in html
    assert "the end" not in html and len(html) < 200_000
    assert console_lines(tmp_path / "out" / "index.html", tmp_path / "profile") == []


# --- what is not to be had ----------------------------------------------------------------------------


def test_without_the_vae_and_then_without_the_sources(
    configure: Configure, world: Path, tmp_path: Path, small_vae: Path
) -> None:
    vae, tars = tmp_path / "vae", tmp_path / "tars"
    shutil.copytree(small_vae, vae)
    shutil.copytree(world / "train", tars)
    config = configure(vae=str(vae), source=str(tars), views=2)
    run(config)
    vae.rename(tmp_path / "moved")
    result, html = look(config.store, tmp_path / "out")
    assert len(result["notes"]) == 1 and f"vae: {vae}: no such directory" in result["notes"][0]
    assert html.count("<img ") == 4 * (1 + 2 * 2) and "decoded view" not in html
    assert "fitted by least squares to the views" in html
    assert result["samples"][0]["psnr"] == [None, None]

    moved, html = look(config.store, tmp_path / "out", vae=str(tmp_path / "moved"))
    assert moved["notes"] == [] and "fitted by least squares to what they decode to" in html

    (tars / "00000.tar").unlink()
    (tars / "00001.tar").write_bytes((world / "train" / "00001.tar").read_bytes()[:-1024] + bytes(range(256)) * 4)
    write_tar(tars / "00002.tar", [])
    result, html = look(config.store, tmp_path / "out", n=6)
    assert "4 of 6 samples lack their source" in result["notes"][1] or "6 of 6" in result["notes"][1]
    assert "00000.tar" in html and "source not readable" in html

    for tar in tars.iterdir():
        tar.unlink()
    result, html = look(config.store, tmp_path / "out")
    assert "false colours" in html and html.count("<img ") == 4 * 2
    assert console_lines(tmp_path / "out" / "index.html", tmp_path / "profile") == []
    with Image.open(result["png"]) as sheet:
        sheet.load()


def test_a_source_that_changed_gives_no_wrong_views(configure: Configure, world: Path, tmp_path: Path) -> None:
    tar = tmp_path / "00000.tar"
    shutil.copy(world / "train" / "00000.tar", tar)
    config = configure(source=str(tar), views=2)
    run(config)
    data = tar.read_bytes()
    tar.write_bytes(data.replace(b"000000003.", b"000000x03.", 1))  # a damaged header
    keys = "000000002,000000003"
    result, html = look(config.store, tmp_path / "out", keys=keys)
    assert "2 of 2 samples lack their source or its views: source not readable" in result["notes"][0]
    assert html.count("<img ") == 2 * 2 * 2
    tar.write_bytes(data + bytes(512))
    result, _ = look(config.store, tmp_path / "out", keys=keys)
    assert "bytes now" in result["notes"][0]


def test_a_latent_that_is_not_finite_is_named(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(views=1, limit=1)
    version = Store(config.store).version(run(config)["fingerprint"])
    tar = version.storage.local_path(next(iter(version.commits())).views[0].path)
    assert tar is not None
    data = bytearray(tar.read_bytes())
    data[640:642] = np.float16(np.inf).tobytes()  # the first value of the first latent
    tar.write_bytes(bytes(data))
    status, _, err = call(capsys, config.store, "n=1", f"out={tmp_path / 'out'}")
    assert status == 1 and "000000000.npy: damaged: not finite; run verify" in err


# --- channels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "drifts"), [(1.0, False), (5.0, True), (0.2, True)])
def test_a_store_drifts_if_its_vae_claims_a_wrong_factor(
    configure: Configure, tmp_path: Path, factor: float, drifts: bool
) -> None:
    vae = tmp_path / "vae"
    shutil.copytree(DEMO_VAE, vae)
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps({**config, "scaling_factor": factor * config["scaling_factor"]}))
    for scale in ("raw", "model"):
        made = configure(vae=str(vae), views=1, scale=scale, store=str(tmp_path / scale))
        run(made)
        result, html = look(made.store, tmp_path / "out")
        assert bool(result["warnings"]) == drifts, result["warnings"]
        assert ("not spread as they should be" in html) == drifts
        assert [bool(channel["drift"]) for channel in result["channels"]] == [drifts] * 4


# --- other VAEs ---------------------------------------------------------------------------------------


def test_a_tiny_vae_and_one_of_16_channels(configure: Configure, tmp_path: Path) -> None:
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny

    torch.manual_seed(0)
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    tiny = AutoencoderTiny(**blocks, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4)
    tiny.save_pretrained(tmp_path / "tiny")
    config = configure(vae=str(tmp_path / "tiny"), posterior="mean", views=2, limit=1, store=str(tmp_path / "a"))
    run(config)
    result, html = look(config.store, tmp_path / "out")
    assert result["warnings"] == [] and "scaling factor is 1" in result["expected"]
    assert "scaling factor is 1" in html and html.count("<img ") == 4 * 7

    wide = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        mid_block_add_attention=False,
    )
    wide.save_pretrained(tmp_path / "wide")
    config = configure(vae=str(tmp_path / "wide"), views=2, limit=1, store=str(tmp_path / "b"))
    run(config)
    result, html = look(config.store, tmp_path / "out")
    assert len(result["channels"]) == 16 and html.count("<figure>") == 16
    assert {channel["expected_mean"] for channel in result["channels"]} == {0.1159}
    assert {round(channel["expected_std"], 3) for channel in result["channels"]} == {2.769}


def test_pixels_are_shown_as_they_are(configure: Configure, tmp_path: Path) -> None:
    config = configure(vae="pixels", posterior="mean", views=1, limit=1)
    version = Store(config.store).version(run(config)["fingerprint"])
    result, html = look(config.store, tmp_path / "out", keys="000000000")
    assert "no VAE promises" in result["expected"] and result["warnings"] == result["notes"] == []
    assert "decode" not in html and html.count("<img ") == 3
    with stored.ShardCache(version, tmp_path).open(next(version.commits()).views[0].model_dump()) as shard:
        stored_pixels = (shard.latent(0).astype(np.float64).transpose(1, 2, 0) + 1) * 127.5
    data = html.partition('class="cells" src="data:image/png;base64,')[2].partition('"')[0]
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert np.abs(np.asarray(image) - stored_pixels).max() <= 0.5


# --- elsewhere ----------------------------------------------------------------------------------------


def test_a_store_and_its_sources_on_s3(
    bucket: Bucket, configure: Configure, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in sorted((world / "train").glob("*.tar")):
        bucket.client.upload_file(str(path), bucket.name, f"tars/{path.name}")
    config = configure(source=f"{bucket.url}/tars/*.tar", store=f"{bucket.url}/latents", views=2)
    run(config)
    result, html = look(config.store, tmp_path / "out", n=6)
    assert result["notes"] == [] and len({sample["shard"] for sample in result["samples"]}) == 3
    assert html.count("<img ") == 6 * 7
    monkeypatch.setattr(stored, "FETCHED_BYTES", 1)
    result, _ = look(config.store, tmp_path / "out", n=6)
    assert len(result["samples"]) == 6 and len({sample["shard"] for sample in result["samples"]}) == 1
    result, _ = look(config.store, tmp_path / "out", keys="000020001")  # the key says which tar it is likely to be in
    assert keys_of(result) == ["000020001"]
    monkeypatch.undo()


def test_wrong_requests_are_one_line(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: LatentSpec
) -> None:
    config = configure(views=2)
    run(config)
    Store(tmp_path / "empty").create(spec)
    out, other = f"out={tmp_path / 'out'}", build_vae(tmp_path / "other", seed=5)
    cases = [
        ([config.store, "n=0"], "n=0: Input should be greater than or equal to 1"),
        ([config.store, "n=1000"], "n=1000: Input should be less than or equal to 100"),
        ([config.store, "keys=,"], "keys=',': names no sample"),
        ([config.store, "keys=00002000"], "no sample '00002000' in the 3 committed shards; did you mean '0000200"),
        ([config.store, "keys=000020001,nothing"], "no sample 'nothing' in the 3 committed shards"),
        ([config.store, "view=2"], "view=2: version"),
        ([config.store, f"vae={other}"], "is not the one of version"),
        ([config.store, "vae=/no/vae"], "vae: /no/vae: no such directory"),
        ([config.store, "version=zzz"], "no one version zzz"),
        ([str(tmp_path / "nowhere")], "no latent store here"),
        ([str(tmp_path / "empty")], "no shard is committed yet"),
    ]
    capsys.readouterr()
    for words, says in cases:
        status, printed, err = call(capsys, *words, out)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (status, printed, len(lines)) == (2, "", 1), (words, err)
        assert says in lines[0], lines
    assert not (tmp_path / "out").exists()


def test_a_missing_template_engine_is_named(tmp_path: Path) -> None:
    code = "from encode_pipeline.__main__ import VERBS, main; sys.exit(main('encode_pipeline', VERBS, sys.argv[1:]))"
    done = run_without({"jinja2"}, code, "preview", str(tmp_path))
    assert done.returncode == 2 and "install latent-clip-pipeline[encode,report]" in done.stderr
