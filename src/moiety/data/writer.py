"""Writes one packed text, document by document, and seals it: the only maker of such folders.

Everything is written as it comes; what grows with the corpus in memory is about fifty bytes a
document, at the end, when the records are numbered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from moiety.data.packed import PackedPaper
from moiety.errors import ConfigError, DataError
from moiety.files import canonical_json, write_atomic

_BUFFER_BYTES = 2**20
_DIGEST_BYTES = 16
_FILES = ("tokens", "starts", "ends", "bytes", "digests")


@dataclass(frozen=True)
class Layout:
    """How a stream is laid out: see ``packed.py``."""

    window_tokens: int
    separator: int
    align: bool
    dtype: np.dtype[Any]
    by_record: bool = False

    def __post_init__(self) -> None:
        if self.window_tokens < 1:
            raise ConfigError(
                f"windows of {self.window_tokens} tokens",
                where="window_tokens",
                remedy="choose 1 or more",
            )


@dataclass(frozen=True)
class EncodedText:
    """A document as it is stored: its tokens, its size, whose it is, and where it was read."""

    ids: npt.NDArray[Any]
    text_bytes: int
    digest: bytes
    where: str


def record_digest(record: str) -> bytes:
    """The hash that stands for a record: what is counted as one, and which side it falls on."""
    return hashlib.sha256(record.encode("utf-8")).digest()[:_DIGEST_BYTES]


class PackedWriter:
    """Fills ``folder`` with one packed text; it counts only once ``finish`` has returned."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.layout = layout
        self.num_documents = 0
        self.where = ""
        self._num_tokens = 0
        self._num_bytes = 0
        self._stream_tokens = 0
        self._last_digest = b""
        self._files = {name: (folder / f"{name}.bin").open("wb", _BUFFER_BYTES) for name in _FILES}

    def __enter__(self) -> PackedWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; what was added can be read back with ``read_added``."""
        for file in self._files.values():
            file.close()

    def add(self, text: EncodedText) -> None:
        """Appends one document: separator, tokens and, where aligned, padding."""
        if self.layout.by_record and text.digest != self._last_digest:
            self._write_separators(-self._stream_tokens % self.layout.window_tokens)
        self._last_digest = text.digest
        start = self._stream_tokens
        end = start + 1 + len(text.ids)
        padding = -end % self.layout.window_tokens if self.layout.align else 0
        self._write_separators(1)
        self._write_tokens(text.ids)
        self._write_separators(padding)
        for name, number in (("starts", start), ("ends", end), ("bytes", text.text_bytes)):
            self._files[name].write(number.to_bytes(8, "little"))
        self._files["digests"].write(text.digest)
        self.where = self.where or text.where
        self.num_documents += 1
        self._num_tokens += len(text.ids)
        self._num_bytes += text.text_bytes

    def finish(self) -> None:
        """Writes what is known only at the end, ``packed.json`` last.

        Raises:
            DataError: no document, or too little text to fill a window.
        """
        if self.num_documents == 0:
            raise DataError("no document", remedy="name files that hold text")
        if self.layout.by_record:
            self._write_separators(-self._stream_tokens % self.layout.window_tokens)
        elif not self.layout.align:
            self._write_separators(1)
            self._check_one_window()
        self.close()
        paper = PackedPaper(
            format="moiety.packed/1",
            window_tokens=self.layout.window_tokens,
            dtype="uint16" if self.layout.dtype.itemsize == 2 else "uint32",
            align=self.layout.align,
            by_record=self.layout.by_record,
            separator=self.layout.separator,
            stream_tokens=self._stream_tokens,
            documents=self.num_documents,
            records=_number_records(self.folder),
            tokens=self._num_tokens,
            bytes=self._num_bytes,
        )
        write_atomic(self.folder / "packed.json", canonical_json(paper.model_dump()))

    def _check_one_window(self) -> None:
        needed = self.layout.window_tokens + 1
        if self._stream_tokens < needed:
            raise DataError(
                f"{self._stream_tokens:,} tokens of text; one window and its last target "
                f"need {needed:,}",
                where=self.where,
                remedy="give more text, or choose shorter windows",
            )

    def _write_separators(self, count: int) -> None:
        self._write_tokens(np.full(count, self.layout.separator, dtype=self.layout.dtype))

    def _write_tokens(self, ids: npt.NDArray[Any]) -> None:
        self._files["tokens"].write(ids.tobytes())
        self._stream_tokens += len(ids)


def read_digests(folder: Path) -> npt.NDArray[Any]:
    """The record digest of each document of an unfinished, closed text, as two halves [D, 2]."""
    return np.fromfile(folder / "digests.bin", dtype=">u8").reshape(-1, 2)


def read_added(
    folder: Path, layout: Layout, where: str, order: npt.NDArray[Any] | None = None
) -> Iterator[EncodedText]:
    """Every document of an unfinished, closed text, in the order it was added, or another."""
    stream = np.memmap(folder / "tokens.bin", dtype=layout.dtype, mode="r")
    starts, ends, sizes = (
        np.fromfile(folder / f"{name}.bin", dtype="<i8") for name in ("starts", "ends", "bytes")
    )
    digests = read_digests(folder)
    for at in range(len(digests)) if order is None else order:
        ids = stream[starts[at] + 1 : ends[at]]
        yield EncodedText(ids, int(sizes[at]), digests[at].tobytes(), where)


def _number_records(folder: Path) -> int:
    """Numbers the records by the order of their digests, and removes the digests.

    They would let anyone who holds the folder test whether a record of a known name is in it.
    """
    digests = read_digests(folder)
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    ranked = digests[order]
    changes = np.any(ranked[1:] != ranked[:-1], axis=1)
    numbers = np.zeros(len(digests), dtype="<i8")
    numbers[order[1:]] = np.cumsum(changes)
    numbers.tofile(folder / "records.bin")
    (folder / "digests.bin").unlink()
    return int(changes.sum()) + 1
