"""What is to be done, as pieces: each with what it needs, and the files it leaves.

A piece whose files stand is done and is never done again, so a study goes on where it stopped. A
piece that nothing unfinished needs is not begun: scores that stand do not ask for their models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moiety.study import makers, models
from moiety.study.methods import DENSE, dense_models, rows
from moiety.study.places import Study
from moiety.train import baselines

RECIPES = ("recipe", "recipe-no-bias", "recipe-random-rows")

Cells = dict[str, list[tuple[str, str]]]
"""The (model, text) that are wanted, by what must be loaded for them."""


@dataclass(frozen=True)
class Piece:
    """One thing to do. ``wanted``: for its own sake, not only for what needs it.

    ``alone``: everything waits for it, so it may use every core.
    """

    name: str
    needs: tuple[str, ...]
    leaves: tuple[Path, ...]
    do: Callable[[], None]
    alone: bool = False
    wanted: bool = False

    @property
    def done(self) -> bool:
        """Whether all that it leaves is there."""
        return all(path.exists() for path in self.leaves)


def all_pieces(study: Study) -> dict[str, Piece]:
    """Every piece of a study with its methods and seeds, by name, those of a seed together."""
    pieces = list(_shared(study))
    for seed in study.plan.paper.seeds:
        pieces += _of_seed(study, seed)
    return {piece.name: piece for piece in pieces}


def unfinished(pieces: Mapping[str, Piece]) -> list[Piece]:
    """What must still be done for every score to stand, needs first."""
    order: dict[str, Piece] = {}

    def visit(name: str) -> None:
        piece = pieces[name]
        if name in order or piece.done:
            return
        for need in piece.needs:
            visit(need)
        order[name] = piece

    for name, piece in pieces.items():
        if piece.wanted:
            visit(name)
    return list(order.values())


def wanted_cells(study: Study) -> Cells:
    """The cells that the table's rows, and weights by likelihood, are made of."""
    plan = study.plan
    found: dict[tuple[str, str], None] = {}
    for row in rows(plan.paper.methods, plan.owners, plan.top_ks()):
        for text in plan.texts:
            models_here = row.models(text)
            if row.name == "soup-weighted":
                models_here = (*dense_models(plan.owners), *models_here)
            found |= {(model, text): None for model in models_here}
    found |= {("anchor", text): None for text in plan.texts}
    cells: Cells = {}
    for model, text in found:
        cells.setdefault(group_of(model), []).append((model, text))
    return cells


def group_of(model: str) -> str:
    """What is loaded to score a model."""
    return "release" if model.startswith(("pair-", "without-", "moiety-k")) else model


def _shared(study: Study) -> Iterator[Piece]:
    chosen = tuple(study.chosen(owner) for owner in study.choosy)
    yield Piece("choose", (), chosen, partial(makers.choose_texts, study))
    anchor = partial(makers.make_anchor, study)
    yield Piece("anchor", (), (study.anchor,), anchor, alone=True)
    samples = tuple(study.sample(text) for text in study.plan.texts)
    yield Piece("texts", ("anchor", "choose"), samples, partial(makers.take_samples, study))
    yield _score(study, 0, "anchor", wanted_cells(study)["anchor"], ("anchor",))


def _of_seed(study: Study, seed: int) -> Iterator[Piece]:
    base, owners = ("anchor", "choose"), study.plan.owners
    for owner in owners:
        leaves = (study.run(seed, owner) / "run.json",)
        work = partial(makers.train_owner, study, seed, owner)
        yield Piece(f"seed-{seed}/run/{owner}", base, leaves, work)
    runs = tuple(f"seed-{seed}/run/{owner}" for owner in owners)
    work = partial(makers.make_release, study, seed)
    yield Piece(f"seed-{seed}/release", runs, (study.release(seed),), work)
    merged = (f"seed-{seed}/release",)
    for name, folder, make in (
        ("moiety-plain", study.plain(seed), makers.make_plain),
        ("moiety-tuned", study.tuned(seed), makers.make_tuned),
    ):
        yield Piece(f"seed-{seed}/{name}", merged, (folder,), partial(make, study, seed))
    yield from _baselines(study, seed, runs)
    for group, cells in wanted_cells(study).items():
        if group != "anchor":
            yield _score(study, seed, group, cells, _needs(group, seed, owners))


def _baselines(study: Study, seed: int, runs: tuple[str, ...]) -> Iterator[Piece]:
    """Whatever else is trained."""

    def piece(name: str, needs: tuple[str, ...], do: Callable[[], None]) -> Piece:
        return Piece(f"seed-{seed}/{name}", needs, (study.trained(seed, name),), do)

    base = ("anchor", "choose")
    parts: dict[str, baselines.Part] = {"dense-ff": "feed-forward", "dense-whole": "whole"}
    for owner in study.plan.owners:
        for name, part in parts.items():
            work = partial(makers.train_dense, study, seed, part, name, owner)
            yield piece(f"{name}/{owner}", base, work)
        for name in RECIPES:
            work = partial(makers.train_recipe, study, seed, name, owner)
            yield piece(f"{name}/{owner}", base, work)
    dense = _all(f"seed-{seed}/{DENSE}", study.plan.owners)
    yield piece("btx", (*base, *dense), partial(makers.train_btx, study, seed))
    for name, times in (("joint-1x", 1), ("joint-2x", 2), ("joint-experts", 1)):
        work = partial(makers.train_joint, study, seed, name, times)
        yield piece(name, (*base, *runs), work)


def _needs(group: str, seed: int, owners: tuple[str, ...]) -> tuple[str, ...]:
    """What must stand before a group's models can be scored."""
    here = f"seed-{seed}/"
    if group == "soup":
        return _all(here + DENSE, owners)
    if group == "soup-weighted":
        scored = _all(f"{here}score-{DENSE}", owners, "-")
        return ("score-anchor", *_all(here + DENSE, owners), *scored)
    if group in RECIPES:
        return _all(here + group, owners)
    if group == "no-coordination":
        return _all(f"{here}dense-ff", owners)
    for kind in ("dense-ff", "dense-whole"):
        if group.startswith(f"{kind}-"):
            return (f"{here}{kind}/{group.removeprefix(f'{kind}-')}",)
    return (here + group,)


def _all(name: str, owners: tuple[str, ...], joint: str = "/") -> tuple[str, ...]:
    return tuple(f"{name}{joint}{owner}" for owner in owners)


def _score(
    study: Study, seed: int, group: str, cells: list[tuple[str, str]], needs: Iterable[str]
) -> Piece:
    name = f"score-{group}" if group == "anchor" else f"seed-{seed}/score-{group}"
    leaves = tuple(study.cell(seed, *cell) for cell in cells)
    work = partial(models.score_cells, study, seed, group, cells)
    return Piece(name, ("texts", *needs), leaves, work, wanted=True)
