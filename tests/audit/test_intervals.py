"""Intervals hold the truth as often as they say, and are those of the books."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from moiety.audit.intervals import (
    clopper_pearson,
    difference_interval,
    mean_interval,
    pairs_interval,
    unseen_share,
    wilson,
)


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


@pytest.mark.parametrize("count", [1, 4, 30, 72, 1000])
@pytest.mark.parametrize("always", [-1, 0, 1])
def test_where_all_differences_are_equal_the_interval_holds_what_can_make_them_so(
    count: int, always: int
) -> None:
    """Tried are all shares of -1, 0 and 1 in steps of 1/400: what is likelier to show the same one
    every time than the 2.5 % of an end lies inside, and the ends are reached."""
    found = difference_interval(np.full(count, float(always)), seed=0)
    steps = np.arange(401) / 400
    down, up = (grid.ravel() for grid in np.meshgrid(steps, steps))
    shares = {-1: down, 0: 1 - down - up, 1: up}
    likely = (shares[0] > -1e-9) & (shares[always].clip(0) ** count >= 0.025)
    means = (up - down)[likely]
    assert found.value == always
    assert found.low <= means.min() + 1e-9 <= found.low + 0.011
    assert found.high >= means.max() - 1e-9 >= found.high - 0.011


def test_differences_that_are_not_all_equal_have_the_bootstraps_interval() -> None:
    differences = np.array([0.0] * 40 + [1.0])
    assert difference_interval(differences, seed=3) == mean_interval(differences, seed=3)


@pytest.mark.parametrize("count", [1, 5, 20, 72, 500])
def test_a_share_of_which_nothing_was_seen_is_seldom_larger(count: int) -> None:
    assert (1 - unseen_share(count)) ** count == pytest.approx(0.025)


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
