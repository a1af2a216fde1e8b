"""Where the router sends what: shares by place, experts used together, tokens each expert takes.

Legend: B window, T position, N position (B x T), P place, S slot, V vocabulary.

All of it is gathered in the pass that scores the whole release, from the weights that are decided
anyway. A position is one where a token enters the model; padding is none. Layers are not told
apart, because one decision serves all of them: what differs is how much the router has read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from moiety.model import Mixture

USED_WEIGHT = 0.1
"""An expert is used at a position where its weight is above this."""

PLACES = (8, 32, 128)
"""Where the places of a text end, in tokens that the router has read; the last place has no end.

Counted from where evidence begins: at a window's first token, a document's separator included. Each
end is four times as far from there as the one before, since evidence grows with what was read.
"""

TOKEN_TIMES_MIN = 20
TOKEN_DOCUMENTS_MIN = 3
"""A token counts as an expert's only when it was seen this often, in this many documents: fewer
say nothing, and would show what a single document is about."""

_TOKENS_SHOWN = 12

Floats = NDArray[np.float64]


class TokenShare(BaseModel):
    """A token, how often it was seen, the share one expert got there, and how much above usual."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    token: str
    times: int
    share: float
    excess: float


class RoutingWatch:
    """What one text's routing was; ``see`` is told the weights of every pass.

    The text's windows hold one document each (``pack_documents``), so that a position in a window
    says how much of the document the router has read.
    """

    def __init__(self, mixture: Mixture) -> None:
        slots, vocab = len(mixture.names), mixture.backbone.config.vocab_size
        self.names = mixture.names
        self.weight_PS = torch.zeros(len(PLACES) + 1, slots, dtype=torch.double)
        self.weight_VS = torch.zeros(vocab, slots, dtype=torch.double)
        self.times_V = np.zeros(vocab, dtype=np.int64)
        self._together_SS = torch.zeros(slots, slots, dtype=torch.double)
        self._positions = 0
        self._ids_N = torch.zeros(0, dtype=torch.long)
        self._seen: list[NDArray[np.int64]] = []

    def expect(self, windows: Any) -> None:
        """The windows that the next pass will read."""
        ids_N = windows.tokens[:, :-1].reshape(-1)
        documents_N = windows.documents[:, :-1].reshape(-1)
        real_N = documents_N >= 0
        self._ids_N = torch.from_numpy(ids_N)
        self.times_V += np.bincount(ids_N[real_N], minlength=self.times_V.size)
        pairs_N = documents_N[real_N] * self.times_V.size + ids_N[real_N]
        self._seen.append(np.unique(pairs_N))

    def see(self, weights_BTS: Tensor) -> None:
        """A pass's weights, zero at padding, when every slot is allowed."""
        weights_BTS = weights_BTS.detach().double().cpu()
        weights_NS = weights_BTS.flatten(0, 1)
        used_NS = (weights_NS > USED_WEIGHT).double()
        places_T = torch.bucketize(torch.arange(weights_BTS.shape[1]) + 1, torch.tensor(PLACES))
        self.weight_PS.index_add_(0, places_T, weights_BTS.sum(dim=0))
        self.weight_VS.index_add_(0, self._ids_N, weights_NS)
        self._together_SS += used_NS.T @ used_NS
        self._positions += int((weights_NS.sum(dim=1) > 0).sum())

    def shares(self) -> dict[str, float]:
        """Each expert's share of all weight."""
        share_S = self.weight_PS.sum(dim=0) / self.weight_PS.sum()
        return dict(zip(self.names, share_S.tolist(), strict=True))

    def by_place(self) -> dict[str, tuple[float, ...]]:
        """Each expert's share of the weight at each place that the text reaches."""
        # Who reaches a place has been at all those before it.
        reached_PS = self.weight_PS[self.weight_PS.sum(dim=1) > 0]
        share_PS = reached_PS / reached_PS.sum(dim=1, keepdim=True)
        return {name: tuple(share_PS[:, s].tolist()) for s, name in enumerate(self.names)}

    def together(self) -> dict[str, dict[str, float]]:
        """How often two experts are both used, of all positions.

        Beside itself: how often an expert is used at all.
        """
        share_SS = (self._together_SS / self._positions).tolist()
        return {
            name: dict(zip(self.names, row, strict=True))
            for name, row in zip(self.names, share_SS, strict=True)
        }

    def documents_by_token(self) -> NDArray[np.int64]:
        """In how many documents each token was seen, ``[V]``."""
        pairs_N = np.unique(np.concatenate(self._seen))
        return np.bincount(pairs_N % self.times_V.size, minlength=self.times_V.size)


def place_names() -> tuple[str, ...]:
    """What the places are called, by the tokens read: ``1 to 8``, and so on to ``129 on``."""
    starts = [1, *(end + 1 for end in PLACES)]
    inner = (f"{start} to {end}" for start, end in zip(starts, PLACES, strict=False))
    return (*inner, f"{starts[-1]} on")


def tokens_taken(
    watches: Mapping[str, RoutingWatch], mixture: Mixture, separator: int
) -> dict[str, tuple[TokenShare, ...]]:
    """For each expert the tokens where its share lies furthest above its mean, over all texts.

    Only tokens seen often enough in enough documents; the separator between documents is none.
    """
    several = list(watches.values())
    weight_VS = np.sum([watch.weight_VS.numpy() for watch in several], axis=0)
    times_V = np.sum([watch.times_V for watch in several], axis=0)
    # Two texts share no document.
    documents_V = np.sum([watch.documents_by_token() for watch in several], axis=0)
    known_V = (times_V >= TOKEN_TIMES_MIN) & (documents_V >= TOKEN_DOCUMENTS_MIN)
    known_V[separator] = False
    ids = np.flatnonzero(known_V)
    mean_S = weight_VS.sum(axis=0) / weight_VS.sum()
    share_VS = weight_VS[ids] / weight_VS[ids].sum(axis=1, keepdims=True)
    found = {}
    for slot, name in enumerate(mixture.names):
        excess_V = share_VS[:, slot] - mean_S[slot]
        order = np.lexsort((ids, -excess_V))[:_TOKENS_SHOWN]
        found[name] = tuple(
            TokenShare(
                token=mixture.tokenizer.decode([int(ids[v])]),
                times=int(times_V[ids[v]]),
                share=float(share_VS[v, slot]),
                excess=float(excess_V[v]),
            )
            for v in order
            if excess_V[v] > 0
        )
    return found


def show_token(token: str) -> str:
    """A token so that a reader sees its spaces and breaks; nothing in it moves a page."""
    shown = token.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in shown
    )


def most_used_pair(together: Mapping[str, Mapping[str, float]]) -> tuple[str, str] | None:
    """The two experts that are used together most often, or None where there are not two."""
    names: Sequence[str] = list(together)
    pairs = [(a, b) for n, a in enumerate(names) for b in names[n + 1 :]]
    return max(pairs, key=lambda pair: together[pair[0]][pair[1]], default=None)
