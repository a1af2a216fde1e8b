"""Exposure against a loop over ranks, its chance level against theory, its interval by coverage.

Legend: M canary, P planted, L left out.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from moiety.audit.bounds import best_bound
from moiety.audit.canaries import canary_finding, exposures
from moiety.errors import DataError


def world(seed, count=60, remembered=0.0):
    """Nats under the anchor and under a view which gains ``remembered`` on planted canaries."""
    generator = np.random.default_rng(seed)
    planted_M = generator.random(count) < 0.5
    anchor_M = generator.normal(100, 20, count)
    view_M = anchor_M - generator.normal(5, 1, count) - remembered * planted_M
    return view_M, anchor_M, planted_M


def test_exposure_is_what_a_loop_over_ranks_says():
    view_M, anchor_M, planted_M = world(0, remembered=1.0)
    scores = list(anchor_M - view_M)
    left = [score for score, inside in zip(scores, planted_M, strict=True) if not inside]
    expected = []
    for score, inside in zip(scores, planted_M, strict=True):
        if inside:
            rank = sorted([*left, score], reverse=True).index(score) + 1
            expected.append(math.log2((len(left) + 1) / rank))
    np.testing.assert_allclose(exposures(anchor_M - view_M, planted_M), expected)


def test_by_chance_exposure_is_the_logarithm_of_e():
    # Ranks are then uniform; the mean of -log2 of a uniform number is log2(e), 1.44.
    means = [exposures(a - v, p).mean() for v, a, p in (world(s, 2000) for s in range(30))]
    assert np.mean(means) == pytest.approx(math.log2(math.e), abs=0.05)


def test_a_canary_known_by_heart_shows_the_most_that_those_left_out_can():
    view_M, anchor_M, planted_M = world(1, remembered=50.0)
    found = canary_finding(view_M, anchor_M, planted_M, delta=1e-6, seed=0)
    cap = math.log2((~planted_M).sum() + 1)
    assert found.most_exposed == pytest.approx(cap)
    assert found.exposure.value == pytest.approx(cap)
    assert found.right == found.guesses == 60
    assert found.epsilon_low > 2


def test_what_makes_a_canary_hard_for_everybody_does_not_count():
    view_M, anchor_M, planted_M = world(2, remembered=1.0)
    hard_M = 1000.0 * np.arange(60)
    plain = canary_finding(view_M, anchor_M, planted_M, delta=1e-6, seed=0)
    shifted = canary_finding(view_M + hard_M, anchor_M + hard_M, planted_M, delta=1e-6, seed=0)
    assert shifted == plain


def test_a_view_that_is_the_anchor_shows_nothing():
    _, anchor_M, planted_M = world(3)
    found = canary_finding(anchor_M, anchor_M, planted_M, delta=1e-6, seed=0)
    assert (found.exposure.value, found.epsilon_low) == (0.0, 0.0)


def test_a_finding_is_the_bound_of_its_scores():
    view_M, anchor_M, planted_M = world(4, count=200, remembered=2.0)
    found = canary_finding(view_M, anchor_M, planted_M, delta=1e-5, seed=0)
    bound = best_bound(anchor_M - view_M, planted_M, 1e-5)
    assert found.epsilon_low == bound.epsilon_low
    assert (found.guesses, found.right) == (bound.guesses, bound.right)
    assert (found.planted, found.left_out) == (planted_M.sum(), (~planted_M).sum())
    assert found.delta == 1e-5


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    # Scores are normal, those of planted canaries one higher.
    many = (exposures(*_normal(np.random.default_rng([9, seed]), 100)) for seed in range(2000))
    truth = np.mean([bits_P.mean() for bits_P in many])
    hits = 0
    for seed in range(100):
        scores_M, planted_M = _normal(np.random.default_rng(seed), 100)
        zeros_M = np.zeros_like(scores_M)
        found = canary_finding(zeros_M, scores_M, planted_M, delta=0.0, seed=seed).exposure
        hits += found.low <= truth <= found.high
    assert hits >= 88  # of 95 expected; fewer by luck once in 500


def _normal(generator, count):
    planted_M = generator.random(count) < 0.5
    return generator.normal(size=count) + planted_M, planted_M


@pytest.mark.parametrize("planted", [[True, True], [False, False]])
def test_without_both_kinds_there_is_nothing_to_compare(planted):
    with pytest.raises(DataError, match="some that were left out"):
        canary_finding(np.ones(2), np.ones(2), np.array(planted), delta=0.0, seed=0)


def test_lengths_and_numbers_are_checked():
    planted_M = np.array([True, False])
    with pytest.raises(DataError, match="shapes"):
        canary_finding(np.ones(3), np.ones(2), planted_M, delta=0.0, seed=0)
    with pytest.raises(DataError, match="finite"):
        canary_finding(np.array([np.nan, 1.0]), np.ones(2), planted_M, delta=0.0, seed=0)
