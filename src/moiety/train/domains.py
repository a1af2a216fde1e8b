"""Where the rows of the paper's recipe begin: at a text's mean state, or at random numbers.

Legend: L layer, B window, T position, P part of a document in one window, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import Olmo2ForCausalLM

from moiety.data import PackedText
from moiety.files import canonical_json, digest_bytes
from moiety.train.judge import evaluating

DOMAIN_WINDOWS = 256
"""Windows of a text that its embedding is the mean of; the paper takes 1,000 documents."""

_FIRST = 8
"""Positions at a window's beginning that are left out: models park attention there, and one such
state can be many times longer than all others."""

_BATCH_TOKENS = 4096

ROWS_FILE = "rows.safetensors"


@dataclass(frozen=True)
class Rows:
    """An owner's rows, the public rows they were trained against, and the owner's biases.

    Shapes: [L, D], [L, D], [L]; float32, on the CPU.
    """

    own_LD: Tensor
    public_LD: Tensor
    bias_L: Tensor

    def save(self, folder: Path) -> None:
        """Writes ``folder/rows.safetensors``."""
        tensors = {"own": self.own_LD, "public": self.public_LD, "bias": self.bias_L}
        save_file(tensors, folder / ROWS_FILE)

    @classmethod
    def load(cls, folder: Path) -> Rows:
        """Reads them again."""
        held = load_file(folder / ROWS_FILE)
        return cls(held["own"], held["public"], held["bias"])


def domain_rows(anchor: Olmo2ForCausalLM, text: PackedText) -> Tensor:
    """What each layer's block reads of a text on average, ``[L, D]``, float32 on the CPU.

    The states of a document (of its part in one window) are averaged and brought to length one,
    then averaged over documents: as the paper makes rows of an embedder's vectors, whose length is
    one. So a row's length says how alike the documents are, not how large the model's states are.

    Source: Shi et al. 2025, section 3.3.2 and appendix A.2; states of the public model instead of
    GritLM-7B's embeddings as in their table 3, where it gives 43.5 instead of 46.7.
    """
    chosen = np.random.default_rng(0).permutation(text.num_windows)[:DOMAIN_WINDOWS]
    size = max(1, _BATCH_TOKENS // text.window_tokens)
    layers = anchor.model.layers
    total_LD = torch.zeros(len(layers), anchor.config.hidden_size)
    parts = 0
    with evaluating(anchor):
        for at in range(0, len(chosen), size):
            batch = text.windows(chosen[at : at + size])
            states = _states(anchor, torch.from_numpy(batch.tokens[:, :-1].copy()))
            part_BT = torch.from_numpy(_parts(batch.documents[:, :-1]))
            parts += int(part_BT.max()) + 1
            for layer, hidden_BTD in enumerate(states):
                total_LD[layer] += _unit_means(hidden_BTD, part_BT).sum(dim=0).cpu()
    return (total_LD / max(1, parts)).clone()


def random_rows(anchor: Olmo2ForCausalLM, *, name: str, seed: int) -> Tensor:
    """Rows as an untrained router has them, ``[L, D]``: normal, as wide as the anchor's own start.

    ``name`` and ``seed`` decide them: owners who never met have different ones.
    """
    config: Any = anchor.config
    start = int(digest_bytes(canonical_json([name, seed]))[:15], 16)
    generator = torch.Generator().manual_seed(start)
    shape = config.num_hidden_layers, config.hidden_size
    rows_LD: Tensor = config.initializer_range * torch.randn(shape, generator=generator)
    return rows_LD


def _states(anchor: Olmo2ForCausalLM, tokens_BT: Tensor) -> list[Tensor]:
    """What enters each layer's block, ``[B, T, D]`` each."""
    seen: list[Tensor] = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].float()))
        for layer in anchor.model.layers
    ]
    try:
        anchor.model(input_ids=tokens_BT.to(anchor.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _parts(documents_BT: Any) -> Any:
    """The number of the part each position belongs to, from zero; -1 where it counts for none."""
    windows_BT = np.arange(len(documents_BT))[:, None]
    names_BT = documents_BT + windows_BT * (int(documents_BT.max()) + 1)
    counted_BT = documents_BT >= 0
    counted_BT[:, : min(_FIRST, documents_BT.shape[1] - 1)] = False
    part_BT = np.full(documents_BT.shape, -1, dtype=np.int64)
    part_BT[counted_BT] = np.unique(names_BT[counted_BT], return_inverse=True)[1]
    return part_BT


def _unit_means(hidden_BTD: Tensor, part_BT: Tensor) -> Tensor:
    """The mean state of each part, of length one, ``[P, D]``."""
    part_BT = part_BT.to(hidden_BTD.device)
    counted_BT = part_BT >= 0
    sums_PD = hidden_BTD.new_zeros(int(part_BT.max()) + 1, hidden_BTD.shape[-1])
    sums_PD.index_add_(0, part_BT[counted_BT], hidden_BTD[counted_BT])
    return functional.normalize(sums_PD, dim=1)
