"""What a fit adds to token rows when the expert stands still.

Legend: N state, D width.

Beside the expert a row takes a few hundred noisy steps and keeps their noise. When training ends
a second row is fitted to convergence: the logistic regression "mine against public", on states of
both kinds of text, each seen both ways a merged model may see it: as the owner's pair does, and as
the anchor alone does, because in a merged model the first layers have not yet chosen the right
expert when the next one decides. What is shipped is the sum of the two rows. They err in different
ways, and together they are better than either (docs/decisions/0016-a-fitted-row-is-added.md).

How steep a row is matters among several experts. Text far from all public text is claimed by every
row that leans its way, and its own row wins only if it is the steeper one; but a row as steep as
the distance (Fisher's) claims what lies half-way. So the norm goes by the root of the distance of
the owner's text, in whitened coordinates: measured, not derived (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from moiety.data import PackedText
from moiety.errors import StateError
from moiety.train.compute import Compute
from moiety.train.log import counting
from moiety.train.pair import Pair
from moiety.train.states import Gathered, gather_states
from moiety.train.whitening import Whitening

FIT_WINDOWS = 300
FIT_POSITIONS = 8
"""Windows of each kind of text, seen each way, and positions of each, that rows are fitted on."""

NORM = 1.0
"""Of the added row, in roots of the distance."""

SHARPNESS = 3.0
"""A row is fitted at its norm over this: a blunter fit has the better direction."""

_ITERATIONS = 200


@dataclass(frozen=True)
class Seen:
    """States of one text seen one way, and the window each comes from: ``[N, D]`` and ``[N]``."""

    states_ND: Tensor
    windows_N: Tensor


def add_fitted_rows(
    pair: Pair, own: PackedText, public: PackedText, compute: Compute, *, quiet: bool = False
) -> None:
    """Adds to every token row of the pair one that is fitted to the two texts.

    Raises:
        StateError: the pair's states are no numbers.
    """
    texts = own, public
    windows = 2 * sum(min(text.num_windows, FIT_WINDOWS) for text in texts)
    total = windows + len(pair.layers)
    with counting("fitting the token rows", total, quiet=quiet) as done:
        with pair.alone():
            alone = _see(pair, texts, compute, done, seed=0)
        # Other windows than before: the same ones again would say less.
        ways = (alone, _see(pair, texts, compute, done, seed=1))
        for number, layer in enumerate(pair.layers):
            layer.add_row(_fitted(ways, number))
            done(1)


def _fitted(ways: Sequence[Sequence[Gathered]], layer: int) -> Tensor:
    name = f"layers.{layer}.token"
    mine, others = (
        [Seen(way[text].states[name], way[text].windows_N) for way in ways] for text in (0, 1)
    )
    whitening = Whitening(others[0].states_ND)
    return fit_row(mine, others, whitening, norm=NORM, sharpness=SHARPNESS)


def _see(
    pair: Pair,
    texts: Sequence[PackedText],
    compute: Compute,
    done: Callable[[int], None],
    *,
    seed: int,
) -> tuple[Gathered, ...]:
    """Each text's states, as the pair now routes."""

    def before(tokens_BT: Tensor, documents_BT: Tensor) -> None:
        pair.expect(tokens_BT, documents_BT)
        done(len(documents_BT))

    sizes = FIT_WINDOWS, FIT_POSITIONS
    return tuple(
        gather_states(
            pair.backbone, text, *sizes, seed=seed, before=before, precision=compute.autocast()
        )
        for text in texts
    )


def fit_row(
    own: Sequence[Seen],
    public: Sequence[Seen],
    whitening: Whitening,
    *,
    norm: float,
    sharpness: float,
) -> Tensor:
    """One row for raw states, ``[D]``.

    ``own`` and ``public`` hold raw states for each way of seeing the text; every way has the same
    weight. ``norm`` is that of the row in whitened coordinates, in roots of the distance
    of the texts (in distances, where they are below one); it is fitted at that over ``sharpness``.
    Deterministic.

    Raises:
        StateError: states that are no numbers.
    """
    mine, others = (
        [replace(way, states_ND=whitening(way.states_ND).double()) for way in kind]
        for kind in (own, public)
    )
    apart_D = _mean(mine) - _mean(others)
    distance = _distance(mine, others)
    blunt_norm = norm / sharpness * torch.minimum(distance, distance.sqrt())
    turn_D = functional.normalize(apart_D, dim=0).requires_grad_()
    problem = _Problem.of(mine, others)

    def blunt() -> Tensor:
        row_D: Tensor = blunt_norm * functional.normalize(turn_D, dim=0)
        return row_D

    optimizer = torch.optim.LBFGS([turn_D], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = problem.loss(blunt())
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    found = sharpness * blunt().detach()
    if not found.isfinite().all():
        raise StateError("a router row could not be fitted: not a number")
    return whitening.fold(found.float())


@dataclass(frozen=True)
class _Problem:
    """States, 1 where they are of own text, and their weights, which add up to one."""

    states_ND: Tensor
    mine_N: Tensor
    weights_N: Tensor

    @classmethod
    def of(cls, mine: Sequence[Seen], others: Sequence[Seen]) -> _Problem:
        states_ND = torch.cat([way.states_ND for way in (*mine, *others)])
        mine_N = torch.zeros_like(states_ND[:, 0])
        mine_N[: sum(len(way.states_ND) for way in mine)] = 1
        weights = [
            torch.full_like(way.states_ND[:, 0], 0.5 / len(kind) / len(way.states_ND))
            for kind in (mine, others)
            for way in kind
        ]
        return cls(states_ND, mine_N, torch.cat(weights))

    def loss(self, row_D: Tensor) -> Tensor:
        """Binary cross-entropy."""
        logits_N = self.states_ND @ row_D
        return functional.binary_cross_entropy_with_logits(
            logits_N, self.mine_N, self.weights_N, reduction="sum"
        )


def _mean(ways: Sequence[Seen]) -> Tensor:
    return torch.stack([way.states_ND.mean(dim=0) for way in ways]).mean(dim=0)


def _distance(mine: Sequence[Seen], others: Sequence[Seen]) -> Tensor:
    """Between the means of two texts; zero where there is too little to tell.

    From two halves of the text, the windows of even and of odd number, the same for every way. The
    product of the halves' differences has no bias, where a plain norm would grow with every
    direction that little text leaves uncertain, and give the steepest row to the owner with the
    least text.
    """
    apart = []
    for half in (0, 1):
        halves = [[_half(way, half) for way in ways] for ways in (mine, others)]
        if min(len(way.states_ND) for ways in halves for way in ways) == 0:
            return mine[0].states_ND.new_zeros(())
        apart.append(_mean(halves[0]) - _mean(halves[1]))
    return (apart[0] @ apart[1]).clamp(min=0).sqrt()


def _half(way: Seen, half: int) -> Seen:
    chosen_N = way.windows_N % 2 == half
    return Seen(way.states_ND[chosen_N], way.windows_N[chosen_N])
