"""Asks an engine, and gathers what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

from tests import tiny

from moiety.serve.engine import Limits, LocalEngine
from moiety.serve.jobs import Ending, Job, Step

OWNERS = tuple(tiny.RANKS)
EVERYONE = (0, 1, 2, 3)
SECONDS = 120
USUAL = Job(
    prompt=(0,),
    slots=EVERYONE,
    tenant="one",
    max_tokens=16,
    temperature=0.0,
    top_p=1.0,
    seed=None,
    stop_tokens=frozenset({0}),
    top_logprobs=0,
)


def ask(prompt: Sequence[int], **changes) -> Job:
    """A job like the usual one, but for what is said."""
    return replace(USUAL, prompt=tuple(prompt), **changes)


def engine(mixture, **limits) -> closing[LocalEngine]:
    """An engine that takes a mixture over, closed at the end of its block."""
    return closing(LocalEngine(mixture, Limits(**limits)))


async def read(stream) -> tuple[list[Step], Ending]:
    """A whole answer."""
    async with asyncio.timeout(SECONDS):
        *steps, ending = [item async for item in stream]
    return steps, ending


def answers(running, jobs: Sequence[Job], pauses: Sequence[float] | None = None):
    """Steps and ending of every job, submitted side by side, each after its pause."""

    async def one(job: Job, pause: float):
        await asyncio.sleep(pause)
        return await read(running.submit(job))

    async def everybody():
        waits = pauses or [0.0] * len(jobs)
        return await asyncio.gather(*(one(*pair) for pair in zip(jobs, waits, strict=True)))

    return asyncio.run(everybody())


def tokens(answer) -> list[int]:
    """The tokens of an answer, without the prompt's."""
    return [step.token for step in answer[0] if not step.prompt]


def greedy_alone(mixture, job: Job) -> str:
    """What ``Mixture.generate`` says to a job's prompt with the job's experts."""
    prompt = mixture.tokenizer.decode(job.prompt, skip_special_tokens=True)
    assert tuple(mixture.tokenizer(prompt)["input_ids"]) == job.prompt
    with mixture.only(*(mixture.names[slot] for slot in job.slots)):
        return mixture.generate(prompt, temperature=0, max_new_tokens=job.max_tokens)


def text(mixture, answer) -> str:
    """An answer as text."""
    return mixture.tokenizer.decode(tokens(answer), skip_special_tokens=True)
