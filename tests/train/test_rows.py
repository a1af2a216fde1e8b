"""Fitted rows against what a logistic regression must satisfy, and against known cases."""

from __future__ import annotations

import pytest
import torch
from tests import tiny
from torch.nn import functional

from moiety.errors import StateError
from moiety.train.rows import SHARPNESS, fit_row, fit_rows, row_states
from moiety.train.whitening import Whitening

WIDTH = 12


def cloud(seed, count=3000, centre=0.0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return centre + spread * torch.randn(count, WIDTH, generator=generator)


def shifted(direction, distance):
    return functional.normalize(torch.tensor(direction, dtype=torch.float), dim=0) * distance


AXES = [1.0, -1.0] + [0.0] * (WIDTH - 2)


def loss_of(row, bias, own, public, whitening):
    """Cross-entropy, half of it own text and half public, summed one state at a time."""
    total = 0.0
    for states, sign in ((own, -1), (public, 1)):
        logits = whitening(states).double() @ row + bias
        total += 0.5 * float(torch.log1p(torch.exp(sign * logits)).mean())
    return total


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("distance", [1.5, 5.0])
def test_no_row_of_the_same_norm_fits_better(biased, distance):
    public, own = cloud(1), cloud(2, centre=shifted(AXES, distance), spread=1.3)
    whitening = Whitening(public, centred=biased)
    found = fit_row([own], [public], whitening, biased=biased).double() / SHARPNESS
    row, bias = (found[:-1], float(found[-1])) if biased else (found, 0.0)
    best = loss_of(row, bias, own, public, whitening)
    generator = torch.Generator().manual_seed(3)
    for size in (1e-2, 0.1, 0.5):
        for _ in range(20):
            other = row + size * torch.randn(WIDTH, generator=generator, dtype=torch.double)
            other = other * row.norm() / other.norm()
            assert loss_of(other, bias, own, public, whitening) > best
        if biased:
            assert loss_of(row, bias + size, own, public, whitening) > best
            assert loss_of(row, bias - size, own, public, whitening) > best


def test_equally_wide_clouds_are_parted_half_way_along_the_line_between_them():
    public, own = cloud(1, 20_000), cloud(2, 20_000, centre=shifted(AXES, 3))
    row = fit_row([own], [public], Whitening(public, centred=True), biased=True)
    along = functional.cosine_similarity(row[:-1], shifted(AXES, 1), dim=0)
    assert float(along) > 0.995
    half_way = row[:-1] @ Whitening(public, centred=True)(shifted(AXES, 1.5)[None])[0] + row[-1]
    assert abs(float(half_way)) < 0.1


@pytest.mark.parametrize("distance", [0.5, 2.0, 20.0])
def test_its_norm_is_the_root_of_the_distance_and_never_more_than_it(distance):
    public, own = cloud(1), cloud(2, centre=shifted(AXES, distance))
    whitening = Whitening(public, centred=True)
    apart = [
        (whitening(own)[half] - whitening(public)[half]).mean(dim=0)
        for half in (slice(0, 1500), slice(1500, 3000))
    ]
    expected = float(apart[0] @ apart[1]) ** 0.5
    row = fit_row([own], [public], whitening, biased=True)
    assert float(row[:-1].norm()) == pytest.approx(min(expected, expected**0.5), rel=1e-4)


def test_little_text_does_not_make_a_steep_row():
    """Sixteen states of each of four windows of public text are no evidence of anything."""
    public = cloud(1)
    whitening = Whitening(public, centred=True)
    norms = []
    for seed in range(20):
        own = cloud(100 + seed, 4).repeat_interleave(16, dim=0)
        norms.append(float(fit_row([own], [public], whitening, biased=True)[:-1].norm()))
    assert norms.count(0.0) >= 5, "an estimate without bias is as often below zero as above"
    assert sum(norms) / len(norms) < 0.8, "the plain distance is 1.7"


def test_every_way_of_seeing_a_text_has_the_same_weight():
    public, own = cloud(1), cloud(2, centre=shifted(AXES, 2))
    moved = cloud(4, 300, centre=shifted(AXES[::-1], 2))
    whitening = Whitening(public, centred=True)
    few = fit_row([own, moved], [public, public], whitening, biased=True)
    many = fit_row([own, moved.repeat(10, 1)], [public, public], whitening, biased=True)
    torch.testing.assert_close(few, many, rtol=1e-3, atol=1e-3)
    one = fit_row([own], [public], whitening, biased=True)
    assert float((few - one).norm()) > 0.1
    assert torch.equal(few, fit_row([own, moved], [public, public], whitening, biased=True))


def test_text_that_cannot_be_told_from_public_text_gets_hardly_a_row():
    public, own = cloud(1), cloud(2)
    row = fit_row([own], [public], Whitening(public, centred=True), biased=True)
    assert float(row.norm()) < 0.15


def test_states_that_are_no_numbers_are_refused():
    public, own = cloud(1), cloud(2)
    own[5, 3] = float("nan")
    with pytest.raises(StateError, match="not a number"):
        fit_row([own], [public], Whitening(public, centred=True), biased=True)


def test_every_row_of_a_pair_is_fitted_and_nothing_else(bench):
    pair = bench.pair(tiny.settings())
    before = {name: parameter.clone() for name, parameter in pair.trainable().items()}
    ways = [
        row_states(pair.backbone, bench.texts.own, bench.texts.public),
        row_states(pair.backbone, bench.texts.own_heldout, bench.texts.public_heldout),
    ]
    fit_rows(pair, ways)
    for name, parameter in pair.trainable().items():
        assert torch.equal(parameter, before[name]) == (not name.endswith("_row"))
    for number, layer in enumerate(pair.layers):
        for kind, found in (
            ("context", layer.folded_context_row()),
            ("token", layer.folded_token_row()),
        ):
            name, biased = f"layers.{number}.{kind}", kind == "context"
            whitening = layer.context_whitening if biased else layer.token_whitening
            own, public = ([way[name] for way in kinds] for kinds in sides(ways))
            row = fit_row(own, public, whitening, biased=biased)
            logits = whitening(own[1]) @ row[: tiny.WIDTH] + (row[-1] if biased else 0)
            shipped = own[1] @ found[: tiny.WIDTH] + (found[-1] if biased else 0)
            torch.testing.assert_close(shipped, logits, rtol=1e-3, atol=1e-3)
            assert not torch.equal(row, fit_row(own[:1], public[:1], whitening, biased=biased))


def sides(ways):
    return [way.own for way in ways], [way.public for way in ways]
