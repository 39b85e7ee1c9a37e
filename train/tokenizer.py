"""OpenCLIP's tokenizer for captions that strangers wrote: the same tokens, and no word that takes it minutes."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping

import open_clip

RUNS_KEPT = 1 << 17
"""Runs of letters whose parts are remembered, in some 25 MB. Then all are forgotten: the usual ones are soon back."""
LONGEST_KEPT = 64
"""Letters of a run, or of a word, that is remembered."""


class BoundedTokenizer(open_clip.SimpleTokenizer):
    """OpenCLIP's own. There, time goes with the square of a word's length, and memory grows without end."""

    cache: dict[str, str]

    def bpe(self, token: str) -> str:
        """The parts of a run of letters, with spaces between them."""
        known = self.cache.get(token)
        if known is None:
            known = " ".join(merged(token, self.bpe_ranks))
            if len(self.cache) >= RUNS_KEPT:
                self.cache = {word: word for word in map(self.decoder.__getitem__, self.all_special_ids)}
            if len(token) <= LONGEST_KEPT:
                self.cache[token] = known
        return known


def merged(letters: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """The parts of a run of letters: the pair of the least rank is merged wherever it stands, from the left, and so on.

    Only what a merge changes is looked at again, where OpenCLIP looks at the whole run.
    """
    end = len(letters)
    parts = [*letters[:-1], f"{letters[-1]}</w>", ""]  # of the last, and of parts that were merged, no pair has a rank
    before, after = [*range(-1, end)], [*range(1, end + 1), end]
    places: defaultdict[int, list[int]] = defaultdict(list)
    waiting: list[int] = []

    def note(left: int) -> None:
        rank = ranks.get((parts[left], parts[after[left]]))
        if rank is not None:
            if rank not in places:
                heapq.heappush(waiting, rank)
            places[rank].append(left)

    for place in range(end):
        note(place)
    while waiting:
        rank = heapq.heappop(waiting)
        for left in sorted(places.pop(rank)):
            right = after[left]
            if ranks.get((parts[left], parts[right])) == rank:  # else one of them was merged with another
                parts[left] += parts[right]
                parts[right] = ""
                after[left], before[after[right]] = after[right], left
                note(before[left])
                note(left)
    return [part for part in parts if part]
