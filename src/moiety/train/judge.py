"""Bits per byte of a backbone, dense or paired, on held-out documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Olmo2ForCausalLM

from moiety.data import DocumentNats, PackedText
from moiety.model import token_nats


def judge_backbone(
    backbone: Olmo2ForCausalLM,
    text: PackedText,
    max_tokens: int,
    *,
    before: Callable[[Tensor, Tensor], object] | None = None,
    precision: AbstractContextManager[Any] | None = None,
) -> DocumentNats:
    """Nats of a fair sample of ``text``'s documents, of at most ``max_tokens`` tokens.

    ``before`` is told tokens and documents of each batch of windows, both ``[B, T]``.
    """
    device = backbone.device

    def score(windows: Any) -> np.ndarray[Any, Any]:
        tokens_BT = torch.from_numpy(windows.tokens).to(device)
        if before is not None:
            before(tokens_BT[:, :-1], torch.from_numpy(windows.documents[:, :-1]).to(device))
        nats_BT = token_nats(backbone, tokens_BT[:, :-1], tokens_BT[:, 1:])
        return nats_BT.float().cpu().numpy()

    with evaluating(backbone), precision or nullcontext():
        return text.judge(score, max_tokens=max_tokens)


@contextmanager
def evaluating(backbone: Olmo2ForCausalLM) -> Iterator[None]:
    """The backbone as it is used, not trained, until the block ends."""
    training = backbone.training
    backbone.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        backbone.train(training)
