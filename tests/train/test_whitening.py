"""Whitened coordinates against the covariance and its inverse root written out."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny

from moiety.train.whitening import SHRINKAGE, Whitening


def states_of(count, width, seed=0):
    """States far from the origin, very unequally wide, in directions that are not the axes."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    wide = torch.logspace(1, -2, width)
    return torch.randn(count, width, generator=generator) * wide @ turn + 5


def by_hand(states):
    """The inverse square root of the shrunk second moment."""
    states = states.double()
    moment = states.T @ states / len(states)
    width = len(moment)
    moment += SHRINKAGE * moment.trace() / width * torch.eye(width, dtype=torch.double)
    values, vectors = torch.linalg.eigh(moment)
    return vectors @ torch.diag(values**-0.5) @ vectors.T


@pytest.mark.parametrize("count", [200, 24, 7])
def test_a_folded_row_is_the_row_of_whitened_states(count):
    states = states_of(count, 24)
    whitening, root = Whitening(states), by_hand(states)
    row = torch.randn(24, generator=torch.Generator().manual_seed(1))
    seen = states_of(50, 24, seed=2).double()
    found = seen @ whitening.fold(row).double()
    torch.testing.assert_close(found, seen @ root @ row.double(), rtol=1e-3, atol=1e-3)
    found = whitening(seen.float()).double()
    torch.testing.assert_close(found, seen @ root, rtol=1e-3, atol=1e-3)


def test_the_origin_stays_where_it_is():
    assert not Whitening(states_of(60, 8))(torch.zeros(1, 8)).any()


def test_a_gradient_reaches_the_row_and_nothing_of_the_whitening():
    whitening = Whitening(states_of(60, 8))
    row = torch.zeros(8, requires_grad=True)
    (whitening.fold(row) @ torch.ones(8)).backward()
    assert row.grad is not None
    assert row.grad.abs().min() > 0
    assert not list(whitening.parameters())
    assert not whitening.state_dict(), "it is made from the anchor, not kept with the run"


def test_every_owner_of_an_anchor_whitens_alike(bench):
    probe = load_file(bench.anchor / "public/probe.safetensors")
    for seed in (1, 2):
        for number, layer in enumerate(bench.pair(tiny.settings(f"seed={seed}")).layers):
            found = layer.whitening.fold(torch.ones(tiny.WIDTH)).double()
            root = by_hand(probe[f"layers.{number}.token"])
            expected = root @ torch.ones(tiny.WIDTH, dtype=torch.double)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
