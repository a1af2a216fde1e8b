"""The anchored pair: the anchor's block beside a trainable one, and what chooses between them.

Legend: B window, T position, D width, F hidden, R rank, V vocabulary.

In every layer both blocks run on every token and are mixed by the two-way softmax of
``[0, logit]``, which is a sigmoid. Shapes are static, nothing is dropped, and no window touches
another. Logits are log-ratios "mine against public"; because the anchor's is zero for everybody,
ratios of owners who never met can be compared.

Some windows are routed by evidence, with which our loader runs a release: a table of the owner's,
counted before training begins (``moiety.train.table``), decides for all layers at once. Others are
routed by the token rows, one a layer, with which everybody else does: an expert must know how to
work under both. Token rows are trained by the language-model loss of the windows that they route
and by a cross-entropy of their own, in whitened coordinates. When the expert stands still a fitted
row is added to each (``moiety.train.rows``).

Source: the pair is Shi et al. 2025, section 3.3.1; the density ratio and the evidence are ours
(docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Olmo2ForCausalLM

from moiety import family
from moiety.model import Borders, evidence
from moiety.train.whitening import Whitening


class FullExpert(nn.Module):
    """A trainable copy of the anchor's block, in float32."""

    gate_proj: Tensor
    up_proj: Tensor
    down_proj: Tensor

    def __init__(self, anchor: nn.Module) -> None:
        super().__init__()
        for name in family.MATRICES:
            start = getattr(anchor, name).weight.detach().float().clone()
            self.register_parameter(name, nn.Parameter(start))

    def forward(self, hidden_BTD: Tensor, anchor: nn.Module) -> tuple[Tensor, Tensor]:
        """Outputs of the anchor's block and of this one, each ``[B, T, D]``."""
        gate_BTF = functional.linear(hidden_BTD, self.gate_proj)
        up_BTF = functional.linear(hidden_BTD, self.up_proj)
        own_BTD = functional.linear(functional.silu(gate_BTF) * up_BTF, self.down_proj)
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
        inner = functional.linear(x, getattr(self, f"{name}_in"))
        return functional.linear(inner, getattr(self, f"{name}_out"))

    def tensors(self, layer: int) -> Iterator[tuple[str, Tensor]]:
        """What is shipped of it, by bundle name."""
        for name in family.MATRICES:
            yield family.delta_in(layer, name), getattr(self, f"{name}_in")
            yield family.delta_out(layer, name), getattr(self, f"{name}_out")


@dataclass
class PairRouting:
    """How the pair routes until it is told otherwise. One object, shared by its layers.

    ``evidence_BT``: logits of the owner's evidence. ``by_token_B``: which windows the token rows
    route instead; None: none. While ``alone`` is set only the anchor's block runs.
    """

    evidence_BT: Tensor | None = None
    by_token_B: Tensor | None = None
    alone: bool = False


class PairLayer(nn.Module):
    """Stands in for a decoder layer's ``mlp`` while an expert is trained.

    After a forward pass ``token_BT`` holds the logits of the token row, for the rows' own loss,
    which does not reach the hidden states: it trains rows only. ``token_row`` [D] is in whitened
    coordinates.
    """

    added_token: Tensor

    def __init__(
        self,
        anchor: nn.Module,
        expert: FullExpert | LowRankExpert,
        whitening: Whitening,
        routing: PairRouting,
    ) -> None:
        super().__init__()
        self.routing = routing
        self.anchor = anchor
        self.expert = expert
        self.whitening = whitening
        width = whitening.directions_DK.shape[0]
        self.token_row = nn.Parameter(torch.zeros(width))
        self.register_buffer("added_token", torch.zeros(width), persistent=False)
        self.token_BT = torch.empty(0)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """The pair's mixed output, ``[B, T, D]``."""
        hidden = hidden_BTD.float()
        # A whitened row is a small difference of large products: bf16 would lose it.
        with torch.autocast(hidden.device.type, enabled=False):
            token = self.folded_token_row()
            self.token_BT = hidden.detach() @ token
            share_BT = self._logits(hidden, token).sigmoid()
        if self.routing.alone:
            public_alone_BTD: Tensor = self.anchor(hidden_BTD)
            return public_alone_BTD
        public_BTD, own_BTD = self.expert(hidden_BTD, self.anchor)
        mixed_BTD: Tensor = public_BTD + share_BT[:, :, None].to(own_BTD.dtype) * (
            own_BTD - public_BTD
        )
        return mixed_BTD

    def _logits(self, hidden_BTD: Tensor, token: Tensor) -> Tensor:
        routing = self.routing
        assert routing.evidence_BT is not None, "the pair was not told what to expect"
        if routing.by_token_B is None:
            return routing.evidence_BT
        return torch.where(routing.by_token_B[:, None], hidden_BTD @ token, routing.evidence_BT)

    def folded_token_row(self) -> Tensor:
        """The token row for raw states, ``[D]``."""
        return self.whitening.fold(self.token_row) + self.added_token

    def add_row(self, token: Tensor) -> None:
        """Adds to the token row for raw states, ``[D]``."""
        self.added_token += token.to(self.added_token)


