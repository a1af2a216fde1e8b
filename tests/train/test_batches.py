"""Batches are a function of the step's number; together they are own and public windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests import tiny

from moiety.data.sampler import WindowSampler
from moiety.train.batches import Shares, StepBatches, whole_steps

WINDOWS = 4
TENSORS = ("inputs_BT", "targets_BT", "documents_BT", "even_B")


def make(bench, seed):
    """Three own windows and one public."""
    return StepBatches(bench.texts.own, bench.texts.public, Shares(WINDOWS - 1, 1), seed)


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
        parts = [
            bench.texts.own.windows(own.indices(3 * step, 3)),
            bench.texts.public.windows(public.indices(step, 1)),
        ]
        tokens = np.concatenate([part.tokens for part in parts])
        documents = np.concatenate([part.documents for part in parts])
        assert batch.inputs_BT.tolist() == tokens[:, :-1].tolist()
        assert batch.documents_BT.tolist() == documents[:, :-1].tolist()


def test_a_share_of_no_public_window_is_own_text_alone(bench):
    none = StepBatches(bench.texts.own, bench.texts.public, Shares(3, 0), 5)
    alone = StepBatches(bench.texts.own, None, Shares(3), 5)
    for step in range(4):
        one, other = whole(none, step), whole(alone, step)
        assert one.weight == other.weight == 1
        for name in TENSORS:
            assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize(("own", "public"), [(3, 1), (5, 3), (2, 4), (3, 0), (0, 3)])
def test_every_other_public_window_is_even(bench, own, public):
    batches = StepBatches(bench.texts.own, bench.texts.public, Shares(own, public), 5)
    for step in range(2):
        expected = [False] * own + [place % 2 == 0 for place in range(public)]
        assert whole(batches, step).even_B.tolist() == expected


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
        for name in TENSORS:
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(step_whole, name))
        assert sum(part.weight for part in parts) == pytest.approx(1)
        assert max(len(part.inputs_BT) for part in parts) <= (size or WINDOWS)


def test_a_window_without_a_target_is_in_no_batch_of_its_own(tmp_path):
    text = tiny.text_ending_without_a_target(tmp_path)
    batches = StepBatches(text, None, Shares(text.num_windows), 0)
    parts = list(batches.micro(0, 1, "cpu"))
    assert len(parts) == text.num_windows - 1
    assert all((part.targets_BT >= 0).any() for part in parts)
    assert sum(part.weight for part in parts) == pytest.approx(1)
    assert len(whole(batches, 0).inputs_BT) == text.num_windows


def test_a_step_of_such_a_window_alone_has_none(tmp_path):
    text = tiny.text_ending_without_a_target(tmp_path)
    batches = StepBatches(text, None, Shares(1), 0)
    found = [len(list(batches.micro(step, 0, "cpu"))) for step in range(text.num_windows)]
    assert sorted(found) == [0, 1, 1]


@pytest.mark.parametrize(
    ("tokens", "steps"), [(1, 1), (128, 1), (191, 1), (193, 2), (1280, 10), (10**9, 7812500)]
)
def test_a_budget_buys_whole_steps_and_at_least_one(tokens, steps):
    assert whole_steps(tokens, WINDOWS, 32) == steps
