"""Law 9: an audit's lower bound stays under the true epsilon, where the truth is known.

Legend: M canary.

The oracle is simulation: mechanisms whose epsilon follows from a formula, run some hundreds of
times. A bound at 95 % may be wrong in one run of twenty.
"""

from __future__ import annotations

import bisect
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moiety.audit.bounds import best_bound, ceiling, epsilon_low, p_value

CANARIES = 1000
RUNS = 300
ALLOWED = int(stats.binom.isf(0.001, RUNS, 0.05))
"""In so many runs a bound that errs one time in twenty errs at most, but for luck of 1 in 1,000."""


def coins(generator, count=CANARIES):
    return generator.random(count) < 0.5


def told(generator, planted_M, epsilon):
    """Randomised response: each coin's side, true with the probability that epsilon allows."""
    honest_M = generator.random(planted_M.size) < 1 / (1 + math.exp(-epsilon))
    return np.where(honest_M, planted_M, ~planted_M).astype(float)


def simulated(mechanism, delta, seed, count=CANARIES, runs=RUNS):
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(runs):
        planted_M = coins(generator, count)
        found.append(best_bound(mechanism(generator, planted_M), planted_M, delta).epsilon_low)
    return np.array(found)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0])
def test_randomised_response_is_bounded_and_not_by_nothing(epsilon):
    found = simulated(lambda g, planted_M: told(g, planted_M, epsilon), 0.0, seed=1)
    assert (found > epsilon).sum() <= ALLOWED
    assert np.median(found) > epsilon / 2


@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0])
def test_the_gaussian_mechanism_is_bounded_and_not_by_nothing(sigma):
    # Each canary adds a unit vector of its own; what can be seen of it is its own coordinate.
    import dp_accounting as dp
    from dp_accounting.pld import PLDAccountant

    delta = 1e-5
    truth = PLDAccountant().compose(dp.GaussianDpEvent(sigma)).get_epsilon(delta)
    found = simulated(lambda g, p_M: p_M + sigma * g.normal(size=p_M.size), delta, seed=2)
    assert (found > truth).sum() <= ALLOWED
    assert np.median(found) > truth / 5  # the tail that makes epsilon is not seen in one run


def test_few_remembered_canaries_are_found_by_the_highest_scores_alone():
    # One planted canary in five is known by heart, and all others look alike.
    def mechanism(generator, planted_M):
        known_M = planted_M & (generator.random(planted_M.size) < 0.2)
        return generator.normal(size=planted_M.size) + 100 * known_M

    found = simulated(mechanism, 1e-5, seed=3, runs=20)
    assert found.min() > 2


@pytest.mark.parametrize("count", [20, 100, 1000])
def test_scores_that_know_nothing_bound_nothing(count):
    found = simulated(lambda g, p_M: g.normal(size=p_M.size), 1e-5, seed=4, count=count)
    assert (found > 0).sum() <= ALLOWED


@pytest.mark.parametrize("order", ["planted first", "planted last"])
def test_the_order_of_equal_scores_tells_nothing(order):
    planted_M = np.sort(coins(np.random.default_rng(5)))
    planted_M = planted_M[::-1] if order == "planted first" else planted_M
    assert best_bound(np.zeros(CANARIES), planted_M, 0.0).epsilon_low == 0


@pytest.mark.parametrize(("count", "delta"), [(200, 0.2), (1000, 0.06)])
def test_a_mechanism_that_tells_all_with_probability_delta_keeps_its_epsilon(count, delta):
    # (1, delta), and delta is so large that a bound which forgot it would err more than allowed.
    def mechanism(generator, planted_M):
        tells_all = generator.random() < delta
        return planted_M.astype(float) if tells_all else told(generator, planted_M, 1.0)

    kept = simulated(mechanism, delta, seed=6, count=count)
    assert (kept > 1).sum() <= ALLOWED
    forgot = simulated(mechanism, 0.0, seed=6, count=count)
    assert (forgot > 1).mean() == pytest.approx(delta, abs=0.07)
    assert (forgot > 1).sum() > 0


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("guesses", [10, 100, 1000])
def test_the_error_of_one_way_to_guess_is_all_of_what_is_allowed(guesses, epsilon):
    # Not only under 5 %: if one right guess fewer were enough, it would be above.
    chance = stats.binom(guesses, 1 / (1 + math.exp(-epsilon)))
    enough = bisect.bisect_right(
        range(guesses + 1), epsilon, key=lambda right: epsilon_low(guesses, guesses, right, 0.0)
    )
    assert chance.sf(enough - 1) <= 0.05 < chance.sf(enough - 2) + 1e-3


