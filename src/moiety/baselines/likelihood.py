"""What follows from several models' likelihoods of the same windows, without running anything.

Legend: M model, B window, T target position.

``nats_MBT`` are the nats of each target under each model, float64. ``counted_BT`` says which
targets are text of the window's document; the others carry no evidence, and the caller leaves their
results out. Every window is one input: nothing is known of its source before its first token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Nats = npt.NDArray[np.float64]
Counted = npt.NDArray[np.bool_]

PROMPT_TOKENS = 32


def branch_train_merge(nats_MBT: Nats, counted_BT: Counted, *, top: int | None = None) -> Nats:
    """Nats of each target under the mixture of all models, weighted by the text before it.

    A model's weight at a position is its posterior given the targets before, from a uniform prior:
    in proportion to the likelihood it gave them. ``top`` keeps that many of the largest weights,
    scaled to add up to one; None keeps all. Of equal weights the model that comes first is kept.

    Shapes: returns ``[B, T]``.

    Source: Li et al. 2022 (BTM, arXiv 2208.03306), section 2: domain posterior by Bayes' rule, the
    prior uniform. Shi et al. 2025, A.1, take the softmax of the whole test input's likelihood,
    which for generated text nobody knows beforehand.
    """
    told_MBT = np.where(counted_BT, nats_MBT, 0.0)
    logs_MBT = np.zeros_like(told_MBT)
    logs_MBT[..., 1:] = -told_MBT.cumsum(axis=2)[..., :-1]
    if top is not None and top < len(nats_MBT):
        order_MBT = np.argsort(-logs_MBT, axis=0, kind="stable")
        dropped_MBT = order_MBT[top:]
        np.put_along_axis(logs_MBT, dropped_MBT, -np.inf, axis=0)
    total_BT = np.logaddexp.reduce(logs_MBT, axis=0)
    mixed: Nats = total_BT - np.logaddexp.reduce(logs_MBT - nats_MBT, axis=0)
    return mixed


def route_by_prompt(
    nats_MBT: Nats, counted_BT: Counted, *, prompt_tokens: int = PROMPT_TOKENS
) -> Nats:
    """Nats when one model is chosen a window: the one to which the prompt is likeliest.

    The prompt itself, the first ``prompt_tokens`` targets, is scored by model 0, the anchor: before
    it has been read there is nothing to choose by. Of equal models the first is taken.

    Shapes: returns ``[B, T]``.

    Source: Shi et al. 2025, section 4.3, prompt routing; there a large language model chooses.
    """
    chosen_B = prompt_nats(nats_MBT, counted_BT, prompt_tokens).argmin(axis=0)
    routed_BT: Nats = nats_MBT[chosen_B, np.arange(len(chosen_B))]
    routed_BT[:, :prompt_tokens] = nats_MBT[0, :, :prompt_tokens]
    return routed_BT


def likelihood_weights(
    nats_MBT: Nats, counted_BT: Counted, *, prompt_tokens: int = PROMPT_TOKENS
) -> Nats:
    """Weights of a soup of each window's own: the softmax of the prompt's log-likelihoods.

    Shapes: returns ``[B, M]``; each row adds up to one.

    Source: Shi et al. 2025, A.1, weighted soup, where the whole test input is the prompt.
    """
    logs_BM = -prompt_nats(nats_MBT, counted_BT, prompt_tokens).T
    weights: Nats = np.exp(logs_BM - np.logaddexp.reduce(logs_BM, axis=1)[:, None])
    return weights


def prompt_nats(nats_MBT: Nats, counted_BT: Counted, prompt_tokens: int) -> Nats:
    """What the prompt costs under each model, ``[M, B]``."""
    told_MBT: Any = np.where(counted_BT, nats_MBT, 0.0)
    total: Nats = told_MBT[..., :prompt_tokens].sum(axis=2)
    return total
