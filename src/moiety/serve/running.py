"""Requests under way: their choices' streams merged, ended early where that is due, and billed.

A request is billed before its end is told: what a client was told to the end is in the books, also
when this process is killed a moment later. What runs is billed every now and then as well, so that
of a stream which was cut no more than a moment is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from moiety.serve.choices import Choice, Piece
from moiety.serve.jobs import Ending, Step, Stream
from moiety.serve.policy import Rights
from moiety.serve.refusals import RefusalError
from moiety.serve.served import Chosen
from moiety.serve.usage import Bill, Books, BooksError

QUEUE_STEPS = 64
"""Steps of one request that wait for a slow reader here; the rest waits in the engine's streams,
which end by themselves."""


@dataclass(eq=False)
class Run:
    """One request that was let in: who asks, with which experts, and its streams by choice.

    ``release`` gives its place back; it is told how many tokens were used.
    """

    rights: Rights
    chosen: Chosen
    prompt_tokens: int
    choices: Sequence[Choice]
    streams: Sequence[Stream]
    release: Callable[[int], None]
    ended: RefusalError | None = None
    settled: bool = False
    billed: Bill | None = None

    def end(self, why: RefusalError) -> None:
        """Ends it before its time; it answers with ``why``."""
        self.ended = self.ended or why
        for stream in self.streams:
            stream.cancel()

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far, of all choices."""
        return sum(choice.num_tokens for choice in self.choices)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens, as every answer tells them."""
        made = self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.prompt_tokens + made,
        }

    @property
    def weights(self) -> dict[str, float]:
        """Routing weight of each expert, added up over all tokens generated."""
        columns = zip(*(choice.weights for choice in self.choices), strict=True)
        return dict(zip(self.chosen.names, map(sum, columns), strict=True))

    def next_bill(self) -> Bill:
        """What was used since this was last asked; the first counts the request and its prompts."""
        used = Bill(self.rights.id, self.prompt_tokens, self.completion_tokens, self.weights)
        before, self.billed = self.billed, used
        return used if before is None else used.since(before)

    def extension(self) -> dict[str, Any]:
        """What an answer tells under ``moiety``; shares are null where there is no token."""
        made = self.completion_tokens
        shares = {name: weight / made for name, weight in self.weights.items()} if made else None
        told = {"experts": list(self.chosen.names), "roster": self.chosen.digest}
        return {**told, "shares": shares}


class Runs:
    """Every request under way."""

    def __init__(self, books: Books, told: Callable[[Bill], None]) -> None:
        self.now: set[Run] = set()
        self._books = books
        self._told = told
        self._settling: set[asyncio.Task[None]] = set()

    def add(self, run: Run) -> None:
        """A request has begun. Whoever adds it calls ``finish``, whatever happens."""
        self.now.add(run)

    async def pieces(self, run: Run) -> AsyncGenerator[Piece]:
        """The pieces of all choices as they come. The last one comes when the bill is written.

        Raises:
            RefusalError: it ended before its time: withdrawn, failed, no longer allowed.
        """
        async with aclosing(_merged(run)) as merged:
            async for piece in merged:
                if all(choice.finished for choice in run.choices):
                    await self.finish(run)
                yield piece

    async def finish(self, run: Run) -> None:
        """Stops what still runs and writes the bill, once; also when we are being cancelled.

        Raises:
            RefusalError: the bill cannot be written.
        """
        if run.settled:
            return
        run.settled = True
        for stream in run.streams:
            stream.cancel()
        self.now.discard(run)
        run.release(run.prompt_tokens + run.completion_tokens)
        await asyncio.shield(self._begin_bill(run))

    def bill_running(self) -> None:
        """Bills what running requests have generated since they were last billed."""
        for run in self.now:
            if run.completion_tokens > (run.billed.completion_tokens if run.billed else 0):
                self._begin_bill(run)

    def _begin_bill(self, run: Run) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._bill(run.next_bill()))
        self._settling.add(task)
        task.add_done_callback(self._settled)
        return task

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        if not task.cancelled():
            task.exception()  # heard, also when the client that waited for it has gone

    async def _bill(self, bill: Bill) -> None:
        self._told(bill)
        try:
            await self._books.write(bill)
        except BooksError as error:
            raise RefusalError(503, str(error), code="usage_not_written") from error

    async def drain(self) -> None:
        """Waits until every bill is written."""
        if self._settling:
            await asyncio.wait(self._settling)


async def _merged(run: Run) -> AsyncGenerator[Piece]:
    queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue(QUEUE_STEPS)

    async def read(number: int) -> None:
        try:
            async for item in run.streams[number]:
                await queue.put((number, item))
        except Exception as error:  # told by whoever reads the queue
            await queue.put((number, error))

    readers = [asyncio.ensure_future(read(number)) for number in range(len(run.streams))]
    try:
        while not all(choice.finished for choice in run.choices):
            number, item = await queue.get()
            choice = run.choices[number]
            if choice.finished:
                continue
            yield _piece(run, choice, item)
            if run.choices[number].finished:
                run.streams[number].cancel()
                readers[number].cancel()
    finally:
        for stream, reader in zip(run.streams, readers, strict=True):
            stream.cancel()
            reader.cancel()


def _piece(run: Run, choice: Choice, item: Any) -> Piece:
    if isinstance(item, Exception):
        raise item
    if run.ended is not None:
        raise run.ended
    if isinstance(item, Step):
        return choice.push(item)
    return choice.end(_reason(item))


def _reason(ending: Ending) -> str:
    if ending.reason in ("stop", "length"):
        return ending.reason
    if ending.reason == "withdrawn":
        words = ending.words or "an expert that this request uses has been withdrawn"
        raise RefusalError(403, words, code="expert_withdrawn")
    if ending.reason == "failed":
        raise RefusalError(500, ending.words or "the engine failed", code="engine_failed")
    raise RefusalError(503, "the server is stopping", code="stopping")
