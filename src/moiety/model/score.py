"""How well a model predicts text, in nats a token, never holding all logits at once.

Legend: B window, T target position, N token, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Olmo2ForCausalLM

CHUNK_TOKENS = 1024
"""Logits of this many tokens exist at once: 1,024 x 100,352 float32 are 411 MB."""


def hidden_states(
    backbone: Olmo2ForCausalLM, inputs_BT: Tensor, decoder: Callable[..., Any] | None = None
) -> Tensor:
    """The last hidden state of every position, after the final norm, ``[B, T, D]``."""
    # Not `or`: a compiled module has no truth value.
    run = backbone.model if decoder is None else decoder
    output: Any = run(input_ids=inputs_BT, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden


def token_nats(backbone: Olmo2ForCausalLM, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each target, float32 ``[B, T]``. No gradient."""
    with torch.inference_mode():
        hidden_ND = hidden_states(backbone, inputs_BT).flatten(0, 1)
        targets_N = targets_BT.reshape(-1)
        parts = [
            functional.cross_entropy(
                backbone.lm_head(hidden_ND[at : at + CHUNK_TOKENS]).float(),
                targets_N[at : at + CHUNK_TOKENS],
                reduction="none",
            )
            for at in range(0, targets_N.shape[0], CHUNK_TOKENS)
        ]
        return torch.cat(parts).reshape(targets_BT.shape)


def training_loss(
    backbone: Olmo2ForCausalLM,
    inputs_BT: Tensor,
    targets_BT: Tensor,
    decoder: Callable[..., Any] | None = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Mean or summed cross-entropy over the targets that are not -100, with a gradient.

    ``decoder`` is the backbone's decoder as the trainer wants it run (compiled, say).

    torch's chunked linear cross-entropy computes the logits piece by piece and forms the gradient
    in the same sweep, so neither the logits nor their gradient ever exist whole.
    """
    hidden_ND = hidden_states(backbone, inputs_BT, decoder).flatten(0, 1)
    weight_VD = backbone.lm_head.weight
    return functional.linear_cross_entropy(
        hidden_ND,
        weight_VD.to(hidden_ND.dtype),
        targets_BT.reshape(-1),
        reduction=reduction,
        options=torch.nn.LinearCrossEntropyOptions(),
    )
