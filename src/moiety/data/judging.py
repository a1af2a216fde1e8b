"""Held-out documents scored one by one: nats and bytes of each, so that intervals can be drawn.

Legend: B window, T target position, D document. Several models scored at once stand in front.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moiety.data.packed import Longs, PackedText, Windows

Score = Callable[["Windows"], npt.NDArray[np.float32]]
"""Windows to the nats of each target, float32 ``[..., B, T]``."""


@dataclass(frozen=True)
class Beginning:
    """What the first tokens of each document cost; one that is shorter counts whole.

    Shapes: as in ``DocumentNats``.
    """

    nats: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]


@dataclass(frozen=True)
class DocumentNats:
    """What predicting each chosen document cost. Shapes: ``[D]``, of ``nats`` ``[..., D]``.

    ``beginnings`` are those that were asked for, by their length in tokens.
    """

    documents: npt.NDArray[np.int64]
    nats: npt.NDArray[np.float64]
    bytes: npt.NDArray[np.int64]
    tokens: int
    beginnings: Mapping[int, Beginning] = field(default_factory=dict)

    @property
    def bits_per_byte(self) -> float:
        """Bits a byte over all of them together."""
        return float(self.nats.sum() / self.bytes.sum() / math.log(2))


def choose_documents(packed: PackedText, max_tokens: int, seed: int) -> npt.NDArray[np.int64]:
    """A fair sample of documents, ascending, of at most ``max_tokens`` tokens (at least one)."""
    order = np.random.default_rng([seed, packed.num_documents]).permutation(packed.num_documents)
    taken = np.cumsum(packed.document_tokens[order]) <= max_tokens
    count = max(1, int(taken.sum()))
    return np.sort(order[:count]).astype(np.int64)


def judge_documents(
    packed: PackedText,
    score: Score,
    *,
    max_tokens: int,
    seed: int,
    batch_windows: int,
    beginnings: Sequence[int] = (),
) -> DocumentNats:
    """Scores a sample of an aligned text's documents; every token of each counts once.

    A target counts where its document is its input's: padding and the next document's separator
    do not. ``beginnings`` are lengths in tokens at which documents are also cut off.
    """
    if not packed.align:
        raise ValueError("only an aligned text has windows of one document")
    documents = choose_documents(packed, max_tokens, seed)
    windows_W = packed.windows_of(documents)
    whole = _Sums(packed.num_documents)
    cut = {length: _Sums(packed.num_documents) for length in beginnings}
    for at in range(0, len(windows_W), batch_windows):
        numbers_B = windows_W[at : at + batch_windows]
        windows = packed.windows(numbers_B)
        nats_BT, counted_BT = score(windows), windows.counted
        whole.add(windows, nats_BT, counted_BT)
        for length, sums in cut.items():
            sums.add(windows, nats_BT, counted_BT & (packed.target_places(numbers_B) <= length))
    nats_D, tokens_D = whole.of(documents)
    return DocumentNats(
        documents,
        nats_D,
        packed.document_bytes[documents],
        int(tokens_D.sum()),
        {length: Beginning(*sums.of(documents)) for length, sums in cut.items()},
    )


class _Sums:
    """Nats and targets of every document, added up window by window."""

    def __init__(self, num_documents: int) -> None:
        self._nats_D: npt.NDArray[np.float64] | None = None
        self._tokens_D = np.zeros(num_documents, dtype=np.int64)

    def add(
        self,
        windows: Windows,
        nats_BT: npt.NDArray[np.float32],
        counted_BT: npt.NDArray[np.bool_],
    ) -> None:
        if self._nats_D is None:
            self._nats_D = np.zeros((*nats_BT.shape[:-2], self._tokens_D.size))
        documents_N = windows.documents[:, 1:][counted_BT]
        np.add.at(self._nats_D.T, documents_N, nats_BT[..., counted_BT].T)
        np.add.at(self._tokens_D, documents_N, 1)

    def of(self, documents: Longs) -> tuple[npt.NDArray[np.float64], Longs]:
        """The sums of these documents."""
        assert self._nats_D is not None, "at least one document was chosen"
        return self._nats_D[..., documents], self._tokens_D[documents]