def exact(canaries, guesses, right, odds, delta):
    """Theorem 5.2 in fractions: a coin falls right with probability odds / (1 + odds)."""
    chance = odds / (1 + odds)
    mass = [
        math.comb(guesses, hits) * chance**hits * (1 - chance) ** (guesses - hits)
        for hits in range(guesses + 1)
    ]
    tail = sum(mass[right:], Fraction(0))
    alphas = [
        (sum(mass[max(0, right - i) :], Fraction(0)) - tail) / i for i in range(1, canaries + 1)
    ]
    return min(Fraction(1), tail + 2 * canaries * delta * max(alphas))


@st.composite
def games(draw):
    canaries = draw(st.integers(1, 40))
    guesses = draw(st.integers(0, canaries))
    return canaries, guesses, draw(st.integers(0, guesses))


@given(games(), st.integers(1, 50), st.sampled_from([0, 1, 10, 1000]))
@settings(max_examples=150, deadline=None)
def test_the_p_value_is_the_sum_in_fractions(game, odds, millionths):
    delta = Fraction(millionths, 10**6)
    expected = float(exact(*game, Fraction(odds), delta))
    found = p_value(*game, math.log(odds), float(delta))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-300)


@given(games(), st.floats(0, 0.01))
@settings(max_examples=100, deadline=None)
def test_more_right_guesses_say_more_and_a_larger_delta_says_less(game, delta):
    canaries, guesses, right = game
    bound = epsilon_low(canaries, guesses, right, delta)
    assert bound <= epsilon_low(canaries, guesses, right, 0.0)
    assert bound <= epsilon_low(canaries, guesses, min(guesses, right + 1), delta) + 1e-4
    assert bound <= epsilon_low(canaries, guesses, right, delta, confidence=0.9) + 1e-4
    assert epsilon_low(canaries + 5, guesses, right, delta) <= bound + 1e-4


@given(games(), st.floats(0, 0.01))
@settings(max_examples=100, deadline=None)
def test_every_epsilon_under_the_bound_is_refuted_and_none_above(game, delta):
    bound = epsilon_low(*game, delta)
    for share in (0.0, 0.3, 0.7, 1.0):
        assert bound == 0 or p_value(*game, share * bound, delta) < 0.05
    for more in (1e-3, 0.1, 1.0, 5.0):
        assert p_value(*game, bound + more, delta) >= 0.05


@pytest.mark.parametrize("guesses", [10, 100, 1000])
def test_all_right_is_the_closed_form(guesses):
    # q^r = 0.05, and epsilon is the logarithm of q's odds.
    chance = 0.05 ** (1 / guesses)
    expected = math.log(chance / (1 - chance))
    assert epsilon_low(guesses, guesses, guesses, 0.0) == pytest.approx(expected, abs=2e-4)


def test_perfect_knowledge_reaches_the_ceiling():
    planted_M = coins(np.random.default_rng(7))
    found = best_bound(planted_M.astype(float), planted_M, 1e-6)
    assert found.right == found.guesses
    assert 5 < found.epsilon_low == ceiling(CANARIES, 1e-6)
    chance = (0.05 / 9) ** (1 / CANARIES)  # nine ways to guess share the error
    assert ceiling(CANARIES, 0.0) == pytest.approx(math.log(chance / (1 - chance)), abs=2e-4)
