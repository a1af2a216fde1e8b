"""Where the keys and values of running requests lie, and attention over them.

Legend: L layer, P place, H head of keys, Q head of queries, C position, W width of a head, N token
of a pass, R request that decodes, T token of a piece.

Every request has a place. Places are compact and those that decode come first, so that one step of
all of them attends to a view and copies nothing. Beyond a request's length a place holds zeros: a
masked position still takes part in the arithmetic, times zero, and what another request left there
might be no number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CALL_POSITIONS = 80
"""One more call of attention costs as much as attending to this many more positions."""


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one request: those from ``begin`` to ``end``, at a place."""

    place: int
    begin: int
    end: int


@dataclass(frozen=True)
class Layout:
    """Whose the tokens of a pass are, end to end: first one each of the places that decode.

    ``lengths`` are the positions each of these attends to, its own token's among them.
    """

    lengths: list[int]
    pieces: list[Piece]

    def places(self) -> list[int]:
        """The place of each token."""
        rest = (piece.place for piece in self.pieces for _ in range(piece.begin, piece.end))
        return [*range(len(self.lengths)), *rest]

    def positions(self) -> list[int]:
        """The position of each token in its text."""
        rest = (position for piece in self.pieces for position in range(piece.begin, piece.end))
        return [*(length - 1 for length in self.lengths), *rest]


class Places:
    """Keys and values of every place."""

    def __init__(
        self, config: Any, places: int, positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, places, config.num_key_value_heads, positions, head)
        # Zeros are no memory on a processor until something is written.
        self.keys_LPHCW = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LPHCW = torch.zeros(shape, dtype=dtype, device=device)
        self.position_bytes = 2 * self.keys_LPHCW.element_size() * shape[0] * shape[2] * shape[4]

    def clear(self, place: int, length: int) -> None:
        """Makes a place as good as new; ``length`` positions of it were written."""
        self.keys_LPHCW[:, place, :, :length] = 0
        self.values_LPHCW[:, place, :, :length] = 0

    def move(self, source: int, target: int, length: int) -> None:
        """Moves a request to a place that is clear."""
        for store_LPHCW in (self.keys_LPHCW, self.values_LPHCW):
            store_LPHCW[:, target, :, :length] = store_LPHCW[:, source, :, :length]
        self.clear(source, length)

    def read(self, place: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Copies of keys and values, ``[L, H, end - begin, W]`` each."""
        keys_LHCW = self.keys_LPHCW[:, place, :, begin:end].clone()
        return keys_LHCW, self.values_LPHCW[:, place, :, begin:end].clone()

    def write(self, place: int, begin: int, keys_LHCW: Tensor, values_LHCW: Tensor) -> None:
        """Puts back what ``read`` gave."""
        end = begin + keys_LHCW.shape[2]
        self.keys_LPHCW[:, place, :, begin:end] = keys_LHCW
        self.values_LPHCW[:, place, :, begin:end] = values_LHCW


class Attention:
    """Attention of one pass's tokens, each to its own request; the same plan serves all layers.

    ``position_N`` is the position of each token in its text.
    """

    def __init__(self, places: Places, layout: Layout) -> None:
        self._places, self._layout = places, layout
        device = places.keys_LPHCW.device
        self._place_N = torch.tensor(layout.places(), device=device)
        self.position_N = torch.tensor(layout.positions(), device=device)
        lengths = layout.lengths
        self._longest = max(lengths, default=0)
        together = len(lengths) * self._longest
        self._apart = together > sum(lengths) + len(lengths) * CALL_POSITIONS
        self._mask_R11C = None if min(lengths, default=0) == self._longest else self._padding()
        self._masks = [self._causal(piece) for piece in layout.pieces]

    def __call__(self, layer: int, query_NQW: Tensor, key_NHW: Tensor, value_NHW: Tensor) -> Tensor:
        """Writes the keys and values to their places and attends; ``[N, Q, W]``."""
        keys_PHCW = self._places.keys_LPHCW[layer]
        values_PHCW = self._places.values_LPHCW[layer]
        keys_PHCW[self._place_N, :, self.position_N] = key_NHW
        values_PHCW[self._place_N, :, self.position_N] = value_NHW
        count = len(self._layout.lengths)
        parts = []
        if count:
            parts.append(self._decode(query_NQW[:count], keys_PHCW, values_PHCW))
        at = count
        for piece, mask_TC in zip(self._layout.pieces, self._masks, strict=True):
            end = at + piece.end - piece.begin
            query_1QTW = query_NQW[at:end].transpose(0, 1)[None]
            seen = (slice(piece.place, piece.place + 1), slice(None), slice(piece.end))
            out_1QTW = _attend(
                query_1QTW, keys_PHCW[seen], values_PHCW[seen], mask_TC, causal=mask_TC is None
            )
            parts.append(out_1QTW[0].transpose(0, 1))
            at = end
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(self, query_RQW: Tensor, keys_PHCW: Tensor, values_PHCW: Tensor) -> Tensor:
        query_RQ1W = query_RQW[:, :, None]
        if not self._apart:
            seen = (slice(len(query_RQW)), slice(None), slice(self._longest))
            out_RQ1W = _attend(query_RQ1W, keys_PHCW[seen], values_PHCW[seen], self._mask_R11C)
            return out_RQ1W[:, :, 0]
        # A long text among short ones: all of them as long as it would cost more than one by one.
        parts = []
        for row, length in enumerate(self._layout.lengths):
            one = (slice(row, row + 1), slice(None), slice(length))
            parts.append(_attend(query_RQ1W[row : row + 1], keys_PHCW[one], values_PHCW[one], None))
        return torch.cat(parts)[:, :, 0]

    def _padding(self) -> Tensor:
        device, dtype = self._place_N.device, self._places.keys_LPHCW.dtype
        length_R = torch.tensor(self._layout.lengths, device=device)
        beyond_RC = torch.arange(self._longest, device=device) >= length_R[:, None]
        mask_RC = torch.zeros(beyond_RC.shape, dtype=dtype, device=device)
        return mask_RC.masked_fill_(beyond_RC, -torch.inf)[:, None, None]

    def _causal(self, piece: Piece) -> Tensor | None:
        if piece.begin == 0:
            return None
        device = self._place_N.device
        row_T1 = torch.arange(piece.begin, piece.end, device=device)[:, None]
        return torch.arange(piece.end, device=device) <= row_T1


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, *, causal: bool = False
) -> Tensor:
    shared = query.shape[1] != keys.shape[1]
    return functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=shared
    )
