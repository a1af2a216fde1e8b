"""What Ctrl-C and SIGTERM do while something is under way: who holds a block says it.

Left to itself SIGTERM ends a process where it stands, and nothing that it made is cleared away.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def interruptible() -> Iterator[None]:
    """Until the block ends SIGTERM stops as Ctrl-C does: by a ``KeyboardInterrupt``."""
    # SIGINT too: a job in the background is born deaf to it.
    with handled(signal.default_int_handler, signal.SIGINT, signal.SIGTERM):
        yield


@contextmanager
def handled(handler: Handler, *numbers: signal.Signals) -> Iterator[None]:
    """Until the block ends these signals go to ``handler``, and afterwards where they went."""
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # not in the main thread: the caller stops us in its own way
        before = {}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
