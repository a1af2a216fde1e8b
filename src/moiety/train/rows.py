"""Fitting router rows when the expert stands still.

Legend: N state, D width.

Beside the expert a row takes a few hundred noisy steps and keeps their noise. Here it is the
logistic regression "mine against public" itself, on states of both kinds of text, each seen both
ways a merged model may see it: as the owner's pair does, and as the anchor alone does, because in a
merged model the first layers have not yet chosen the right expert when the next one decides.

How steep the row is matters among several experts. Text far from all public text is claimed by
every row that leans its way, and its own row wins only if it is the steeper one; but a row as steep
as the distance (Fisher's) claims what lies half-way. The norm of a row is the root of the distance
of its owner's text, in whitened coordinates: measured, not derived (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Olmo2ForCausalLM

from moiety.data import PackedText
from moiety.errors import StateError
from moiety.train.pair import Pair
from moiety.train.states import gather_states
from moiety.train.whitening import Whitening

FIT_WINDOWS = 256
FIT_POSITIONS = 8
"""Windows of each kind of text, and positions of each, that rows are fitted on."""

SHARPNESS = 3.0
"""A row is fitted at its norm over this: a blunter fit has the better direction."""

_ITERATIONS = 200


@dataclass(frozen=True)
class RowStates:
    """Both kinds of text seen one way: ``layers.N.context`` and ``layers.N.token``, ``[N, D]``."""

    own: Mapping[str, Tensor]
    public: Mapping[str, Tensor]


def row_states(
    backbone: Olmo2ForCausalLM,
    own: PackedText,
    public: PackedText,
    *,
    before: Callable[[Tensor], object] | None = None,
    precision: AbstractContextManager[Any] | None = None,
) -> RowStates:
    """The states to fit rows on, as the backbone now sees the texts (see ``gather_states``)."""
    found = [
        gather_states(
            backbone, text, FIT_WINDOWS, FIT_POSITIONS, before=before, precision=precision
        )
        for text in (own, public)
    ]
    return RowStates(*found)


def fit_rows(pair: Pair, ways: Sequence[RowStates]) -> None:
    """Replaces the pair's rows by fitted ones."""
    for number, layer in enumerate(pair.layers):
        rows = {}
        whitenings = {"context": layer.context_whitening, "token": layer.token_whitening}
        for kind, whitening in whitenings.items():
            name = f"layers.{number}.{kind}"
            own, public = [way.own[name] for way in ways], [way.public[name] for way in ways]
            rows[kind] = fit_row(own, public, whitening, biased=kind == "context")
        layer.set_rows(**rows)


def fit_row(
    own: Sequence[Tensor], public: Sequence[Tensor], whitening: Whitening, *, biased: bool
) -> Tensor:
    """One row, in whitened coordinates, ``[D + 1]`` with a bias and ``[D]`` without.

    ``own`` and ``public`` are raw states, ``[N, D]`` for each way of seeing the text; every way has
    the same weight. Deterministic.

    Raises:
        StateError: states that are no numbers.
    """
    mine, others = (_whitened(kind, whitening) for kind in (own, public))
    apart_D = _mean(mine) - _mean(others)
    distance = _distance(mine, others)
    norm = torch.minimum(distance, distance.sqrt())
    turn_D = functional.normalize(apart_D, dim=0).requires_grad_()
    bias = torch.zeros_like(norm, requires_grad=biased)
    problem = _Problem.of(mine, others)

    def blunt() -> Tensor:
        row_D: Tensor = norm / SHARPNESS * functional.normalize(turn_D, dim=0)
        return row_D

    optimizer = torch.optim.LBFGS(
        [turn_D, bias] if biased else [turn_D],
        max_iter=_ITERATIONS,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = problem.loss(blunt(), bias)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    found = torch.cat([blunt(), bias[None]]) if biased else blunt()
    if not found.isfinite().all():
        raise StateError("a router row could not be fitted: not a number")
    return (SHARPNESS * found).detach().float()


@dataclass(frozen=True)
class _Problem:
    """States, 1 where they are of own text, and their weights, which add up to one."""

    states_ND: Tensor
    mine_N: Tensor
    weights_N: Tensor

    @classmethod
    def of(cls, mine: Sequence[Tensor], others: Sequence[Tensor]) -> _Problem:
        states_ND = torch.cat([*mine, *others])
        mine_N = torch.zeros_like(states_ND[:, 0])
        mine_N[: sum(map(len, mine))] = 1
        weights = [
            torch.full_like(states[:, 0], 0.5 / len(kind) / len(states))
            for kind in (mine, others)
            for states in kind
        ]
        return cls(states_ND, mine_N, torch.cat(weights))

    def loss(self, row_D: Tensor, bias: Tensor) -> Tensor:
        """Binary cross-entropy."""
        logits_N = self.states_ND @ row_D + bias
        return functional.binary_cross_entropy_with_logits(
            logits_N, self.mine_N, self.weights_N, reduction="sum"
        )


def _whitened(ways: Sequence[Tensor], whitening: Whitening) -> list[Tensor]:
    device = whitening.centre_D.device
    return [whitening(states_ND.to(device)).cpu().double() for states_ND in ways]


def _mean(ways: Sequence[Tensor]) -> Tensor:
    return torch.stack([states_ND.mean(dim=0) for states_ND in ways]).mean(dim=0)


def _distance(mine: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Between the means of two texts; zero where there is too little to tell.

    States come window by window, so their halves are different text. The product of the halves'
    differences has no bias, where a plain norm would grow with every direction that little text
    leaves uncertain, and give the steepest row to the owner with the least text.
    """
    if min(map(len, [*mine, *others])) < 2:
        return mine[0].new_zeros(())
    halves = [
        _mean([part(states_ND) for states_ND in mine])
        - _mean([part(states_ND) for states_ND in others])
        for part in (_first_half, _second_half)
    ]
    return (halves[0] @ halves[1]).clamp(min=0).sqrt()


def _first_half(states_ND: Tensor) -> Tensor:
    return states_ND[: len(states_ND) // 2]


def _second_half(states_ND: Tensor) -> Tensor:
    return states_ND[len(states_ND) // 2 :]
