"""The private counts of tokens."""

from __future__ import annotations

import numpy as np
import pytest

from moiety.privacy import noisy_histogram
from moiety.privacy.histogram import histogram_length

RECORDS = [np.array([1, 1, 1, 2]), np.array([0]), np.array([3] * 50 + [1]), np.empty(0, np.int64)]


def counted(records, **how):
    usual = {"clip_norm": 4.0, "deviation": 0.0, "generator": np.random.default_rng(0)}
    return noisy_histogram(records, 5, **(usual | how))


def test_each_record_is_clipped_in_length():
    expected = np.zeros(5)
    for tokens in RECORDS[:3]:
        one = np.bincount(tokens, minlength=5).astype(float)
        expected += one * min(1, 4.0 / np.sqrt((one**2).sum()))
    np.testing.assert_allclose(counted(RECORDS), expected)


@pytest.mark.parametrize("left_out", range(4))
def test_a_record_moves_the_sum_by_at_most_the_clip_norm(left_out):
    rest = [tokens for number, tokens in enumerate(RECORDS) if number != left_out]
    assert np.linalg.norm(counted(RECORDS) - counted(rest)) <= 4.0 + 1e-9


def test_noise_lies_on_every_entry_also_where_no_record_is():
    noisy = noisy_histogram(
        RECORDS, 50_000, clip_norm=4.0, deviation=3.0, generator=np.random.default_rng(1)
    )
    assert noisy[5:].std() == pytest.approx(3.0, rel=0.02)
    assert noisy[5:].mean() == pytest.approx(0, abs=0.06)


def test_the_length_of_a_record():
    assert histogram_length(np.array([7, 7, 7, 9, 9, 9, 9])) == 5.0
