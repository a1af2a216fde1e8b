"""Batches are a function of the step's number, and weigh own and public text alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moiety.data.sampler import WindowSampler
from moiety.train.batches import Shares, StepBatches, whole_steps

WINDOWS = 4


def make(bench, seed):
    """Three own windows and one public."""
    return StepBatches(bench.texts.own, bench.texts.public, Shares(WINDOWS - 1, 1, token=0.4), seed)


def make_own(bench, windows):
    """Own windows alone."""
    return StepBatches(bench.texts.own, None, Shares(windows), 0)


@pytest.fixture
def batches(bench):
    return make(bench, seed=5)


def whole(batches, step):
    (batch,) = batches.micro(step, 0, "cpu")
    return batch


def test_a_step_is_the_same_whatever_was_asked_before(bench, batches):
    forwards = [whole(batches, step) for step in range(6)]
    fresh = make(bench, seed=5)
    for step in (5, 0, 3, 3):
        again = whole(fresh, step)
        assert torch.equal(again.inputs_BT, forwards[step].inputs_BT)
        assert torch.equal(again.targets_BT, forwards[step].targets_BT)
    other = make(bench, seed=6)
    assert not torch.equal(whole(other, 0).inputs_BT, forwards[0].inputs_BT)


def test_windows_are_those_the_samplers_name(bench, batches):
    own, public = (
        WindowSampler(bench.texts.own.num_windows, 5),
        WindowSampler(bench.texts.public.num_windows, 6),
    )
    for step in range(5):
        batch = whole(batches, step)
        rows = [
            *bench.texts.own.windows(own.indices(3 * step, 3)).tokens,
            *bench.texts.public.windows(public.indices(step, 1)).tokens,
        ]
        assert batch.inputs_BT.tolist() == [row[:-1].tolist() for row in rows]
        assert batch.own_B.tolist() == [1, 1, 1, 0]


def test_an_epoch_shows_every_own_window_once(bench):
    batches = make_own(bench, 1)
    count = bench.texts.own.num_windows
    seen = [whole(batches, step).inputs_BT.tolist() for step in range(count)]
    every = bench.texts.own.windows(np.arange(count)).tokens[:, None, :-1].tolist()
    assert sorted(seen) == sorted(every)


def test_targets_are_the_next_tokens_and_padding_has_none(bench):
    last = bench.texts.own.num_windows - 1
    batches = make_own(bench, last + 1)
    batch = whole(batches, 0)
    padded = batch.targets_BT == -100
    assert 0 < int(padded.sum()) < bench.texts.own.window_tokens
    inside = ~padded[:, :-1]
    assert torch.equal(batch.targets_BT[:, :-1][inside], batch.inputs_BT[:, 1:][inside])


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 9])
def test_micro_batches_are_the_step_cut_up(batches, size):
    for step in range(4):
        step_whole, parts = whole(batches, step), list(batches.micro(step, size, "cpu"))
        of_window = ("own_B", "by_token_B")
        for name in ("inputs_BT", "targets_BT", "documents_BT", "balance_BT", *of_window):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(step_whole, name))
        assert sum(part.weight for part in parts) == pytest.approx(1)
        assert max(len(part.own_B) for part in parts) <= (size or WINDOWS)


def test_own_and_public_text_weigh_half_each(batches):
    for step in range(8):
        batch = whole(batches, step)
        balance = batch.balance_BT
        real = batch.documents_BT >= 0
        for kind in (0, 1):
            of_kind = balance[batch.own_B == kind]
            assert float(of_kind.sum()) == pytest.approx(0.5)
            assert len(of_kind[real[batch.own_B == kind]].unique()) == 1
        assert float(balance[~real].sum()) == 0


@pytest.mark.parametrize("share", [0.1, 0.25, 0.29, 0.57])
def test_a_share_that_is_no_whole_number_of_windows_holds_over_the_steps(bench, share):
    batches = StepBatches(bench.texts.own, bench.texts.public, Shares(3, 1, token=share), 5)
    steps = torch.stack([whole(batches, step).by_token_B for step in range(100)])
    assert int(steps[:, :3].sum()) == round(300 * share)
    assert int(steps[:, 3].sum()) == round(100 * share)
    assert int(steps[:, :3].sum(dim=1).max()) - int(steps[:, :3].sum(dim=1).min()) == 1


@pytest.mark.parametrize(
    ("share", "chosen"),
    [(0.0, []), (0.25, [3, 7, 11]), (0.5, [1, 3, 5, 7, 9, 11]), (1.0, list(range(12)))],
)
def test_token_rows_route_a_share_of_each_kind_of_window(bench, share, chosen):
    batches = StepBatches(bench.texts.own, bench.texts.public, Shares(8, 4, token=share), 5)
    for size in (0, 5):
        parts = [part.by_token_B for part in batches.micro(0, size, "cpu")]
        assert torch.cat(parts).nonzero()[:, 0].tolist() == chosen


def test_without_public_text_there_is_nothing_to_weigh_against(bench):
    batches = make_own(bench, 2)
    assert float(whole(batches, 0).balance_BT.sum()) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("tokens", "steps"), [(1, 1), (128, 1), (191, 1), (193, 2), (1280, 10), (10**9, 7812500)]
)
def test_a_budget_buys_whole_steps_and_at_least_one(tokens, steps):
    assert whole_steps(tokens, WINDOWS, 32) == steps
