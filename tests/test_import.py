"""The authors' checkpoints, and OpenCLIP's, come in with every weight accounted for, and nothing in them runs."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encode_pipeline.latents.command import RequestError, build
from encode_pipeline.latents.spec import LatentSpec
from eval.models import open_model
from tests.test_export import SPEC, authors_layout
from tests.test_train_models import architecture
from train.config import ImportConfig
from train.import_checkpoint import import_checkpoint
from train.model import build_model

Import = Callable[..., dict[str, Any]]


@pytest.fixture
def bring_in(tmp_path: Path) -> Import:
    """Imports a file as the tiny model, with what a test wants otherwise."""
    (tmp_path / "tiny.json").write_text(json.dumps(architecture().model_dump(exclude_defaults=True)))

    def run(content: Any, spec: LatentSpec = SPEC, **more: Any) -> dict[str, Any]:
        (tmp_path / "spec.json").write_bytes(spec.to_json())
        torch.save(content, tmp_path / "epoch_34.pt", **more)
        values = {"checkpoint": "epoch_34.pt", "model": "tiny.json", "data": "spec.json", "out": "imported"}
        return import_checkpoint(build(ImportConfig, {key: str(tmp_path / value) for key, value in values.items()}))

    return run


def test_the_authors_layout_comes_in_exactly(bring_in: Import, tmp_path: Path) -> None:
    model = build_model(architecture(), 4, 64)
    adam = {"state": {0: {"step": torch.tensor(415_040.0)}}, "param_groups": [{"lr": np.float64(1e-3)}]}
    content = {"epoch": 34, "name": "latent", "state_dict": authors_layout(model.state_dict()), "optimizer": adam}
    result = bring_in({**content, "best": [np.float32(0.5), np.int64(7), np.bool_(True)]})
    assert (result["epoch"], result["step"], "warning" in result) == (34, 415_040, False)
    loaded = open_model(tmp_path / "imported")
    assert (loaded.name, loaded.provenance["step"], loaded.spec) == ("tiny", 415_040, SPEC)
    state = loaded.model.state_dict()
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(tensor, state[name].cpu()) for name, tensor in model.state_dict().items())
    assert (
        "Imported from `epoch_34.pt`, epoch 34. Trained for 415,040 steps."
        in (tmp_path / "imported" / "README.md").read_text()
    )


def test_numbers_of_the_old_numpy_come_in_too(bring_in: Import, tmp_path: Path) -> None:
    state = authors_layout(build_model(architecture(), 4, 64).state_dict())
    buffer = io.BytesIO()
    torch.save({"epoch": np.int64(3), "state_dict": state}, buffer, _use_new_zipfile_serialization=False)
    old = buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != buffer.getvalue()
    (tmp_path / "old.pt").write_bytes(old)
    (tmp_path / "spec.json").write_bytes(SPEC.to_json())
    values = {"checkpoint": "old.pt", "model": "tiny.json", "data": "spec.json", "out": "imported"}
    result = import_checkpoint(build(ImportConfig, {key: str(tmp_path / value) for key, value in values.items()}))
    assert result["epoch"] == 3 and result["step"] == 0
    assert "is not recorded" in (tmp_path / "imported" / "README.md").read_text()


def test_a_plain_open_clip_checkpoint_of_latents_comes_in(bring_in: Import, tmp_path: Path) -> None:
    model = build_model(architecture(), 4, 64)
    assert bring_in(model.state_dict())["weights"] == len(model.state_dict())
    state = open_model(tmp_path / "imported").model.state_dict()
    assert all(torch.equal(tensor, state[name].cpu()) for name, tensor in model.state_dict().items())


class Bomb:
    """What a hostile checkpoint holds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_something_is_refused(bring_in: Import, zipped: bool, tmp_path: Path) -> None:
    state = authors_layout(build_model(architecture(), 4, 64).state_dict())
    content = {"epoch": 34, "state_dict": state, "optimizer": Bomb(tmp_path / "ran")}
    with pytest.raises(RequestError, match=r"epoch_34.pt: not a checkpoint that can be read safely: .*posix.system"):
        bring_in(content, _use_new_zipfile_serialization=zipped)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "imported").exists()


def test_a_numpy_object_is_no_number(bring_in: Import, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not a checkpoint that can be read safely"):
        bring_in({"state_dict": {}, "x": np.array([Bomb(tmp_path / "ran")], dtype=object)})
    assert not (tmp_path / "ran").exists()


def test_what_does_not_fit_is_named(bring_in: Import) -> None:
    state = authors_layout(build_model(architecture(), 4, 64).state_dict())
    less = {name: tensor for name, tensor in state.items() if not name.endswith("ln_post.bias")}
    with pytest.raises(RequestError, match=r"weights: visual.ln_post.bias is missing, visual.extra is unexpected"):
        bring_in({"state_dict": {**less, "module.visual.latent_vit.extra": torch.ones(1)}})
    wide = {**state, "module.visual.latent_vit.class_embedding": torch.ones(48)}
    with pytest.raises(RequestError, match=r"visual.class_embedding is 48 there, and 32 in the model"):
        bring_in({"state_dict": wide})
    for wrong in ({"scale": "model"}, {"shape": (16, 64, 64)}, {"shape": (4, 32, 32)}):
        with pytest.raises(
            RequestError, match=r"spec.json: .* latents of .*; the authors' models read raw ones of 4x64x64"
        ):
            bring_in({"state_dict": state}, SPEC.model_copy(update=wrong))
    for nothing in ([1], {"state_dict": {}}, {"state_dict": {"a": 1}}):
        with pytest.raises(RequestError, match="not a checkpoint"):
            bring_in(nothing)
    other = SPEC.model_copy(update={"vae": SPEC.vae.model_copy(update={"name": "SD 1.5", "scaling_factor": 0.18215})})
    assert bring_in({"state_dict": state}, other)["warning"].startswith("SD 1.5 is not the SDXL VAE")
    with pytest.raises(RequestError, match="imported: already there"):
        bring_in({"state_dict": state})
