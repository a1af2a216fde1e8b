"""Tuned tables and rows that are none: they are the coordinator's, and no owner signed them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.attacks.tuned_world import TunedWorld, seal
from tests.makers import read_arrays, write_arrays
from tests.merge.tunings import noisy_rows, write_proxies

from moiety.errors import IntegrityError, PolicyError, StateError, TrustError
from moiety.files import digest_bytes
from moiety.merge import open_release, tuned

KINDS = {"evidence": "evidence.safetensors", "token": "router.safetensors"}


def replace(
    world: TunedWorld,
    kind: str,
    change: Callable[[np.ndarray[Any, Any]], object],
    *,
    layers: slice = slice(None),
) -> None:
    """Other tuned rows, and a roster that fits them."""
    rows = read_arrays(world.tuned / KINDS[kind])
    for name in sorted(rows)[layers]:
        change(rows[name])
    write_arrays(world.tuned / KINDS[kind], rows)

    def fit(roster: dict[str, Any]) -> None:
        for slot, said in enumerate(roster["tuning"]["rows"]):
            found = [digest_bytes(rows[name][slot].tobytes()) for name in sorted(rows)]
            said[kind] = found[0] if kind == "evidence" else found

    seal(world.tuned, fit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layer", [0, -1])
def test_a_row_that_is_no_number_is_refused(
    tuned_world: TunedWorld, kind: str, value: float, layer: int
) -> None:
    layers = slice(layer, layer + 1 or None)
    replace(tuned_world, kind, lambda row: row[1].fill(value), layers=layers)
    with pytest.raises(PolicyError, match="not finite"):
        open_release(tuned_world.tuned)


@pytest.mark.parametrize("entry", [4.001, -4.001, 1e30])
def test_a_token_that_says_more_than_an_owner_may_is_refused(
    tuned_world: TunedWorld, entry: float
) -> None:
    replace(tuned_world, "evidence", lambda table: table[2, 5:6].fill(entry))
    with pytest.raises(PolicyError, match="nats of a token"):
        open_release(tuned_world.tuned)


@pytest.mark.parametrize("kind", KINDS)
def test_an_anchor_that_was_tuned_too_is_refused(tuned_world: TunedWorld, kind: str) -> None:
    replace(tuned_world, kind, lambda row: row[0].fill(1.0))
    with pytest.raises(IntegrityError, match="rows are not zero"):
        open_release(tuned_world.tuned)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_the_roster_does_not_know_are_refused(tuned_world: TunedWorld, kind: str) -> None:
    path = tuned_world.tuned / KINDS[kind]
    rows = read_arrays(path)
    for row in rows.values():
        row[1] += 1
    write_arrays(path, rows)
    seal(tuned_world.tuned, lambda _: None)
    with pytest.raises(IntegrityError, match="not the row of"):
        open_release(tuned_world.tuned)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_another_shape_are_refused(tuned_world: TunedWorld, kind: str) -> None:
    path = tuned_world.tuned / KINDS[kind]
    rows = {name: row[:, :-1].copy() for name, row in read_arrays(path).items()}
    write_arrays(path, rows)
    seal(tuned_world.tuned, lambda _: None)
    with pytest.raises(TrustError):
        open_release(tuned_world.tuned)


@pytest.mark.parametrize("name", ["evidence", "model.layers.1.mlp.gate.weight"])
@pytest.mark.parametrize("fault", ["nan", "anchor", "shape", "loud"])
def test_we_write_none_of_these(tuned_world: TunedWorld, fault: str, name: str) -> None:
    rows = noisy_rows(tuned_world.strict)
    if fault == "nan":
        rows[name][1, 0] = np.nan
    elif fault == "anchor":
        rows[name][0, 0] = 1.0
    elif fault == "loud":  # of a token row only infinity is too loud
        rows[name][1, 0] = 4.001 if name == "evidence" else np.inf
    else:
        rows[name] = rows[name][:, 1:]
    folder = tuned_world.tuned.parent
    paper = write_proxies(tuned_world.anchor, "victim", folder / "p.json")
    with pytest.raises(StateError, match="can be run with"):
        tuned.write_tuned(tuned_world.strict, folder / "new", rows, [paper], steps=1)
    assert not (folder / "new").exists()
