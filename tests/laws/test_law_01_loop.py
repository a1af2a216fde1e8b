"""Law 1: our mixture is a naive loop over positions."""

from __future__ import annotations

import pytest
import torch
from tests import tiny
from tests.laws.naive import naive_logits
from torch.nn import functional

OWNERS = tuple(tiny.RANKS)
TOP_KS = [1, 2, None]


@pytest.mark.parametrize("top_k", TOP_KS)
def test_routing_equals_a_naive_loop_over_positions(tiny_world, top_k):
    tokens = tiny.random_tokens(2, 13)
    expected = naive_logits(tiny_world, tokens, [[0] * 13] * 2, top_k)
    ours = tiny_world.load(*OWNERS, top_k=top_k)
    torch.testing.assert_close(tiny.logits_of(ours, tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top_k", [2, None])
def test_evidence_in_packed_windows_begins_anew_at_every_document(tiny_world, top_k):
    tokens = tiny.random_tokens(2, 15)
    documents = [[0] * 4 + [1] * 1 + [2] * 10, [2] * 6 + [3] * 5 + [-1] * 4]
    inputs = [row[:-1] for row in documents]
    logits = naive_logits(tiny_world, tokens[:, :-1], inputs, top_k)
    expected = functional.cross_entropy(logits.mT, tokens[:, 1:], reduction="none")
    ours = tiny_world.load(*OWNERS, top_k=top_k)
    found = ours.score(tokens, torch.tensor(documents))
    real = torch.tensor(documents)[:, 1:] >= 0
    torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)
    whole = naive_logits(tiny_world, tokens[:, :-1], [[0] * 14] * 2, top_k)
    assert (whole - logits).abs().max() > 0.01, "the borders must matter for this to say anything"


def test_the_experts_are_far_enough_apart_for_these_laws_to_bite(tiny_world):
    tokens = tiny.random_tokens(2, 30)
    ours = tiny_world.load(*OWNERS)
    whole = tiny.logits_of(ours, tokens)
    for owner in OWNERS:
        with ours.without(owner):
            assert (tiny.logits_of(ours, tokens) - whole).abs().max() > 0.05
