"""A latent in a byte a number: of each channel, the least and the most are kept, and 254 numbers between them.

A number is read as `zero + step * value`, in float32, and rounded to float16. The three lie in one `.npy`, as a
record: where they are in two members, a copy of one without the other means something else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encode_pipeline.latents.spec import LatentSpec, SpecError

LEAST, MOST = -128, 127
LEVELS = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)
"""Every value, in the order of its bits."""
ROUNDING = np.float32(2.0**-20)
"""More than the few roundings between two ends and their scale can add up to, as a share of the larger number."""

Scales = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Quantised:
    """A latent as it is stored."""

    values: npt.NDArray[np.int8]
    """Channels x height x width."""
    zero: Scales
    """What a value of 0 stands for, in each channel."""
    step: Scales
    """From one value to the next, in each channel; 0 if all its numbers are the same."""

    def to_bytes(self) -> bytes:
        record = np.empty((), record_type(self.values.shape))
        record["zero"], record["step"], record["values"] = self.zero, self.step, self.values
        return record.tobytes()


def record_type(shape: tuple[int, ...]) -> np.dtype[np.void]:
    """What a stored latent is, as numpy says it: the scales first, so that one read has them with the header."""
    scales = ("<f4", (shape[0],))
    return np.dtype([("zero", *scales), ("step", *scales), ("values", "i1", shape)])


def quantise(latent: npt.NDArray[np.float16]) -> Quantised:
    """The nearest value of every number; the same on every machine."""
    numbers = latent.astype(np.float32)
    channels = numbers.reshape(len(numbers), -1)
    least, most = channels.min(axis=1), channels.max(axis=1)
    if not (np.isfinite(least) & np.isfinite(most)).all():
        raise SpecError("a latent that is not finite")
    zero, step = scales_between(least, most)
    steps = (channels - zero[:, None]) / np.where(step > 0, step, 1)[:, None]
    values = np.clip(np.rint(steps), LEAST, MOST).astype(np.int8)
    return Quantised(values.reshape(numbers.shape), zero, step)


def dequantise(
    values: npt.NDArray[np.int8], zero: Scales, step: Scales, out: npt.NDArray[np.float16] | None = None
) -> npt.NDArray[np.float16]:
    """The latent, as near as its values say."""
    if out is None:
        out = np.empty(values.shape, np.float16)
    # A channel has 256 numbers at most: looked up, they take two thirds of the time that numpy rounds to float16 in.
    for numbers, channel, found in zip(_levels(zero, step, LEVELS), values.view(np.uint8), out, strict=True):
        np.take(numbers, channel, out=found, mode="clip")
    return out


def as_read(latent: npt.NDArray[np.float16], spec: LatentSpec) -> npt.NDArray[np.float16]:
    """What a store of this kind gives back of a latent."""
    if spec.dtype == "float16":
        return latent
    stored = quantise(latent)
    return dequantise(stored.values, stored.zero, stored.step)


def scales_between(least: Scales, most: Scales) -> tuple[Scales, Scales]:
    """The zero and the step of channels whose numbers go from here to there."""
    step = (most - least) / np.float32(MOST - LEAST)
    return least - np.float32(LEAST) * step + np.float32(0), step  # adding 0 makes a zero of either sign the same


def scales_fault(zero: Scales, step: Scales) -> npt.NDArray[np.object_]:
    """What is wrong with the scales of each of many latents: None, or why no latent can have them.

    The least and the most that they stand for, as float16, must give them again, but for float32's own rounding.
    """
    with np.errstate(all="ignore"):
        ends = _levels(zero, step, np.array([LEAST, MOST], np.float32)).astype(np.float32)
        zero_again, step_again = scales_between(ends[..., 0], ends[..., 1])
        half = -LEAST * step
        near = ROUNDING * np.maximum(np.abs(zero), half)
        possible = (np.abs(zero_again - zero) <= near) & (np.abs(-LEAST * step_again - half) <= near) & (step >= 0)
    finite = np.isfinite(zero).all(axis=1) & np.isfinite(step).all(axis=1)
    faults = np.where(finite, "a scale that no latent has", "a scale that is not finite").astype(object)
    faults[possible.all(axis=1)] = None
    return faults


def values_fault(stored: Quantised) -> str | None:
    """What is wrong with the values of a latent: each channel has its least and its most, or is one number."""
    channels = stored.values.reshape(len(stored.values), -1)
    flat = stored.step == 0
    least, most = np.where(flat, 0, LEAST), np.where(flat, 0, MOST)
    whole = (channels.min(axis=1) == least).all() and (channels.max(axis=1) == most).all()
    return None if whole else "values that do not go with its scale"


def _levels(zero: Scales, step: Scales, values: Scales) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore", invalid="ignore"):  # of damaged scales; who checks, finds them
        return (step[..., None] * values + zero[..., None]).astype(np.float16)
