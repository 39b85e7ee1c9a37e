"""Which sample stands where: every one once an epoch, and the same from wherever one looks."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from train.order import Piece, Shares, Stream, Window, permutation

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any)


def stream_of(sizes: list[int], views: int, mixed: bool, mix: int, seed: int) -> Stream:
    return Stream(np.array(sizes), views, mixed, mix, [seed, 0])


def samples(pieces: list[Piece]) -> list[tuple[int, int]]:
    return [pair for piece in pieces for pair in zip(piece.tars.tolist(), piece.indices.tolist(), strict=True)]


def between(stream: Stream, first: int, last: int) -> list[tuple[int, int]]:
    return samples(list(stream.pieces(first, last)))


@given(SIZES, st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**64), st.integers(0, 9))
def test_an_epoch_holds_every_sample_once_in_its_view(
    sizes: list[int], views: int, mix: int, seed: int, epoch: int
) -> None:
    stream = stream_of(sizes, views, False, mix, seed)
    assert stream.samples == sum(sizes)
    found = between(stream, epoch * stream.samples, (epoch + 1) * stream.samples)
    view = epoch % views
    wanted = {(shard * views + view, index) for shard, size in enumerate(sizes) for index in range(size)}
    assert len(found) == len(wanted) and set(found) == wanted


@given(SIZES, st.integers(1, 4), st.integers(1, 5), st.integers(0, 99), st.integers(0, 3))
def test_mixed_an_epoch_holds_every_sample_once_in_every_view(
    sizes: list[int], views: int, mix: int, seed: int, epoch: int
) -> None:
    stream = stream_of(sizes, views, True, mix, seed)
    found = between(stream, epoch * stream.samples, (epoch + 1) * stream.samples)
    tars = [(tar, size) for tar, size in enumerate(np.repeat(sizes, views).tolist())]
    assert Counter(found) == Counter((tar, index) for tar, size in tars for index in range(size))


@given(SIZES, st.integers(1, 3), st.booleans(), st.integers(1, 5), st.lists(st.integers(0, 150), max_size=8))
@settings(max_examples=200)
def test_any_part_is_the_same_however_one_comes_to_it(
    sizes: list[int], views: int, mixed: bool, mix: int, cuts: list[int]
) -> None:
    whole = between(stream_of(sizes, views, mixed, mix, 7), 0, 150)
    one = stream_of(sizes, views, mixed, mix, 7)
    for first, last in pairwise(sorted([0, *cuts, 150])):
        assert between(one, first, last) == whole[first:last]
    for first in sorted(cuts, reverse=True):  # backwards: nothing is left of what was asked for before
        assert between(one, first, 150) == whole[first:]


@given(SIZES, st.integers(1, 3), st.booleans(), st.integers(1, 5))
def test_windows_hold_few_shards_and_follow_each_other(sizes: list[int], views: int, mixed: bool, mix: int) -> None:
    stream = stream_of(sizes, views, mixed, mix, 3)
    pieces = list(stream.pieces(0, 3 * stream.samples))
    windows = [piece.window for piece in pieces]
    assert windows == sorted(set(windows))
    for piece in pieces:
        tars = stream.tars(piece.window)
        assert piece.place == 0 and set(piece.tars.tolist()) <= set(tars.tolist())
        size = np.array(sizes)[tars // views].sum()
        assert len(piece.tars) == size
    window, place, visited = Window(0, 0), 0, []
    while window.epoch == 0:
        visited.append(len(stream.tars(window)))
        samples_of = np.array(sizes)[stream.tars(window) // views].sum()
        start, window = stream.after(window)
        assert start == (place := place + samples_of)
    assert start == stream.samples and max(visited) <= mix and max(visited) - min(visited) <= 1
    assert sum(visited) == len(sizes) * (views if mixed else 1)


def test_epochs_and_seeds_give_other_orders() -> None:
    stream = stream_of([20, 20, 20], 2, False, 64, 0)
    first, third = between(stream, 0, 60), between(stream, 120, 180)
    assert set(first) == set(third) and first != third
    assert first != between(stream_of([20, 20, 20], 2, False, 64, 1), 0, 60)
    assert len({tar for tar, _ in first[:20]}) == 3  # all shards of a window stand mixed


def test_the_order_is_pinned() -> None:
    """A run goes on where it stood after any update: these numbers may never change."""
    assert permutation(8, [0]).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    second_epoch = [(3, 0), (3, 1), (1, 1), (5, 1), (5, 3), (1, 0), (1, 2), (5, 2), (5, 0)]
    assert between(stream_of([3, 2, 4], 2, False, 2, 5), 9, 18) == second_epoch


@given(
    st.lists(st.fractions(Fraction(1, 50), 50), min_size=1, max_size=12),
    st.integers(1, 300),
    st.integers(0, 10**9),
)
def test_shares_are_exact_and_never_negative(weights: list[Fraction], batch_size: int, number: int) -> None:
    shares = Shares(weights, batch_size)
    before, after = shares.before(number), shares.before(number + 1)
    assert sum(before) == number * batch_size and sum(after) == sum(before) + batch_size
    assert all(a <= b for a, b in zip(before, after, strict=True))
    for weight, count in zip(weights, before, strict=True):
        assert abs(count - number * batch_size * weight / sum(weights)) < len(weights)


def test_of_two_stores_the_smaller_is_rounded_down() -> None:
    shares = Shares([Fraction("0.7"), Fraction("0.3")], 8)
    assert [shares.before(number) for number in range(4)] == [[0, 0], [6, 2], [12, 4], [17, 7]]
