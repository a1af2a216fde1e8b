"""Tuned tables that are none: they are the coordinator's, and no owner signed them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.attacks.tuned_world import TunedWorld, seal
from tests.makers import read_arrays, write_arrays
from tests.merge.tunings import noisy_tables, write_proxies

from moiety.errors import IntegrityError, PolicyError, StateError
from moiety.files import digest_bytes
from moiety.merge import open_release, tuned

Array = np.ndarray[Any, Any]
FILE = "evidence.safetensors"


def replace(world: TunedWorld, change: Callable[[Array], object]) -> None:
    """Other tuned tables, and a roster that fits them."""
    tables = read_arrays(world.tuned / FILE)["evidence"]
    change(tables)
    write_arrays(world.tuned / FILE, {"evidence": tables})
    found = [digest_bytes(table.tobytes()) for table in tables]
    seal(world.tuned, lambda roster: roster["tuning"].update(evidence=found))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 4.001, -4.001, 1e30])
@pytest.mark.parametrize(("slot", "token"), [(1, 0), (2, 5), (2, -1)])
def test_a_token_that_says_more_than_an_owner_may_or_no_number_is_refused(
    tuned_world: TunedWorld, slot: int, token: int, value: float
) -> None:
    replace(tuned_world, lambda tables: tables.__setitem__((slot, token), value))
    with pytest.raises(PolicyError, match="nats of a token"):
        open_release(tuned_world.tuned)


@pytest.mark.parametrize("value", [np.nan, -0.0, 1.0])
def test_an_anchor_that_was_tuned_too_is_refused(tuned_world: TunedWorld, value: float) -> None:
    replace(tuned_world, lambda tables: tables[0].fill(value))
    with pytest.raises(IntegrityError, match="anchor's table is not zero"):
        open_release(tuned_world.tuned)


def test_tables_that_the_roster_does_not_know_are_refused(tuned_world: TunedWorld) -> None:
    tables = read_arrays(tuned_world.tuned / FILE)["evidence"]
    tables[1] /= 2
    write_arrays(tuned_world.tuned / FILE, {"evidence": tables})
    seal(tuned_world.tuned, lambda _: None)
    with pytest.raises(IntegrityError, match="not the table of mallory"):
        open_release(tuned_world.tuned)


FORMS: dict[str, Callable[[Array], dict[str, Array]]] = {
    "a token too few": lambda tables: {"evidence": tables[:, :-1].copy()},
    "a slot too few": lambda tables: {"evidence": tables[:-1].copy()},
    "another name": lambda tables: {"tables": tables},
    "one more": lambda tables: {"evidence": tables, "more": tables},
    "none": lambda tables: {"more": tables},
    "whole numbers": lambda tables: {"evidence": tables.astype(np.int32)},
}


@pytest.mark.parametrize("form", FORMS)
def test_tables_of_another_form_are_refused(tuned_world: TunedWorld, form: str) -> None:
    tables = read_arrays(tuned_world.tuned / FILE)["evidence"]
    write_arrays(tuned_world.tuned / FILE, FORMS[form](tables))
    seal(tuned_world.tuned, lambda _: None)
    with pytest.raises(IntegrityError, match="not the tensors in the roster"):
        open_release(tuned_world.tuned)


def test_rounded_tables_are_refused(tuned_world: TunedWorld) -> None:
    tables = read_arrays(tuned_world.tuned / FILE)
    write_arrays(tuned_world.tuned / FILE, tables, dtype="BF16")
    seal(tuned_world.tuned, lambda _: None)
    with pytest.raises(IntegrityError, match="not the tensors in the roster"):
        open_release(tuned_world.tuned)


FAULTS: dict[str, Callable[[Array], object]] = {
    "not a number": lambda tables: tables.__setitem__((1, 0), np.nan),
    "without end": lambda tables: tables.__setitem__((1, 0), -np.inf),
    "too loud": lambda tables: tables.__setitem__((1, 0), 4.001),
    "the anchor's": lambda tables: tables.__setitem__((0, 0), 1.0),
    "the anchor's is minus zero": lambda tables: tables[0].fill(-0.0),
    "the anchor's is no number": lambda tables: tables.__setitem__((0, 0), np.nan),
}


def refuse_to_write(world: TunedWorld, tables: Array) -> None:
    folder = world.tuned.parent
    paper = write_proxies(world.anchor, "victim", folder / "p.json")
    with pytest.raises(StateError, match=r"can be run with|table is not zero"):
        tuned.write_tuned(world.strict, folder / "new", tables, [paper], steps=1)
    assert not (folder / "new").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_we_write_none_of_these(tuned_world: TunedWorld, fault: str) -> None:
    tables = noisy_tables(tuned_world.strict)
    FAULTS[fault](tables)
    refuse_to_write(tuned_world, tables)


@pytest.mark.parametrize("part", [np.s_[:, 1:], np.s_[1:], np.s_[0]])
def test_nor_tables_of_another_shape(tuned_world: TunedWorld, part: Any) -> None:
    refuse_to_write(tuned_world, noisy_tables(tuned_world.strict)[part])
