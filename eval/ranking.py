"""Who is found before the right one: pictures by captions and captions by pictures, a block of scores at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SCORES_AT_ONCE = 1 << 24
"""Held at a time: 64 MB, however many pictures and captions there are."""
NEVER = np.iinfo(np.int64).max
"""The place of what cannot be found."""

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """At which place, from 0, a search comes upon the first right answer."""

    pictures: Places
    """For each caption, the place of its picture."""
    captions: Places
    """For each picture, the place of the first of its captions."""


def search(pictures: Tensor, captions: Tensor, rows: Places, owners: Places) -> Found:
    """Both searches, by the cosines of unit rows.

    `owners` says for each caption the number of its picture, in order; `rows` for each picture its row in `pictures`,
    or -1 if it has none and is never found. Of equally near ones the first in order comes first.
    """
    places_of_pictures = np.full(len(owners), NEVER)
    asking = np.flatnonzero(rows[owners] >= 0)
    for some in _blocks(asking, len(pictures)):
        scores = captions[torch.from_numpy(some)] @ pictures.T
        own = torch.from_numpy(rows[owners[some]]).to(scores.device)
        places_of_pictures[some] = _places(scores, own[:, None])
    places_of_captions = np.full(len(rows), NEVER)
    starts, counts = np.searchsorted(owners, np.arange(len(rows))), np.bincount(owners, minlength=len(rows))
    asking = np.flatnonzero((rows >= 0) & (counts > 0))
    for some in _blocks(asking, len(captions)):
        scores = pictures[torch.from_numpy(rows[some])] @ captions.T
        steps = np.minimum(np.arange(counts.max()), counts[some, None] - 1)  # who has fewer asks for the last again
        places_of_captions[some] = _places(scores, torch.from_numpy(starts[some, None] + steps).to(scores.device))
    return Found(places_of_pictures, places_of_captions)


def _blocks(asking: Places, candidates: int) -> list[Places]:
    size = max(1, SCORES_AT_ONCE // max(1, candidates))
    return [asking[start : start + size] for start in range(0, len(asking), size)]


def _places(scores: Tensor, own: Tensor) -> Places:
    """How many candidates come before the best of each row's own, whose columns are given in order."""
    best, which = scores.gather(1, own).max(dim=1, keepdim=True)
    first = own.gather(1, which)
    is_earlier = torch.arange(scores.shape[1], device=scores.device) < first
    before = (scores > best) | ((scores == best) & is_earlier)
    places: Places = before.sum(dim=1).cpu().numpy()
    return places
