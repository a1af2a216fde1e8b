"""What benchmarks that compare have in common: contestants take turns, and ratios count.

So a noisy machine is noisy for all of them.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from moiety.serve.jobs import Job

Contestant = Callable[[Any], float]
"""Answers prompts; new tokens a second."""

Speeds = dict[str, list[float]]


class Engine(Protocol):
    """The local engine, or vLLM behind its lines."""

    def submit(self, job: Job) -> Any: ...


def race(contestants: dict[str, Contestant], rounds: int, prompts: Callable[[int], Any]) -> Speeds:
    """New tokens a second of each contestant, round by round.

    ``prompts`` is asked by each contestant in each round, which it is told; the first, round 0,
    warms up and does not count.
    """
    speeds: Speeds = {who: [] for who in contestants}
    for turn in range(rounds + 1):
        for who, run in contestants.items():
            speed = run(prompts(turn))
            if turn:
                speeds[who].append(speed)
    return speeds


def quotient(ours: list[float], other: list[float]) -> float:
    """How many times as fast: the median over the rounds of each round's ratio."""
    return statistics.median(a / b for a, b in zip(ours, other, strict=True))


def medians(speeds: Speeds) -> dict[str, float]:
    """Of each contestant, in the middle of its rounds."""
    return {who: statistics.median(values) for who, values in speeds.items()}


def asking(
    engine: Engine,
    sets: Sequence[tuple[int, ...]],
    tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Contestant:
    """All prompts at once to an engine, greedy; the masks of ``sets`` in turn."""

    async def read(job: Job) -> None:
        steps = [item async for item in engine.submit(job)]
        assert len(steps) == tokens + 1, steps[-1]

    async def everybody(jobs: list[Job]) -> float:
        begun = clock()
        await asyncio.gather(*(read(job) for job in jobs))
        return len(jobs) * tokens / (clock() - begun)

    def run(prompts: list[list[int]]) -> float:
        jobs = [
            Job(tuple(prompt), sets[n % len(sets)], "", tokens, 0.0, 1.0, 0, frozenset(), 0)
            for n, prompt in enumerate(prompts)
        ]
        return asyncio.run(everybody(jobs))

    return run
