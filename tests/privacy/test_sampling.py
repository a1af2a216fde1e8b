"""Who takes part in a step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.privacy import RecordSampler
from moiety.privacy.sampling import Draw
from moiety.privacy.seeds import Secret

COUNTS = np.array([1, 4, 2, 1, 7, 3] * 20)


def sampler(secret, rate=0.1, most=2):
    first = np.concatenate([[0], COUNTS.cumsum()[:-1]])
    return RecordSampler(first, COUNTS, rate=rate, most_windows=most, secret=secret)


def test_every_record_takes_part_by_a_coin_of_its_own(secret):
    ours, steps = sampler(secret), 4000
    drawn = np.zeros((steps, len(COUNTS)), dtype=bool)
    for step in range(steps):
        drawn[step, ours.draw(step).records] = True
    deviation = (0.1 * 0.9 / steps) ** 0.5
    assert np.abs(drawn.mean(axis=0) - 0.1).max() < 4.5 * deviation
    # Poisson, not a batch of a fixed size: the number drawn is binomial.
    sizes = drawn.sum(axis=1)
    assert sizes.var() == pytest.approx(len(COUNTS) * 0.1 * 0.9, rel=0.1)
    together = np.corrcoef(drawn.T)[~np.eye(len(COUNTS), dtype=bool)]
    assert np.abs(together).max() < 5 / steps**0.5


def test_at_most_so_many_windows_of_its_own_and_all_get_their_turn(secret):
    ours, seen = sampler(secret, rate=0.5), set()
    ends = COUNTS.cumsum()
    for step in range(200):
        draw = ours.draw(step)
        owners = np.searchsorted(ends, draw.windows, side="right")
        assert np.array_equal(owners, draw.records)
        assert (np.diff(draw.records) >= 0).all()
        numbers, held = np.unique(draw.records, return_counts=True)
        assert np.array_equal(held, np.minimum(COUNTS[numbers], 2))
        assert len(set(draw.windows)) == len(draw.windows)
        seen |= set(draw.windows.tolist())
    assert len(seen) == COUNTS.sum()


def test_a_draw_follows_from_the_step_and_the_secret_alone(secret):
    late = sampler(secret).draw(17)
    for step in range(17):
        again = sampler(secret)
        again.draw(step)
    assert np.array_equal(again.draw(17).windows, late.windows)
    other = sampler(Secret(bytes(32))).draw(17)
    assert not np.array_equal(other.windows, late.windows)


def test_nobody_may_be_drawn(secret):
    draw = sampler(secret, rate=1e-9).draw(0)
    assert len(draw.windows) == 0
    assert list(draw.parts(4)) == []


@given(
    counts=st.lists(st.integers(1, 3), max_size=12),
    most=st.sampled_from([0, 3, 4, 10]),
)
def test_micro_batches_never_split_a_record(counts, most):
    records = np.repeat(np.arange(len(counts)), counts)
    draw = Draw(np.arange(len(records)) + 5, records)
    parts = list(draw.parts(most))
    for part in parts:
        assert len(part.windows) <= (most or len(records))
    assert np.array_equal(np.concatenate([np.empty(0), *(p.windows for p in parts)]), draw.windows)
    whose = [set(part.records.tolist()) for part in parts]
    assert sum(map(len, whose)) == len(counts), "each record is in one part"
    # Nothing is wasted: two neighbours would not have fitted into one.
    for one, other in pairwise(parts):
        first = counts[int(other.records[0])]
        assert len(one.windows) + first > most
