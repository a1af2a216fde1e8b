"""A table that takes public text away from the anchor."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.attacks.hostile import Target
from tests.makers import COMMON

from moiety.errors import PolicyError


def _table(target: Target, entry: float, tokens: Any = slice(None)) -> None:
    target.change_arrays(lambda arrays: arrays["router.evidence"].__setitem__(tokens, entry))


@pytest.mark.parametrize("entry", [2.0, 4.0])
def test_a_table_that_takes_nearly_everything_is_refused(target: Target, entry: float) -> None:
    _table(target, entry)
    target.refused(PolicyError, r"captures \d+% of public text; the limit is 90%")


def test_so_is_a_low_rank_experts(lowrank: Target) -> None:
    _table(lowrank, 4.0)
    lowrank.refused(PolicyError, r"captures \d+% of public text; the limit is 90%")


def test_what_begins_every_document_cannot_take_it_over(target: Target) -> None:
    """The separator says nothing in an honest table; here it speaks for the owner, alone."""
    _table(target, 0.0)
    _table(target, 4.0, tokens=0)
    target.refused(PolicyError, r"captures \d+% of public text; the limit is 90%")


def test_a_table_that_takes_more_than_half_is_flagged(target: Target) -> None:
    _table(target, 0.0)
    _table(target, 0.3, tokens=COMMON)
    with target.verify() as bundle:
        (flag,) = bundle.flags
    assert re.fullmatch(r"captures \d\d% of public text", flag), flag


def test_an_honest_table_has_no_flag(target: Target) -> None:
    with target.verify() as bundle:
        assert bundle.flags == ()


def test_a_table_that_says_nothing_is_not_refused(target: Target) -> None:
    _table(target, 0.0)
    with target.verify() as bundle:
        assert bundle.flags == ()
