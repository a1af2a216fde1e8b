"""Tensors set into larger ones: what is taken over keeps every bit, all around it is zero.

Legend: R rows in this block, E extra column, N owner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from moiety.errors import IntegrityError
from moiety.merge.lowrank import Floats, Source, read_all, rounded
from moiety.merge.streaming import BLOCK_BYTES, Block, Piece
from moiety.tensors import ITEM_BYTES, TensorFile, decode, encode

Beside = Callable[[int, int], Floats]
"""Asked for (first row, number of rows), gives the columns beside them ``[R, E]``."""


def widened(
    piece: Piece,
    shape: tuple[int, int],
    beside: Beside | None = None,
    finish: Callable[[], None] | None = None,
) -> Piece:
    """A matrix in the upper left corner of a larger one.

    ``beside`` fills the new columns, which are zero otherwise; ``finish`` is called after the last
    row, and may raise.

    Raises:
        IntegrityError: while it is written, when the matrix is not the one that was verified.
    """
    rows, columns = piece.shape
    row_bytes, wide_bytes = (width * ITEM_BYTES[piece.dtype] for width in (columns, shape[1]))

    def blocks() -> Iterator[Block]:
        state, row = hashlib.sha256(), 0
        for data in _whole_rows(piece.blocks(), row_bytes):
            state.update(data)
            count = len(data) // row_bytes
            wide = np.zeros((count, wide_bytes), np.uint8)
            wide[:, :row_bytes] = np.frombuffer(data, np.uint8).reshape(count, row_bytes)
            if beside is not None:
                extra = rounded(beside(row, count), piece.dtype, piece.name)
                wide[:, row_bytes:] = np.frombuffer(extra, np.uint8).reshape(count, -1)
            yield wide.reshape(-1).data
            row += count
        if piece.expected not in (None, state.hexdigest()):
            raise IntegrityError("changed since it was verified", where=piece.name)
        if finish is not None:
            finish()
        yield from _zeros((shape[0] - rows) * wide_bytes)

    return replace(piece, shape=shape, blocks=blocks, expected=None, origin=None)


def scaled(source: Source, name: str, size: int, factor: float) -> Piece:
    """A vector times ``factor``, computed in float32, with zeros behind it."""

    def blocks() -> Iterator[bytes]:
        values = np.zeros(size, np.float32)
        values[: source.shape[0]] = read_all(source) * np.float32(factor)
        yield rounded(values, source.dtype, name)

    return Piece(name, source.dtype, (size,), blocks)


def sparse(
    name: str, dtype: str, shape: tuple[int, ...], entries: Mapping[tuple[int, int], float]
) -> Piece:
    """A tensor of zeros but for ``entries``, by row and column; a vector is a single row."""
    rows, columns = shape if len(shape) == 2 else (1, shape[0])
    rows_at_once = max(1, BLOCK_BYTES // (4 * columns))

    def blocks() -> Iterator[Block]:
        if not entries:
            yield from _zeros(rows * columns * ITEM_BYTES[dtype])
            return
        for first in range(0, rows, rows_at_once):
            values = np.zeros((min(rows_at_once, rows - first), columns), np.float32)
            for (row, column), value in entries.items():
                if first <= row < first + len(values):
                    values[row - first, column] = value
            yield encode(values, dtype)

    return Piece(name, dtype, shape, blocks)


class Tables:
    """Owners' tables of evidence, read side by side from the first token to the last.

    ``digests`` are of the tables in ``slots``; what lies in other slots is never read.
    """

    def __init__(
        self, file: TensorFile, name: str, slots: Sequence[int], digests: Sequence[str]
    ) -> None:
        self._file, self._name, self._slots, self._digests = file, name, slots, digests
        self._states = [hashlib.sha256() for _ in slots]
        self._row_bytes = 4 * file.spans[name].shape[1]

    def take(self, first: int, count: int) -> Floats:
        """The entries of ``count`` tokens, ``[R, N]``; to be asked for in order."""
        entries_RN: Floats = np.empty((count, len(self._slots)), np.float32)
        for column, (slot, state) in enumerate(zip(self._slots, self._states, strict=True)):
            begin = slot * self._row_bytes + 4 * first
            data = self._file.read_range(self._name, begin, 4 * count)
            state.update(data)
            entries_RN[:, column] = decode(data, "F32")
        return entries_RN

    def check(self) -> None:
        """Raises ``IntegrityError`` unless all that was read are the tables in the roster."""
        if [state.hexdigest() for state in self._states] != list(self._digests):
            where = f"{self._file.path}: {self._name}"
            raise IntegrityError("changed since it was verified", where=where)


def _whole_rows(blocks: Iterable[Block], row_bytes: int) -> Iterator[bytes]:
    rest = bytearray()
    for block in blocks:
        rest += block
        whole = len(rest) - len(rest) % row_bytes
        if whole:
            yield bytes(rest[:whole])
            del rest[:whole]


def _zeros(num_bytes: int) -> Iterator[memoryview]:
    block: Any = memoryview(bytes(min(BLOCK_BYTES, num_bytes)))
    for at in range(0, num_bytes, BLOCK_BYTES):
        yield block[: num_bytes - at]
