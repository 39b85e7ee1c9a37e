"""How a training is started: `make train` with and without GPUs, and the machine that `ray up` would bring."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from demo.run import DemoConfig
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.store import Version
from tests.test_train import store_of
from train.launch import DEMO, Start, check, command, launch, plan
from train.metrics import read_metrics

ROOT = Path(__file__).parent.parent


def make(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs make in this environment, which it takes for its own, on a machine without a GPU."""
    (tmp_path / "installed").touch()
    python = Path(sys.executable)
    return subprocess.run(
        ["make", f"BIN={python.parent}", f"STAMP={tmp_path / 'installed'}", *words],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def keys(start: Start) -> dict[str, str]:
    return dict(word.split("=", 1) for word in start.words)


def test_with_gpus_the_recipe_is_run_as_it_stands_on_all_of_them() -> None:
    given = ["model=latent-vit-b-8", "data=s3://b/latents"]
    start = plan(given, gpus_here=8)
    assert start.processes == 8 and start.words == [*given, "out=runs/latent-vit-b-8"]
    assert plan([*given, "gpus=2"], gpus_here=8).processes == 2
    assert start.notes == ["Training latent-vit-b-8 on 8 GPUs; into runs/latent-vit-b-8."]


def test_without_a_gpu_it_is_a_short_check_and_says_so() -> None:
    start = plan(["model=latent-vit-b-8", "data=s3://b/latents"], gpus_here=0)
    assert start.processes == 1
    asked = keys(start)
    assert int(asked["steps"]) * int(asked["batch_size"]) == 320 and asked["out"] == "runs/latent-vit-b-8-check"
    said = " ".join(start.notes)
    assert "there is no GPU here" in said and "a check that everything runs, and not a training" in said
    assert "20 steps of 16 samples, where the recipe has batches of 81,920." in said and "not comparable" in said
    assert "make train MODEL=latent-vit-b-8 DATA=STORE GPUS=8" in said


def test_what_is_given_is_never_changed(tmp_path: Path) -> None:
    given = ["model=latent-vit-b-8", "data=x", "samples=640", "batch_size=32", "out=here", "precision=bfloat16"]
    start = plan(given, gpus_here=0)
    assert start.words[: len(given)] == given and len(keys(start)) == len(start.words)  # and nothing twice
    assert "steps" not in keys(start)
    file = tmp_path / "mine.yaml"
    file.write_text("model: latent-vit-b-8\nbatch_size: 4\nsteps: 3\n")
    chosen = plan(["data=x", f"--config={file}"], gpus_here=0).words[2:]
    assert [word.partition("=")[0] for word in chosen] == [
        "out",
        "warmup",
        "lr",
        "precision",
        "grad_checkpointing",
        "log_every",
    ]


def test_the_demo_model_is_made_for_a_cpu() -> None:
    start = plan(["model=latent-vit-demo", "data=x"], gpus_here=0)
    assert start.words == ["model=latent-vit-demo", "data=x", "out=runs/latent-vit-demo"]
    assert start.notes == ["Training latent-vit-demo on the CPU: there is no GPU here; into runs/latent-vit-demo."]


def test_on_the_demos_latents_a_large_model_is_only_checked_with_gpus_too() -> None:
    start = plan(["model=latent-vit-b-8", f"data={DEMO}"], gpus_here=4)
    assert (start.processes, keys(start)["batch_size"]) == (
        4,
        "512",
    ) and "and the demo has a few hundred pictures" in start.notes[1]
    demo = DemoConfig()
    assert str(demo.out / "store") == DEMO and demo.train_pictures == 600


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("gpus=2", "gpus=2: this machine has 1"),
        ("gpus=all", "gpus=all: give the number of GPUs"),
        ("batchsize=3", "unknown key 'batchsize'; did you mean 'batch_size'"),
        ("lr=-1", "lr=-1: Input should be greater than 0"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_starts(word: str, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        plan(["model=latent-vit-b-8", "data=x", word], gpus_here=1)


def test_a_recipe_of_nonsense_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for settings, why in (
        ("[1, 2]", "`settings` holds no keys"),
        ("{batch_size: many, lr: 1, steps: 1}", "batch_size="),
    ):
        file.write_text(f"architecture: {{}}\nsettings: {settings}\n")
        with pytest.raises(RequestError, match=why):
            plan([f"model={file}", "data=x"], gpus_here=0)


def test_several_gpus_are_several_processes_of_torchrun() -> None:
    """The real torchrun, with a command that needs no GPU."""
    check(Start(["run", "--help"], 2, []))
    words = command(Start(["run", "--help"], 2, []))
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("python -m train run [key=value ...]: train a model") == 2


def test_make_train_trains_and_goes_on(sealed: Version, tmp_path: Path) -> None:
    model = tmp_path / "tiny.yaml"
    model.write_text(
        "architecture:\n"
        "  embed_dim: 16\n"
        "  vision_cfg: {width: 32, layers: 1, head_width: 16, patch_size: 2}\n"
        "  text_cfg: {context_length: 16, vocab_size: 49408, width: 16, heads: 2, layers: 1}\n"
        "settings: {samples: 34_000_000_000, batch_size: 81_920, lr: 1.0e-3}\n"
    )
    out = tmp_path / "run"
    words = ["train", f"MODEL={model}", f"DATA={store_of(sealed)}", f"OUT={out}", "ARGS=steps=6 seed=3"]
    first = make(tmp_path, *words)
    assert first.returncode == 0, first.stderr
    assert "6 steps of 16 samples, where the recipe has batches of 81,920" in first.stderr
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert (out / "curves.png").is_file() and "seed: 3" in (out / "config.yaml").read_text()
    again = make(tmp_path, *words)
    assert again.returncode == 0 and "steps_now: 0" in again.stdout


def test_without_data_make_takes_the_demos(tmp_path: Path) -> None:
    told = make(tmp_path, "-n", "train", "MODEL=latent-vit-b-8", "GPUS=8", "ARGS=lr=5e-4 compile=true").stdout
    told = " ".join(told.split())
    checked, made = told.index("-m train.launch --check "), told.index(f"-m demo latents out={DemoConfig().out}")
    assert checked < made < told.index('-m train.launch "model=')
    assert f'-m train.launch "model=latent-vit-b-8" "data={DEMO}" "gpus=8" lr=5e-4 compile=true' in told
    own = make(tmp_path, "-n", "train", "DATA=[s3://a/x, s3://b/y]").stdout
    assert "demo latents" not in own and "--check" not in own and '"data=[s3://a/x, s3://b/y]"' in own


def test_make_eval_says_what_it_needs(tmp_path: Path) -> None:
    refused = make(tmp_path, "eval")
    assert refused.returncode == 2 and "error: say make eval CHECKPOINT=DIR" in refused.stderr
    told = make(tmp_path, "-n", "eval", "CHECKPOINT=c").stdout
    assert '"data=runs/demo/test-store"' in told and '"classes=runs/demo/world/test"' in told
    own = make(tmp_path, "-n", "eval", "CHECKPOINT=c", "DATA=d").stdout
    assert "demo latents" not in own and "--check" not in own and "classes=" not in own


def test_what_is_typed_for_a_rented_machine_begins_a_training() -> None:
    """The command in the launch file, as far as `make` can tell here; `make cluster-check` looks at the rest of it."""
    text = (ROOT / "cluster" / "train.yaml").read_text()
    command = re.search(r"ray exec cluster/train\.yaml --tmux .*\n#\s+'cd (\S+) && (make train .*)'", text)
    assert command and f"~/{command[1]}/Makefile" in yaml.safe_load(text)["file_mounts"]
    dry = subprocess.run(["sh", "-c", f"{command[2]} -n STAMP=Makefile"], cwd=ROOT, capture_output=True, text=True)
    assert dry.returncode == 0 and "data=s3://" in dry.stdout and "out=$HOME/b8" not in dry.stdout


def test_help_is_handed_on_and_a_folder_for_a_config_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(["model=latent-vit-demo", "--help"], gpus_here=0).words == ["model=latent-vit-demo", "--help"]
    with pytest.raises(SystemExit) as ended:
        launch(["--config", str(tmp_path)])
    assert ended.value.code == 2 and capsys.readouterr().err == f"error: {tmp_path}: Is a directory\n"


def test_what_all_processes_would_find_is_found_before_they_start(tmp_path: Path) -> None:
    start = plan(["model=latent-vit-b-8", f"data={tmp_path}"], gpus_here=8)
    with pytest.raises(RequestError, match="no latent store here"):
        check(start)
    with pytest.raises(RequestError, match="not a multiple of 8 GPUs"):
        check(plan(["model=latent-vit-b-8", "data=x", "batch_size=100"], gpus_here=8))


def test_a_wrong_model_is_told_before_the_demo_is_made(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "train", "MODEL=nope", f"DEMO={tmp_path / 'demo'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "error: model=nope: no such recipe" in done.stderr
    assert not (tmp_path / "demo").exists()
