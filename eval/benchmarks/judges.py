"""The models that judge pictures, off the disk or the hub: every weight accounted for, and known by their hash."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from encode_pipeline.latents.command import RequestError
from encode_pipeline.vae import weights_sha256
from eval.transformers_clip import check_weights
from train.model import NO_CODE

SMALL = 50_000_000
"""Parameters; every published judge has more."""


@dataclass(frozen=True)
class Judge:
    """A model of transformers on its device, and what a result says of it."""

    model: Any
    provenance: Mapping[str, Any]
    not_comparable: list[str]

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)


def open_judge(kind: str, address: str) -> Judge:
    """The model of transformers' class `kind` in a folder, or under a name on the hub; weights are safetensors."""
    folder = Path(address).expanduser()
    is_local = folder.is_dir()
    with cannot_be_opened(address):
        import transformers
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        model, found = getattr(transformers, kind).from_pretrained(
            folder if is_local else address,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=is_local,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    check_weights(found, address)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    reasons = [f"{kind}: a small model ({parameters / 1e6:.1f} M parameters)"] if parameters < SMALL else []
    if is_local:
        reasons.append(f"{kind}: weights of a local folder, not of a published model by its name")
    provenance = {
        "kind": kind,
        "address": address,
        "weights_sha256": weights_sha256(model),
        "parameters": parameters,
        "transformers": transformers.__version__,
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Judge(model.to(device).eval().requires_grad_(False), provenance, reasons)


def open_words(address: str) -> Any:
    """The tokenizer beside a model."""
    folder = Path(address).expanduser()
    with cannot_be_opened(address):
        from transformers import AutoTokenizer

        is_local = folder.is_dir()
        return AutoTokenizer.from_pretrained(folder if is_local else address, local_files_only=is_local, **NO_CODE)


@contextmanager
def cannot_be_opened(address: str) -> Iterator[None]:
    """Makes one line of what goes wrong: hubs, configs and weights of strangers fail in many ways."""
    try:
        yield
    except ImportError as error:
        raise RequestError(f"{address}: needs `pip install transformers scipy`: {error}") from None
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        told = " ".join(str(error).split())
        raise RequestError(f"{address}: cannot be opened: {type(error).__name__}: {told}") from None
