"""The mixture that stands where a decoder layer's feed-forward block stood.

Legend: B request, T position, N token (B x T), D width, V vocabulary, E expert allowed in this
pass, S slot of the roster.

Expert 0 is the anchor's own block. A mask acts on the logits, before softmax and top-k. Where the
whole batch shares a mask the allowed experts' evidence is *selected*, so that the arithmetic is
bitwise that of a model which never had the others; where masks differ inside a batch a forbidden
logit is minus infinity, and a forbidden expert is never run, whatever its weights hold.

The tokens' evidence decides once for all layers, before the first of them runs.

Source: Shi et al. 2025 (FlexOlmo), section 3.2; softmax over all experts, then top-k, the kept
weights not renormalised, as in transformers' ``FlexOlmoTopKRouter``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from moiety.errors import ConfigError
from moiety.model.evidence import Borders, EvidenceCache, Sums, continued_evidence, evidence

Witness = Callable[[Tensor], None]
"""Is told a pass's weights ``[B, T, E]`` over the slots in use, zero at padding."""


@dataclass
class Routing:
    """How a model routes now. One object, shared by all layers of one model.

    ``table_SV``: every expert's evidence, the anchor's zero. ``slots``: the experts the whole batch
    may use, ascending. ``mask_BS``: per request, over all slots, or None when requests do not
    differ. ``weights_BTE``: what the evidence decided in the forward pass that is under way.
    """

    top_k: int
    slots: tuple[int, ...]
    table_SV: Tensor
    mask_BS: Tensor | None = None
    borders: Borders | None = None
    weights_BTE: Tensor | None = None
    shares_S: Tensor | None = None
    witness: Witness | None = None

    def made_with(self) -> object:
        """What a cache depends on: the experts, and the masks of its rows."""
        mask = None if self.mask_BS is None else tuple(map(tuple, self.mask_BS.tolist()))
        return (self.top_k, self.slots, mask)

    @contextmanager
    def using(self, slots: tuple[int, ...], mask_BS: Tensor | None = None) -> Iterator[None]:
        """Routes with another set of experts until the block ends."""
        before = (self.slots, self.mask_BS)
        self.slots, self.mask_BS = slots, mask_BS
        try:
            yield
        finally:
            self.slots, self.mask_BS = before

    @contextmanager
    def documents(self, borders: Borders) -> Iterator[None]:
        """Resets evidence at the borders of packed windows until the block ends."""
        self.borders = borders
        try:
            yield
        finally:
            self.borders = None

    def choose(self, logits_BTE: Tensor) -> Tensor:
        """Logits of the allowed slots to their weights; those not among the top k are zero."""
        if self.mask_BS is not None:
            allowed_BE = self.mask_BS[:, list(self.slots)]
            logits_BTE = logits_BTE.masked_fill(~allowed_BE[:, None], -torch.inf)
        probs_BTE = logits_BTE.softmax(dim=-1)
        top_k = min(self.top_k, len(self.slots))
        if top_k == len(self.slots):
            return probs_BTE
        kept = probs_BTE.topk(top_k, dim=-1)
        return torch.zeros_like(probs_BTE).scatter(-1, kept.indices, kept.values)

    def follow(
        self, tokens_BT: Tensor, allowed_BS: Tensor, total_BS: Tensor, count_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of tokens that go on from earlier ones, for who keeps the state outside a cache.

        ``total_BS`` and ``count_B`` are the evidence so far and how many tokens gave it; zeros at
        the beginning of a text.

        Returns:
            weights ``[B, T, S]`` over all slots, zero where a row does not allow one; then the
            evidence and the count to go on with.
        """
        scores_BTS = self.table_SV[:, tokens_BT].permute(1, 2, 0)
        logits_BTS, sums = continued_evidence(scores_BTS, None, Sums(total_BS, count_B))
        with self.using(tuple(range(len(self.table_SV))), allowed_BS):
            return self.choose(logits_BTS), sums.total_BE, sums.count_B

    def observe(self, weights_BTE: Tensor, valid_BT: Tensor | None) -> None:
        """Adds a pass's weights to the shares, where somebody watches, and tells the witness."""
        if self.shares_S is None:
            return
        if valid_BT is not None:
            weights_BTE = weights_BTE * valid_BT[:, :, None]
        if self.witness is not None:
            self.witness(weights_BTE)
        self.shares_S[list(self.slots)] += weights_BTE.double().sum(dim=(0, 1)).cpu()


class LowRankFeedForward(nn.Module):
    """The anchor's block plus a low-rank delta in each of its three matrices.

    Shapes: ``delta_in`` [rank, in], ``delta_out`` [out, rank]; W = W_anchor + delta_out @ delta_in.
    """

    def __init__(self, anchor: nn.Module, rank: int) -> None:
        super().__init__()
        # Kept in a list: the anchor's weights are shared, not part of this expert's state.
        self._anchor = [anchor]
        for name in ("gate_proj", "up_proj", "down_proj"):
            linear = getattr(anchor, name)
            self.add_module(name, _Delta(linear.in_features, linear.out_features, rank))

    def forward(self, hidden: Tensor) -> Tensor:
        """``down(silu(gate(h)) * up(h))`` with each matrix corrected."""
        gate = functional.silu(self._project("gate_proj", hidden))
        return self._project("down_proj", gate * self._project("up_proj", hidden))

    def _project(self, name: str, x: Tensor) -> Tensor:
        base: Tensor = getattr(self._anchor[0], name)(x)
        delta: Tensor = getattr(self, name)(x)
        return base + delta


class _Delta(nn.Module):
    def __init__(self, width_in: int, width_out: int, rank: int) -> None:
        super().__init__()
        self.delta_in = nn.Parameter(torch.empty(rank, width_in))
        self.delta_out = nn.Parameter(torch.empty(width_out, rank))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(functional.linear(x, self.delta_in), self.delta_out)


class MixtureLayer(nn.Module):
    """The experts of one layer."""

    def __init__(self, experts: list[nn.Module], routing: Routing) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.routing = routing

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """The weighted sum of the chosen experts' outputs, ``[B, T, D]``."""
        weights_BTE = self.routing.weights_BTE
        assert weights_BTE is not None, "no forward pass is under way"
        return self._mix(hidden_BTD, weights_BTE)

    def _mix(self, hidden_BTD: Tensor, weights_BTE: Tensor) -> Tensor:
        shape = hidden_BTD.shape
        hidden_ND = hidden_BTD.reshape(-1, shape[-1])
        weights_NE = weights_BTE.reshape(hidden_ND.shape[0], -1).to(hidden_ND.dtype)
        mixed_ND = torch.zeros_like(hidden_ND)
        everyone = self.routing.mask_BS is None and self.routing.top_k >= len(self.routing.slots)
        for place, slot in enumerate(self.routing.slots):
            weight_N = weights_NE[:, place, None]
            if everyone:
                mixed_ND = mixed_ND + weight_N * self.experts[slot](hidden_ND)
                continue
            chosen = weight_N[:, 0].nonzero()[:, 0]
            if chosen.numel():
                part = weight_N[chosen] * self.experts[slot](hidden_ND[chosen])
                mixed_ND = mixed_ND.index_add(0, chosen, part)
        return mixed_ND.reshape(shape)


def begin_pass(routing: Routing, kwargs: dict[str, object]) -> None:
    """Decides for all layers of a forward pass of the backbone, from the pass's own arguments.

    Raises:
        ConfigError: no tokens to take evidence from, a cache that cannot carry it, or one made with
            other experts.
    """
    cache, mask, tokens_BT = (
        kwargs.get(name) for name in ("past_key_values", "attention_mask", "input_ids")
    )
    if isinstance(cache, EvidenceCache):
        cache.check_made_with(routing.made_with())
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        raise ConfigError("only attention masks of shape [batch, tokens] are understood")
    if not isinstance(tokens_BT, Tensor):
        raise ConfigError("routing reads tokens", remedy="pass input_ids")
    valid_BT = None if mask is None else mask[:, -tokens_BT.shape[1] :]
    if routing.borders is not None:
        valid_BT = routing.borders.real_BT
    logits_BTE = _gather_evidence(routing, tokens_BT, valid_BT, cache)
    routing.weights_BTE = routing.choose(logits_BTE)
    routing.observe(routing.weights_BTE, valid_BT)


def _gather_evidence(
    routing: Routing, tokens_BT: Tensor, valid_BT: Tensor | None, cache: object
) -> Tensor:
    """Logits of the allowed slots, ``[B, T, E]``."""
    # Tokens first: selecting experts first would copy whole tables for every token generated.
    scores_SBT = routing.table_SV.to(tokens_BT.device)[:, tokens_BT]
    scores_BTE = scores_SBT[list(routing.slots)].permute(1, 2, 0)
    if routing.borders is not None:
        return evidence(scores_BTE, routing.borders)
    if cache is not None and not isinstance(cache, EvidenceCache):
        raise ConfigError(
            "routing needs a cache that carries evidence",
            remedy="pass past_key_values=EvidenceCache(), or use the mixture's own generate",
        )
    past = None if cache is None else cache.sums
    logits_BTE, sums = continued_evidence(scores_BTE, valid_BT, past)
    if cache is not None:
        cache.sums = sums
    return logits_BTE
