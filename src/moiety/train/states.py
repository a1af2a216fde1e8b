"""The states that enter the feed-forward blocks: what token rows read.

Legend: B window, T position, P chosen position of a window, N chosen position of all, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Olmo2ForCausalLM

from moiety.data import PackedText
from moiety.train.judge import evaluating

Mask = np.ndarray[Any, np.dtype[np.bool_]]

_FIRST = 8
"""Positions at a window's beginning that are left out: models park attention there, and a state can
be many times longer than all others."""

_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Gathered:
    """States of a text, float32 on the CPU."""

    states: dict[str, Tensor]
    """``layers.N.token``, ``[N, D]``."""
    windows_N: Tensor
    """The number of the window each comes from."""


def gather_states(
    backbone: Olmo2ForCausalLM,
    text: PackedText,
    num_windows: int,
    per_window: int,
    *,
    seed: int = 0,
    before: Callable[[Tensor, Tensor], object] | None = None,
    precision: AbstractContextManager[Any] | None = None,
) -> Gathered:
    """States at ``per_window`` real positions of ``num_windows`` windows; with one seed, the same.

    ``before`` is told tokens and documents of each batch of windows, both ``[B, T]``. Where a
    window holds fewer real positions there are fewer states.
    """
    dice = np.random.default_rng(seed)
    windows = dice.permutation(text.num_windows)[:num_windows]
    parts: dict[str, list[Tensor]] = {}
    numbers: list[Tensor] = []
    size = max(1, _BATCH_TOKENS // text.window_tokens)
    with evaluating(backbone), precision or nullcontext():
        for at in range(0, len(windows), size):
            now = windows[at : at + size]
            batch = text.windows(now)
            tokens_BT, documents_BT = (
                torch.from_numpy(part[:, :-1].copy()).to(backbone.device)
                for part in (batch.tokens, batch.documents)
            )
            if before is not None:
                before(tokens_BT, documents_BT)
            places_BP, kept_BP = _draw(batch.documents[:, :-1] >= 0, per_window, dice)
            numbers.append(torch.from_numpy(now)[:, None].expand_as(kept_BP)[kept_BP])
            _Chosen(places_BP, kept_BP, parts).watch(backbone, tokens_BT)
    # Joined out here, or they would be inference tensors, which cannot be trained on.
    states = {name: torch.cat(parts.pop(name)) for name in sorted(parts)}
    return Gathered(states, torch.cat(numbers))


def _draw(real_BT: Mask, count: int, dice: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Different places of each window, and whether each may be kept, both ``[B, P]``."""
    kept_BT = real_BT.copy()
    kept_BT[:, : min(_FIRST, real_BT.shape[1] - 1)] = False
    order_BT = np.argsort(dice.random(real_BT.shape) + ~kept_BT, axis=1)[:, :count]
    kept_BP = np.take_along_axis(kept_BT, order_BT, axis=1)
    return torch.from_numpy(order_BT), torch.from_numpy(kept_BP)


class _Chosen:
    """Keeps the states of one batch at its chosen positions."""

    def __init__(self, places_BP: Tensor, kept_BP: Tensor, parts: dict[str, list[Tensor]]) -> None:
        self.places_BP, self.kept_BP, self.parts = places_BP, kept_BP, parts

    def watch(self, backbone: Olmo2ForCausalLM, tokens_BT: Tensor) -> None:
        hooks = [
            layer.mlp.register_forward_pre_hook(self._keeper(number))
            for number, layer in enumerate(backbone.model.layers)
        ]
        try:
            backbone.model(input_ids=tokens_BT, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()

    def _keeper(self, number: int) -> Any:
        def keep(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            hidden_BTD = inputs[0].float()
            places_BPD = self.places_BP[:, :, None].expand(-1, -1, hidden_BTD.shape[2])
            kept_ND = hidden_BTD.gather(1, places_BPD.to(hidden_BTD.device))
            kept_ND = kept_ND[self.kept_BP.to(hidden_BTD.device)]
            self.parts.setdefault(f"layers.{number}.token", []).append(kept_ND.cpu())

        return keep
