"""The anchored pair: the anchor's block beside a trainable one, and what chooses between them.

Legend: B window, T position, D width, F hidden, R rank, V vocabulary.

In every layer both blocks run on every token and are mixed by the two-way softmax of
``[0, logit]``, which is a sigmoid. Shapes are static, nothing is dropped, and no window touches
another. Logits are log-ratios "mine against public"; because the anchor's is zero for everybody,
ratios of owners who never met can be compared. They come from a table of the owner's, counted
before training begins (``moiety.train.table``): one decision for all layers, with which a release
is run too.

Source: the pair is Shi et al. 2025, section 3.3.1; the density ratio and the evidence are ours
(docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Olmo2ForCausalLM

from moiety import family
from moiety.model import Borders, evidence

Product = Callable[[Tensor, Tensor], Tensor]
"""How what is fed is multiplied by a trained matrix; private training puts its tape here."""


class FullExpert(nn.Module):
    """A trainable copy of the anchor's block, in float32."""

    gate_proj: Tensor
    up_proj: Tensor
    down_proj: Tensor

    def __init__(self, anchor: nn.Module) -> None:
        super().__init__()
        self.product: Product = functional.linear
        for name in family.MATRICES:
            start = getattr(anchor, name).weight.detach().float().clone()
            self.register_parameter(name, nn.Parameter(start))

    def forward(self, hidden_BTD: Tensor, anchor: nn.Module) -> tuple[Tensor, Tensor]:
        """Outputs of the anchor's block and of this one, each ``[B, T, D]``."""
        gate_BTF = self.product(hidden_BTD, self.gate_proj)
        up_BTF = self.product(hidden_BTD, self.up_proj)
        own_BTD = self.product(functional.silu(gate_BTF) * up_BTF, self.down_proj)
        return anchor(hidden_BTD), own_BTD

    def tensors(self, layer: int) -> Iterator[tuple[str, Tensor]]:
        """What is shipped of it, by bundle name."""
        for name in family.MATRICES:
            yield family.weight(layer, name), getattr(self, name)


class LowRankExpert(nn.Module):
    """A trainable low-rank delta in each of the anchor's three matrices.

    The anchor's products with the input are computed once and serve both blocks.
    """

    def __init__(self, anchor: nn.Module, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.product: Product = functional.linear
        for name in family.MATRICES:
            rows, columns = getattr(anchor, name).weight.shape
            spread = torch.randn(rank, columns, generator=generator) / columns**0.5
            self.register_parameter(f"{name}_in", nn.Parameter(spread))
            # Zero: the expert begins as the anchor, whatever the other factor is.
            self.register_parameter(f"{name}_out", nn.Parameter(torch.zeros(rows, rank)))

    def forward(self, hidden_BTD: Tensor, anchor: nn.Module) -> tuple[Tensor, Tensor]:
        """Outputs of the anchor's block and of this one, each ``[B, T, D]``."""
        gate_BTF, up_BTF = anchor.gate_proj(hidden_BTD), anchor.up_proj(hidden_BTD)  # type: ignore[operator]
        public_BTF = functional.silu(gate_BTF) * up_BTF
        own_BTF = functional.silu(gate_BTF + self._delta("gate_proj", hidden_BTD))
        own_BTF = own_BTF * (up_BTF + self._delta("up_proj", hidden_BTD))
        down = anchor.down_proj
        own_BTD = down(own_BTF) + self._delta("down_proj", own_BTF)  # type: ignore[operator]
        return down(public_BTF), own_BTD  # type: ignore[operator]

    def _delta(self, name: str, x: Tensor) -> Tensor:
        inner = self.product(x, getattr(self, f"{name}_in"))
        return self.product(inner, getattr(self, f"{name}_out"))

    def tensors(self, layer: int) -> Iterator[tuple[str, Tensor]]:
        """What is shipped of it, by bundle name."""
        for name in family.MATRICES:
            yield family.delta_in(layer, name), getattr(self, f"{name}_in")
            yield family.delta_out(layer, name), getattr(self, f"{name}_out")


@dataclass
class PairRouting:
    """How the pair routes until it is told otherwise. One object, shared by its layers.

    ``share_BT1`` is the weight of the owner's block, float32; the rest is the anchor's.
    """

    share_BT1: Tensor | None = None


class PairLayer(nn.Module):
    """Stands in for a decoder layer's ``mlp`` while an expert is trained."""

    def __init__(
        self, anchor: nn.Module, expert: FullExpert | LowRankExpert, routing: PairRouting
    ) -> None:
        super().__init__()
        self.routing = routing
        self.anchor = anchor
        self.expert = expert

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """The pair's mixed output, ``[B, T, D]``."""
        share_BT1 = self.routing.share_BT1
        assert share_BT1 is not None, "the pair was not told what to expect"
        public_BTD, own_BTD = self.expert(hidden_BTD, self.anchor)
        mixed_BTD: Tensor = public_BTD + share_BT1.to(own_BTD.dtype) * (own_BTD - public_BTD)
        return mixed_BTD


class Pair:
    """A dense model whose feed-forward blocks have been replaced by pairs, in every layer.

    ``table`` [V] is the owner's evidence.
    """

    def __init__(
        self, backbone: Olmo2ForCausalLM, table: Tensor, *, rank: int | None, seed: int
    ) -> None:
        self.backbone = backbone.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        self.table_V = table.to(backbone.device)
        self.routing = PairRouting()
        self.layers: list[PairLayer] = []
        for layer in backbone.model.layers:
            expert: FullExpert | LowRankExpert = (
                FullExpert(layer.mlp) if rank is None else LowRankExpert(layer.mlp, rank, generator)
            )
            pair = PairLayer(layer.mlp, expert, self.routing).to(backbone.device)
            layer.mlp = pair
            self.layers.append(pair)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Every tensor that may change, by name; all of them float32."""
        named = self.backbone.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def multiply_by(self, product: Product) -> None:
        """How trained matrices are multiplied from now on."""
        for layer in self.layers:
            layer.expert.product = product

    def expect(self, tokens_BT: Tensor, documents_BT: Tensor, even_B: Tensor | None = None) -> None:
        """What the windows of the coming passes hold.

        ``documents_BT`` is the document of each position, -1 for padding. Where ``even_B`` is true
        both blocks weigh the same, whatever the evidence says.
        """
        borders = Borders.from_documents(documents_BT)
        scores_BT1 = self.table_V[tokens_BT][:, :, None]
        share_BT1 = evidence(scores_BT1, borders).sigmoid()
        if even_B is not None:
            share_BT1 = share_BT1.masked_fill(even_B[:, None, None], 0.5)
        self.routing.share_BT1 = share_BT1

    def expert_tensors(self) -> dict[str, Tensor]:
        """What a bundle ships: float32, on the CPU."""
        shipped: dict[str, Tensor] = {family.EVIDENCE: self.table_V}
        for number, pair in enumerate(self.layers):
            shipped.update(pair.expert.tensors(number))
        return {
            name: tensor.detach().float().cpu().contiguous() for name, tensor in shipped.items()
        }
