"""What a killed process left behind is removed by the next one that writes to the same place."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moiety.files import new_folder


@contextmanager
def clean_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """``files.new_folder``, after removing unfinished folders that no living process holds.

    A folder is held by a lock on it, which the kernel drops when its process dies.
    """
    path = Path(path).absolute()
    _sweep(path)
    with new_folder(path, replace=replace) as folder:
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
        finally:
            os.close(handle)


def _sweep(path: Path) -> None:
    kinds = [f".{path.name}.new-"]
    # What was swapped out is the only whole copy left when nothing stands in its place.
    kinds += [f".{path.name}.old-"] if path.exists() else []
    if not path.parent.is_dir():
        return
    for stale in sorted(path.parent.iterdir()):
        if stale.name.startswith(tuple(kinds)) and stale.is_dir() and not stale.is_symlink():
            _remove_unheld(stale)


def _remove_unheld(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)
