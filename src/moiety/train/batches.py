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
from moiety.errors import ConfigError
from moiety.train.config import TrainConfig

Longs = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Batch:
    """Windows of one micro-batch. ``targets_BT`` is -100 where nothing is to be predicted."""

    inputs_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor
    weight: float
    """Share of the step's targets that this micro-batch holds."""
    even_B: Tensor | None = None
    """Windows in which a pair's blocks weigh the same, whatever the evidence says: every other one
    of a step's public windows. Under evidence alone public text would teach an expert nothing."""


@dataclass(frozen=True)
class Shares:
    """Windows of each kind in one step."""

    own: int
    public: int = 0


def window_shares(config: TrainConfig) -> Shares:
    """How many windows of a step are the owner's, and how many public.

    Raises:
        ConfigError: none is left for the owner's text.
    """
    windows = config.batch.windows
    public = round(config.data.public_share * windows)
    if public >= windows:
        raise ConfigError("no window is left for the owner's text", where="data.public_share")
    return Shares(windows - public, public)


class StepBatches:
    """The windows of any step, from the step's number alone: resuming needs nothing else."""

    def __init__(
        self,
        own: PackedText | None,
        public: PackedText | None,
        shares: Shares,
        seed: int,
    ) -> None:
        self.own, self.public, self.shares = own, public, shares
        self._own_sampler = own.sampler(seed) if own else None
        self._public_sampler = public.sampler(seed + 1) if public else None

    def micro(self, step: int, micro_windows: int, device: str) -> Iterator[Batch]:
        """The step's windows, at most ``micro_windows`` at a time (0: all at once).

        The last window of a text may hold no target. The mean of none is no number, so where there
        is no other window beside it there is no micro-batch.
        """
        tokens, documents = self._windows(step)
        public = np.arange(len(tokens)) - self.shares.own
        even = torch.from_numpy((public >= 0) & (public % 2 == 0))
        targets = np.where(documents[:, 1:] >= 0, tokens[:, 1:], -100)
        total = int((targets >= 0).sum())
        size = micro_windows or len(tokens)
        for at in range(0, len(tokens), size):
            part = slice(at, at + size)
            held = int((targets[part] >= 0).sum())
            if held == 0:
                continue
            yield Batch(
                torch.from_numpy(tokens[part, :-1].copy()).to(device),
                torch.from_numpy(targets[part]).to(device),
                torch.from_numpy(documents[part, :-1].copy()).to(device),
                held / total,
                even[part].to(device),
            )

    def _windows(self, step: int) -> tuple[Longs, Longs]:
        parts = []
        for text, sampler, count in (
            (self.own, self._own_sampler, self.shares.own),
            (self.public, self._public_sampler, self.shares.public),
        ):
            if text is not None and sampler is not None:
                parts.append(text.windows(sampler.indices(step * count, count)))
        tokens = np.concatenate([part.tokens for part in parts])
        documents = np.concatenate([part.documents for part in parts])
        return tokens, documents


def whole_steps(tokens: int, windows: int, window_tokens: int) -> int:
    """Steps that a budget of tokens buys, at least one."""
    return max(1, round(tokens / (windows * window_tokens)))
