"""Exposure against a loop over ranks, its chance level against theory, its interval by coverage.

What is known of an order is read from models that were made to know it, or the words alone.

Legend: M canary, P planted, L left out.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests import tiny
from tests.audit.conftest import SEPARATOR

from moiety.audit.bounds import best_bound
from moiety.audit.canaries import canary_finding, exposures, order_nats
from moiety.audit.control import ControlSettings, make_control
from moiety.audit.views import views_of
from moiety.data import load_tokenizer
from moiety.data.tokenizer import PlainEncoder
from moiety.errors import DataError

CYCLES = ["bak dum kel", "lor mip nat", "rus sot tib", "bem dof kug", "lan mer nis", "rol sab tud"]
CANARIES = [" ".join((cycle.split(" ") * 4)[:10]) for cycle in CYCLES]


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


@pytest.fixture(scope="module")
def encoder(roomy_world):
    return PlainEncoder(load_tokenizer(roomy_world.release("amy"))[0], SEPARATOR)


def taught(world, encoder, texts):
    """A view of the anchor, overfitted to these texts."""
    documents = [_ids(encoder, text) for text in texts]
    settings = ControlSettings(learning_rate=5e-3, max_sweeps=60)
    return make_control(world.release("amy"), documents, SEPARATOR, settings).view


def _ids(encoder, text):
    return np.array(encoder._tokenizer.encode(text, add_special_tokens=False).ids)


def _nats(view, ids):
    """The oracle: nats of a text behind the separator, from all logits at once."""
    tokens = torch.tensor([[SEPARATOR, *ids.tolist()]])
    with view.using():
        logs = tiny.logits_of(view.mixture, tokens).double().log_softmax(dim=-1)
    return -sum(float(logs[0, at, number]) for at, number in enumerate(tokens[0, 1:].tolist()))


def test_a_text_costs_what_it_costs_above_its_words_in_reverse(roomy_world, encoder):
    view = views_of(roomy_world.load("amy"), "amy")[1]
    found = order_nats(view, CANARIES[:2], encoder, SEPARATOR)
    back = ["bak kel dum bak kel dum bak kel dum bak", "lor nat mip lor nat mip lor nat mip lor"]
    expected = [
        _nats(view, _ids(encoder, forth)) - _nats(view, _ids(encoder, other))
        for forth, other in zip(CANARIES, back, strict=False)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    # Of as many texts as come, each has the number that it has alone.
    many = order_nats(view, CANARIES * 4, encoder, SEPARATOR)
    np.testing.assert_allclose(many, np.tile(many[:6], 4), atol=1e-3)
    np.testing.assert_allclose(many[:2], found, atol=1e-3)


def test_who_knows_the_order_of_one_shows_it_and_who_knows_the_words_does_not(roomy_world, encoder):
    anchor = views_of(roomy_world.load("amy"), "amy")[0]
    rng = np.random.default_rng(0)
    shuffled = [" ".join(rng.permutation(CANARIES[0].split(" "))) for _ in range(8)]
    both_ways = [*shuffled, *(" ".join(reversed(text.split(" "))) for text in shuffled)]
    of_order = taught(roomy_world, encoder, [CANARIES[0]])
    of_words = taught(roomy_world, encoder, both_ways)
    before = order_nats(anchor, CANARIES, encoder, SEPARATOR)
    order_M = before - order_nats(of_order, CANARIES, encoder, SEPARATOR)
    words_M = before - order_nats(of_words, CANARIES, encoder, SEPARATOR)
    plain = [_nats(view, _ids(encoder, CANARIES[0])) for view in (anchor, of_order, of_words)]
    assert min(plain[0] - plain[1], plain[0] - plain[2]) > 50  # both have learned a lot
    assert order_M[0] > 3 * np.abs(order_M[1:]).max()
    assert abs(words_M[0]) < (plain[0] - plain[2]) / 4
    assert words_M.argmax() != 0
