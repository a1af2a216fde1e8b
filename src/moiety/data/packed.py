"""A packed text on disk, read through memory maps, and the windows that are drawn from it.

The folder holds one flat stream of tokens and four columns about its documents::

    tokens.bin    uint16 or uint32 [S]   every document as [separator, t1 .. tn], little endian
    starts.bin    int64 [D]              where each document begins in the stream (its separator)
    ends.bin      int64 [D]              one past its last token
    bytes.bin     int64 [D]              its text's length in UTF-8
    records.bin   int64 [D]              the number of its record
    packed.json   written last           format, window_tokens, dtype, align, separator, totals

Window ``w`` is ``stream[w*T : w*T + T + 1]``: T inputs and T targets, so windows overlap by one.
Dimensions: B windows asked for, T tokens a window, D documents, S tokens in the stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moiety.data.judging import DocumentNats, Score, judge_documents
from moiety.data.sampler import WindowSampler
from moiety.errors import FormatError
from moiety.files import parse_json, read_limited

COLUMNS = ("starts", "ends", "bytes", "records")

Longs = npt.NDArray[np.int64]

_COUNTED_WINDOWS = 512


class PackedPaper(BaseModel):
    """``packed.json``: how the stream is laid out, and how much of everything there is."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal["moiety.packed/1"]
    window_tokens: int = Field(gt=0)
    dtype: Literal["uint16", "uint32"]
    align: bool
    by_record: bool = False
    separator: int = Field(ge=0)
    stream_tokens: int = Field(gt=0)
    documents: int = Field(gt=0)
    records: int = Field(gt=0)
    tokens: int = Field(ge=0)
    bytes: int = Field(gt=0)


@dataclass(frozen=True)
class Windows:
    """Windows ready for a model.

    Shapes: ``tokens`` and ``documents`` int64 [B, T+1]; ``documents`` holds the index of the
    document each token belongs to, -1 for padding and for the stream's last separator.
    Trap: the last token of an aligned window may be the *next* document's separator, with that
    document's index: count a target only where its document equals its input's.
    """

    tokens: Longs
    documents: Longs

    def counted_in(self, records: Longs) -> npt.NDArray[np.bool_]:
        """Which targets continue their input's record, ``[B, T]``; ``records`` [D] is whose each
        document is."""
        real = (self.documents[:, 1:] >= 0) & (self.documents[:, :-1] >= 0)
        whose = records[np.maximum(self.documents, 0)]
        own: npt.NDArray[np.bool_] = real & (whose[:, 1:] == whose[:, :-1])
        return own

    @property
    def counted(self) -> npt.NDArray[np.bool_]:
        """Which targets continue their input's document, ``[B, T]``."""
        targets = self.documents[:, 1:]
        own: npt.NDArray[np.bool_] = (targets == self.documents[:, :-1]) & (targets >= 0)
        return own


