"""Triton kernels over channels-last pictures: sums over them, and what is made of the sums."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def moments_kernel(
    x_ptr, bias_ptr, residual_ptr, sum_ptr, parts_ptr, places, width, places_out, width_out,
    PLACES: tl.constexpr, ROUNDS: tl.constexpr, C: tl.constexpr, ADD: tl.constexpr, MOMENTS: tl.constexpr,
):  # fmt: skip
    """Sums and sums of squares of every channel over a piece of a picture; with ADD of x + bias + residual, kept."""
    picture, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x_ptr += picture * places * C  # within a picture 32 bits are enough
    residual_ptr += picture * places * C
    sum_ptr += picture * places_out * C
    channels = tl.arange(0, C)
    total = tl.zeros([PLACES, C], tl.float32)
    squares = tl.zeros([PLACES, C], tl.float32)
    if ADD:
        bias = tl.load(bias_ptr + channels)[None, :]
    for turn in range(ROUNDS):
        place = (part * ROUNDS + turn) * PLACES + tl.arange(0, PLACES)
        inside = (place < places)[:, None]
        at = place[:, None] * C + channels[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if ADD:
            x += bias + tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
            out = ((place // width) * width_out + place % width)[:, None] * C + channels[None, :]
            kept = x.to(sum_ptr.dtype.element_ty)
            tl.store(sum_ptr + out, kept, mask=inside)
            x = tl.where(inside, kept.to(tl.float32), 0.0)
        if MOMENTS:
            total += x
            squares += x * x
    if MOMENTS:
        at_part = ((picture * tl.num_programs(1) + part) * 2) * C + channels
        tl.store(parts_ptr + at_part, tl.sum(total, axis=0))
        tl.store(parts_ptr + at_part + C, tl.sum(squares, axis=0))


@triton.jit
def factors_kernel(
    parts_ptr, bias_ptr, weight_ptr, offset_ptr, factors_ptr, places, eps,
    NPARTS: tl.constexpr, C: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """What turns x into the norm of x + bias: a factor and a summand for every channel of a picture."""
    picture = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, C)
    total = tl.zeros([C], tl.float32)
    squares = tl.zeros([C], tl.float32)
    for part in range(NPARTS):
        at = ((picture * NPARTS + part) * 2) * C + channels
        total += tl.load(parts_ptr + at)
        squares += tl.load(parts_ptr + at + C)
    bias = tl.load(bias_ptr + channels)
    squares += 2 * bias * total + places * bias * bias
    total += places * bias
    count = places * (C // GROUPS)
    mean = tl.sum(tl.reshape(total, [GROUPS, C // GROUPS]), axis=1) / count
    square = tl.sum(tl.reshape(squares, [GROUPS, C // GROUPS]), axis=1) / count
    inverse = 1.0 / tl.sqrt(tl.maximum(square - mean * mean, 0.0) + eps)
    mean = tl.reshape(tl.broadcast_to(mean[:, None], [GROUPS, C // GROUPS]), [C])
    inverse = tl.reshape(tl.broadcast_to(inverse[:, None], [GROUPS, C // GROUPS]), [C])
    factor = tl.load(weight_ptr + channels) * inverse
    summand = tl.load(offset_ptr + channels) + (bias - mean) * factor
    tl.store(factors_ptr + picture * 2 * C + channels, factor)
    tl.store(factors_ptr + picture * 2 * C + C + channels, summand)


@triton.jit
def normalise_kernel(
    x_ptr, factors_ptr, out_ptr, places, PLACES: tl.constexpr, C: tl.constexpr, SILU: tl.constexpr
):  # fmt: skip
    picture = tl.program_id(0).to(tl.int64)
    x_ptr += picture * places * C
    out_ptr += picture * places * C
    channels = tl.arange(0, C)
    factor = tl.load(factors_ptr + picture * 2 * C + channels)[None, :]
    summand = tl.load(factors_ptr + picture * 2 * C + C + channels)[None, :]
    place = tl.program_id(1) * PLACES + tl.arange(0, PLACES)
    inside = (place < places)[:, None]
    at = place[:, None] * C + channels[None, :]
    y = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) * factor + summand
    if SILU:
        y = y * (1.0 / (1.0 + tl.exp(-y)))
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)
