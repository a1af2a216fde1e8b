"""Low-rank factors, harmless each, whose product is not."""

from __future__ import annotations

from typing import Any

import numpy as np
from tests.attacks.hostile import Target

from moiety.errors import PolicyError

INTO, OUT = "layers.0.mlp.up_proj.delta_in", "layers.0.mlp.up_proj.delta_out"


def test_a_giant_product_is_refused(lowrank: Target) -> None:
    def grow(arrays: dict[str, Any]) -> None:
        arrays[INTO] *= np.float32(40.0)
        arrays[OUT] *= np.float32(40.0)

    lowrank.change_arrays(grow)
    lowrank.refused(PolicyError, "a delta of norm")


def test_a_giant_factor_is_refused_however_small_the_product(lowrank: Target) -> None:
    def tilt(arrays: dict[str, Any]) -> None:
        arrays[INTO] *= np.float32(1e8)
        arrays[OUT] *= np.float32(1e-8)

    lowrank.change_arrays(tilt)
    lowrank.refused(PolicyError, "a factor of norm")


def test_no_delta_at_all_passes(lowrank: Target) -> None:
    lowrank.change_arrays(lambda arrays: arrays.update({OUT: np.zeros_like(arrays[OUT])}))
    lowrank.verify().close()
