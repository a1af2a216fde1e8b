"""A table or token rows that take public text away from the anchor."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from tests.attacks.hostile import Target
from tests.makers import COMMON

from moiety.errors import PolicyError


def _rows(target: Target, strength: float, layers: tuple[int, ...] = (0, 1)) -> None:
    def lean(arrays: dict[str, Any]) -> None:
        for layer in layers:
            name = f"layers.{layer}.router.token"
            arrays[name] = np.zeros_like(arrays[name])
            arrays[name][0] = strength  # the probe's first coordinate is positive everywhere

    target.change_arrays(lean)


def _table(target: Target, entry: float, tokens: Any = slice(None)) -> None:
    target.change_arrays(lambda arrays: arrays["router.evidence"].__setitem__(tokens, entry))


def test_rows_that_take_nearly_everything_are_refused(target: Target) -> None:
    _rows(target, 3.0)
    target.refused(PolicyError, "of public text with its token rows")


@pytest.mark.parametrize("entry", [2.0, 4.0])
def test_a_table_that_takes_nearly_everything_is_refused(target: Target, entry: float) -> None:
    _table(target, entry)
    target.refused(PolicyError, "of public text with its evidence")


def test_what_begins_every_document_cannot_take_it_over(target: Target) -> None:
    """The separator says nothing in an honest table; here it speaks for the owner, alone."""
    _table(target, 0.0)
    _table(target, 4.0, tokens=0)
    target.refused(PolicyError, "of public text with its evidence")


def test_rows_that_take_more_than_half_are_flagged(target: Target) -> None:
    _rows(target, 0.2)
    _flagged(target, r"captures \d\d% of public text with its token rows")


def test_a_table_that_takes_more_than_half_is_flagged(target: Target) -> None:
    _table(target, 0.0)
    _table(target, 0.3, tokens=COMMON)
    _flagged(target, r"captures \d\d% of public text with its evidence")


def test_one_greedy_layer_is_flagged_even_if_the_mean_is_low(target: Target) -> None:
    _rows(target, -3.0, layers=(0,))
    _rows(target, 0.75, layers=(1,))
    _flagged(target, "the token row of layer 1")


def _flagged(target: Target, pattern: str) -> None:
    with target.verify() as bundle:
        (flag,) = bundle.flags
    assert re.search(pattern, flag), flag


def test_honest_rows_and_an_honest_table_have_no_flag(target: Target) -> None:
    with target.verify() as bundle:
        assert bundle.flags == ()


def test_a_table_that_says_nothing_is_not_refused(target: Target) -> None:
    _table(target, 0.0)
    with target.verify() as bundle:
        assert bundle.flags == ()
