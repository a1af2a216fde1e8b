"""Mixtures of likelihoods against loops over positions, and against the laws of probability."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moiety.baselines import likelihood

INF = math.inf


def random_nats(models=4, windows=3, length=20, seed=0):
    rng = np.random.default_rng(seed)
    nats = rng.exponential(2.0, size=(models, windows, length))
    counted = rng.random((windows, length)) < 0.8
    return nats, counted


def mixed_by_hand(nats, counted, top):
    """The mixture of one window: probabilities multiplied up, position by position."""
    models, length = nats.shape
    seen = [1.0] * models
    found = []
    for at in range(length):
        kept = sorted(range(models), key=lambda m: (-seen[m], m))[:top]
        total = sum(seen[m] for m in kept)
        chance = sum(seen[m] / total * math.exp(-nats[m, at]) for m in kept)
        found.append(-math.log(chance))
        if counted[at]:
            seen = [seen[m] * math.exp(-nats[m, at]) for m in range(models)]
    return found


@pytest.mark.parametrize("top", [1, 2, 3, None, 9])
def test_the_mixture_is_that_of_a_loop_over_positions(top):
    nats, counted = random_nats()
    mixed = likelihood.branch_train_merge(nats, counted, top=top)
    for window in range(nats.shape[1]):
        expected = mixed_by_hand(nats[:, window], counted[window], top or len(nats))
        np.testing.assert_allclose(mixed[window], expected, rtol=1e-9)


def test_with_all_models_a_whole_text_has_the_mean_of_their_likelihoods():
    # The chain rule: posteriors multiply out, and what is left is the prior's mean.
    nats, _ = random_nats(seed=1)
    counted = np.ones(nats.shape[1:], dtype=bool)
    mixed = likelihood.branch_train_merge(nats, counted).sum(axis=1)
    mean = np.exp(-nats.sum(axis=2)).mean(axis=0)
    np.testing.assert_allclose(mixed, -np.log(mean), rtol=1e-9)
    assert (mixed <= nats.sum(axis=2).min(axis=0) + math.log(len(nats))).all()


@pytest.mark.parametrize("top", [1, 2, None])
def test_copies_of_a_model_are_that_model(top):
    nats, counted = random_nats(models=1, seed=2)
    mixed = likelihood.branch_train_merge(np.repeat(nats, 3, axis=0), counted, top=top)
    np.testing.assert_allclose(mixed, nats[0], rtol=1e-9)


@pytest.mark.parametrize("shock", [60.0, INF])
@pytest.mark.parametrize("top", [1, 2, None])
def test_a_model_that_is_infinitely_better_takes_over_after_the_first_token(top, shock):
    nats, _ = random_nats(models=2, windows=1, seed=3)
    nats[:, :, 0] = [[shock], [0.5]]
    counted = np.ones(nats.shape[1:], dtype=bool)
    mixed = likelihood.branch_train_merge(nats, counted, top=top)[0]
    np.testing.assert_allclose(mixed[1:], nats[1, 0, 1:], rtol=1e-9)
    # Before it, nothing is known: both, or with the top one the first.
    assert mixed[0] == pytest.approx(shock if top == 1 else 0.5 + math.log(2))


def test_targets_that_do_not_count_are_no_evidence():
    nats, counted = random_nats(seed=4)
    other = np.where(counted, nats, 17.0)
    one, two = (likelihood.branch_train_merge(each, counted) for each in (nats, other))
    np.testing.assert_allclose(one[counted], two[counted], rtol=1e-12)


def test_extremely_long_and_unlikely_texts_do_not_overflow():
    nats = np.full((2, 1, 5000), 40.0)
    nats[1] += 0.01
    mixed = likelihood.branch_train_merge(nats, np.ones((1, 5000), dtype=bool))
    assert (mixed >= 40).all()
    assert (mixed <= 40.01).all()


HAND_MADE = np.array(
    [
        [[1.0, 1.0, 7.0, 7.0], [1.0, 1.0, 7.0, 7.0], [2.0, 2.0, 2.0, 2.0]],
        [[0.5, 1.0, 8.0, 8.0], [9.0, 9.0, 8.0, 8.0], [2.0, 2.0, 3.0, 3.0]],
        [[0.6, 1.0, 9.0, 9.0], [0.1, 9.0, 9.0, 9.0], [0.0, 9.0, 4.0, 4.0]],
    ]
)


def test_routing_by_prompt_as_worked_out_by_hand():
    counted = np.array([[True] * 4, [True, False, True, True], [True] * 4])
    routed = likelihood.route_by_prompt(HAND_MADE, counted, prompt_tokens=2)
    # Prompts cost 2, 1.5, 1.6; then 1, 9, 0.1 (the second token is padding); then 4, 4, 9: a tie.
    assert routed.tolist() == [[1.0, 1.0, 8.0, 8.0], [1.0, 1.0, 9.0, 9.0], [2.0, 2.0, 2.0, 2.0]]
    assert HAND_MADE[0, 0].tolist() == [1.0, 1.0, 7.0, 7.0], "the caller's numbers are untouched"


def test_with_a_prompt_as_long_as_the_window_it_is_the_anchor():
    counted = np.ones((3, 4), dtype=bool)
    assert np.array_equal(likelihood.route_by_prompt(HAND_MADE, counted), HAND_MADE[0])


def test_weights_are_the_softmax_of_the_prompts_likelihoods():
    counted = np.array([[True] * 4, [True, False, True, True], [True] * 4])
    weights = likelihood.likelihood_weights(HAND_MADE, counted, prompt_tokens=2)
    for window, costs in enumerate([(2.0, 1.5, 1.6), (1.0, 9.0, 0.1), (4.0, 4.0, 9.0)]):
        total = sum(math.exp(-cost) for cost in costs)
        expected = [math.exp(-cost) / total for cost in costs]
        np.testing.assert_allclose(weights[window], expected, rtol=1e-12)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
