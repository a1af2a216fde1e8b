"""A weight that is not a number poisons every answer."""

from __future__ import annotations

import numpy as np
import pytest
from tests.attacks.hostile import Target

from moiety.errors import PolicyError


@pytest.mark.parametrize("value", [np.nan, -np.nan])
@pytest.mark.parametrize("name", ["layers.0.mlp.up_proj.weight", "router.evidence"])
@pytest.mark.parametrize("place", [0, -1])
def test_it_is_refused_with_and_without_an_anchor(
    target: Target, name: str, place: int, value: float
) -> None:
    target.change_arrays(lambda arrays: arrays[name].reshape(-1).__setitem__(place, value))
    target.refused(PolicyError, "NaN, infinite or absurdly large")
    target.refused(PolicyError, "NaN, infinite or absurdly large", anchor=None)


def test_it_is_refused_in_a_factor(lowrank: Target) -> None:
    name = "layers.1.mlp.down_proj.delta_in"
    lowrank.change_arrays(lambda arrays: arrays[name].reshape(-1).__setitem__(3, np.nan))
    lowrank.refused(PolicyError, "NaN, infinite or absurdly large")
