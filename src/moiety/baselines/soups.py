"""Soups: one model whose weights are a weighted mean of several models' weights.

Legend: M model, B window, T target position.

Source: Wortsman et al. 2022 (model soups, arXiv 2203.05482); Shi et al. 2025, section 4.3.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import Olmo2ForCausalLM

from moiety.baselines.scoring import score, tokens_of

State = Mapping[str, Tensor]


def soup(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of state dicts of one shape, in the first one's precision.

    Summed in float64, so that a soup of copies is the copy, bit for bit.

    Raises:
        ValueError: not one weight a state, or weights that do not add up to one.
    """
    if len(weights) != len(states) or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"{len(states)} states, and weights {list(weights)}")
    total = sum(weights)
    mixed: dict[str, Tensor] = {}
    for name, first in states[0].items():
        sums = first.double() * weights[0]
        for state, weight in zip(states[1:], weights[1:], strict=True):
            sums += state[name].double() * weight
        mixed[name] = (sums / total).to(first.dtype)
    return mixed


def score_soups(
    models: Sequence[Olmo2ForCausalLM], weights_BM: npt.NDArray[np.float64], windows: Any
) -> npt.NDArray[np.float32]:
    """Nats of windows, ``[B, T]``, each under a soup of its own: ``weights_BM[b]`` of the models.

    Costs as many soups as there are windows, so it is for small models.
    """
    states = [model.state_dict() for model in models]
    mixed = copy.deepcopy(models[0])
    parts = []
    for tokens_T, weights_M in zip(tokens_of(windows), weights_BM, strict=True):
        mixed.load_state_dict(soup(states, [float(weight) for weight in weights_M]))
        parts.append(score(mixed, tokens_T[None]))
    return np.concatenate(parts)
