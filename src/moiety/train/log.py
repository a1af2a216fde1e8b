"""What a run says while it works: a bar for people, JSONL and TensorBoard files for later.

All of it stays in the run's folder. Nothing is sent anywhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Progress bar, ``train.jsonl`` and TensorBoard, as one context."""

    def __init__(
        self, folder: Path, title: str, num_steps: int, first_step: int, *, quiet: bool
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "train.jsonl"
        _forget_after(self._path, first_step)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=quiet,
        )
        self._task = self._bar.add_task(title, total=num_steps, completed=first_step, figures="")
        self._clock = time.monotonic()

    def __enter__(self) -> RunLog:
        self._file = self._path.open("a", encoding="utf-8")
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        self._board.close()
        self._file.close()

    def step(self, step: int, figures: dict[str, float], tokens: int) -> None:
        """Records one step; ``tokens`` is what it worked through."""
        now = time.monotonic()
        rate = tokens / max(now - self._clock, 1e-9)
        self._clock = now
        self._write(step, figures | {"tokens_per_second": round(rate, 1)})
        shown = f"loss {figures['loss']:.3f} · {rate:,.0f} tokens/s"
        self._bar.update(self._task, completed=step, figures=shown)

    def look(self, step: int, name: str, value: float) -> None:
        """Records one look at the held-out text."""
        self._write(step, {name: value})
        self._clock = time.monotonic()

    def _write(self, step: int, figures: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)


@contextmanager
def counting(title: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar for work that is not a run's steps; what it yields moves it on."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task(title, total=total)
        yield lambda more: bar.advance(task, more)


def _forget_after(path: Path, step: int) -> None:
    # A resumed run repeats the steps since its checkpoint: their first record is dropped.
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a killed run may be cut
    path.write_text("".join(line + "\n" for line in kept), "utf-8")
