"""What must be computed on the way into a release: low-rank experts made whole, dtypes changed.

W = W_anchor + out @ in, in float32: the products are added rank by rank, in order, to zero, and
the sum to the anchor. Only elementwise operations are used, each rounded once as IEEE 754 says, so
every machine gets the same bytes; a matrix multiplication of a BLAS would not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from moiety.errors import IntegrityError, PolicyError
from moiety.merge.streaming import BLOCK_BYTES, Piece
from moiety.tensors import ITEM_BYTES, TensorFile, decode, encode

ROW_BLOCK_BYTES = 2**19
"""Two float32 work arrays of this size fit the second-level cache of a core."""

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Source:
    """A tensor in an open file, with the digest it must have."""

    file: TensorFile
    name: str
    digest: str

    @property
    def dtype(self) -> str:
        """As in the file."""
        return self.file.spans[self.name].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """As in the file."""
        return self.file.spans[self.name].shape


def converted(source: Source, name: str, dtype: str) -> Piece:
    """A tensor rounded to another floating dtype."""

    def blocks() -> Iterator[bytes]:
        reader = _Reader(source)
        while reader.left_bytes:
            block = reader.take(min(BLOCK_BYTES, reader.left_bytes))
            yield rounded(decode(block, source.dtype), dtype, name)
        reader.check()

    return Piece(name, dtype, source.shape, blocks)


def materialised(
    anchor: Source,
    inner: Source,
    outer: Source,
    name: str,
    *,
    row_block_bytes: int = ROW_BLOCK_BYTES,
) -> Piece:
    """A low-rank expert's matrix as a whole one, in the anchor's dtype.

    Shapes: anchor [out, in], inner [rank, in], outer [out, rank].
    """
    num_rows, num_columns = anchor.shape
    rows_at_once = max(1, row_block_bytes // (4 * num_columns))

    def blocks() -> Iterator[bytes]:
        inner_RI = read_all(inner)
        anchor_reader, outer_reader = _Reader(anchor), _Reader(outer)
        for row in range(0, num_rows, rows_at_once):
            rows = min(rows_at_once, num_rows - row)
            anchor_BI = anchor_reader.take_rows(rows)
            whole_BI = _sum(anchor_BI, outer_reader.take_rows(rows), inner_RI)
            yield rounded(whole_BI, anchor.dtype, name)
        anchor_reader.check()
        outer_reader.check()

    return Piece(name, anchor.dtype, anchor.shape, blocks)


def _sum(anchor_BI: Floats, outer_BR: Floats, inner_RI: Floats) -> Floats:
    total_BI = np.zeros_like(anchor_BI)
    term_BI = np.empty_like(anchor_BI)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for rank in range(inner_RI.shape[0]):
            np.multiply(outer_BR[:, rank, None], inner_RI[rank], out=term_BI)
            np.add(total_BI, term_BI, out=total_BI)
        return np.add(anchor_BI, total_BI, out=total_BI)


def rounded(values: np.ndarray[Any, Any], dtype: str, name: str) -> bytes:
    """Float32 values as bytes of ``dtype``. Raises ``PolicyError`` when one is not finite then."""
    with np.errstate(over="ignore", invalid="ignore"):
        data = encode(values, dtype)
    # Adding, or a dtype of smaller range, may overflow; what is not a number poisons every answer.
    if not np.isfinite(decode(data, dtype)).all():
        raise PolicyError(f"does not fit the anchor's {dtype}: a value is not finite", where=name)
    return data


def read_all(source: Source) -> Floats:
    """A small tensor as float32. Raises ``IntegrityError`` when it is not the one verified."""
    reader = _Reader(source)
    data = reader.take(reader.left_bytes)
    reader.check()
    return np.asarray(decode(data, source.dtype), np.float32).reshape(source.shape)


class _Reader:
    """A tensor from its first byte to its last, in pieces of any size, its digest kept."""

    def __init__(self, source: Source) -> None:
        self._source, self._state, self._at = source, hashlib.sha256(), 0
        self.left_bytes = source.file.spans[source.name].num_bytes

    def take(self, num_bytes: int) -> bytearray:
        data = self._source.file.read_range(self._source.name, self._at, num_bytes)
        self._state.update(data)
        self._at += num_bytes
        self.left_bytes -= num_bytes
        return data

    def take_rows(self, rows: int) -> Floats:
        columns = self._source.shape[1]
        data = self.take(rows * columns * ITEM_BYTES[self._source.dtype])
        return np.asarray(decode(data, self._source.dtype), np.float32).reshape(rows, columns)

    def check(self) -> None:
        if self.left_bytes or self._state.hexdigest() != self._source.digest:
            raise IntegrityError("changed since it was verified", where=self._source.name)
