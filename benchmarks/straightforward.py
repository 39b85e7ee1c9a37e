"""The afternoon's way: webdataset, PIL, torchvision, a DataLoader, torch.save; a pass over the data for each view."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import webdataset as wds
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import InterpolationMode, v2

Encode = Callable[[torch.Tensor], torch.Tensor]
"""Images in [-1, 1] to latents."""


def pixels(images: torch.Tensor) -> torch.Tensor:
    """No VAE: the picture, averaged down to the latent grid."""
    return F.avg_pool2d(images, 8)


def by_vae(model: Any) -> Encode:
    """A diffusers AutoencoderKL on the device where it is."""
    return lambda images: model.encode(images).latent_dist.sample()


def encode_tars(
    tars: Sequence[Path], out: Path, encode: Encode, views: int, image_size: int, batch_size: int, workers: int
) -> int:
    """Writes `out/view0.tar` and so on with a latent, a caption and a record a sample; returns how many latents."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    written = 0
    for view in range(views):
        loader = DataLoader(
            samples(tars, plain(image_size) if view == 0 else augmented(image_size)),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
        )
        with wds.TarWriter(str(out / f"view{view}.tar")) as writer, torch.inference_mode():
            for keys, images, captions, records in loader:
                scaled = images.to(device, non_blocking=True).float() / 127.5 - 1
                latents = encode(scaled).half().cpu()
                for key, latent, caption, record in zip(keys, latents, captions, records, strict=True):
                    buffer = io.BytesIO()
                    torch.save(latent.clone(), buffer)  # a slice alone would take its whole batch along
                    about = {**record, "view": view}
                    writer.write({"__key__": key, "latent.pt": buffer.getvalue(), "txt": caption, "json": about})
                    written += 1
    return written


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within, torch computes with so many threads: one, where worker processes have taken the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def samples(tars: Sequence[Path], transform: v2.Compose) -> Any:
    """Key, uint8 picture, caption and record, the tars shared out among the workers."""
    dataset = wds.WebDataset([str(path) for path in tars], shardshuffle=False, empty_check=False)
    decoded = dataset.decode("pilrgb").rename(image="jpg;jpeg;png;webp", caption="txt", record="json")
    return decoded.map_dict(image=transform).to_tuple("__key__", "image", "caption", "record")


def plain(image_size: int) -> v2.Compose:
    resize = v2.Resize(image_size, interpolation=InterpolationMode.BICUBIC, antialias=True)
    return v2.Compose([v2.PILToTensor(), resize, v2.CenterCrop(image_size)])


def augmented(image_size: int) -> v2.Compose:
    """The paper's, on uint8 tensors. PIL is about as fast on a CPU, albumentations far faster: see `augment`."""
    crop = v2.RandomResizedCrop(image_size, scale=(0.66, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True)
    jitter = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02)
    return v2.Compose([v2.PILToTensor(), crop, jitter])


def collate(batch: list[tuple[str, torch.Tensor, str, dict[str, Any]]]) -> tuple[Any, ...]:
    """Pictures stacked in the worker, the rest as lists."""
    keys, images, captions, records = zip(*batch, strict=True)
    return keys, default_collate(list(images)), captions, records
