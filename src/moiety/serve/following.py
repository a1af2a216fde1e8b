"""Routing followed beside an engine that does not tell it: from tokens alone, so exactly.

Legend: R request, T token, S slot.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from moiety.model import mixture

Told = Sequence[Any]
"""A step as a process tells it: token, logprob, top, of the prompt."""


class Followed:
    """The evidence of one text so far. ``share`` are the weights at its last token, by slot."""

    def __init__(self, prompt: Sequence[int], slots: Sequence[int]) -> None:
        self.prompt, self.slots = prompt, slots
        self.share: tuple[float, ...] = ()
        self.total_S = self.count = self.allowed_S = torch.empty(0)


class Follower:
    """Follows many texts. Safe to use from any thread: one at a time."""

    def __init__(self, routing: mixture.Routing) -> None:
        self._routing = routing
        self._lock = threading.Lock()

    def forget(self, slots: Collection[int]) -> None:
        """Drops the tables of experts that have left."""
        with self._lock:
            for slot in slots:
                self._routing.table_SV[slot] = 0

    @torch.inference_mode()
    def follow(
        self, texts: Sequence[tuple[Followed, Sequence[Told]]]
    ) -> list[list[tuple[float, ...]]]:
        """The weights where each token that is told was computed; texts go on by what is made."""
        shares: list[list[tuple[float, ...]]] = [[] for _ in texts]
        with self._lock:
            for (text, steps), found in zip(texts, shares, strict=True):
                if steps and not text.share:
                    # The prompt's own steps, where they are told, all come first.
                    found += self._begin(text)[: sum(step[3] for step in steps)]
            made = [[step[0] for step in steps if not step[3]] for _, steps in texts]
            for turn in range(max(map(len, made), default=0)):
                going = [at for at, tokens in enumerate(made) if turn < len(tokens)]
                for at in going:
                    shares[at].append(texts[at][0].share)
                self._go_on([texts[at][0] for at in going], [made[at][turn] for at in going])
        return shares

    def _begin(self, text: Followed) -> list[tuple[float, ...]]:
        """Reads the prompt; its weights, token by token."""
        slots = len(self._routing.table_SV)
        text.allowed_S = torch.zeros(slots, dtype=torch.bool)
        text.allowed_S[list(text.slots)] = True
        nothing_1S = torch.zeros(1, slots)
        weights_1TS, total_1S, count_1 = self._routing.follow(
            torch.tensor([text.prompt]), text.allowed_S[None], nothing_1S, nothing_1S[:, 0]
        )
        text.total_S, text.count = total_1S[0], count_1[0]
        found = [tuple(weights) for weights in weights_1TS[0][:, list(text.slots)].tolist()]
        text.share = found[-1]
        return found

    def _go_on(self, texts: Sequence[Followed], tokens: Sequence[int]) -> None:
        weights_R1S, total_RS, count_R = self._routing.follow(
            torch.tensor(tokens)[:, None],
            torch.stack([text.allowed_S for text in texts]),
            torch.stack([text.total_S for text in texts]),
            torch.stack([text.count for text in texts]),
        )
        rows: list[tuple[Followed, Tensor, Tensor, list[float]]] = list(
            zip(texts, total_RS, count_R, weights_R1S[:, 0].tolist(), strict=True)
        )
        for text, total_S, count, weights in rows:
            text.total_S, text.count = total_S, count
            text.share = tuple(weights[slot] for slot in text.slots)
