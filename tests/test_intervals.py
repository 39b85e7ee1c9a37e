"""Bootstrap intervals against what theory says of them, and against a bootstrap that draws every picture itself."""

from __future__ import annotations

import numpy as np
import pytest

from eval import intervals


def drawn_one_by_one(values: np.ndarray, statistic, draws: int = 4000) -> tuple[float, float]:
    """The textbook's bootstrap: pictures drawn by number, the statistic of each draw computed from them."""
    rng = np.random.default_rng(1)
    found = [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(draws)]
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def test_the_interval_of_a_share_has_the_width_that_theory_gives() -> None:
    low, high = intervals.share(600, 1000, seed=0)
    half = 1.96 * np.sqrt(0.6 * 0.4 / 1000)
    assert (low, high) == pytest.approx((0.6 - half, 0.6 + half), abs=0.002)


def test_the_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    truth, n, rng = 0.3, 400, np.random.default_rng(2)
    found = [intervals.share(int(hits), n, seed) for seed, hits in enumerate(rng.binomial(n, truth, 300))]
    covered = np.mean([low <= truth <= high for low, high in found])
    assert 0.91 <= covered <= 0.98  # 300 tries of 95 %: three standard errors are 0.038


def test_the_mean_over_classes_is_drawn_from_the_whole() -> None:
    """Small and large classes: the small ones come and go, and weigh as much as the others."""
    right_of = {"large": (90, 100), "middle": (10, 20), "small": (1, 3), "single": (0, 1)}
    pictures = np.array([(c, i < hits) for c, (hits, n) in enumerate(right_of.values()) for i in range(n)])

    def recall(drawn: np.ndarray) -> float:
        return float(np.mean([drawn[drawn[:, 0] == c, 1].mean() for c in np.unique(drawn[:, 0])]))

    assert intervals.mean_share(right_of, seed=0) == pytest.approx(drawn_one_by_one(pictures, recall), abs=0.02)


def test_captions_of_one_picture_are_drawn_together() -> None:
    """All of a picture's five right or all wrong: as uncertain as pictures are, not as five times as many captions."""
    right, parts = [5] * 60 + [0] * 40, [5] * 100
    low, high = intervals.share_of_parts(right, parts, seed=0)
    assert (low, high) == pytest.approx(intervals.share(60, 100, seed=1), abs=0.02)
    assert high - low > 1.8 * np.subtract(*reversed(intervals.share(300, 500, seed=1)))
    uneven = np.array([(1, 1), (0, 4), (2, 3), (1, 5)] * 20)
    expected = drawn_one_by_one(uneven, lambda drawn: drawn[:, 0].sum() / drawn[:, 1].sum())
    assert intervals.share_of_parts(*uneven.T.tolist(), seed=0) == pytest.approx(expected, abs=0.01)


def test_a_paired_difference_is_narrower_than_one_of_strangers() -> None:
    """Two models that err on the same pictures but for a few."""
    a = np.arange(1000) < 700
    b = a.copy()
    b[:30], b[700:710] = False, True
    found = intervals.paired_difference(a.tolist(), b.tolist(), seed=0)
    variance = (30 + 10) / 1000 - 0.02**2
    half = 1.96 * np.sqrt(variance / 1000)
    assert found.value == pytest.approx(0.02)
    assert (found.low, found.high) == pytest.approx((0.02 - half, 0.02 + half), abs=0.001)
    with pytest.raises(ValueError, match="3 answers and 2 are no pairs"):
        intervals.paired_difference([True] * 3, [True] * 2, seed=0)


def test_the_seed_decides() -> None:
    right_of = {str(number): (number % 7, 10) for number in range(1000)}
    assert intervals.mean_share(right_of, seed=3) == intervals.mean_share(right_of, seed=3)
    assert intervals.mean_share(right_of, seed=3) != intervals.mean_share(right_of, seed=4)


def test_where_none_or_all_are_right_chance_still_has_its_say() -> None:
    """Drawn anew, 20 right answers are 20 right answers; that says nothing of the next 20."""
    assert intervals.share(20, 20, 0) == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert intervals.share(0, 20, 0) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert intervals.share_of_parts([5] * 20, [5] * 20, 0) == intervals.share(
        20, 20, 0
    )  # 20 pictures, however many captions each
    assert intervals.share_of_parts([0] * 20, [5] * 20, 0) == intervals.share(0, 20, 0)
    assert intervals.mean_of_shares([1.0] * 20, 0) == intervals.share(20, 20, 0)
    assert intervals.mean_of_shares([0.0] * 20, 0) == intervals.share(0, 20, 0)
    some = [0.25] * 10 + [0.5] * 10
    assert intervals.mean_of_shares(some, 0) == intervals.mean(some, 0)
