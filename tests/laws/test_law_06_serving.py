"""Law 6, under load: each answer is that of the request alone, whatever else runs."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests import tiny
from tests.serve.asking import (
    OWNERS,
    answers,
    ask,
    engine,
    greedy_alone,
    read,
    text,
    tokens,
)

SETS = [(0, *some) for n in range(4) for some in itertools.combinations((1, 2, 3), n)]
LONG = " ".join(tiny.language(1, 6))


@pytest.fixture(scope="module", params=[None, 2, 1])
def top_k(request):
    return request.param


@pytest.fixture(scope="module")
def oracle(tiny_world, top_k):
    return tiny_world.load(*OWNERS, top_k=top_k)


def crowd(mixture, seed: int, count: int):
    """Requests of all lengths with sets of their own, and when each comes."""
    rng = np.random.default_rng(seed)
    jobs = []
    for n in range(count):
        prompt = mixture.tokenizer(LONG[int(rng.integers(40)) :])["input_ids"]
        length = int(rng.integers(1, 90 if n % 3 else 8))
        words = mixture.tokenizer.decode(prompt[:length], skip_special_tokens=True)
        ids = mixture.tokenizer(words)["input_ids"][:100]
        slots = SETS[int(rng.integers(len(SETS)))]
        tenant = str(rng.integers(2))
        jobs.append(ask(ids, slots=slots, tenant=tenant, max_tokens=int(rng.integers(1, 24))))
    return jobs, rng.exponential(0.01, size=count).cumsum().tolist()


@pytest.mark.parametrize("limits", [{}, {"places": 3, "step_tokens": 7, "cache_bytes": 40_000}])
def test_answers_of_a_crowd_equal_generation_of_each_alone(tiny_world, oracle, top_k, limits):
    jobs, pauses = crowd(oracle, seed=1, count=20)
    expected = [greedy_alone(oracle, job) for job in jobs]
    with engine(tiny_world.load(*OWNERS, top_k=top_k), **limits) as running:
        for _again in range(2):  # the second time, beginnings are cached
            found = answers(running, jobs, pauses)
            assert {ending.reason for _, ending in found} <= {"stop", "length"}
            assert [text(oracle, one) for one in found] == expected
    assert len(set(expected)) > 8


def test_a_seed_gives_the_same_text_whatever_else_runs(tiny_world, oracle, top_k):
    jobs, pauses = crowd(oracle, seed=2, count=12)
    jobs = [
        replace(job, temperature=0.9, top_p=0.8 + 0.2 * (n % 2), seed=n)
        for n, job in enumerate(jobs)
    ]
    with engine(tiny_world.load(*OWNERS, top_k=top_k), places=4, step_tokens=11) as running:
        together = answers(running, jobs, pauses)
    with engine(tiny_world.load(*OWNERS, top_k=top_k), cache_bytes=0) as running:
        alone = [answers(running, [job])[0] for job in jobs]
    assert [tokens(one) for one in together] == [tokens(one) for one in alone]


def test_what_is_told_of_a_step_is_what_recomputation_says(tiny_world, oracle, top_k):
    prompts = [tuple(oracle.tokenizer(LONG)["input_ids"][begin : begin + 40]) for begin in (0, 5)]
    jobs = [
        ask(prompt, slots=slots, top_logprobs=3, prompt_logprobs=True)
        for prompt in prompts
        for slots in SETS
    ]
    with engine(tiny_world.load(*OWNERS, top_k=top_k), places=3, step_tokens=9) as running:
        found = answers(running, jobs)
    for job, (steps, _) in zip(jobs, found, strict=True):
        sequence = [job.prompt[0], *(step.token for step in steps)]
        assert sequence[: len(job.prompt)] == list(job.prompt)
        with oracle.only(*(oracle.names[slot] for slot in job.slots)):
            row = torch.tensor([sequence])
            logprobs = tiny.logits_of(oracle, row)[0].log_softmax(dim=-1)
            weights = oracle.routing.weights_BTE[0]
        for at, step in enumerate(steps):
            assert step.prompt == (at + 1 < len(job.prompt))
            assert step.logprob == pytest.approx(float(logprobs[at, step.token]), abs=1e-4)
            ids, told = zip(*step.top, strict=True)
            assert told == pytest.approx(logprobs[at, list(ids)].tolist(), abs=1e-4)
            assert told == pytest.approx(logprobs[at].topk(3).values.tolist(), abs=1e-4)
            assert step.weights == pytest.approx(weights[at].tolist(), abs=1e-5)


def test_a_removal_under_load_changes_nothing_for_the_others(tiny_world, oracle, top_k):
    jobs, _ = crowd(oracle, seed=3, count=16)
    jobs = [replace(job, max_tokens=24) for job in jobs]
    expected = [greedy_alone(oracle, job) for job in jobs]

    async def story(running):
        streams = [running.submit(job) for job in jobs]
        readers = [asyncio.create_task(read(stream)) for stream in streams]
        await asyncio.sleep(0.05)
        await asyncio.to_thread(running.remove, [2])
        return await asyncio.gather(*readers)

    with engine(tiny_world.load(*OWNERS, top_k=top_k), places=6, step_tokens=16) as running:
        found = asyncio.run(story(running))
    withdrawn = 0
    for job, one, words in zip(jobs, found, expected, strict=True):
        if 2 not in job.slots or one[1].reason != "withdrawn":
            assert text(oracle, one) == words
        else:
            withdrawn += 1
            made = oracle.tokenizer.decode(tokens(one), skip_special_tokens=True)
            assert words.startswith(made.rstrip("\ufffd")), "but for a character cut in two"
    assert withdrawn
