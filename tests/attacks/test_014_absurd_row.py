"""A router row so long that one unusual token gives it everything."""

from __future__ import annotations

import pytest
from tests.attacks.hostile import Target

from moiety.errors import PolicyError


@pytest.mark.parametrize("kind", ["context", "token"])
@pytest.mark.parametrize("strength", [-1e5, 1e15])
def test_a_row_of_absurd_norm_is_refused(target: Target, kind: str, strength: float) -> None:
    name = f"layers.0.router.{kind}"
    target.change_arrays(lambda arrays: arrays[name].__setitem__(0, strength))
    target.refused(PolicyError, "a router row of norm")


@pytest.mark.parametrize("bias", [-1e5, 1e15])
def test_an_absurd_bias_is_refused(target: Target, bias: float) -> None:
    name = "layers.0.router.context"
    target.change_arrays(lambda arrays: arrays[name].__setitem__(-1, bias))
    target.refused(PolicyError, "a router row of norm")
