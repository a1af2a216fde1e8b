"""Each epoch draws every window once, and a number is enough to resume."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.data.sampler import WindowSampler
from moiety.errors import DataError

SIZES = st.integers(1, 50)
SEEDS = st.integers(0, 2**32)


@given(SIZES, SEEDS, st.integers(0, 5))
def test_an_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    drawn = WindowSampler(size, seed).indices(epoch * size, size)
    assert drawn.dtype == np.int64
    assert sorted(drawn) == list(range(size))


@given(SIZES, SEEDS, st.integers(0, 300), st.integers(0, 150))
def test_sample_i_is_what_the_definition_says(size: int, seed: int, start: int, count: int) -> None:
    drawn = WindowSampler(size, seed).indices(start, count)
    one_by_one = [
        np.random.default_rng([seed, i // size]).permutation(size)[i % size]
        for i in range(start, start + count)
    ]
    assert drawn.tolist() == one_by_one


@given(SIZES, SEEDS, st.lists(st.integers(0, 40), max_size=10))
def test_resuming_equals_continuing(size: int, seed: int, steps: list[int]) -> None:
    kept = WindowSampler(size, seed)
    done = 0
    for step in steps:
        fresh = WindowSampler(size, seed)
        assert kept.indices(done, step).tolist() == fresh.indices(done, step).tolist()
        done += step


def test_epochs_and_seeds_differ() -> None:
    orders = [
        tuple(WindowSampler(50, seed).indices(epoch * 50, 50))
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9


def test_nothing_to_draw_from() -> None:
    with pytest.raises(DataError):
        WindowSampler(0, 1)
