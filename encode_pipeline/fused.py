"""The encoder of an AutoencoderKL on a GPU, with everything between its convolutions fused.

At 512 pixels the convolutions take half of the time; the rest is group norms, biases, activations and sums, each
of them a pass over memory. Here a norm is one pass for the moments, which adds bias and residual on the way, and one
that normalises and activates. Sums are made in a fixed order, so the same pictures give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from encode_pipeline.fused_kernels import factors_kernel, moments_kernel, normalise_kernel

TILE = 8192
"""Values that a program holds at once: a tile of so many places with all their channels."""
PARTS = 32
"""Into so many pieces the places of a picture are cut, at most, and each gives its own sums."""


@dataclass(frozen=True)
class Unsummed:
    """A value that is `x + bias + residual`, not added up before somebody needs it. Tensors are NHWC."""

    x: torch.Tensor
    bias: torch.Tensor
    residual: torch.Tensor | None = None


class FusedEncoder:
    """Stands in for `AutoencoderKL.encode`, for models that `fits` accepts. Weights are those of the model."""

    def __init__(self, model: Any) -> None:
        self._encoder, self._quant_conv = model.encoder, model.quant_conv
        self._padded: dict[tuple[int, ...], torch.Tensor] = {}
        self._vectors: dict[int, torch.Tensor] = {}
        self._zero = torch.zeros(1024, device=model.device, dtype=torch.float32)

    def moments(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the posterior, NCHW, of channels-last images in [-1, 1]."""
        encoder = self._encoder
        value = self._convolved(encoder.conv_in, images.permute(0, 2, 3, 1))
        for block in encoder.down_blocks:
            for resnet in block.resnets:
                value = self._resnet(resnet, value)
            for downsampler in block.downsamplers or ():
                value = self._halved(downsampler, value)
        first, last = encoder.mid_block.resnets
        value = self._resnet(first, value)
        for attention in encoder.mid_block.attentions:
            if attention is not None:
                value = self._attended(attention, value)
        value = self._resnet(last, value)
        _, _, y = self._normed(encoder.conv_norm_out, value, silu=True)
        moments = encoder.conv_out(y.permute(0, 3, 1, 2))
        if self._quant_conv is not None:
            moments = self._quant_conv(moments)
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))

    def _resnet(self, block: Any, value: Unsummed) -> Unsummed:
        x, bias, y = self._normed(block.norm1, value, silu=True)
        hidden = self._convolved(block.conv1, y)
        _, _, y = self._normed(block.norm2, hidden, silu=True)
        out = self._convolved(block.conv2, y)
        if block.conv_shortcut is None:
            return Unsummed(out.x, out.bias + bias, x)
        shortcut = self._convolved(block.conv_shortcut, x)
        through = block.conv_shortcut.weight.float().flatten(1) @ bias  # what the unadded bias of x becomes
        return Unsummed(out.x, out.bias + shortcut.bias + through, shortcut.x)

    def _halved(self, downsampler: Any, value: Unsummed) -> Unsummed:
        """Strided convolution of the value with a row and a column of zeros at its end."""
        n, height, width, c = value.x.shape
        shape = (n, height + 1, width + 1, c)
        if shape not in self._padded:
            self._padded[shape] = torch.zeros(shape, dtype=value.x.dtype, device=value.x.device)
        residual = value.residual if value.residual is not None else torch.zeros_like(value.x)
        padded = self._padded[shape]
        self._moments(value.x, value.bias, residual, padded, moments=False)
        return self._convolved(downsampler.conv, padded)

    def _attended(self, attention: Any, value: Unsummed) -> Unsummed:
        x, bias, y = self._normed(attention.group_norm, value, silu=False)
        n, height, width, c = y.shape
        tokens = y.reshape(n, height * width, c)
        query, key, v = (layer(tokens) for layer in (attention.to_q, attention.to_k, attention.to_v))
        scores = torch.baddbmm(query.new_empty(()), query, key.transpose(1, 2), beta=0, alpha=c**-0.5)
        mixed = torch.bmm(scores.softmax(dim=-1), v)
        layer = attention.to_out[0]
        out = functional.linear(mixed, layer.weight).reshape(n, height, width, c)
        return Unsummed(out, self._float32(layer.bias) + bias, x)

    def _convolved(self, conv: Any, x: torch.Tensor) -> Unsummed:
        out = functional.conv2d(x.permute(0, 3, 1, 2), conv.weight, None, conv.stride, conv.padding)
        bias = self._zero[: out.shape[1]] if conv.bias is None else self._float32(conv.bias)
        return Unsummed(out.permute(0, 2, 3, 1), bias)

    def _normed(self, norm: Any, value: Unsummed, silu: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The value itself as a tensor and a bias yet to be added, and its norm."""
        x, bias = value.x, value.bias
        if value.residual is None:
            parts = self._moments(x)
        else:
            summed = torch.empty_like(x)
            parts = self._moments(x, bias, value.residual, summed)
            x, bias = summed, self._zero[: x.shape[3]]
        n, height, width, c = x.shape
        factors = torch.empty((n, 2, c), dtype=torch.float32, device=x.device)
        weight, offset = self._float32(norm.weight), self._float32(norm.bias)
        factors_kernel[(n,)](
            parts, bias, weight, offset, factors, height * width, norm.eps,
            NPARTS=parts.shape[1], C=c, GROUPS=norm.num_groups,
        )  # fmt: skip
        out = torch.empty_like(x)
        places = TILE // c
        grid = (n, _pieces(height * width, places))
        normalise_kernel[grid](x, factors, out, height * width, PLACES=places, C=c, SILU=silu, num_warps=8)
        return x, bias, out

    def _moments(
        self,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        summed: torch.Tensor | None = None,
        moments: bool = True,
    ) -> torch.Tensor:
        n, height, width, c = x.shape
        out = x if summed is None else summed
        tiles = _pieces(height * width, TILE // c)
        rounds = _pieces(tiles, PARTS)
        count = _pieces(tiles, rounds)
        parts = torch.empty((n, count, 2, c) if moments else (1,), dtype=torch.float32, device=x.device)
        moments_kernel[(n, count)](
            x, self._zero if bias is None else bias, x if residual is None else residual, out, parts,
            height * width, width, out.shape[1] * out.shape[2], out.shape[2],
            PLACES=TILE // c, ROUNDS=rounds, C=c, ADD=residual is not None, MOMENTS=moments, num_warps=8,
        )  # fmt: skip
        return parts

    def _float32(self, vector: torch.Tensor) -> torch.Tensor:
        if id(vector) not in self._vectors:
            self._vectors[id(vector)] = vector.detach().float()
        return self._vectors[id(vector)]


def fits(model: Any) -> str | None:
    """Why this model's encoder cannot be fused, or None if it can."""
    if type(model).__name__ != "AutoencoderKL":
        return f"is a {type(model).__name__}"
    encoder = model.encoder
    blocks = [*encoder.down_blocks, encoder.mid_block]
    if any(type(block).__name__ not in ("DownEncoderBlock2D", "UNetMidBlock2D") for block in blocks):
        return "has blocks of another kind"
    if len(encoder.mid_block.resnets) != 2 or len(encoder.mid_block.attentions) > 1:
        return "has another middle block"
    for resnet in (resnet for block in blocks for resnet in block.resnets):
        if type(resnet.nonlinearity).__name__ != "SiLU" or resnet.output_scale_factor != 1 or resnet.upsample:
            return "has residual blocks of another kind"
    for attention in (attention for attention in encoder.mid_block.attentions if attention is not None):
        if attention.heads != 1 or not attention.residual_connection or attention.rescale_output_factor != 1:
            return "has another attention"
    for module in encoder.modules():
        if isinstance(module, torch.nn.GroupNorm):
            channels = module.num_channels
            if channels & (channels - 1) or module.num_groups & (module.num_groups - 1) or not 4 <= channels <= 1024:
                return f"has a norm over {channels} channels in {module.num_groups} groups, no powers of two"
    return None


def _pieces(length: int, size: int) -> int:
    return -(-length // size)
