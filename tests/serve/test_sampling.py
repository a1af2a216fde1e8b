"""Choices: their distribution, and that a row depends on nothing but itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.serve.asking import ask

from moiety.serve.sampling import choose, dice, tell

VOCABULARY = 6


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


def exact(logits, temperature, top_p):
    """The distribution by the book: softmax, then the smallest set that holds ``top_p``."""
    probs = np.exp(np.array(logits, dtype=np.float64) / temperature)
    probs /= probs.sum()
    kept, mass = [], 0.0
    for token in np.argsort(-probs):
        if mass >= top_p:
            break
        kept.append(token)
        mass += probs[token]
    return np.array([probs[t] / mass if t in kept else 0.0 for t in range(len(probs))])


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.8), (2.0, 0.5), (1, 1e-9)])
def test_tokens_come_as_often_as_they_should(temperature, top_p):
    row, count = logits_of(1), 5_000
    job = ask([0], temperature=temperature, top_p=top_p, seed=3)
    generator = dice(job)
    found = np.zeros(VOCABULARY)
    for _ in range(count // 100):
        tokens = choose(row.expand(100, -1), [job] * 100, [generator] * 100)
        found += np.bincount(tokens.numpy(), minlength=VOCABULARY)
    expected = exact(row[0].tolist(), temperature, top_p)
    assert not found[expected == 0].any()
    sigma = np.sqrt(count * expected * (1 - expected))
    assert (np.abs(found - count * expected) <= 5 * sigma).all()


def test_a_row_among_others_is_the_row_alone():
    rows = logits_of(8)
    jobs = [ask([0], temperature=n / 4, top_p=1 - n / 16, seed=n) for n in range(8)]
    together, alone = [dice(job) for job in jobs], [dice(job) for job in jobs]
    for _ in range(20):
        expected = [
            int(choose(rows[n : n + 1], [jobs[n]], [alone[n]])[0]) for n in range(len(jobs))
        ]
        assert choose(rows, jobs, together).tolist() == expected


def test_the_last_bits_of_logits_do_not_change_a_choice():
    # As many rows that are nearly alike as a flat distribution has.
    flat = torch.zeros(1, 4096)
    job = ask([0], temperature=1.0, top_p=1.0, seed=1)
    noise = 1e-6 * torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
    first, second = dice(job), dice(job)
    pairs = [
        (int(choose(flat, [job], [first])), int(choose(flat + noise, [job], [second])))
        for _ in range(100)
    ]
    assert sum(one != other for one, other in pairs) <= 1


@pytest.mark.parametrize("temperature", [1e-40, 1e-3])
def test_nearly_no_temperature_is_greedy(temperature):
    rows = logits_of(4)
    jobs = [ask([0], temperature=temperature, seed=1)] * 4
    found = choose(rows, jobs, [dice(job) for job in jobs])
    assert torch.equal(found, rows.argmax(dim=-1))


def test_what_is_told_is_of_the_models_own_distribution():
    rows = logits_of(3)
    logprobs = rows.log_softmax(dim=-1)
    told = tell(rows, torch.tensor([1, 2, 3]), [0, 2, 20])
    for row, token in enumerate([1, 2, 3]):
        assert told[row].token == token
        assert told[row].logprob == pytest.approx(float(logprobs[row, token]), abs=1e-6)
    assert told[0].top == ()
    assert [token for token, _ in told[1].top] == logprobs[1].topk(2).indices.tolist()
    assert len(told[2].top) == VOCABULARY
    assert math.fsum(math.exp(nats) for _, nats in told[2].top) == pytest.approx(1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_told_apart_and_only_there(bad):
    rows = logits_of(3)
    rows[1, 4] = bad
    jobs = [ask([0], temperature=1.0, seed=n) for n in range(3)]
    tokens = choose(rows, jobs, [dice(job) for job in jobs])
    told = tell(rows, tokens, [0, 0, 0])
    assert [one is None for one in told] == [False, True, False]


@pytest.mark.parametrize("seed", [-1, 0, 2**63, 2**64 + 5, -(2**70)])
def test_any_whole_number_is_a_seed(seed):
    assert dice(ask([0], temperature=1.0, seed=seed)) is not None


def test_without_a_seed_two_requests_differ():
    job = ask([0], temperature=1.0)
    assert dice(job).initial_seed() != dice(job).initial_seed()
    assert dice(ask([0])) is None
