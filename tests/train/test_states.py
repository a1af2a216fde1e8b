"""States gathered for the rows: those of real positions, as the backbone now sees them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests import tiny
from tests.train.test_sample import nearest, states_by_hand

from moiety.model import load_dense
from moiety.train.states import gather_states


@pytest.mark.parametrize("kind", ["own", "own_heldout"])
def test_they_are_the_states_of_real_positions(bench, kind):
    backbone = load_dense(bench.anchor, dtype=torch.float32)
    text = getattr(bench.texts, kind)
    gathered = gather_states(backbone, text, 5, 7)
    found = gathered.states
    every = states_by_hand(backbone, text)
    order = np.random.default_rng(0).permutation(text.num_windows)[:5]
    chosen = text.windows(order)
    real = (chosen.documents[:, 8:-1] >= 0).sum(axis=1)
    if kind == "own":
        inside = chosen.documents[:, 1:-1] != chosen.documents[:, :-2]
        assert inside.any(), "a document must begin inside a window to say anything"
    assert gathered.windows_N.tolist() == np.repeat(order, np.minimum(real, 7)).tolist()
    for layer in range(tiny.LAYERS):
        states = found[f"layers.{layer}.token"]
        assert len(states) == np.minimum(real, 7).sum()
        assert float(nearest(states, every[layer]).max()) < 1e-4


def test_the_same_ones_every_time_and_every_one_once(bench):
    backbone = load_dense(bench.anchor, dtype=torch.float32)
    one, two = (gather_states(backbone, bench.texts.own, 5, 7).states for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = gather_states(backbone, bench.texts.own, 5, 7, seed=1).states
    assert not any(torch.equal(one[name], other[name]) for name in one)
    states = one["layers.1.token"]
    assert len(torch.unique(states, dim=0)) == len(states)
    assert not states.is_inference(), "rows are trained on them"


def test_a_pair_is_told_tokens_and_borders_and_seen_as_it_routes(bench):
    pair = bench.pair(tiny.settings())
    text = bench.texts.own
    alone = gather_states(pair.backbone, text, 5, 7, before=pair.expect).states
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in sorted(pair.trainable().items()):
            parameter.normal_(std=0.3, generator=generator)
    told = []

    def tell(tokens, documents):
        told.append((tokens, documents))
        pair.expect(tokens, documents)

    gathered = gather_states(pair.backbone, text, 5, 7, before=tell)
    order = np.random.default_rng(0).permutation(text.num_windows)[:5]
    windows = text.windows(order)
    ((tokens, documents),) = told
    assert tokens.tolist() == windows.tokens[:, :-1].tolist()
    assert documents.tolist() == windows.documents[:, :-1].tolist()
    assert torch.equal(alone["layers.0.token"], gathered.states["layers.0.token"])
    assert float((alone["layers.1.token"] - gathered.states["layers.1.token"]).abs().max()) > 0.01
