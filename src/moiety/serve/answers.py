"""An answer on its way from the engine's thread to whoever reads it with asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable

from moiety.serve.jobs import Ending, Step


class Answer:
    """The stream of one job: the engine gives from its thread, one reader takes in a loop."""

    def __init__(self, cancel: Callable[[Answer], None]) -> None:
        self._cancel = cancel
        self._lock = threading.Lock()
        self._items: deque[Step | Ending] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._over = False

    def __aiter__(self) -> AsyncIterator[Step | Ending]:
        """Steps as they come, and an ``Ending`` as the last."""
        return self

    async def __anext__(self) -> Step | Ending:
        if self._over:
            raise StopAsyncIteration
        with self._lock:
            reader = None if self._items else asyncio.get_running_loop().create_future()
            self._reader = reader
        if reader is not None:
            await reader
        item = self._items.popleft()
        self._over = isinstance(item, Ending)
        return item

    def cancel(self) -> None:
        """The client has hung up: frees the job's place within one step."""
        self._cancel(self)

    def give(self, items: Iterable[Step | Ending]) -> None:
        """Hands items over and wakes the reader, from any thread."""
        with self._lock:
            self._items.extend(items)
            reader, self._reader = self._reader, None
        if reader is None:
            return
        try:
            reader.get_loop().call_soon_threadsafe(_wake, reader)
        except RuntimeError:
            # The reader's loop is closed: nobody is left to read.
            self.cancel()


def _wake(reader: asyncio.Future[None]) -> None:
    if not reader.done():
        reader.set_result(None)
