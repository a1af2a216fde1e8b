"""An entry of a table so large that one unusual token gives the owner everything."""

from __future__ import annotations

import numpy as np
import pytest
from tests.attacks.hostile import Target

from moiety.errors import PolicyError


@pytest.mark.parametrize("entry", [np.nextafter(np.float32(4), np.float32(5)), -4.5, 1e5, -1e15])
@pytest.mark.parametrize("token", [0, 7, 31])
def test_one_entry_beyond_the_limit_is_refused(target: Target, token: int, entry: float) -> None:
    target.change_arrays(lambda arrays: arrays["router.evidence"].__setitem__(token, entry))
    target.refused(PolicyError, "a token that says .* nats; the limit is 4")


def test_an_entry_at_the_limit_is_accepted(target: Target) -> None:
    """Tokens that public text hardly holds may say as much as there is to say."""
    target.change_arrays(lambda arrays: arrays["router.evidence"].__setitem__([30, 31], [4, -4]))
    target.verify().close()
