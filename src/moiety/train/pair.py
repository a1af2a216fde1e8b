"""The anchored pair: the anchor's block beside a trainable one, and the rows that choose.

Legend: B window, T position, D width, F hidden, R rank.

In every layer both blocks run on every token and are mixed by the two-way softmax of
``[0, evidence]``, which is a sigmoid. Shapes are static, nothing is dropped, and no window touches
another. Rows are trained as the log-ratio "mine against public" by a cross-entropy of their own,
beside the language-model loss of the windows that they route; because the anchor's row is zero for
everybody, ratios of owners who never met can be compared.

Most windows are routed by the context rows, with which our loader runs a release, and some by the
token rows, with which everybody else does: an expert must know how to work under both.

Rows are learned in whitened coordinates. When the expert stands still a fitted row is added to each
(``moiety.train.rows``).

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
from moiety.model import Borders, running_mean
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

    ``borders`` None: every window is one document. ``by_token_B``: which windows the token rows
    route; None: none. While ``alone`` is set only the anchor's block runs.
    """

    borders: Borders | None = None
    by_token_B: Tensor | None = None
    alone: bool = False


class PairLayer(nn.Module):
    """Stands in for a decoder layer's ``mlp`` while an expert is trained.

    After a forward pass ``context_BT`` and ``token_BT`` hold the logits of the two rows, for the
    rows' own loss. The row's own loss does not reach the hidden states: it trains rows only.

    ``context_row`` [D + 1] and ``token_row`` [D] are in whitened coordinates; the last number of
    the context row is its bias.
    """

    added_context: Tensor
    added_token: Tensor

    def __init__(
        self,
        anchor: nn.Module,
        expert: FullExpert | LowRankExpert,
        context: Whitening,
        token: Whitening,
        routing: PairRouting,
    ) -> None:
        super().__init__()
        self.routing = routing
        self.anchor = anchor
        self.expert = expert
        self.context_whitening, self.token_whitening = context, token
        width = context.centre_D.shape[0]
        self.context_row = nn.Parameter(torch.zeros(width + 1))
        self.token_row = nn.Parameter(torch.zeros(width))
        self.register_buffer("added_context", torch.zeros(width + 1), persistent=False)
        self.register_buffer("added_token", torch.zeros(width), persistent=False)
        self.context_BT = self.token_BT = torch.empty(0)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """The pair's mixed output, ``[B, T, D]``."""
        hidden = hidden_BTD.float()
        seen = hidden.detach()
        # A whitened row is a small difference of large products: bf16 would lose it.
        with torch.autocast(hidden.device.type, enabled=False):
            context, token = self.folded_context_row(), self.folded_token_row()
            self.context_BT, self.token_BT = self._evidence(seen, context), seen @ token
            logits_BT = self._evidence(hidden, context)
            if self.routing.by_token_B is not None:
                by_token_B1 = self.routing.by_token_B[:, None]
                logits_BT = torch.where(by_token_B1, hidden @ token, logits_BT)
            share_BT = logits_BT.sigmoid()
        if self.routing.alone:
            public_alone_BTD: Tensor = self.anchor(hidden_BTD)
            return public_alone_BTD
        public_BTD, own_BTD = self.expert(hidden_BTD, self.anchor)
        mixed_BTD: Tensor = public_BTD + share_BT[:, :, None].to(own_BTD.dtype) * (
            own_BTD - public_BTD
        )
        return mixed_BTD

    def _evidence(self, hidden_BTD: Tensor, row: Tensor) -> Tensor:
        # The bias is added to each score, not to their mean: they sum up to less, so more exactly.
        scores_BT = hidden_BTD @ row[:-1] + row[-1]
        return running_mean(scores_BT[:, :, None], self.routing.borders)[:, :, 0]

    def folded_context_row(self) -> Tensor:
        """The context row for raw states, its bias last, ``[D + 1]``."""
        return self.context_whitening.fold(self.context_row) + self.added_context

    def folded_token_row(self) -> Tensor:
        """The token row for raw states, ``[D]``."""
        return self.token_whitening.fold(self.token_row) + self.added_token

    def add_rows(self, context: Tensor, token: Tensor) -> None:
        """Adds to the rows for raw states: ``context`` [D + 1], its bias last, ``token`` [D]."""
        self.added_context += context.to(self.added_context)
        self.added_token += token.to(self.added_token)


class Pair:
    """A dense model whose feed-forward blocks have been replaced by pairs, in every layer.

    ``states`` are the anchor's on public text: ``layers.N.context`` and ``layers.N.token``, each
    ``[N, D]``.
    """

    def __init__(
        self,
        backbone: Olmo2ForCausalLM,
        states: Mapping[str, Tensor],
        *,
        rank: int | None,
        seed: int,
    ) -> None:
        self.backbone = backbone.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        self.routing = PairRouting()
        self.layers: list[PairLayer] = []
        for number, layer in enumerate(backbone.model.layers):
            expert: FullExpert | LowRankExpert = (
                FullExpert(layer.mlp) if rank is None else LowRankExpert(layer.mlp, rank, generator)
            )
            context = Whitening(states[f"layers.{number}.context"], centred=True)
            token = Whitening(states[f"layers.{number}.token"], centred=False)
            pair = PairLayer(layer.mlp, expert, context, token, self.routing)
            pair.to(backbone.device)
            layer.mlp = pair
            self.layers.append(pair)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Every tensor that may change, by name; all of them float32."""
        named = self.backbone.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def expect(self, documents_BT: Tensor, by_token_B: Tensor | None = None) -> None:
        """What the windows of the coming passes hold, and which of them the token rows route.

        ``documents_BT`` is the document of each position, -1 for padding.
        """
        self.routing.borders = Borders.from_documents(documents_BT)
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
        """Binary cross-entropy of both rows of all layers: own text 1, public text 0.

        Shapes: ``own_B``; ``balance_BT`` is the weight of each position. The mean is over layers
        and rows.
        """
        logits_LBT = torch.stack([row for pair in self.layers for row in _rows(pair)])
        loss_LBT = functional.binary_cross_entropy_with_logits(
            logits_LBT, own_B[:, None].expand_as(logits_LBT), reduction="none"
        )
        return (loss_LBT * balance_BT).sum() / logits_LBT.shape[0]

    def expert_tensors(self) -> dict[str, Tensor]:
        """What a bundle ships: float32, on the CPU; the whitening is in the rows."""
        shipped: dict[str, Tensor] = {}
        for number, pair in enumerate(self.layers):
            shipped.update(pair.expert.tensors(number))
            shipped[family.context_row(number)] = pair.folded_context_row()
            shipped[family.token_row(number)] = pair.folded_token_row()
        return {
            name: tensor.detach().float().cpu().contiguous() for name, tensor in shipped.items()
        }


def _rows(pair: PairLayer) -> tuple[Tensor, Tensor]:
    return pair.context_BT, pair.token_BT
