"""What Ctrl-C and SIGTERM do to a run: it stops where it can go on, and says how."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ADVICE = "saved; go on with --resume"

_Handler = Callable[[int, FrameType | None], object]


@contextmanager
def resumable() -> Iterator[None]:
    """Until the block ends SIGTERM stops as Ctrl-C does, and either says how to go on."""
    # SIGINT too: a job in the background is born deaf to it.
    with _handled(signal.default_int_handler, signal.SIGINT, signal.SIGTERM):
        try:
            yield
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(str(error) or "go on with --resume") from error


@contextmanager
def stop_request() -> Iterator[list[int]]:
    """A list that gets an element when Ctrl-C or SIGTERM asks to stop; a second time stops hard."""
    asked: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt("stopped at once; the last checkpoint stands")
        asked.append(number)

    with _handled(note, signal.SIGINT, signal.SIGTERM):
        yield asked


@contextmanager
def _handled(handler: _Handler, *numbers: signal.Signals) -> Iterator[None]:
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # not in the main thread: the caller stops us in its own way
        before = {}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
