"""Evidence about where a text comes from, added up over its tokens.

Legend: B request, T position in this pass, E expert, V vocabulary.

Every expert has a table: how much more frequent each token is in its owner's text than in the
public sample, as a logarithm. The logit at position t is the sum of the table's entries over the
tokens of the same document up to and including t, times ``w / (t + w)`` with ``w`` the
``WITNESSES``: nearly the sum at first, so that little text says little, and ``w`` times the mean in
the end, because tokens of one document repeat each other. It is a function of the tokens alone: no
expert has touched what decides, so every layer follows one decision, and who else is in a release
changes nothing in it. At generation the state it needs is one running sum an expert, and a count;
it lives in the key-value cache, because it must be reordered, copied and dropped with it.

Source: naive Bayes (Maron 1961) for the sum of log-ratios; the bound on it is ours (docs/log.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from moiety.errors import ConfigError
from moiety.family import WITNESSES


@dataclass(frozen=True)
class Sums:
    """What a model remembers of the positions seen so far."""

    total_BE: Tensor
    count_B: Tensor


@dataclass(frozen=True)
class Borders:
    """Where the documents of a packed batch begin.

    Shapes: ``starts_BT`` is the index, in this pass, of the first token of the document that
    position t belongs to; ``real_BT`` is false where there is only padding.
    """

    starts_BT: Tensor
    real_BT: Tensor

    @classmethod
    def from_documents(cls, documents_BT: Tensor) -> Borders:
        """Borders of windows whose tokens carry a document index; a change of index is a border."""
        places_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
        changed_BT = documents_BT != documents_BT.roll(1, dims=1)
        changed_BT[:, 0] = True
        starts_BT = torch.where(changed_BT, places_T, 0).cummax(dim=1).values
        return cls(starts_BT, documents_BT >= 0)


def evidence(scores_BTE: Tensor, borders: Borders | None = None) -> Tensor:
    """The logits that a table's entries for a text's tokens make, ``[B, T, E]``.

    Computed in float32 whatever comes in. Without borders a row is one document. Two documents in a
    row never touch: the sum up to the border is subtracted.
    """
    total_BTE, count_BT1 = _running(scores_BTE, borders)
    return _bounded(total_BTE, count_BT1)


def continued_evidence(
    scores_BTE: Tensor, valid_BT: Tensor | None, past: Sums | None
) -> tuple[Tensor, Sums]:
    """The logits of a document that began in an earlier pass, and the state to go on with.

    Positions that are not valid (left padding) add nothing and count nothing.
    """
    scores_BTE = scores_BTE.float()
    batch, length, _ = scores_BTE.shape
    if valid_BT is None:
        valid_BT = scores_BTE.new_ones(batch, length)
    weight_BT = valid_BT.float()
    total_BTE = torch.where(valid_BT.bool()[:, :, None], scores_BTE, 0.0).cumsum(dim=1)
    count_BT = weight_BT.cumsum(dim=1)
    if past is not None:
        total_BTE = total_BTE + past.total_BE[:, None]
        count_BT = count_BT + past.count_B[:, None]
    logits_BTE = _bounded(total_BTE, count_BT[:, :, None])
    return logits_BTE, Sums(total_BTE[:, -1], count_BT[:, -1])


def _bounded(total_BTE: Tensor, count_BT1: Tensor) -> Tensor:
    return total_BTE * (WITNESSES / (count_BT1 + WITNESSES))


def _running(scores_BTE: Tensor, borders: Borders | None) -> tuple[Tensor, Tensor]:
    """The sum over each document's positions up to t, and how many they are."""
    scores_BTE = scores_BTE.float()
    total_BTE = scores_BTE.cumsum(dim=1)
    places_T = torch.arange(scores_BTE.shape[1], device=scores_BTE.device)
    if borders is None:
        return total_BTE, (places_T + 1)[None, :, None]
    starts_BT = borders.starts_BT
    before_BTE = (total_BTE - scores_BTE).gather(
        1, starts_BT[:, :, None].expand(-1, -1, scores_BTE.shape[2])
    )
    return total_BTE - before_BTE, (places_T - starts_BT + 1)[:, :, None]


class EvidenceCache(DynamicCache):  # type: ignore[misc]
    """Keys, values, and the evidence that was gathered with them.

    Trap: keys and values computed with an expert carry its influence, so a cache remembers which
    experts made it and serves no other set.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sums: Sums | None = None
        self.made_with: object = None

    def check_made_with(self, experts: object) -> None:
        """Raises ``ConfigError`` when the cache was begun with another set of experts."""
        if self.made_with is None:
            self.made_with = experts
        elif self.made_with != experts:
            raise ConfigError(
                "this cache was made with other experts", remedy="begin a new cache for each set"
            )

    def reset(self) -> None:
        """Empty again: fit for another text, and for another set of experts."""
        super().reset()
        self.sums = self.made_with = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follows a beam search's choice of rows."""
        super().reorder_cache(beam_idx)
        self._pick(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row, as sampling several answers to one prompt does."""
        super().batch_repeat_interleave(repeats)
        self._pick(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows."""
        super().batch_select_indices(indices)
        self._pick(lambda tensor: tensor[indices])

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what a running sum has taken in cannot be taken out of it again."""
        raise ConfigError("evidence cannot be cropped", remedy="decode without speculation")

    def _pick(self, pick: Any) -> None:
        if self.sums is not None:
            self.sums = Sums(pick(self.sums.total_BE), pick(self.sums.count_B))
