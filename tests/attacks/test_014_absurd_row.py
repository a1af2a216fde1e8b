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
