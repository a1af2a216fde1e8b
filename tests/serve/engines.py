"""An engine that does as a test tells it: for what a working engine never does."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

from moiety.serve.jobs import Ending, Job, Load, Step

Script = Callable[[Job], Iterator[Step | Ending]]


class ToldStream:
    """Plays one job's script in a thread of its own."""

    def __init__(self, items: Iterator[Step | Ending], wait: float) -> None:
        self.cancelled = threading.Event()
        self._items, self._wait = items, wait
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Step | Ending] = asyncio.Queue()
        threading.Thread(target=self._play, daemon=True).start()

    def cancel(self) -> None:
        self.cancelled.set()

    async def __aiter__(self) -> AsyncIterator[Step | Ending]:
        item: Step | Ending | None = None
        while not isinstance(item, Ending):
            item = await self._queue.get()
            yield item

    def _play(self) -> None:
        for item in self._items:
            time.sleep(self._wait)
            told = Ending("cancelled") if self.cancelled.is_set() else item
            try:
                self._loop.call_soon_threadsafe(self._queue.put_nowait, told)
            except RuntimeError:  # the server has ended meanwhile
                return
            if isinstance(told, Ending):
                return


class ToldEngine:
    """Every job goes as ``script`` says, with a pause before each step."""

    max_context = 128
    most_jobs = 128
    problem: str | None = None

    def __init__(self, names: tuple[str, ...], script: Script, wait: float = 0.0) -> None:
        self.names = names
        self.jobs: list[Job] = []
        self.streams: list[ToldStream] = []
        self.removed: set[int] = set()
        self._script, self._wait = script, wait

    def submit(self, job: Job) -> ToldStream:
        self.jobs.append(job)
        self.streams.append(ToldStream(self._script(job), self._wait))
        return self.streams[-1]

    def remove(self, slots: Iterable[int]) -> None:
        self.removed |= set(slots)

    def load(self) -> Load:
        return Load(0, 0, 1, 0, 0)

    def close(self) -> None:
        return


def steps(job: Job, tokens: Iterable[int]) -> Iterator[Step]:
    """Tokens, each routed evenly."""
    share = 1 / len(job.slots)
    for token in tokens:
        yield Step(token, -0.5, (), (share,) * len(job.slots))


def short(job: Job) -> Iterator[Step | Ending]:
    """At most three tokens."""
    yield from steps(job, [5, 6, 7][: job.max_tokens])
    yield Ending("length")
