"""What the user names (files, folders, globs, hub ids) to a list of files to read, in order."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moiety.data.documents import Skipped
from moiety.errors import DataError

Kind = Literal["text", "lines", "parquet"]

SUFFIXES = ".txt .md .jsonl .json (each also with .gz or .zst) .parquet"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class HubText:
    """A data set on the Hugging Face hub, and which part of it."""

    name: str
    split: str

    def __str__(self) -> str:
        return f"hf:{self.name}@{self.split}"


def find_sources(sources: Sequence[str | Path], skipped: Skipped) -> list[Path | HubText]:
    """What to read, in the order named; folders and globs sorted; a file reached twice only once.

    Raises:
        DataError: something named does not exist, or holds nothing that can be read.
    """
    if not sources:
        raise DataError("no text was named", remedy=f"name files or folders: {SUFFIXES}")
    found: dict[str, Path | HubText] = {}
    for source in sources:
        items = list(_expand(source, skipped))
        if not items:
            raise DataError(
                "nothing here can be read", where=source, remedy=f"suffixes read: {SUFFIXES}"
            )
        for item in items:
            key = str(item) if isinstance(item, HubText) else os.path.realpath(item)
            found.setdefault(key, item)
    return list(found.values())


def kind_of(path: Path) -> Kind | None:
    """How a file is read, by its suffix; ``None`` for one that is not."""
    name = path.name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    stem = name.removesuffix(".gz").removesuffix(".zst")
    if stem.endswith((".txt", ".md")):
        return "text"
    return "lines" if stem.endswith((".jsonl", ".json")) else None


def _expand(source: str | Path, skipped: Skipped) -> Iterator[Path | HubText]:
    path = Path(source).expanduser()
    mode = _mode(path)
    if mode is not None and stat.S_ISDIR(mode):
        yield from _walk(path, skipped)
    elif mode is not None:
        yield _checked_file(path, mode)
    elif isinstance(source, str) and (hub := _hub_text(source)):
        yield hub
    elif glob.has_magic(str(path)):
        yield from _matches(path, skipped)
    else:
        raise DataError(
            "no such file or folder",
            where=source,
            remedy="check the path; a data set on the hub is written hf:owner/name",
        )


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except PermissionError as error:
        raise DataError(
            "cannot be read: permission denied", where=path, remedy="make it readable"
        ) from error
    except (OSError, ValueError):
        return None


def _checked_file(path: Path, mode: int) -> Path:
    if not stat.S_ISREG(mode):
        raise DataError("not a plain file", where=path, remedy="write the text to a file first")
    if kind_of(path) is None:
        raise DataError(
            "not a kind of file that is read", where=path, remedy=f"suffixes read: {SUFFIXES}"
        )
    return path


def _walk(folder: Path, skipped: Skipped) -> Iterator[Path]:
    """Every readable file below a folder, sorted by path. Hidden names are not looked at."""

    def refuse(error: OSError) -> None:
        raise DataError(
            f"cannot be read: {error.strerror}",
            where=error.filename,
            remedy="make the folder readable, or name the files",
        ) from error

    names: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [Path(parent, name) for name in files if not name.startswith(".")]
    yield from _readable(sorted(names), skipped)


def _matches(pattern: Path, skipped: Skipped) -> Iterator[Path]:
    # Not Path.glob: it refuses absolute patterns.
    paths = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))  # noqa: PTH207
    if not paths:
        raise DataError("no file matches", where=pattern, remedy="check the path and the pattern")
    for path in paths:
        if path.is_dir():
            yield from _walk(path, skipped)
        else:
            yield from _readable([path], skipped)


def _readable(paths: list[Path], skipped: Skipped) -> Iterator[Path]:
    for path in paths:
        if kind_of(path) is None:
            skipped.count("file of a kind that is not read", str(path))
        elif path.exists() and not path.is_file():
            raise DataError("not a plain file", where=path, remedy="remove it: reading it may hang")
        else:
            yield path


def _hub_text(source: str) -> HubText | None:
    name = source.removeprefix("hf:")
    if not _HUB_NAME.fullmatch(name):
        return None
    # A mistyped path must not be sent to the hub: it may say something about the owner's text.
    local = Path(name.split("/")[0]).is_dir() or kind_of(Path(name)) is not None
    if local and not source.startswith("hf:"):
        return None
    name, _, split = name.partition("@")
    return HubText(name, split or "train")
