"""A user's mistakes, by command: one clear line each, and an exit status that says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from encode_pipeline.latents.store import Store
from tests.conftest import Configure, build_vae, encode_and_seal

ROOT = Path(__file__).parent.parent


def command(*words: str, before: Sequence[str] = ()) -> tuple[int, str, str]:
    """Runs `python -m …` as a user would."""
    line = [*before, sys.executable, "-m", *words]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.returncode, done.stdout, done.stderr


def refused(words: Sequence[str], says: str, status: int = 2, before: Sequence[str] = ()) -> None:
    code, out, err = command(*words, before=before)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(lines)) == (status, 1), (code, out, err)
    assert says in lines[0], err
    assert "Traceback" not in err


def test_a_misspelt_key_names_the_nearest() -> None:
    refused(["encode_pipeline", "run", "sorce=/x", "store=/y", "vae=z"], "unknown key 'sorce'; did you mean 'source'?")
    refused(["train", "modle=latent-vit-demo"], "unknown key 'modle'; did you mean 'model'?")
    refused(["eval", "zero-shoot"], "did you mean 'zero-shot'?")


def test_missing_tars_and_empty_folders(small_vae: Path, tmp_path: Path) -> None:
    rest = [f"store={tmp_path / 'store'}", f"vae={small_vae}"]
    run = ["encode_pipeline", "run"]
    refused([*run, f"source={tmp_path / 'gone.tar'}", *rest], f"{tmp_path / 'gone.tar'}: no such tar or folder")
    (tmp_path / "empty").mkdir()
    refused([*run, f"source={tmp_path / 'empty'}", *rest], f"{tmp_path / 'empty'}: no tar files found there")
    refused([*run, f"source={tmp_path}/*.tar", *rest], f"{tmp_path}/*.tar: no tar files found there")
    refused([*run, "source=[]", *rest], "source=[]: names nothing to encode")
    refused([*run, "source=pipe:cat /etc/passwd", *rest], "not a kind of address that is read here")
    assert not (tmp_path / "store").exists()


def test_a_vae_that_is_not_there_and_a_store_that_is_not(world: Path, tmp_path: Path) -> None:
    source = f"source={world / 'train'}"
    refused(
        ["encode_pipeline", "run", source, f"store={tmp_path / 's'}", "vae=/no/vae"], "vae: /no/vae: no such directory"
    )
    refused(["encode_pipeline", "status", str(tmp_path)], f"{tmp_path}: no latent store here")
    refused(["train", "model=latent-vit-demo", f"data={tmp_path}", f"out={tmp_path / 'o'}"], "no latent store here")


def test_paths_without_permission(world: Path, small_vae: Path, tmp_path: Path) -> None:
    before: list[str] = []
    if os.getuid() == 0:  # root without its capabilities is held to permissions like anybody else
        if shutil.which("setpriv") is None:
            pytest.skip("nothing is forbidden to root, and there is no setpriv to change that")
        before = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    locked = tmp_path / "locked"
    locked.mkdir()
    (locked / "00000.tar").write_bytes((world / "train" / "00000.tar").read_bytes())
    run = ["encode_pipeline", "run", f"vae={small_vae}", "image_size=64", "views=1"]
    try:
        locked.chmod(0o500)
        refused([*run, f"source={world / 'train'}", f"store={locked / 'store'}"], "Permission denied", before=before)
        locked.chmod(0)
        source = locked / "00000.tar"
        refused([*run, f"source={source}", f"store={tmp_path / 's'}"], f"{source}: Permission denied", before=before)
    finally:
        locked.chmod(0o700)


def test_another_vae_makes_another_version_and_readers_must_say_which(
    configure: Configure, world: Path, tmp_path: Path
) -> None:
    config = configure(views=1)
    first = encode_and_seal(config)
    other = encode_and_seal(configure(views=1, vae=str(build_vae(tmp_path / "other", seed=9))))
    assert first.fingerprint != other.fingerprint
    assert set(Store(config.store).versions()) == {first.fingerprint, other.fingerprint}
    (Path(config.store) / "current.json").unlink()
    refused(["encode_pipeline", "verify", config.store], "none is promoted; say version=")


def test_bad_values_and_files(tmp_path: Path) -> None:
    run = ["encode_pipeline", "run", "source=x", "store=y", "vae=z"]
    refused([*run, "batch_size=0"], "batch_size=0: Input should be greater than 0")
    refused([*run, "image_size=500"], "image_size=500: must be a multiple of 8")
    refused([*run, "dtype=int4"], "dtype='int4'")
    refused([*run, "recipe=no.yaml"], "no.yaml: no such config file")
    refused([*run, "recipe={hues: 1}"], "unknown key 'recipe.hues'")
    refused([*run, "gpus_per_actor=1.5"], "must be a share of one GPU, or a whole number")
    refused([*run, "recipe=papr"], "no such recipe; did you mean 'paper'?")
    refused([*run, "recipe={steps: [{Crop: {}, Blur: {}}]}"], "a step is one name with its arguments")
    refused([*run, "scratch=/nope"], "no folder that can be written to")
    refused(["encode_pipeline", "run", "source=x{1..3.tar", "store=y", "vae=z"], "x{1..3.tar: ")
    (tmp_path / "c.yaml").write_text("sources: x\n")
    refused(
        ["encode_pipeline", "run", "--config", str(tmp_path / "c.yaml")],
        "unknown key 'sources'; did you mean 'source'?",
    )