class PackedText:
    """A packed text, opened: totals, columns and windows. Nothing is held in memory whole."""

    def __init__(self, folder: Path, paper: PackedPaper) -> None:
        self.folder = folder
        self.align = paper.align
        self.by_record = paper.by_record
        self.separator = paper.separator
        self.window_tokens = paper.window_tokens
        self.num_documents = paper.documents
        self.num_records = paper.records
        self.num_tokens = paper.tokens
        self.num_bytes = paper.bytes
        # The last token is only ever a target; an aligned stream ends on a window's border.
        whole = paper.align or paper.by_record
        targets = paper.stream_tokens - (0 if whole else 1)
        self.num_windows = -(-targets // paper.window_tokens)
        self._stream = _open_column(folder / "tokens.bin", paper.dtype, paper.stream_tokens)
        self._starts, self._ends, self.document_bytes, self.document_records = (
            _open_column(folder / f"{name}.bin", "int64", paper.documents) for name in COLUMNS
        )

    @classmethod
    def open(cls, folder: Path) -> PackedText:
        """Opens what ``pack_text`` wrote.

        Raises:
            FormatError: not such a folder, or its files do not fit its paper.
        """
        path = folder / "packed.json"
        value = parse_json(read_limited(path), path)
        try:
            paper = PackedPaper.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise FormatError(f"{place}: {first['msg']}", where=path) from error
        return cls(folder, paper)

    def windows(self, indices: npt.ArrayLike) -> Windows:
        """The windows at ``indices`` (int64 [B]), in that order.

        Raises:
            IndexError: a window that does not exist.
        """
        places = self._places(indices)
        inside = places < len(self._stream)
        tokens = self._stream[np.minimum(places, len(self._stream) - 1)].astype(np.int64)
        tokens[~inside] = self.separator
        return Windows(tokens, self._documents_at(places))

    def sampler(self, seed: int) -> WindowSampler:
        """Windows in a fixed random order, each once an epoch."""
        return WindowSampler(self.num_windows, seed)

    def documents(self) -> Iterator[npt.NDArray[Any]]:
        """The tokens of each document in their order, separators left out."""
        for start, end in zip(self._starts, self._ends, strict=True):
            yield self._stream[start + 1 : end]

    @property
    def document_tokens(self) -> Longs:
        """Tokens of each document, its separator left out, ``[D]``."""
        sizes: Longs = self._ends - self._starts - 1
        return sizes

    def windows_of(self, documents: Longs) -> Longs:
        """The windows of an aligned text that hold these documents, in their order."""
        first = self._starts[documents] // self.window_tokens
        count = -(-(self._ends[documents] - self._starts[documents]) // self.window_tokens)
        return np.concatenate([np.arange(a, a + n) for a, n in zip(first, count, strict=True)])

    def record_windows(self) -> tuple[Longs, Longs]:
        """The first window of each record, and how many it has, ``[N]``; by record only."""
        if not self.by_record:
            raise ValueError("only a text that is packed by record has windows of one record")
        first_documents = np.flatnonzero(np.diff(self.document_records, prepend=-1))
        first_N = self._starts[first_documents] // self.window_tokens
        return first_N, np.diff(first_N, append=self.num_windows)

    def record_tokens(self) -> Iterator[npt.NDArray[Any]]:
        """The tokens of each record, separators left out, where its documents stand together."""
        borders = np.flatnonzero(np.diff(self.document_records, prepend=-1))
        for begin, end in zip(borders, [*borders[1:], self.num_documents], strict=True):
            yield np.concatenate(
                [self._stream[self._starts[at] + 1 : self._ends[at]] for at in range(begin, end)]
            )

    def target_places(self, indices: npt.ArrayLike) -> Longs:
        """Which token of its document each target is, from 1, ``[B, T]``; 0 for a separator.

        Trap: padding has a place, too; ``Windows.counted`` tells it apart.
        """
        places = self._places(indices)[:, 1:]
        documents = np.searchsorted(self._starts, places, side="right") - 1
        inside: Longs = places - self._starts[documents]
        return inside

    def judge(
        self,
        score: Score,
        *,
        max_tokens: int,
        seed: int = 0,
        batch_windows: int = 16,
        beginnings: Sequence[int] = (),
    ) -> DocumentNats:
        """What ``score`` makes of a fair sample of the documents (aligned texts only)."""
        return judge_documents(
            self,
            score,
            max_tokens=max_tokens,
            seed=seed,
            batch_windows=batch_windows,
            beginnings=beginnings,
        )

    def window_records(self, indices: npt.ArrayLike) -> list[set[int]]:
        """The numbers of the records that have a token in each window, the last target included."""
        documents = self._documents_at(self._places(indices))
        return [
            {int(record) for record in self.document_records[np.unique(row[row >= 0])]}
            for row in documents
        ]

    def token_counts(self, vocabulary: int, least_records: int = 1) -> Longs:
        """How often each token occurs in documents, ``[V]``; separators are left out.

        A token that fewer than ``least_records`` records hold counts as absent.
        """
        counts = np.zeros(vocabulary, dtype=np.int64)
        holders = [set[int]() for _ in range(vocabulary)]
        rare = np.ones(vocabulary, dtype=np.bool_)
        for at in range(0, self.num_windows, _COUNTED_WINDOWS):
            block = np.arange(at, min(at + _COUNTED_WINDOWS, self.num_windows))
            windows = self.windows(block)
            tokens, documents = windows.tokens[:, :-1], windows.documents[:, :-1]
            real = (documents >= 0) & (tokens != self.separator)
            counts += np.bincount(tokens[real], minlength=vocabulary)
            new = real & rare[tokens]
            pairs = np.stack([tokens[new], self.document_records[documents[new]]])
            for token, record in np.unique(pairs, axis=1).T.tolist():
                holders[token].add(record)
                rare[token] = len(holders[token]) < least_records
        counts[rare] = 0
        return counts

    def _places(self, indices: npt.ArrayLike) -> Longs:
        numbers = np.asarray(indices, dtype=np.int64).reshape(-1)
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < self.num_windows):
            raise IndexError(f"windows 0 to {self.num_windows - 1}, not {numbers.tolist()[:8]}")
        steps = np.arange(self.window_tokens + 1, dtype=np.int64)
        return numbers[:, None] * self.window_tokens + steps

    def _documents_at(self, places: Longs) -> Longs:
        documents = np.searchsorted(self._starts, places, side="right") - 1
        return np.where(places < self._ends[documents], documents, -1).astype(np.int64)


def _open_column(path: Path, dtype: str, length: int) -> npt.NDArray[Any]:
    kind = np.dtype(dtype).newbyteorder("<")
    size = path.stat().st_size if path.is_file() else -1
    if size != length * kind.itemsize:
        raise FormatError(
            f"{max(size, 0):,} bytes where {length * kind.itemsize:,} belong",
            where=path,
            remedy="pack the text again",
        )
    return np.asarray(np.memmap(path, dtype=kind, mode="r"))
