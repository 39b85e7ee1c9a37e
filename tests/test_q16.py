"""Q16's prompts: read from what it publishes and from nothing that could run; judged as it judges."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from encode_pipeline.latents.command import RequestError
from eval.benchmarks.q16 import Q16

PROMPTS = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_published_pickle_is_read_in_every_protocol(protocol: int, tmp_path: Path) -> None:
    file = tmp_path / "prompts.p"
    file.write_bytes(pickle.dumps(PROMPTS, protocol))
    assert torch.equal(Q16.open(file).prompts_2d, F.normalize(torch.from_numpy(PROMPTS), dim=-1))


def test_a_pickle_of_numpy_1_is_read(tmp_path: Path) -> None:
    file = tmp_path / "prompts.p"
    content = pickle.dumps(PROMPTS, 2)
    assert b"numpy._core.multiarray" in content
    file.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert torch.equal(Q16.open(file).prompts_2d, F.normalize(torch.from_numpy(PROMPTS), dim=-1))


def test_files_of_numpy_and_safetensors_say_the_same(tmp_path: Path) -> None:
    np.save(tmp_path / "prompts.npy", PROMPTS.astype(np.float16))
    save_file({"prompts": torch.from_numpy(PROMPTS).half()}, tmp_path / "prompts.safetensors")
    one, other = (Q16.open(tmp_path / f"prompts.{ending}") for ending in ("npy", "safetensors"))
    assert torch.equal(one.prompts_2d, other.prompts_2d)
    assert torch.allclose(one.prompts_2d, F.normalize(torch.from_numpy(PROMPTS), dim=-1), atol=1e-3)
    assert one.sha256 != other.sha256


class Runs:
    """What a stranger's pickle may do when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = (function, arguments)

    def __reduce__(self) -> Any:
        return self.made


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_something_is_refused_by_name(protocol: int, tmp_path: Path) -> None:
    file, trace = tmp_path / "prompts.p", tmp_path / "trace"
    file.write_bytes(pickle.dumps([PROMPTS, Runs(os.mkdir, str(trace))], protocol))
    with pytest.raises(RequestError, match=r"prompts\.p: cannot be read safely: it asks for \w+\.mkdir"):
        Q16.open(file)
    assert not trace.exists()


def test_nothing_is_reached_through_what_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "prompts.p"
    # Protocol 4 takes dotted names apart: `numpy.dtype` may be had, an attribute of it may not.
    file.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.")
    with pytest.raises(RequestError, match=r"it asks for numpy\.dtype\.__init__"):
        Q16.open(file)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (PROMPTS[:1], "1x8, where two finite prompts should be"),
        (np.zeros((2, 8)), "where two finite prompts"),
        (PROMPTS * np.nan, "where two finite prompts"),
        (np.array(3.0), "one number, where two"),
        (np.array([["a", "b"], ["c", "d"]]), "no array in it: ValueError"),
        ({"prompts": 1}, "no array in it: TypeError"),
    ],
)
def test_what_is_no_pair_of_prompts_is_refused(content: Any, told: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.p"
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(RequestError, match=told):
        Q16.open(file)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY cut", b"not a pickle", pickle.dumps(PROMPTS)[:-20]])
def test_a_damaged_file_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    for name in ("prompts.p", "prompts.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RequestError, match=f"{name}: no array in it"):
            Q16.open(tmp_path / name)
    with pytest.raises(RequestError, match="nothing: No such file"):
        Q16.open(tmp_path / "nothing")


def test_the_nearer_prompt_decides() -> None:
    q16 = Q16(torch.eye(2, 4), "0" * 64)
    features = F.normalize(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0.50, 0.51, 1, 0]]), dim=-1)
    probabilities = q16.probabilities(features)
    assert probabilities[:3].tolist() == pytest.approx([0, 1, 0.5], abs=1e-6)
    margin = 100 * 0.01 / (1 + 0.5**2 + 0.51**2) ** 0.5
    assert probabilities[3].item() == pytest.approx(1 / (1 + np.exp(-margin)), abs=1e-5)


def test_features_of_another_clip_are_refused() -> None:
    with pytest.raises(RequestError, match="4 numbers, the features of clip= have 16"):
        Q16(torch.eye(2, 4), "0" * 64).probabilities(torch.ones(3, 16))
