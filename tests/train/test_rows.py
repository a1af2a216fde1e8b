"""Fitted rows against what a logistic regression must satisfy, and against known cases.

``fit_row`` gives rows of raw states; ``unfolded`` takes them back, without what made them.
"""

from __future__ import annotations

import pytest
import torch
from tests import tiny
from torch.nn import functional

from moiety import family
from moiety.errors import StateError
from moiety.train import rows as fitting
from moiety.train.compute import resolve_compute
from moiety.train.rows import Seen, add_fitted_rows, fit_row
from moiety.train.states import gather_states
from moiety.train.whitening import Whitening

WIDTH = 12
NORM = 0.7
SIZES = {"norm": NORM, "sharpness": 2.0}


def cloud(seed, count=3000, centre=0.0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return centre + spread * torch.randn(count, WIDTH, generator=generator)


def seen(states, windows=None):
    return Seen(states, torch.arange(len(states)) if windows is None else windows)


def shifted(direction, distance):
    return functional.normalize(torch.tensor(direction, dtype=torch.float), dim=0) * distance


AXES = [1.0, -1.0] + [0.0] * (WIDTH - 2)


def loss_of(row, own, public, whitening):
    """Cross-entropy, half of it own text and half public, summed one state at a time."""
    total = 0.0
    for states, sign in ((own, -1), (public, 1)):
        logits = whitening(states).double() @ row
        total += 0.5 * float(torch.log1p(torch.exp(sign * logits)).mean())
    return total


def unfolded(row, whitening):
    """Norm and direction in whitened coordinates."""
    root = whitening(torch.eye(WIDTH)).double()  # symmetric
    return torch.linalg.solve(root, row.double())


@pytest.mark.parametrize("distance", [1.5, 5.0])
def test_no_row_of_the_same_norm_fits_better(distance):
    public, own = cloud(1), cloud(2, centre=shifted(AXES, distance), spread=1.3)
    whitening = Whitening(public)
    row = unfolded(fit_row([seen(own)], [seen(public)], whitening, **SIZES) / 2.0, whitening)
    best = loss_of(row, own, public, whitening)
    generator = torch.Generator().manual_seed(3)
    for size in (1e-2, 0.1, 0.5):
        for _ in range(20):
            other = row + size * torch.randn(WIDTH, generator=generator, dtype=torch.double)
            other = other * row.norm() / other.norm()
            assert loss_of(other, own, public, whitening) > best


def test_equally_wide_clouds_are_parted_along_the_line_between_them():
    public, own = cloud(1, 20_000), cloud(2, 20_000, centre=shifted(AXES, 3))
    row = fit_row([seen(own)], [seen(public)], Whitening(public), **SIZES)
    assert float(functional.cosine_similarity(row, shifted(AXES, 1), dim=0)) > 0.995


@pytest.mark.parametrize("distance", [0.5, 2.0, 20.0])
def test_its_norm_goes_by_the_root_of_the_distance_and_never_above_it(distance):
    public, own = cloud(1), cloud(2, centre=shifted(AXES, distance))
    whitening = Whitening(public)
    apart = [
        (whitening(own)[half] - whitening(public)[half]).mean(dim=0)
        for half in (slice(0, 3000, 2), slice(1, 3000, 2))
    ]
    expected = float(apart[0] @ apart[1]) ** 0.5
    row = unfolded(fit_row([seen(own)], [seen(public)], whitening, **SIZES), whitening)
    assert float(row.norm()) == pytest.approx(NORM * min(expected, expected**0.5), rel=1e-4)


@pytest.mark.parametrize("count", [2, 4, 5])
def test_little_text_does_not_make_a_steep_row(count):
    """Sixteen states of each of a few windows, seen twice in another order, prove nothing."""
    public = seen(cloud(1))
    whitening = Whitening(public.states_ND)
    norms = []
    for seed in range(20):
        own, order = cloud(100 + seed, count), torch.randperm(count)
        ways = [torch.arange(count).repeat_interleave(16), order.repeat_interleave(16)]
        row = fit_row([seen(own[way], way) for way in ways], [public] * 2, whitening, **SIZES)
        norms.append(float(unfolded(row, whitening).norm()))
    assert norms.count(0.0) >= 5, "an estimate without bias is as often below zero as above"
    plain = NORM * (WIDTH / count) ** 0.25
    assert sum(norms) / len(norms) < 0.55 * plain


def test_one_window_is_too_little_to_tell():
    public = cloud(1)
    own = seen(cloud(5, 1, centre=shifted(AXES, 9)).repeat(16, 1), torch.zeros(16))
    whitening = Whitening(public)
    row = fit_row([own], [seen(public)], whitening, **SIZES)
    assert not row.any()


def test_every_way_of_seeing_a_text_has_the_same_weight():
    public, own = cloud(1), cloud(2, centre=shifted(AXES, 2))
    moved = cloud(4, 300, centre=shifted(AXES[::-1], 2))
    whitening = Whitening(public)
    few = fit_row([seen(own), seen(moved)], [seen(public)] * 2, whitening, **SIZES)
    many = fit_row([seen(own), seen(moved.repeat(10, 1))], [seen(public)] * 2, whitening, **SIZES)
    torch.testing.assert_close(few, many, rtol=1e-3, atol=1e-3)
    one = fit_row([seen(own)], [seen(public)], whitening, **SIZES)
    assert float((few - one).norm()) > 0.05
    assert torch.equal(
        few, fit_row([seen(own), seen(moved)], [seen(public)] * 2, whitening, **SIZES)
    )


def test_text_that_cannot_be_told_from_public_text_gets_hardly_a_row():
    public, own = cloud(1), cloud(2)
    row = fit_row([seen(own)], [seen(public)], Whitening(public), **SIZES)
    assert float(row.norm()) < 0.15 * NORM


def test_states_that_are_no_numbers_are_refused():
    public, own = cloud(1), cloud(2)
    own[5, 3] = float("nan")
    with pytest.raises(StateError, match="not a number"):
        fit_row([seen(own)], [seen(public)], Whitening(public), **SIZES)


def test_every_row_of_a_pair_gets_its_fit_and_nothing_else_changes(bench, monkeypatch):
    pair = bench.pair(tiny.settings())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in sorted(pair.trainable().items()):
            parameter.normal_(std=0.2, generator=generator)
    before = pair.expert_tensors()
    texts = bench.texts.own, bench.texts.public
    with pair.alone():
        alone = [
            gather_states(pair.backbone, text, 300, 8, before=pair.expect).states for text in texts
        ]
    fits = []

    def fit(*given, **sizes):
        fits.append((given, sizes, fit_row(*given, **sizes)))
        return fits[-1][2]

    monkeypatch.setattr(fitting, "fit_row", fit)
    add_fitted_rows(pair, *texts, resolve_compute(tiny.settings().compute, 1), quiet=True)
    after = pair.expert_tensors()
    for layer, (given, sizes, fitted) in enumerate(fits):
        name = family.token_row(layer)
        torch.testing.assert_close(after.pop(name), before.pop(name) + fitted)
        assert sizes == {"norm": fitting.NORM, "sharpness": fitting.SHARPNESS}
        *sides, whitening = given
        for (one, other), states in zip(sides, alone, strict=True):
            assert torch.equal(one.states_ND, states[f"layers.{layer}.token"])
            assert len(one.states_ND) == len(one.windows_N)
            far = (one.states_ND.mean(dim=0) - other.states_ND.mean(dim=0)).norm()
            assert layer == 0 or float(far) > 0.01, "the pair's states are not the anchor's"
        public = Whitening(alone[1][f"layers.{layer}.token"])
        assert torch.equal(whitening.directions_DK, public.directions_DK)
        assert torch.equal(whitening.beyond_K, public.beyond_K)
    assert len(fits) == tiny.LAYERS
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not pair.routing.alone
