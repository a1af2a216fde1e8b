"""What Ctrl-C and SIGTERM do to a run: it stops where it can go on, and says how."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from moiety.stopping import handled, interruptible

ADVICE = "saved; go on with --resume"


@contextmanager
def resumable() -> Iterator[None]:
    """Until the block ends SIGTERM stops as Ctrl-C does, and either says how to go on."""
    with interruptible():
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

    with handled(note, signal.SIGINT, signal.SIGTERM):
        yield asked
