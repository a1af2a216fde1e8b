"""The backbone and its experts, run on tokens of many requests laid end to end.

Legend: N token of a pass, M token of an expert that runs on some, D width, V vocabulary, S slot,
H head, W width of a head, C position.

What ``transformers`` computes with a mixture in its layers, without its batch: rows of different
lengths need no padding, and a step of all requests is one product with each matrix. The law that
binds it is equality with ``Mixture.generate``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.olmo2.modeling_olmo2 import Olmo2MLP

from moiety.errors import ConfigError, StateError
from moiety.model import Mixture
from moiety.serve.packed import FeedForward, LowRankFeedForward, Packed, own
from moiety.serve.places import Attention

Expert = FeedForward | LowRankFeedForward

CHANGING_ROTATIONS = frozenset({"dynamic", "longrope"})
"""Kinds of rotary positions whose frequencies follow the length of the text at hand."""


@dataclass(frozen=True)
class Shares:
    """Which experts run on which tokens of a pass, and with what weight.

    ``whole`` are the slots that run on all tokens, with their weights. ``some`` are the slots that
    run on ``counts`` of them: on ``row_M`` with ``weight_M1``, slot after slot.
    """

    whole: list[tuple[int, Tensor]]
    some: list[int]
    counts: list[int]
    row_M: Tensor
    weight_M1: Tensor


class Decoder:
    """A mixture's weights, moved here: the mixture is of no use afterwards.

    One copy stays in memory, our own, and a removed expert's is really gone.

    Raises:
        ConfigError: positions that are not the same in a long text and in a short one.
    """

    def __init__(self, mixture: Mixture, positions: int) -> None:
        backbone = mixture.backbone
        kind = backbone.config.rope_parameters["rope_type"]
        if kind in CHANGING_ROTATIONS:
            raise ConfigError(
                f"rotary positions of the kind {kind} change with a text's length, and requests "
                "of many lengths share a step here",
                remedy="serve a plain checkpoint with another server: moiety export --help",
            )
        self._embedding_VD = own(backbone.model.embed_tokens.weight)
        self._head = Packed(backbone.lm_head.weight)
        self._norm = _Norm(backbone.model.norm)
        places = torch.arange(positions, device=backbone.device)[None]
        cos_1CW, sin_1CW = backbone.model.rotary_emb(self._embedding_VD, places)
        self._cos_C1W, self._sin_C1W = cos_1CW[0, :, None], _signed(sin_1CW[0, :, None])
        layers = list(backbone.model.layers)
        del backbone.model.layers
        self._blocks = []
        while layers:
            self._blocks.append(_Block(layers.pop(0)))

    def run(self, tokens_N: Tensor, weights_NS: Tensor, attention: Attention) -> Tensor:
        """The last hidden state of every token, after the final norm, ``[N, D]``."""
        shares = shares_of(weights_NS.to(self._embedding_VD.dtype))
        position_N = attention.position_N
        turn = self._cos_C1W[position_N], self._sin_C1W[position_N]
        hidden_ND = functional.embedding(tokens_N, self._embedding_VD)
        for number, block in enumerate(self._blocks):
            hidden_ND = block.attended(hidden_ND, number, turn, attention)
            hidden_ND = block.mixed(hidden_ND, shares)
        return self._norm(hidden_ND)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """What comes next, in float32, ``[N, V]``."""
        return self._head(hidden_ND).float()

    def remove(self, slot: int) -> None:
        """Clears an expert's weights; a pass that still wanted it would raise ``StateError``."""
        for block in self._blocks:
            expert, block.experts[slot] = block.experts[slot], None
            if expert is not None:
                expert.clear()


def shares_of(weights_NS: Tensor) -> Shares:
    """Who runs on which tokens: an expert without weight on a token never sees it."""
    counts = (weights_NS != 0).sum(dim=0).tolist()
    whole = [slot for slot, count in enumerate(counts) if count == len(weights_NS)]
    some = [slot for slot, count in enumerate(counts) if 0 < count < len(weights_NS)]
    weights_SN = weights_NS[:, some].T
    slot_M, row_M = weights_SN.nonzero(as_tuple=True)
    return Shares(
        [(slot, weights_NS[:, slot : slot + 1]) for slot in whole],
        some,
        [counts[slot] for slot in some],
        row_M,
        weights_SN[slot_M, row_M][:, None],
    )


class _Block:
    def __init__(self, layer: Any) -> None:
        attention = layer.self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self._head_width = attention.head_dim
        self._widths = [linear.out_features for linear in projections]
        self._qkv = Packed(torch.cat([linear.weight for linear in projections]))
        self._out = Packed(attention.o_proj.weight)
        self._norm_q, self._norm_k = _Norm(attention.q_norm), _Norm(attention.k_norm)
        self._norm_attended = _Norm(layer.post_attention_layernorm)
        self._norm_mixed = _Norm(layer.post_feedforward_layernorm)
        anchor = FeedForward(layer.mlp.experts[0])
        others = list(layer.mlp.experts)[1:]
        self.experts: list[Expert | None] = [anchor]
        self.experts += [
            FeedForward(one) if isinstance(one, Olmo2MLP) else LowRankFeedForward(anchor, one)
            for one in others
        ]

    def attended(
        self, hidden_ND: Tensor, number: int, turn: tuple[Tensor, Tensor], attention: Attention
    ) -> Tensor:
        query, key, value = torch.split(self._qkv(hidden_ND), self._widths, dim=1)
        # One rotation for both: they differ only in which heads they are.
        both = torch.cat([self._norm_q(query), self._norm_k(key)], dim=1)
        both_NHW = _rotated(both.view(len(both), -1, self._head_width), *turn)
        heads = self._widths[0] // self._head_width
        value_NHW = value.reshape(len(value), -1, self._head_width)
        found = attention(number, both_NHW[:, :heads], both_NHW[:, heads:], value_NHW)
        return hidden_ND + self._norm_attended(self._out(found.flatten(1)))

    def mixed(self, hidden_ND: Tensor, shares: Shares) -> Tensor:
        mixed_ND = torch.zeros_like(hidden_ND)
        for slot, weight_N1 in shares.whole:
            mixed_ND.addcmul_(weight_N1, self._run(slot, hidden_ND))
        if shares.some:
            chosen = torch.split(hidden_ND.index_select(0, shares.row_M), shares.counts)
            pairs = zip(shares.some, chosen, strict=True)
            parts_MD = torch.cat([self._run(slot, part) for slot, part in pairs])
            mixed_ND.index_add_(0, shares.row_M, parts_MD.mul_(shares.weight_M1))
        return hidden_ND + self._norm_mixed(mixed_ND)

    def _run(self, slot: int, hidden_ND: Tensor) -> Tensor:
        expert = self.experts[slot]
        if expert is None:
            raise StateError(f"the expert in slot {slot} was removed")
        return expert(hidden_ND)


class _Norm:
    def __init__(self, norm: Any) -> None:
        self._weight, self._epsilon = own(norm.weight), norm.variance_epsilon

    def __call__(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self._weight.shape, self._weight, self._epsilon)


def _signed(sin: Tensor) -> Tensor:
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)


def _rotated(x_NHW: Tensor, cos_N1W: Tensor, signed_sin_N1W: Tensor) -> Tensor:
    wide_NHW = x_NHW.float()
    swapped_NHW = wide_NHW.roll(x_NHW.shape[-1] // 2, dims=-1)
    return torch.addcmul(wide_NHW * cos_N1W, swapped_NHW, signed_sin_N1W).to(x_NHW.dtype)
