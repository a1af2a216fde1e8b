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
from moiety.study.methods import dense_models, rows
from moiety.study.places import Study

Cells = dict[str, list[tuple[str, str]]]
"""The (model, text) that are wanted, by what must be loaded for them."""


@dataclass(frozen=True)
class Piece:
    """One thing to do. ``alone``: everything waits for it, so it may use every core."""

    name: str
    needs: tuple[str, ...]
    leaves: tuple[Path, ...]
    do: Callable[[], None]
    alone: bool = False

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

    for name in pieces:
        if name.rpartition("/")[2].startswith("score-"):
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
    return "release" if model.startswith(("pair-", "without-", "moiety-")) else model


def _shared(study: Study) -> Iterator[Piece]:
    chosen = tuple(study.chosen(owner) for owner in study.choosy)
    yield Piece("choose", (), chosen, partial(makers.choose_texts, study))
    anchor = partial(makers.make_anchor, study)
    yield Piece("anchor", (), (study.anchor,), anchor, alone=True)
    samples = tuple(study.sample(text) for text in study.plan.texts)
    yield Piece("texts", ("anchor", "choose"), samples, partial(makers.take_samples, study))
    yield _score(study, 0, "anchor", wanted_cells(study)["anchor"], ("anchor",))


def _of_seed(study: Study, seed: int) -> Iterator[Piece]:
    runs = {owner: f"seed-{seed}/run-{owner}" for owner in study.plan.owners}
    for owner, name in runs.items():
        leaves = (study.run(seed, owner) / "run.json",)
        work = partial(makers.train_owner, study, seed, owner)
        yield Piece(name, ("anchor", "choose"), leaves, work)
    release = f"seed-{seed}/release"
    work = partial(makers.make_release, study, seed)
    yield Piece(release, tuple(runs.values()), (study.release(seed),), work)
    for group, cells in wanted_cells(study).items():
        if group == "release":
            yield _score(study, seed, group, cells, (release,))


def _score(
    study: Study, seed: int, group: str, cells: list[tuple[str, str]], needs: Iterable[str]
) -> Piece:
    name = f"score-{group}" if group == "anchor" else f"seed-{seed}/score-{group}"
    leaves = tuple(study.cell(seed, *cell) for cell in cells)
    work = partial(models.score_cells, study, seed, group, cells)
    return Piece(name, ("texts", *needs), leaves, work)
