"""A matrix so large or so small that its expert drowns or silences a layer."""

from __future__ import annotations

import numpy as np
import pytest
from tests.attacks.hostile import Target

from moiety.errors import PolicyError

NAME = "layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("factor", [1000.0, 8.5, 0.1, 0.0])
def test_a_norm_far_from_the_anchors_is_refused(target: Target, factor: float) -> None:
    target.change_arrays(lambda arrays: arrays.update({NAME: arrays[NAME] * np.float32(factor)}))
    target.refused(PolicyError, "outside 1/8 to 8")


@pytest.mark.parametrize("factor", [6.0, 0.2])
def test_a_norm_within_the_limit_passes(target: Target, factor: float) -> None:
    target.change_arrays(lambda arrays: arrays.update({NAME: arrays[NAME] * np.float32(factor)}))
    target.verify().close()
