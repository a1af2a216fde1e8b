"""Engines that tests can read: one computes every step from the beginning, one says as told.

The first is an oracle: no cache, no batch, one job a step in turn. The second breaks on demand.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from tests import tiny

from moiety.errors import ConfigError
from moiety.model import Mixture
from moiety.serve.jobs import Ending, Job, Load, Overloaded, Step


class ThreadedStream:
    """A stream that an engine's thread feeds."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Step | Ending] = asyncio.Queue()

    def put(self, item: Step | Ending) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    def cancel(self) -> None:
        self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[Step | Ending]:
        while True:
            item = await self._queue.get()
            yield item
            if isinstance(item, Ending):
                return


@dataclass
class _Task:
    stream: ThreadedStream
    steps: Iterator[Step | Ending]


@dataclass
class _TurnsEngine:
    """Runs jobs in turn, a step each, in a thread of its own."""

    names: tuple[str, ...]
    max_context: int = 128
    capacity: int = 1000
    tasks: list[_Task] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    generated: int = 0

    def __post_init__(self) -> None:
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def steps(self, job: Job) -> Iterator[Step | Ending]:
        raise NotImplementedError

    def submit(self, job: Job) -> ThreadedStream:
        if self.gone & set(job.slots):
            raise ConfigError("a removed slot")
        if len(job.prompt) + job.max_tokens > self.max_context:
            raise ConfigError("too long")
        with self._wake:
            if len(self.tasks) >= self.capacity:
                raise Overloaded(7)
            stream = ThreadedStream(job)
            self.tasks.append(_Task(stream, self.steps(job)))
            self._wake.notify()
        return stream

    def remove(self, slots: Iterable[int]) -> None:
        with self._wake:
            self.gone |= set(slots)

    def load(self) -> Load:
        return Load(len(self.tasks), 0, self.capacity, 0, self.generated)

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self.tasks and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                tasks = list(self.tasks)
            for task in tasks:
                item = self._next(task)
                task.stream.put(item)
                if isinstance(item, Ending):
                    with self._wake:
                        self.tasks.remove(task)
                else:
                    self.generated += not item.prompt

    def _next(self, task: _Task) -> Step | Ending:
        if task.stream.cancelled:
            return Ending("cancelled")
        if self.gone & set(task.stream.job.slots):
            return Ending("withdrawn", "an expert has been withdrawn")
        return next(task.steps)


class SlowestEngine(_TurnsEngine):
    """The mixture itself, every step computed from the first token on."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        super().__init__(tuple(mixture.names))

    def steps(self, job: Job) -> Iterator[Step | Ending]:
        ids, seed = list(job.prompt), 0 if job.seed is None else job.seed
        dice = torch.Generator().manual_seed(seed)
        logprobs, weights = self._pass(ids, job)
        if job.prompt_logprobs:
            for place, token in enumerate(ids[1:]):
                yield _step(token, logprobs[place], weights[place], job, prompt=True)
        for _ in range(job.max_tokens):
            logprobs, weights = self._pass(ids, job)
            token = _draw(logprobs[-1], job, dice)
            if token in job.stop_tokens:
                yield Ending("stop")
                return
            ids.append(token)
            yield _step(token, logprobs[-1], weights[-1], job)
        yield Ending("length")

    def _pass(self, ids: list[int], job: Job) -> tuple[torch.Tensor, torch.Tensor]:
        seen = []
        names = [self.names[slot] for slot in job.slots]
        with self.mixture.only(*names), self.mixture.watching(seen.append):
            logits = tiny.logits_of(self.mixture, torch.tensor([ids]))
        return logits[0].float().log_softmax(-1), seen[0][0]


def _draw(logprobs: torch.Tensor, job: Job, dice: torch.Generator) -> int:
    if job.temperature == 0:
        return int(logprobs.argmax())
    chances = (logprobs / job.temperature).softmax(-1)
    ordered, tokens = chances.sort(descending=True)
    ordered[ordered.cumsum(-1) - ordered >= job.top_p] = 0
    return int(tokens[torch.multinomial(ordered, 1, generator=dice)])


def _step(
    token: int, logprobs: torch.Tensor, weights: torch.Tensor, job: Job, *, prompt: bool = False
) -> Step:
    top = logprobs.topk(job.top_logprobs)
    pairs = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Step(token, float(logprobs[token]), pairs, tuple(weights.tolist()), prompt)


class ToldEngine(_TurnsEngine):
    """Says what a test tells it to: for what a working engine never does."""

    def __init__(
        self, names: tuple[str, ...], script: Callable[[Job], Iterator[Step | Ending]]
    ) -> None:
        self.script = script
        super().__init__(names)

    def steps(self, job: Job) -> Iterator[Step | Ending]:
        return self.script(job)
