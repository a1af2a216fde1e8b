"""Intervals hold the truth as often as they say, and are those of the books."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from moiety.audit.intervals import clopper_pearson, mean_interval, pairs_interval, wilson


@pytest.mark.parametrize(("hits", "count"), [(0, 20), (3, 20), (20, 20), (7, 1000)])
def test_shares_have_the_intervals_that_scipy_gives(hits: int, count: int) -> None:
    for mine, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        found = mine(hits, count)
        expected = stats.binomtest(hits, count).proportion_ci(method=method)
        assert found.value == hits / count
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_mean_is_inside_its_interval_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(100):
        found = mean_interval(rng.exponential(size=60), seed=trial)
        inside += found.low <= 1.0 <= found.high
    assert 85 <= inside <= 100


def test_pairing_takes_out_what_both_share() -> None:
    rng = np.random.default_rng(1)
    hard = 10 * rng.normal(size=200)
    better = hard + 0.1 + 0.05 * rng.normal(size=200)
    assert mean_interval(better - hard, seed=0).low > 0.05
    assert mean_interval(better, seed=0).low < mean_interval(hard, seed=0).high


def test_pairs_are_drawn_again_as_two_groups() -> None:
    rng = np.random.default_rng(2)
    kernel = rng.random((30, 40)).astype(np.float32)
    found = pairs_interval(kernel, seed=0)
    means = []
    for _ in range(4000):
        members, outsiders = rng.integers(30, size=30), rng.integers(40, size=40)
        means.append(kernel[np.ix_(members, outsiders)].mean())
    assert found.value == pytest.approx(kernel.mean())
    low, high = np.quantile(means, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))
