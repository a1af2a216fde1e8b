"""The states that enter the feed-forward blocks: what router rows read.

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
from moiety.model import Borders, running_mean
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
    """``layers.N.token``, and ``layers.N.context``: its mean over the document so far; [N, D]."""
    windows_N: Tensor
    """The number of the window each comes from."""


def gather_states(
    backbone: Olmo2ForCausalLM,
    text: PackedText,
    num_windows: int,
    per_window: int,
    *,
    seed: int = 0,
    before: Callable[[Tensor], object] | None = None,
    precision: AbstractContextManager[Any] | None = None,
) -> Gathered:
    """States at ``per_window`` real positions of ``num_windows`` windows; with one seed, the same.

    ``before`` is told the documents of each batch of windows, ``[B, T]``. Where a window holds
    fewer real positions there are fewer states.
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
            documents_BT = torch.from_numpy(batch.documents[:, :-1].copy()).to(backbone.device)
            if before is not None:
                before(documents_BT)
            places_BP, kept_BP = _draw(batch.documents[:, :-1] >= 0, per_window, dice)
            numbers.append(torch.from_numpy(now)[:, None].expand_as(kept_BP)[kept_BP])
            chosen = _Chosen(Borders.from_documents(documents_BT), places_BP, kept_BP, parts)
            chosen.watch(backbone, torch.from_numpy(batch.tokens[:, :-1].copy()))
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

    def __init__(
        self,
        borders: Borders,
        places_BP: Tensor,
        kept_BP: Tensor,
        parts: dict[str, list[Tensor]],
    ) -> None:
        device = borders.real_BT.device
        self.borders, self.parts = borders, parts
        self.places_BP, self.kept_BP = places_BP.to(device), kept_BP.to(device)

    def watch(self, backbone: Olmo2ForCausalLM, tokens_BT: Tensor) -> None:
        hooks = [
            layer.mlp.register_forward_pre_hook(self._keeper(number))
            for number, layer in enumerate(backbone.model.layers)
        ]
        try:
            backbone.model(input_ids=tokens_BT.to(backbone.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()

    def _keeper(self, number: int) -> Any:
        def keep(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            hidden_BTD = inputs[0].float()
            mean_BTD = running_mean(hidden_BTD, self.borders)
            for kind, states_BTD in (("token", hidden_BTD), ("context", mean_BTD)):
                places_BPD = self.places_BP[:, :, None].expand(-1, -1, states_BTD.shape[2])
                kept_ND = states_BTD.gather(1, places_BPD)[self.kept_BP]
                self.parts.setdefault(f"layers.{number}.{kind}", []).append(kept_ND.cpu())

        return keep
