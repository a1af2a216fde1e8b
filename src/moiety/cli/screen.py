"""What commands show: sentences and tables for people on stderr or stdout, one JSON line last."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TransferSpeedColumn,
)
from rich.progress import TimeRemainingColumn as TimeLeft


def out() -> Console:
    """The console for results."""
    return Console(highlight=False, soft_wrap=True)


def err() -> Console:
    """The console for everything that is not a result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(*lines: str) -> None:
    """Prints lines of a result. Names in them are other people's: markup is not interpreted."""
    for line in lines:
        out().print(escape(line))


def note(*lines: str) -> None:
    """Prints lines that a script need not read."""
    for line in lines:
        err().print(escape(line))


def print_json(value: Any) -> None:
    """The one JSON line that ``--json`` promises, after everything else on stdout."""
    sys.stdout.write(json.dumps(value, sort_keys=True, default=str) + "\n")
    sys.stdout.flush()


def figures(rows: list[tuple[str, str]]) -> None:
    """Two columns: what, and its value."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"  {name.ljust(width)}  {value}")


@contextmanager
def byte_bar(title: str) -> Iterator[Any]:
    """A progress bar over bytes; yields ``advance(done, total)``."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeLeft(),
    )
    with _passing_bar(*columns) as bar:
        task = bar.add_task(title, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield advance


@contextmanager
def cell_bar(title: str) -> Iterator[Any]:
    """A progress bar over cells of a table; yields ``watch(what, done, total)``."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[what]}"),
        TimeLeft(),
    )
    with _passing_bar(*columns) as bar:
        task = bar.add_task(title, total=None, what="")

        def watch(what: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, what=what)

        yield watch


def _passing_bar(*columns: ProgressColumn) -> Progress:
    """A bar that leaves nothing behind, and in a file or a pipe never was."""
    console = err()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def show_log(name: str) -> None:
    """Shows what ``name`` logs, and what libraries warn of, on stderr, with the time in UTC."""
    handler, form = logging.StreamHandler(), "%(asctime)s %(levelname)s %(message)s"
    lines = logging.Formatter(form, "%Y-%m-%dT%H:%M:%SZ")
    lines.converter = time.gmtime
    handler.setFormatter(lines)
    logging.basicConfig(handlers=[handler])
    logging.getLogger(name).setLevel(logging.INFO)


def quiet_libraries() -> None:
    """Keeps the libraries' own bars and notices off the screen: ours say what matters."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
