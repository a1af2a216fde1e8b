"""States gathered for the rows: those of real positions, as the backbone now sees them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests import tiny
from tests.train.test_sample import nearest, states_by_hand

from moiety.train.states import gather_states


@pytest.mark.parametrize("kind", ["own", "own_heldout"])
def test_they_are_the_states_of_real_positions_and_their_means(bench, kind):
    pair = bench.pair(tiny.settings())
    text = getattr(bench.texts, kind)
    gathered = gather_states(pair.backbone, text, 5, 7)
    found = gathered.states
    every = states_by_hand(pair.backbone, text)
    order = np.random.default_rng(0).permutation(text.num_windows)[:5]
    chosen = text.windows(order)
    real = (chosen.documents[:, 8:-1] >= 0).sum(axis=1)
    if kind == "own":
        inside = chosen.documents[:, 1:-1] != chosen.documents[:, :-2]
        assert inside.any(), "a document must begin inside a window to say anything"
    assert gathered.windows_N.tolist() == np.repeat(order, np.minimum(real, 7)).tolist()
    for layer in range(tiny.LAYERS):
        for kind in ("token", "context"):
            assert len(found[f"layers.{layer}.{kind}"]) == np.minimum(real, 7).sum()
            assert float(nearest(found[f"layers.{layer}.{kind}"], every[layer, kind]).max()) < 1e-4


def test_the_same_ones_every_time_and_every_one_once(bench):
    backbone = bench.pair(tiny.settings()).backbone
    one, two = (gather_states(backbone, bench.texts.own, 5, 7).states for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = gather_states(backbone, bench.texts.own, 5, 7, seed=1).states
    assert not any(torch.equal(one[name], other[name]) for name in one)
    states = one["layers.1.context"]
    assert len(torch.unique(states, dim=0)) == len(states)
    assert not states.is_inference(), "rows are trained on them"


def test_a_pair_is_told_the_borders_and_seen_as_it_routes(bench):
    pair = bench.pair(tiny.settings())
    alone = gather_states(pair.backbone, bench.texts.own, 5, 7).states
    generator = torch.Generator().manual_seed(3)  # a row drawn otherwise may decline everything
    with torch.no_grad():
        for _, parameter in sorted(pair.trainable().items()):
            parameter.normal_(std=0.3, generator=generator)
    told = []

    def tell(documents):
        told.append(documents)
        pair.expect(documents)

    beside = gather_states(pair.backbone, bench.texts.own, 5, 7, before=tell).states
    assert [documents.shape for documents in told] == [(5, 32)]
    assert torch.equal(alone["layers.0.token"], beside["layers.0.token"])
    assert float((alone["layers.1.token"] - beside["layers.1.token"]).abs().max()) > 0.01
