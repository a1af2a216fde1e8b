"""Routing followed from tokens alone: for the steps of an engine, or beside one that tells none.

Legend: R request, T token, S slot.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moiety.model import mixture

Told = Sequence[Any]
"""A step as a process tells it: token, logprob, top, of the prompt."""


@dataclass
class Trail:
    """The evidence of one text so far, as ``Routing.follow`` has it: of what may be used."""

    allowed_S: Tensor
    total_S: Tensor
    count: Tensor


def begin(
    routing: mixture.Routing, prompt: Sequence[int], slots: Sequence[int]
) -> tuple[Trail, Tensor]:
    """Reads a prompt: what to go on with, and the weights of its tokens, ``[T, S]``."""
    device, num_slots = routing.table_SV.device, len(routing.table_SV)
    allowed_S = torch.zeros(num_slots, dtype=torch.bool, device=device)
    allowed_S[list(slots)] = True
    nothing_S = torch.zeros(num_slots, device=device)
    weights_1TS, total_1S, count_1 = routing.follow(
        torch.tensor(prompt, device=device)[None], allowed_S[None], nothing_S[None], nothing_S[:1]
    )
    return Trail(allowed_S, total_1S[0], count_1[0]), weights_1TS[0]


def go_on(routing: mixture.Routing, trails: Sequence[Trail], tokens: Sequence[int]) -> Tensor:
    """Follows each text by one token; the weights there, ``[R, S]``."""
    weights_R1S, total_RS, count_R = routing.follow(
        torch.tensor(tokens, device=routing.table_SV.device)[:, None],
        torch.stack([trail.allowed_S for trail in trails]),
        torch.stack([trail.total_S for trail in trails]),
        torch.stack([trail.count for trail in trails]),
    )
    for trail, total_S, count in zip(trails, total_RS.unbind(), count_R.unbind(), strict=True):
        trail.total_S, trail.count = total_S, count
    return weights_R1S[:, 0]


@dataclass
class Followed:
    """A text that is followed. ``share`` are the weights at its last token, by slot."""

    prompt: Sequence[int]
    slots: Sequence[int]
    trail: Trail | None = None
    share: tuple[float, ...] = ()


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
        text.trail, weights_TS = begin(self._routing, text.prompt, text.slots)
        found = [tuple(weights) for weights in weights_TS[:, list(text.slots)].tolist()]
        text.share = found[-1]
        return found

    def _go_on(self, texts: Sequence[Followed], tokens: Sequence[int]) -> None:
        trails = [text.trail for text in texts if text.trail is not None]
        weights_RS = go_on(self._routing, trails, tokens)
        for text, weights in zip(texts, weights_RS.tolist(), strict=True):
            text.share = tuple(weights[slot] for slot in text.slots)
