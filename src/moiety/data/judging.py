"""Held-out documents scored one by one: nats and bytes of each, so that intervals can be drawn.

Legend: B window, T target position, D document. Several models scored at once stand in front.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moiety.data.packed import PackedText, Windows

Score = Callable[["Windows"], npt.NDArray[np.float32]]
"""Windows to the nats of each target, float32 ``[..., B, T]``."""


@dataclass(frozen=True)
class DocumentNats:
    """What predicting each chosen document cost. Shapes: ``[D]``, of ``nats`` ``[..., D]``."""

    documents: npt.NDArray[np.int64]
    nats: npt.NDArray[np.float64]
    bytes: npt.NDArray[np.int64]
    tokens: int

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
    packed: PackedText, score: Score, *, max_tokens: int, seed: int, batch_windows: int
) -> DocumentNats:
    """Scores a sample of an aligned text's documents; every token of each counts once.

    A target counts where its document is its input's: padding and the next document's separator
    do not.
    """
    if not packed.align:
        raise ValueError("only an aligned text has windows of one document")
    documents = choose_documents(packed, max_tokens, seed)
    windows_W = packed.windows_of(documents)
    nats_D: npt.NDArray[np.float64] | None = None
    tokens = 0
    for at in range(0, len(windows_W), batch_windows):
        windows = packed.windows(windows_W[at : at + batch_windows])
        nats_BT = score(windows)
        counted_BT = windows.counted
        if nats_D is None:
            nats_D = np.zeros((*nats_BT.shape[:-2], packed.num_documents))
        tokens += int(counted_BT.sum())
        places_N = windows.documents[:, 1:][counted_BT]
        np.add.at(nats_D.T, places_N, nats_BT[..., counted_BT].T)
    assert nats_D is not None, "at least one document was chosen"
    return DocumentNats(documents, nats_D[..., documents], packed.document_bytes[documents], tokens)
