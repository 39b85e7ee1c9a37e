"""Q16: whether a picture is inappropriate, by which of two learned prompts its CLIP features are nearer to."""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from encode_pipeline.latents.command import RequestError

SCALE = 100.0
"""What cosines are multiplied by before the softmax."""
INAPPROPRIATE = 1
"""Which of the two prompts is that of inappropriate pictures."""


@dataclass(frozen=True)
class Q16:
    """The two prompts of Q16, as unit rows in the space of one CLIP."""

    prompts_2d: Tensor
    sha256: str
    """Of the file that they came in."""

    @classmethod
    def open(cls, path: Path) -> Q16:
        """The prompts in the file that Q16 publishes, a pickled array, or in one of numpy or safetensors."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RequestError(f"q16: {path}: {error.strerror}") from None
        prompts = _read(path, content)
        if prompts.ndim != 2 or len(prompts) != 2 or not np.isfinite(prompts).all() or not prompts.any(axis=1).all():
            shape = "x".join(map(str, prompts.shape)) or "one number"
            raise RequestError(f"q16: {path}: {shape}, where two finite prompts should be, a row each")
        return cls(F.normalize(torch.from_numpy(prompts), dim=-1), hashlib.sha256(content).hexdigest())

    def probabilities(self, features_bd: Tensor) -> Tensor:
        """For unit features of pictures, how probably each is inappropriate."""
        if features_bd.shape[1] != self.prompts_2d.shape[1]:
            told = f"{self.prompts_2d.shape[1]} numbers, the features of clip= have {features_bd.shape[1]}"
            raise RequestError(f"q16: its prompts have {told}; those published belong to ViT-L-14/openai")
        similarities = SCALE * features_bd.float() @ self.prompts_2d.to(features_bd.device).T
        return similarities.softmax(dim=-1)[:, INAPPROPRIATE]


def _read(path: Path, content: bytes) -> npt.NDArray[np.float32]:
    try:
        if path.suffix == ".safetensors":
            tensors = list(load(content).values())
            if len(tensors) != 1:
                raise RequestError(f"q16: {path}: {len(tensors)} tensors, where one should be")
            return tensors[0].to(torch.float32).numpy()
        if content.startswith(b"\x93NUMPY"):
            return np.asarray(np.load(io.BytesIO(content), allow_pickle=False), np.float32)
        return np.asarray(_OnlyArrays(io.BytesIO(content)).load(), np.float32)
    except RequestError:
        raise
    except _Refused as error:
        raise RequestError(f"q16: {path}: cannot be read safely: it asks for {error}") from None
    except (SafetensorError, Exception) as error:  # what is no pickle fails in many ways
        raise RequestError(f"q16: {path}: no array in it: {type(error).__name__}") from None


class _Refused(Exception):
    """A pickle wants something that an array does not need."""


def _bytes_of(text: str, encoding: str) -> bytes:
    """How old pickles hold bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"the encoding {encoding}")
    return text.encode("latin1")


_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
_FROMBUFFER: Any = np.empty(1).__reduce_ex__(5)[0]
_NEEDED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _bytes_of,
    # As numpy 1 and numpy 2 call them.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FROMBUFFER for core in ("core", "_core")},
}
"""All that a pickled array of numbers is made with."""


class _OnlyArrays(pickle.Unpickler):
    """Reads a pickle in which nothing can run: arrays, numbers, lists."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NEEDED:
            raise _Refused(f"{module}.{name}")
        return _NEEDED[module, name]