class Pair:
    """A dense model whose feed-forward blocks have been replaced by pairs, in every layer.

    ``table`` [V] is the owner's evidence; ``states`` are the anchor's on public text,
    ``layers.N.token``, each ``[N, D]``.
    """

    def __init__(
        self,
        backbone: Olmo2ForCausalLM,
        table: Tensor,
        states: Mapping[str, Tensor],
        *,
        rank: int | None,
        seed: int,
    ) -> None:
        self.backbone = backbone.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        self.table_V = table.to(backbone.device)
        self.routing = PairRouting()
        self.layers: list[PairLayer] = []
        for number, layer in enumerate(backbone.model.layers):
            expert: FullExpert | LowRankExpert = (
                FullExpert(layer.mlp) if rank is None else LowRankExpert(layer.mlp, rank, generator)
            )
            whitening = Whitening(states[f"layers.{number}.token"])
            pair = PairLayer(layer.mlp, expert, whitening, self.routing)
            pair.to(backbone.device)
            layer.mlp = pair
            self.layers.append(pair)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Every tensor that may change, by name; all of them float32."""
        named = self.backbone.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def expect(
        self, tokens_BT: Tensor, documents_BT: Tensor, by_token_B: Tensor | None = None
    ) -> None:
        """What the windows of the coming passes hold, and which of them the token rows route.

        ``documents_BT`` is the document of each position, -1 for padding.
        """
        borders = Borders.from_documents(documents_BT)
        scores_BT1 = self.table_V[tokens_BT][:, :, None]
        self.routing.evidence_BT = evidence(scores_BT1, borders)[:, :, 0]
        self.routing.by_token_B = by_token_B

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Until the block ends the anchor runs alone: its states, and the rows' logits on them."""
        self.routing.alone = True
        try:
            yield
        finally:
            self.routing.alone = False

    def row_loss(self, own_B: Tensor, balance_BT: Tensor) -> Tensor:
        """Binary cross-entropy of the token rows of all layers: own text 1, public text 0.

        Shapes: ``own_B``; ``balance_BT`` is the weight of each position. The mean is over layers.
        """
        logits_LBT = torch.stack([pair.token_BT for pair in self.layers])
        loss_LBT = functional.binary_cross_entropy_with_logits(
            logits_LBT, own_B[:, None].expand_as(logits_LBT), reduction="none"
        )
        return (loss_LBT * balance_BT).sum() / logits_LBT.shape[0]

    def expert_tensors(self) -> dict[str, Tensor]:
        """What a bundle ships: float32, on the CPU; the whitening is in the rows."""
        shipped: dict[str, Tensor] = {family.EVIDENCE: self.table_V}
        for number, pair in enumerate(self.layers):
            shipped.update(pair.expert.tensors(number))
            shipped[family.token_row(number)] = pair.folded_token_row()
        return {
            name: tensor.detach().float().cpu().contiguous() for name, tensor in shipped.items()
        }
