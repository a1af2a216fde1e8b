"""Shapley values by their axioms and by hand, and each set's worth against the set in force."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from tests import tiny

from moiety.data import Sources
from moiety.errors import ConfigError, DataError
from moiety.evaluate import attribute, attribution
from moiety.evaluate.attribution import drawn_shapley, rank_correlation, shapley

OWNERS = ("amy", "bob", "cat")


def by_all_orders(worth, count):
    """The definition: what each adds on its arrival, the mean over all orders."""
    values = np.zeros(count)
    for order in itertools.permutations(range(count)):
        here = 0
        for owner in order:
            values[owner] += worth[here | 1 << owner] - worth[here]
            here |= 1 << owner
    return values / math.factorial(count)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_exact_values_are_the_mean_over_all_orders(count):
    worth = np.random.default_rng(count).normal(size=2**count)
    values = shapley(worth)
    np.testing.assert_allclose(values, by_all_orders(worth, count), atol=1e-12)
    assert values.sum() == pytest.approx(worth[-1] - worth[0])


def test_one_right_glove_and_two_left_ones():
    pairs = np.array([min(s & 1, (s >> 1 & 1) + (s >> 2 & 1)) for s in range(8)], dtype=float)
    np.testing.assert_allclose(shapley(pairs), [2 / 3, 1 / 6, 1 / 6])


def test_ten_owners_who_each_add_their_own_are_told_apart():
    own = np.arange(10) - 3.0
    worth = np.array([sum(own[n] for n in range(10) if s >> n & 1) for s in range(1024)])
    np.testing.assert_allclose(shapley(worth), own, atol=1e-9)


def test_drawn_values_add_up_and_lie_within_their_error():
    worth = np.random.default_rng(5).normal(size=2**6)
    values, error = drawn_shapley(lambda sets: worth[list(sets)], 6, 400, seed=1)
    assert values.sum() == pytest.approx(worth[-1] - worth[0])
    off = np.abs(values - shapley(worth)) / error
    assert off.max() < 4
    assert 0 < error.max() < 0.2
    _, wider = drawn_shapley(lambda sets: worth[list(sets)], 6, 40, seed=1)
    assert 2 < (wider / error).mean() < 5  # ten times the orders: a third of the error


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 2, 3], [10, 20, 90], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2, 3], [10, 30, 20], 0.5),
        ([1, 1, 3], [1, 2, 3], math.sqrt(3) / 2),
        ([1, 2], [1, 2], None),
        ([1, 1, 1], [1, 2, 3], None),
    ],
)
def test_rank_correlation(one, other, expected):
    found = rank_correlation(np.array(one, dtype=float), np.array(other, dtype=float))
    assert found == (expected if expected is None else pytest.approx(expected))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    written = list(tiny.language(1, 3, words=30))
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in written))
    return path, written


def bits(mixture, written):
    """Of documents scored one at a time, without packing; all fit one window."""
    total = 0.0
    for one in written:
        ids = torch.tensor([mixture.tokenizer(one)["input_ids"]])
        scores = tiny.logits_of(mixture, ids).double().log_softmax(-1)
        total -= float(scores[:, :-1].gather(2, ids[:, 1:, None]).sum())
    return total / math.log(2)


def test_a_text_is_divided_by_what_every_set_of_owners_saves(tiny_world, text):
    path, written = text
    found = attribute(tiny_world.release(*OWNERS), Sources([path]), window_tokens=120)
    mixture = tiny_world.load(*OWNERS)
    costs = []
    for number in range(8):
        with mixture.only(*(name for bit, name in enumerate(OWNERS) if number >> bit & 1)):
            costs.append(bits(mixture, written))
    size = sum(len(one.encode()) for one in written)
    worth = (costs[0] - np.array(costs)) / size
    assert np.abs(worth).max() > 0.01
    np.testing.assert_allclose(found.shapley, by_all_orders(worth, 3), atol=1e-5)
    assert found.together == pytest.approx(sum(found.shapley)) == pytest.approx(worth[7], abs=1e-5)
    assert (found.owners, found.error, found.sets) == (OWNERS, None, 8)
    assert (found.documents, found.bytes) == (3, size)
    assert 0 < sum(found.routing) < 1
    assert found.to_json()["owners"]["bob"]["shapley"] == found.shapley[1]


def test_a_text_longer_than_a_pass_gets_the_same_answer_for_every_set(
    tiny_world, text, monkeypatch
):
    given = tiny_world.release(*OWNERS), Sources([text[0]])
    whole = attribute(*given, window_tokens=32)
    for rows in (1, 3, 1000):
        monkeypatch.setattr(attribution, "_ROWS", rows)
        found = attribute(*given, window_tokens=32)
        np.testing.assert_allclose(found.shapley, whole.shapley, atol=1e-5)


def test_with_many_owners_orders_are_drawn_and_the_error_is_told(tiny_world, text, monkeypatch):
    given = tiny_world.release(*OWNERS), Sources([text[0]])
    exact = attribute(*given)
    monkeypatch.setattr(attribution, "EXACT_OWNERS", 2)
    drawn = attribute(*given, orders=60)
    assert sum(drawn.shapley) == pytest.approx(exact.together, abs=1e-6)
    for value, error, expected in zip(drawn.shapley, drawn.error, exact.shapley, strict=True):
        assert abs(value - expected) <= 4 * error + 1e-6


def test_what_cannot_be_divided_is_refused(tiny_world, text, tmp_path):
    sources = Sources([text[0]])
    with pytest.raises(ConfigError, match="four orders"):
        attribute(tiny_world.release(*OWNERS), sources, orders=3)
    with pytest.raises(ConfigError, match="without owners"):
        attribute(tiny_world.release(), sources)
    with pytest.raises(DataError):
        attribute(tiny_world.release(*OWNERS), Sources([tmp_path / "nothing.txt"]))
    with pytest.raises(ConfigError, match="0 tokens of a text"):
        attribute(tiny_world.release(*OWNERS), sources, max_tokens=0)
