"""The mixture as the papers' words say, one position at a time: slow, and hard to get wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from moiety.model import load_dense


class NaiveMixture(nn.Module):
    """One layer's mixture, one position at a time, straight from the owners' bundles."""

    def __init__(self, world, layer, top_k, tokens, documents):
        super().__init__()
        self.names = ["anchor", *sorted(world.bundles)]
        self.tables = [world.table(name) for name in self.names]
        self.matrices = [world.matrices(name) for name in self.names]
        self.layer, self.top_k = layer, top_k
        self.tokens, self.documents = tokens.tolist(), documents

    def expert(self, number: int, h: Tensor) -> Tensor:
        gate, up, down = (
            self.matrices[number][self.layer, m] for m in ("gate_proj", "up_proj", "down_proj")
        )
        return down @ (functional.silu(gate @ h) * (up @ h))

    def logit(self, number: int, request: int, at: int) -> Tensor:
        document = self.documents[request][at]
        begin = at
        while begin > 0 and self.documents[request][begin - 1] == document:
            begin -= 1
        said = [self.tables[number][self.tokens[request][place]] for place in range(begin, at + 1)]
        return torch.stack(said).sum() * 16 / (len(said) + 16)

    def forward(self, hidden: Tensor) -> Tensor:
        out = torch.zeros_like(hidden)
        for request, states in enumerate(hidden):
            for at, h in enumerate(states):
                logits = [self.logit(n, request, at) for n in range(len(self.names))]
                shares = torch.stack(logits).softmax(dim=0).tolist()
                order = sorted(range(len(shares)), key=lambda n: -shares[n])
                for number in order[: self.top_k]:
                    out[request, at] += shares[number] * self.expert(number, h)
        return out


def naive_logits(world, tokens, documents, top_k):
    """The anchor with such mixtures in place of its feed-forward blocks, all owners in them."""
    backbone = load_dense(world.anchor)
    for number, layer in enumerate(backbone.model.layers):
        layer.mlp = NaiveMixture(world, number, top_k or 99, tokens, documents)
    with torch.inference_mode():
        return backbone(input_ids=tokens, use_cache=False).logits
