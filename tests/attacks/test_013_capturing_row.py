"""A router row that takes public text away from the anchor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.attacks.hostile import Target

from moiety.errors import PolicyError


def _capture(target: Target, kind: str, strength: float, layers: tuple[int, ...] = (0, 1)) -> None:
    def lean(arrays: dict[str, Any]) -> None:
        for layer in layers:
            name = f"layers.{layer}.router.{kind}"
            arrays[name] = np.zeros_like(arrays[name])
            arrays[name][0] = strength  # the probe's first coordinate is positive everywhere

    target.change_arrays(lean)


@pytest.mark.parametrize("kind", ["context", "token"])
def test_a_row_that_takes_nearly_everything_is_refused(target: Target, kind: str) -> None:
    _capture(target, kind, 3.0)
    target.refused(PolicyError, f"its {kind} rows capture")


@pytest.mark.parametrize("kind", ["context", "token"])
def test_a_row_that_takes_more_than_half_is_flagged(target: Target, kind: str) -> None:
    _capture(target, kind, 0.2)
    with target.verify() as bundle:
        assert len(bundle.flags) == 1
        assert "% of public text" in bundle.flags[0]
        assert kind in bundle.flags[0]


def test_a_bias_that_takes_nearly_everything_is_refused(target: Target) -> None:
    def lean(arrays: dict[str, Any]) -> None:
        for layer in (0, 1):
            arrays[f"layers.{layer}.router.context"][-1] = 9.0

    target.change_arrays(lean)
    target.refused(PolicyError, "its context rows capture")


def test_one_greedy_layer_is_flagged_even_if_the_mean_is_low(target: Target) -> None:
    _capture(target, "token", 0.75, layers=(1,))
    with target.verify() as bundle:
        assert len(bundle.flags) == 1
        assert "the token row of layer 1" in bundle.flags[0]


def test_an_honest_row_has_no_flag(target: Target) -> None:
    with target.verify() as bundle:
        assert bundle.flags == ()
