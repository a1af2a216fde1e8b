"""Any of the models on the same windows.

Legend: B window, T target position.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import FlexOlmoForCausalLM, PreTrainedModel

from moiety.errors import FormatError
from moiety.model import token_nats

BATCH_WINDOWS = 16


def score(model: PreTrainedModel, windows: Any) -> npt.NDArray[np.float32]:
    """Nats of every target of the windows, ``[B, T]``; float32.

    ``model`` is a dense one, a stock mixture or one of ``merge_recipe``; ``windows`` come from a
    packed text, or are their tokens, ``[B, T + 1]``.
    """
    tokens_BT = torch.from_numpy(tokens_of(windows))
    parts = []
    for at in range(0, len(tokens_BT), BATCH_WINDOWS):
        now_BT = tokens_BT[at : at + BATCH_WINDOWS].to(model.device)
        nats_BT = token_nats(model, now_BT[:, :-1], now_BT[:, 1:])
        parts.append(nats_BT.float().cpu().numpy())
    return np.concatenate(parts)


def tokens_of(windows: Any) -> npt.NDArray[np.int64]:
    """Windows of a packed text as tokens, ``[B, T + 1]``; tokens as they are."""
    tokens: npt.NDArray[np.int64] = getattr(windows, "tokens", windows)
    return tokens


def load_joint(folder: Path, device: str = "cpu") -> FlexOlmoForCausalLM:
    """A stock mixture in evaluation mode, with every tensor from the checkpoint.

    Raises:
        FormatError: not all of it is there, or it is no such checkpoint.
    """
    try:
        model, report = FlexOlmoForCausalLM.from_pretrained(
            folder,
            dtype="auto",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise FormatError(f"cannot be loaded: {str(error)[:200]}", where=folder) from error
    if report["missing_keys"]:
        raise FormatError(f"{len(report['missing_keys'])} tensors are missing", where=folder)
    loaded: FlexOlmoForCausalLM = model.to(device).eval()
    return loaded
