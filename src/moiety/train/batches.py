"""Batches: own text and, for an expert, public text in every step; and how they are judged.

Legend: B window, T position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moiety.data import PackedText

Longs = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Weights = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Batch:
    """Windows of one micro-batch. ``targets_BT`` is -100 where nothing is to be predicted."""

    inputs_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor
    own_B: Tensor
    """1 for the owner's windows, 0 for public ones."""
    balance_BT: Tensor
    """Weight of each position in the rows' loss: half for own text, half for public, in a step."""
    by_token_B: Tensor
    """Whether the window is routed by the token rows."""
    weight: float
    """Share of the step's targets that this micro-batch holds."""


@dataclass(frozen=True)
class Shares:
    """Windows of each kind in one step; ``token`` is the share of either that token rows route."""

    own: int
    public: int = 0
    token: float = 0.0


class StepBatches:
    """The windows of any step, from the step's number alone: resuming needs nothing else."""

    def __init__(
        self,
        own: PackedText,
        public: PackedText | None,
        shares: Shares,
        seed: int,
    ) -> None:
        self.own, self.public, self.shares = own, public, shares
        self._own_sampler = own.sampler(seed)
        self._public_sampler = public.sampler(seed + 1) if public else None

    def micro(self, step: int, micro_windows: int, device: str) -> Iterator[Batch]:
        """The step's windows, at most ``micro_windows`` at a time (0: all at once)."""
        tokens, documents, own = self._windows(step)
        targets = np.where(documents[:, 1:] >= 0, tokens[:, 1:], -100)
        total = int((targets >= 0).sum())
        balance = _balance(documents[:, :-1] >= 0, own)
        counts = self.shares.own, self.shares.public
        by_token = np.concatenate([_every(self.shares.token, step, count) for count in counts])
        size = micro_windows or len(tokens)
        for at in range(0, len(tokens), size):
            part = slice(at, at + size)
            yield Batch(
                torch.from_numpy(tokens[part, :-1].copy()).to(device),
                torch.from_numpy(targets[part]).to(device),
                torch.from_numpy(documents[part, :-1].copy()).to(device),
                torch.from_numpy(own[part]).to(device),
                torch.from_numpy(balance[part]).to(device),
                torch.from_numpy(by_token[part]).to(device),
                float((targets[part] >= 0).sum()) / total,
            )

    def _windows(self, step: int) -> tuple[Longs, Longs, np.ndarray[Any, Any]]:
        count = self.shares.own
        parts = [self.own.windows(self._own_sampler.indices(step * count, count))]
        if self.public is not None and self._public_sampler is not None:
            count = self.shares.public
            chosen = self._public_sampler.indices(step * count, count)
            parts.append(self.public.windows(chosen))
        tokens = np.concatenate([part.tokens for part in parts])
        documents = np.concatenate([part.documents for part in parts])
        own = np.zeros(len(tokens), dtype=np.float32)
        own[: self.shares.own] = 1.0
        return tokens, documents, own


def _balance(real_BT: Mask, own_B: Weights) -> Weights:
    # Unbalanced, the rows would learn the batch's composition as a prior, and n owners would add
    # n such priors against public text.
    balance_BT = np.zeros(real_BT.shape, dtype=np.float32)
    for kind in (0, 1):
        chosen_BT = real_BT & (own_B == kind)[:, None]
        balance_BT[chosen_BT] = 0.5 / max(1, int(chosen_BT.sum()))
    return balance_BT


def _every(share: float, step: int, count: int) -> Mask:
    """A share of each step's ``count`` windows, spread evenly over all steps."""
    seen = step * count + np.arange(count + 1)
    # A product that falls short of a whole number by rounding is that number.
    chosen: Mask = np.diff(np.floor(share * seen + 1e-6)) > 0
    return chosen


def whole_steps(tokens: int, windows: int, window_tokens: int) -> int:
    """Steps that a budget of tokens buys, at least one."""
    return max(1, round(tokens / (windows * window_tokens)))
