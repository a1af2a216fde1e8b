"""The ways to merge that a study compares, and how each one's numbers come from scored models.

Legend: M model, W window, T target position.

A *model* is something whose nats are scored and kept in a file. A *row* of the table is made of
models, text by text: of one as it is, or of several by arithmetic on their nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from moiety.baselines import likelihood

Nats = NDArray[np.float64]
Combine = Callable[[Nats, NDArray[np.bool_]], Nats]
"""Nats ``[M, W, T]`` and which targets count ``[W, T]``, to nats ``[W, T]``."""

METHODS = {
    "anchor": "the public model alone",
    "oracle": "a guide that knows: on an owner's text the anchor with its expert, else the anchor",
    "moiety": "the release, at each number of experts that run",
    "moiety-plain": "the release exported as a plain checkpoint, run by stock transformers",
    "moiety-tuned": "the release with its tables tuned together on proxies: no longer strict",
    "removal": "on each owner's text the release without that owner",
    "btm-top1": "mixture of the dense models' predictions, the likeliest one so far",
    "btm-top2": "mixture of the dense models' predictions, the two likeliest so far",
    "btm-all": "mixture of the dense models' predictions by their posterior, all run",
    "btm-pairs": "the same over the anchor and all pairs of anchor and expert",
    "dense-ff": "one owner's dense model, its feed-forward blocks trained on",
    "dense-whole": "one owner's dense model, all of it trained on",
    "soup": "one model: the mean of the anchor's and the dense models' weights",
    "soup-weighted": "the mean weighted by how well each model reads a text's first 32 tokens",
    "prompt-routing": "the dense model that reads a text's first 32 tokens best",
    "btx": "blocks of the dense models as experts, the rest averaged, then trained on public text",
    "joint-1x": "a mixture trained on everybody's text at once, at the owners' training FLOPs",
    "joint-2x": "the same at twice the training FLOPs",
    "joint-experts": "as joint-1x, only experts and router trained: what secrecy alone costs",
    "recipe": "the reference recipe: own text alone, rows from domain means, a bias",
    "recipe-no-bias": "the reference recipe without the bias",
    "recipe-random-rows": "the reference recipe with rows that start at random",
    "no-coordination": "dense feed-forward experts trained without the anchor, rows from means",
}
"""Every method by its name in a study's file, with one line about it."""

DENSE = "dense-whole"
"""Which dense models are mixed, averaged and routed among."""


@dataclass(frozen=True)
class Row:
    """One row of the table: ``models(text)`` are scored, ``combine`` makes them one."""

    name: str
    method: str
    told: str
    models: Callable[[str], tuple[str, ...]]
    combine: Combine
    has_public: bool = True
    """Whether the row means something on public text."""


def rows(methods: Sequence[str], owners: Sequence[str], top_ks: Sequence[int]) -> list[Row]:
    """The table's rows, in the order of ``METHODS``."""
    return [
        row
        for method in METHODS
        if method in methods
        for row in _rows_of(method, tuple(owners), top_ks)
    ]


def dense_models(owners: Sequence[str]) -> tuple[str, ...]:
    """The anchor, and every owner's dense model."""
    return ("anchor", *(f"{DENSE}-{owner}" for owner in owners))


def _rows_of(method: str, owners: tuple[str, ...], top_ks: Sequence[int]) -> Iterator[Row]:
    told = METHODS[method]
    if method == "moiety":
        for k in top_ks:
            yield _alone(f"moiety-k{k}", method, f"the release, {k} experts run")
    elif method in ("dense-ff", "dense-whole"):
        for owner in owners:
            yield _alone(f"{method}-{owner}", method, f"{told}: {owner}'s")
    elif method in ("oracle", "removal"):
        yield _by_owner(method, owners)
    elif method.startswith("btm-") or method == "prompt-routing":
        yield _mixed(method, owners)
    else:
        yield _alone(method, method, told)


def _alone(name: str, method: str, told: str) -> Row:
    return Row(name, method, told, lambda _text: (name,), _only)


def _by_owner(method: str, owners: tuple[str, ...]) -> Row:
    """Another model on every owner's text; on public text the anchor."""
    kind = "pair" if method == "oracle" else "without"

    def models(text: str) -> tuple[str, ...]:
        return (f"{kind}-{text}",) if text in owners else ("anchor",)

    return Row(method, method, METHODS[method], models, _only, has_public=method == "oracle")


def _mixed(method: str, owners: tuple[str, ...]) -> Row:
    """All of several models run, on every text."""
    mixed = dense_models(owners)
    if method == "btm-pairs":
        mixed = ("anchor", *(f"pair-{owner}" for owner in owners))
    if method == "prompt-routing":
        return Row(method, method, METHODS[method], lambda _text: mixed, likelihood.route_by_prompt)
    top = {"btm-top1": 1, "btm-top2": 2}.get(method)
    combine: Combine = partial(likelihood.branch_train_merge, top=top)
    return Row(method, method, METHODS[method], lambda _text: mixed, combine)


def _only(nats_MWT: Nats, _counted_WT: NDArray[np.bool_]) -> Nats:
    nats_WT: Nats = nats_MWT[0]
    return nats_WT
